// Fills the memory of other processes (microVMs above all) from an image. See
// README.md beside this file.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/firsttouchd/config.h"
#include "firsttouch/tools/firsttouchd/daemon.h"
#include "firsttouch/tools/firsttouchd/firsttouchd.pb.h"

namespace firsttouch::firsttouchd {
namespace {

constexpr char kName[] = "firsttouchd";

// What is asked for cannot be done: an image that cannot be opened, a socket
// that cannot be listened at.
constexpr int kExitFailed = 2;

struct Words {
  std::string config;
  std::vector<std::string> listen;
  std::string image;
  std::vector<std::string> parents;
  std::string store;
  std::string name;
  std::string touches;
  std::string state;
  std::string metrics;
  std::string on_loss;
  std::string retry_for;
  std::string at_end;
  std::string user;
  std::optional<uint64_t> read_ahead_kib;
  std::optional<uint64_t> background_mib;
  std::optional<uint32_t> threads;
  std::optional<uint32_t> max_guests;
  bool record = false;
  bool kill_refused = false;
  bool refuse_forks = false;
  bool keep_descriptors = false;
  bool replace = false;
};

std::unique_ptr<CLI::App> MakeCommandLine(Words& words) {
  std::unique_ptr<CLI::App> app = cli::MakeApp(
      {.name = kName,
       .version = "0.1.0",
       .description =
           "Fills the memory of other processes from an image, as they touch "
           "it: of microVMs that are restored from a snapshot, and of whoever "
           "speaks Firecracker's userfaultfd protocol.",
       .examples =
           "  firsttouchd --listen /run/vm/pages.sock --image base.ftimg\n"
           "  firsttouchd --listen /run/vm/pages.sock --store images "
           "--name base\n"
           "  firsttouchd --config /etc/firsttouchd.textproto --replace\n",
       .exit_codes = {{0, "ended by SIGTERM or SIGINT, or replaced"},
                      {kExitFailed,
                       "the image cannot be opened, the socket not be listened "
                       "at, or the state not be used"}},
       .manual = {{"SYSTEMD",
                   "Sockets of socket activation (LISTEN_FDS) are listened at "
                   "in addition. Readiness is told to NOTIFY_SOCKET "
                   "(Type=notify)."}},
       .environment = {{"LISTEN_FDS",
                        "Descriptors, with LISTEN_PID and LISTEN_FDNAMES."},
                       {"NOTIFY_SOCKET", "Who is told of readiness."},
                       {"WATCHDOG_USEC", "How often, with WATCHDOG_PID."}},
       .single = true});
  app->add_option("--config", words.config,
                  "A file that says all of this, and more than one image and "
                  "policy, in protobuf's text format; the command line goes "
                  "before it")
      ->type_name("FILE");
  app->add_option("--listen", words.listen, "A Unix socket to listen at")
      ->type_name("FILE");
  app->add_option("--image", words.image, "The image file that is served")
      ->type_name("FILE");
  app->add_option("--parent", words.parents,
                  "A file that the image, a delta, may need")
      ->type_name("FILE");
  app->add_option("--store", words.store,
                  "The folder of an image store, instead of --image")
      ->type_name("DIRECTORY");
  app->add_option("--name", words.name, "The image's name in the store")
      ->type_name("NAME");
  app->add_option("--touches", words.touches,
                  "Where the order of touches is kept (IMAGE.touches)")
      ->type_name("FILE");
  app->add_option("--state", words.state,
                  "A folder on a tmpfs, in which guests are kept track of, so "
                  "that the next firsttouchd goes on with them")
      ->type_name("DIRECTORY");
  app->add_flag("--replace", words.replace,
                "Take over from the firsttouchd that uses the state, if there "
                "is one");
  app->add_flag("--keep-descriptors", words.keep_descriptors,
                "Have systemd keep the guests' userfaultfds "
                "(FileDescriptorStoreMax=)");
  app->add_option("--metrics", words.metrics,
                  "A Unix socket at which numbers are told, as OpenMetrics "
                  "text over HTTP")
      ->type_name("FILE");
  app->add_option("--on-loss", words.on_loss,
                  "What becomes of a guest that touches a page which cannot be "
                  "had: a SIGBUS, or SIGKILL")
      ->check(CLI::IsMember({"poison", "kill"}));
  app->add_option("--retry-for", words.retry_for,
                  "How long such a page is tried again before that")
      ->type_name("DURATION");
  app->add_option("--at-end", words.at_end,
                  "What becomes of missing pages of guests when this program "
                  "ends: a SIGBUS at a touch, or waiting for another server")
      ->check(CLI::IsMember({"poison", "leave"}));
  app->add_option("--user", words.user,
                  "The user to become once image and sockets are open")
      ->type_name("USER");
  app->add_option("--read-ahead-kib", words.read_ahead_kib,
                  "What one fault fills at most, where pages are touched in a "
                  "row")
      ->check(CLI::Range(4, 2048));
  app->add_option("--background-mib", words.background_mib,
                  "MiB a second of the rest of the image that are placed while "
                  "nobody waits")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--threads", words.threads, "Threads that serve guests")
      ->check(CLI::Range(1, 256));
  app->add_option("--max-guests", words.max_guests, "Guests at a time")
      ->check(CLI::Range(1, 1 << 20));
  app->add_flag("--record", words.record,
                "Note which pages guests touch, and keep them with the image "
                "when a guest ends");
  app->add_flag("--kill-refused", words.kill_refused,
                "Kill clients whose memory is refused: Firecracker would wait "
                "for ever");
  app->add_flag("--refuse-forks", words.refuse_forks,
                "Children that a guest forks are not served");
  return app;
}

// What the command line says, as a configuration.
Config ConfigOf(const Words& words) {
  Config config;
  if (!words.image.empty() || !words.store.empty() || !words.name.empty()) {
    Image* const image = config.add_image();
    image->set_file(words.image);
    image->mutable_parent()->Assign(words.parents.begin(), words.parents.end());
    image->set_store(words.store);
    image->set_name_in_store(words.name);
    image->set_touches(words.touches);
  }
  for (const std::string& path : words.listen) {
    config.add_listen()->set_path(path);
  }
  Policy* const policy = config.mutable_policy();
  if (!words.on_loss.empty()) policy->set_on_loss(words.on_loss);
  if (!words.retry_for.empty()) policy->set_retry_for(words.retry_for);
  if (words.read_ahead_kib.has_value()) {
    policy->set_read_ahead(absl::StrCat(*words.read_ahead_kib, "KiB"));
  }
  if (words.background_mib.has_value()) {
    policy->set_background(absl::StrCat(*words.background_mib, "MiB"));
  }
  if (words.kill_refused) policy->set_kill_refused(true);
  if (words.refuse_forks) policy->set_refuse_forks(true);
  if (!words.state.empty()) config.set_state(words.state);
  if (!words.metrics.empty()) config.set_metrics(words.metrics);
  if (!words.at_end.empty()) config.set_at_end(words.at_end);
  if (!words.user.empty()) config.set_user(words.user);
  if (words.threads.has_value()) config.set_threads(*words.threads);
  if (words.max_guests.has_value()) config.set_max_guests(*words.max_guests);
  if (words.record) config.set_record(true);
  if (words.keep_descriptors) config.set_keep_descriptors(true);
  return config;
}

int Main(const std::vector<std::string>& arguments) {
  Words words;
  const std::unique_ptr<CLI::App> app = MakeCommandLine(words);
  if (const std::optional<cli::Ending> ending = cli::Parse(*app, arguments)) {
    return cli::End(kName, *ending);
  }
  const auto usage = [](const absl::Status& wrong) {
    return cli::End(kName, {.exit_code = cli::kExitUsage,
                            .error = absl::StrCat(wrong.message(),
                                                  "; firsttouchd --help tells "
                                                  "more")});
  };
  Config config;
  if (!words.config.empty()) {
    if (const absl::Status read = ReadConfig(words.config, &config);
        !read.ok()) {
      return usage(read);
    }
  }
  Overlay(ConfigOf(words), &config);
  absl::StatusOr<Plan> plan = PlanOf(config);
  if (!plan.ok()) return usage(plan.status());
  if (words.replace && plan->state.empty()) {
    return usage(absl::InvalidArgumentError(
        "--replace needs --state: that is where the other one is found"));
  }
  if (const absl::Status served = Daemon(*std::move(plan)).Run(words.replace);
      !served.ok()) {
    return cli::End(kName, {.exit_code = kExitFailed,
                            .error = absl::StrCat(served.message())});
  }
  return 0;
}

}  // namespace
}  // namespace firsttouch::firsttouchd

int main(int argc, char** argv) {
  return firsttouch::firsttouchd::Main(
      std::vector<std::string>(argv + 1, argv + argc));
}
