#include "firsttouch/tools/firsttouchd/config.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/tools/firsttouchd/firsttouchd.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::firsttouchd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string g_example;

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() {
    std::string folder = "/tmp/config-test-XXXXXX";
    folder_ = mkdtemp(folder.data());
    path_ = folder_ + "/config";
  }
  ~ConfigTest() override { std::filesystem::remove_all(folder_); }

  absl::Status Read(const std::string& text, Config* config) {
    std::ofstream(path_) << text;
    return ReadConfig(path_, config);
  }
  absl::StatusOr<Plan> PlanOfText(const std::string& text) {
    Config config;
    if (absl::Status read = Read(text, &config); !read.ok()) return read;
    return PlanOf(config);
  }
  std::string Wrong(const std::string& text) {
    return std::string(PlanOfText(text).status().message());
  }

  std::string folder_;
  std::string path_;
};

TEST_F(ConfigTest, ASocketHasTheGeneralPolicyAndWhatItSaysItself) {
  absl::StatusOr<Plan> plan = PlanOfText(R"(
    image { name: "a" file: "a.ftimg" }
    image { name: "b" store: "s" name_in_store: "x" touches: "t" }
    policy { on_loss: "kill" retry_for: "5s" read_ahead: "256KiB" }
    listen { path: "/run/1" image: "b" user_id: 7 user_id: 8 }
    listen {
      systemd_name: "two"
      image: "a"
      policy { on_loss: "poison" background: "1MiB" kill_refused: true }
    }
    max_guests: 9
    max_total_bytes: "1GiB"
    threads: 3
  )");
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_THAT(plan->images, SizeIs(2));
  EXPECT_EQ(plan->images[0].touches(), "a.ftimg.touches");
  EXPECT_EQ(plan->images[1].touches(), "t");
  ASSERT_THAT(plan->sockets, SizeIs(2));
  const SocketPlan& one = plan->sockets[0];
  EXPECT_EQ(one.path, "/run/1");
  EXPECT_EQ(one.image, 1u);
  EXPECT_THAT(one.users, ElementsAre(7, 8));
  EXPECT_EQ(one.guest.on_loss, OnLoss::kKill);
  EXPECT_EQ(one.guest.retry_for, std::chrono::seconds(5));
  EXPECT_EQ(one.guest.most_read_ahead_bytes, uint64_t{256} << 10);
  EXPECT_TRUE(one.guest.serve_forks);
  EXPECT_FALSE(one.kill_refused);
  const SocketPlan& two = plan->sockets[1];
  EXPECT_EQ(two.systemd_name, "two");
  EXPECT_EQ(two.image, 0u);
  EXPECT_THAT(two.users, IsEmpty());
  EXPECT_EQ(two.guest.on_loss, OnLoss::kPoison);
  EXPECT_EQ(two.guest.retry_for, std::chrono::seconds(5));
  EXPECT_EQ(two.guest.background_bytes_per_second, uint64_t{1} << 20);
  EXPECT_TRUE(two.kill_refused);
  EXPECT_EQ(plan->server.max_guests, 9u);
  EXPECT_EQ(plan->server.max_total_bytes, uint64_t{1} << 30);
  EXPECT_EQ(plan->server.threads, 3u);
  EXPECT_EQ(plan->server.at_end, ServerOptions::AtEnd::kPoison);
}

TEST_F(ConfigTest, TheCommandLineGoesBeforeTheFile) {
  Config config;
  ASSERT_TRUE(Read(R"(
    image { file: "a.ftimg" }
    listen { path: "/run/1" }
    listen { path: "/run/2" }
    policy { on_loss: "kill" retry_for: "5s" }
    threads: 3
  )",
                   &config)
                  .ok());
  Config over;
  over.add_listen()->set_path("/run/3");
  over.mutable_policy()->set_retry_for("7s");
  over.set_threads(4);
  Overlay(over, &config);
  absl::StatusOr<Plan> plan = PlanOf(config);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_THAT(plan->sockets, SizeIs(1));
  EXPECT_EQ(plan->sockets[0].path, "/run/3");
  EXPECT_EQ(plan->sockets[0].guest.on_loss, OnLoss::kKill);
  EXPECT_EQ(plan->sockets[0].guest.retry_for, std::chrono::seconds(7));
  EXPECT_EQ(plan->server.threads, 4u);
  EXPECT_EQ(plan->images[0].file(), "a.ftimg");
}

TEST_F(ConfigTest, WithAStateGuestsOutliveTheServerAndForksDoNot) {
  absl::StatusOr<Plan> plan =
      PlanOfText("image { file: 'a' } state: '/run/x' listen { path: 's' }");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->server.at_end, ServerOptions::AtEnd::kLeave);
  EXPECT_FALSE(plan->sockets[0].guest.serve_forks);
  EXPECT_THAT(Wrong("image { file: 'a' } state: '/run/x' listen { path: 's' "
                    "policy { refuse_forks: false } }"),
              HasSubstr("with a state, forked children are not served"));
  plan = PlanOfText("image { file: 'a' } state: '/run/x' at_end: 'poison'");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->server.at_end, ServerOptions::AtEnd::kPoison);
}

TEST_F(ConfigTest, ErrorsSayWhereAndWhat) {
  Config config;
  EXPECT_TRUE(absl::IsNotFound(ReadConfig(folder_ + "/none", &config)));
  EXPECT_EQ(Wrong("image { file: 'a' }\n\nlistens { }\n"),
            path_ +
                ":3:9: Message type \"firsttouch.firsttouchd.Config\" has "
                "no field named \"listens\". Did you mean \"listen\"?");
  EXPECT_THAT(Wrong("image {\n  file: 4\n}\n"), HasSubstr(path_ + ":2:9: "));
  EXPECT_THAT(Wrong(""), HasSubstr("there is no image: say either --image"));
  EXPECT_THAT(Wrong("image { name: 'a' }"), HasSubstr("image \"a\": say"));
  EXPECT_THAT(Wrong("image { file: 'a' store: 's' }"), HasSubstr("say either"));
  EXPECT_THAT(Wrong("image { file: 'a' } image { file: 'b' }"),
              HasSubstr("two images have the name \"\""));
  EXPECT_THAT(
      Wrong("image { name: 'x' file: 'a' } listen { path: 's' image: 'y' }"),
      HasSubstr("listen \"s\": image \"y\" is none of the 1 images' names"));
  EXPECT_THAT(Wrong("image { file: 'a' } listen { image: '' }"),
              HasSubstr("say either its path or its systemd_name"));
  EXPECT_THAT(Wrong("image { file: 'a' } policy { on_loss: 'zero' }"),
              HasSubstr("on_loss \"zero\" is none of poison, kill"));
  EXPECT_THAT(Wrong("image { file: 'a' } policy { retry_for: '5' }"),
              HasSubstr("retry_for \"5\" is no duration, such as 5s"));
  EXPECT_THAT(Wrong("image { file: 'a' } policy { read_ahead: '5KiB' }"),
              HasSubstr("read_ahead is 5120 bytes; it must be a power of two"));
  EXPECT_THAT(Wrong("image { file: 'a' } at_end: 'zero'"),
              HasSubstr("at_end \"zero\" is none of poison, leave"));
  EXPECT_THAT(Wrong("image { file: 'a' } max_guest_bytes: 'many'"),
              HasSubstr("max_guest_bytes"));
  EXPECT_THAT(Wrong("image { file: 'a' } keep_descriptors: true"),
              HasSubstr("keep_descriptors needs a state"));
}

TEST_F(ConfigTest, TheExampleIsRight) {
  Config config;
  const absl::Status read = ReadConfig(g_example, &config);
  ASSERT_TRUE(read.ok()) << read;
  absl::StatusOr<Plan> plan = PlanOf(config);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_THAT(plan->sockets, SizeIs(1));
  EXPECT_EQ(plan->sockets[0].guest.on_loss, OnLoss::kKill);
}

}  // namespace
}  // namespace firsttouch::firsttouchd

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (argc != 2) return 2;
  firsttouch::firsttouchd::g_example = argv[1];
  return RUN_ALL_TESTS();
}
