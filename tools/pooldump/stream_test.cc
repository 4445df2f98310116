#include "firsttouch/tools/pooldump/stream.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
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

LocateReport::Found FoundAt(uint64_t address, uint64_t line) {
  LocateReport::Found found;
  found.set_line(line);
  found.set_text("pool \"a\", slot 0");
  found.mutable_location()->set_address(address);
  found.mutable_location()->set_place(Location::MEMORY);
  return found;
}

// What LocateStream prints of `lines`, of which every third has an address.
std::string Located(int lines, Format format, size_t* largest) {
  auto stream = LocateStream::Open(format, "process 7 \"log\": \"");
  EXPECT_TRUE(stream.ok()) << stream.status();
  std::string text;
  const auto sink = [&](const std::string& piece) -> std::string {
    *largest = std::max(*largest, piece.size());
    text += piece;
    return "";
  };
  for (int i = 0; i < lines; ++i) {
    std::vector<LocateReport::Found> found;
    if (i % 3 == 0) {
      found.push_back(
          FoundAt(uint64_t{0x7f0000000000} + static_cast<uint64_t>(i),
                  static_cast<uint64_t>(i) + 1));
    }
    std::string out;
    EXPECT_EQ(stream->Add("line \"\\ <\u00e9>", found, &out), absl::OkStatus());
    // As where the text comes in pieces.
    if (i % 100 == 99) {
      EXPECT_EQ(stream->Print(&out), absl::OkStatus());
    }
    sink(out);
  }
  std::string wrong;
  EXPECT_EQ(stream->Finish(sink, &wrong), absl::OkStatus());
  EXPECT_EQ(wrong, "");
  return text;
}

TEST(LocateStream, PrintsWhatTheWholeReportWouldBe) {
  for (const int lines : {0, 1, 7, 200, 2000}) {
    Report whole;
    LocateReport& locate = *whole.mutable_locate();
    locate.set_source("process 7 \"log\": \"");
    for (int i = 0; i < lines; ++i) {
      if (i % 3 == 0) {
        *locate.add_found() =
            FoundAt(uint64_t{0x7f0000000000} + static_cast<uint64_t>(i),
                    static_cast<uint64_t>(i) + 1);
      }
      locate.set_log(locate.log() + "line \"\\ <\u00e9>\n");
    }
    size_t largest = 0;
    for (const Format format : {JSON, TEXTPROTO}) {
      Options options;
      options.set_format(format);
      EXPECT_EQ(Located(lines, format, &largest),
                *PrintReport(whole, options, {}))
          << Format_Name(format);
    }
    Report parsed;
    ASSERT_TRUE(parsed.ParseFromString(Located(lines, PROTO, &largest)));
    EXPECT_EQ(parsed.SerializeAsString(), whole.SerializeAsString());
  }
}

TEST(LocateStream, NothingWaitsOnceItIsAskedFor) {
  for (const Format format : {JSON, TEXTPROTO, PROTO}) {
    auto stream = LocateStream::Open(format, "a");
    ASSERT_TRUE(stream.ok());
    std::string out;
    EXPECT_EQ(stream->Add("line", {FoundAt(139637976727552, 1)}, &out),
              absl::OkStatus());
    EXPECT_EQ(stream->Print(&out), absl::OkStatus());
    EXPECT_THAT(out, HasSubstr("pool")) << Format_Name(format);
    const size_t before = out.size();
    EXPECT_EQ(stream->Print(&out), absl::OkStatus());
    EXPECT_EQ(out.size(), before) << Format_Name(format);
  }
}

TEST(LocateStream, KeepsAPieceAtATime) {
  for (const Format format : {JSON, TEXTPROTO, PROTO}) {
    size_t largest = 0;
    const std::string text = Located(30000, format, &largest);
    EXPECT_GT(text.size(), size_t{1} << 19) << Format_Name(format);
    EXPECT_LE(largest, size_t{1} << 16) << Format_Name(format);
  }
}

TEST(LocateStream, SaysWhatCannotBeWritten) {
  auto stream = LocateStream::Open(JSON, "a");
  ASSERT_TRUE(stream.ok());
  std::string out;
  EXPECT_EQ(stream->Add("line", {}, &out), absl::OkStatus());
  std::string wrong;
  EXPECT_EQ(stream->Finish([](const std::string&) { return "full"; }, &wrong),
            absl::OkStatus());
  EXPECT_EQ(wrong, "full");
}

}  // namespace
}  // namespace firsttouch::pooldump
