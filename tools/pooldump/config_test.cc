#include "firsttouch/tools/pooldump/config.h"

#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string ErrorOf(const std::string& text) {
  absl::StatusOr<PlacedConfig> config = ParsePoolConfig("pool.textproto", text);
  if (!config.ok()) return std::string(config.status().message());
  absl::StatusOr<PoolLayout> layout = LayoutOf(*config);
  return layout.ok() ? "" : std::string(layout.status().message());
}

TEST(PoolConfig, BecomesALayout) {
  const absl::StatusOr<PlacedConfig> config = ParsePoolConfig(
      "f",
      "name: \"tenants\"\ninstances: 3\nmemories_per_instance: 2\n"
      "max_memory_bytes: \"1MiB\"\nguard_before_bytes: \"64KiB\"\n"
      "guard_after_bytes: \"128KiB\"\ngranule_bytes: \"8KiB\"\n");
  ASSERT_TRUE(config.ok()) << config.status();
  const absl::StatusOr<PoolLayout> layout = LayoutOf(*config);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->options(), (LayoutOptions{.instances = 3,
                                              .memories_per_instance = 2,
                                              .max_memory_bytes = 1 << 20,
                                              .guard_before_bytes = 65536,
                                              .guard_after_bytes = 131072,
                                              .fault_around_bytes = 8192}));
}

TEST(PoolConfig, HasTheDefaultsOfTheLibrary) {
  const absl::StatusOr<PlacedConfig> config =
      ParsePoolConfig("f", "instances: 1 max_memory_bytes: \"1MiB\"");
  ASSERT_TRUE(config.ok()) << config.status();
  const absl::StatusOr<PoolLayout> layout = LayoutOf(*config);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->options(),
            (LayoutOptions{.instances = 1, .max_memory_bytes = 1 << 20}));
}

TEST(PoolConfig, SaysLineAndColumnOfWhatIsWrong) {
  EXPECT_EQ(ErrorOf("instances: 1\n  instancez: 2\n").substr(0, 20),
            "pool.textproto:2:12:");
  EXPECT_THAT(ErrorOf("instances: 1\n  instancez: 2\n"),
              HasSubstr("no field named \"instancez\". Did you mean "
                        "\"instances\"?"));
  EXPECT_THAT(ErrorOf("zebra: 1"), HasSubstr("Fields are: name, instances, "));
  EXPECT_THAT(ErrorOf("max_memory_bytes: 4096"),
              HasSubstr("pool.textproto:1:19: Expected string, got: 4096 "
                        "(sizes are in quotes: \"4GiB\")"));
  EXPECT_THAT(ErrorOf("instances: \"three\""),
              StartsWith("pool.textproto:1:12: Expected integer"));
  EXPECT_THAT(ErrorOf("instances: 1\n\n max_memory_bytes: \"4Gob\""),
              StartsWith("pool.textproto:3:2: max_memory_bytes \"4Gob\" is not "
                         "a size"));
  EXPECT_THAT(ErrorOf("instances: 1\n max_memory_bytes: \"4097\""),
              StartsWith("pool.textproto:2:2: max_memory_bytes 4097 is not a "
                         "multiple of the page size 4096"));
  EXPECT_THAT(ErrorOf("supply: \"magic\" instances: 1"),
              StartsWith("pool.textproto:1:1: supply \"magic\" is none of "
                         "userfaultfd, mappings-scan, mappings-drop"));
  EXPECT_THAT(ErrorOf("instances: 1 index_bits: 65"),
              StartsWith("pool.textproto:1:14: index_bits 65 is more than 64"));
  EXPECT_THAT(ErrorOf("instances: 0 max_memory_bytes: \"4096\""),
              StartsWith("pool.textproto:1:1: instances is 0"));
  EXPECT_THAT(ErrorOf("name: \"unclosed"), StartsWith("pool.textproto:1:"));
  for (const char* text : {"}", "instances: 1 {", "\xff\xfe", "name: \"\n\""}) {
    const std::string error = ErrorOf(text);
    EXPECT_THAT(error, StartsWith("pool.textproto:1:"));
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(PoolConfig, FlagsAreNamedWhereTheyAreWrong) {
  absl::StatusOr<PlacedConfig> config = ParsePoolConfig(
      "pool.textproto", "instances: 1\nmax_memory_bytes: \"1MiB\"");
  ASSERT_TRUE(config.ok()) << config.status();
  PlacedConfig flags;
  flags.config.set_max_memory_bytes("5000");
  flags.places["max_memory_bytes"] = "--memory-bytes";
  Overlay(flags, *config);
  EXPECT_THAT(std::string(LayoutOf(*config).status().message()),
              StartsWith("--memory-bytes: max_memory_bytes 5000 is not a "
                         "multiple"));
}

TEST(PoolConfig, AFileThatIsNotThereIsNamed) {
  const absl::Status status =
      ReadPoolConfig("/nonexistent/pool.textproto").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              StartsWith("/nonexistent/pool.textproto: "));
  EXPECT_THAT(std::string(ReadPoolConfig("/").status().message()),
              StartsWith("/: "));
  EXPECT_THAT(std::string(ReadPoolConfig("/dev/zero").status().message()),
              StartsWith("/dev/zero has more than"));
}

}  // namespace
}  // namespace firsttouch::pooldump
