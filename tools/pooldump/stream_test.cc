#include "firsttouch/tools/pooldump/stream.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>

#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/print.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using ::testing::HasSubstr;

PlacedConfig ConfigOfSlots(const std::string& instances) {
  return *ParsePoolConfig(
      "test", "name: \"a\" instances: " + instances +
                  " max_memory_bytes: \"64KiB\" guard_before_bytes: \"64KiB\""
                  " guard_after_bytes: \"64KiB\"");
}

// What StreamRanges prints; `largest` (may be null) gets the size of the
// largest piece.
std::string Streamed(const PlacedConfig& config, Format format,
                     size_t* largest) {
  const Machine machine;
  const auto report =
      MakeLayoutReport(config, machine, {.all = true, .leave_out = true});
  EXPECT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->ranges_size(), 0);
  const auto layout = LayoutOf(config);
  std::string text;
  const std::string wrong = StreamRanges(
      *report, format, {},
      [&](const std::function<bool(const LayoutReport::Range&)>& visit) {
        ForEachRange(*layout, report->name(), nullptr, visit);
      },
      [&](const std::string& piece) -> std::string {
        if (largest != nullptr) *largest = std::max(*largest, piece.size());
        text += piece;
        return "";
      });
  EXPECT_EQ(wrong, "");
  return text;
}

TEST(StreamRanges, PrintsWhatTheWholeReportWouldBe) {
  const PlacedConfig config = ConfigOfSlots("3");
  Report whole;
  *whole.mutable_layout() = *MakeLayoutReport(config, Machine(), {.all = true});
  for (const Format format : {TEXT, JSON, CSV, TEXTPROTO}) {
    Options options;
    options.set_format(format);
    EXPECT_EQ(Streamed(config, format, nullptr),
              *PrintReport(whole, options, {}))
        << Format_Name(format);
  }
  Report parsed;
  ASSERT_TRUE(parsed.ParseFromString(Streamed(config, PROTO, nullptr)));
  EXPECT_EQ(parsed.SerializeAsString(), whole.SerializeAsString());
}

TEST(StreamRanges, KeepsAPieceAtATime) {
  for (const Format format : {TEXT, JSON, CSV, TEXTPROTO, PROTO}) {
    size_t largest = 0;
    const std::string text = Streamed(ConfigOfSlots("20000"), format, &largest);
    EXPECT_GT(text.size(), size_t{1} << 20) << Format_Name(format);
    EXPECT_LT(largest, size_t{1} << 17) << Format_Name(format);
  }
}

TEST(StreamRanges, EndsWhereNothingCanBeWritten) {
  const PlacedConfig config = ConfigOfSlots("20000");
  const auto report =
      MakeLayoutReport(config, Machine(), {.all = true, .leave_out = true});
  ASSERT_TRUE(report.ok());
  const auto layout = LayoutOf(config);
  int visited = 0;
  const std::string wrong = StreamRanges(
      *report, CSV, {},
      [&](const std::function<bool(const LayoutReport::Range&)>& visit) {
        ForEachRange(*layout, "a", nullptr,
                     [&](const LayoutReport::Range& range) {
                       ++visited;
                       return visit(range);
                     });
      },
      [](const std::string&) { return "standard output: full"; });
  EXPECT_EQ(wrong, "standard output: full");
  EXPECT_LT(visited, 40000);
}

TEST(StreamRanges, SaysThatAFilterLeavesNothing) {
  const PlacedConfig config = ConfigOfSlots("3");
  const auto report =
      MakeLayoutReport(config, Machine(), {.all = true, .leave_out = true});
  ASSERT_TRUE(report.ok());
  std::string text;
  StreamRanges(
      *report, TEXT, {},
      [](const std::function<bool(const LayoutReport::Range&)>&) {},
      [&](const std::string& piece) -> std::string {
        text += piece;
        return "";
      });
  EXPECT_THAT(text, HasSubstr("no slot has a name in which --filter is found"));
}

}  // namespace
}  // namespace firsttouch::pooldump
