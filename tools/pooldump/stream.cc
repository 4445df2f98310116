#include "firsttouch/tools/pooldump/stream.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/json.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/print.h"
#include "google/protobuf/text_format.h"

namespace firsttouch::pooldump {
namespace {

// Collects what is printed, and hands it on in pieces.
class Buffer {
 public:
  explicit Buffer(const Sink& sink) : sink_(sink) {}

  // False: it was in vain.
  bool Add(const std::string& text) {
    text_ += text;
    return text_.size() < kPieceBytes || Flush();
  }
  bool Flush() {
    if (wrong_.empty() && !text_.empty()) wrong_ = sink_(text_);
    text_.clear();
    return wrong_.empty();
  }
  const std::string& wrong() const { return wrong_; }

 private:
  static constexpr size_t kPieceBytes = size_t{1} << 16;

  const Sink& sink_;
  std::string text_;
  std::string wrong_;
};

Report WithoutRanges(const LayoutReport& report) {
  Report whole;
  *whole.mutable_layout() = report;
  whole.mutable_layout()->clear_ranges();
  return whole;
}

void AsText(const LayoutReport& report, const cli::TextStyle& style,
            const Ranges& ranges, Buffer& out) {
  const auto columns = ShownRangeColumns(/*repeats=*/false, /*named=*/true);
  std::vector<std::string> titles;
  for (const auto& column : columns) {
    titles.push_back(column.title.empty() ? column.name : column.title);
  }
  cli::TableShape shape(std::move(titles), style);
  uint64_t sum = 0;
  bool named = false;
  ranges([&](const LayoutReport::Range& range) {
    named = true;
    sum += range.bytes();
    shape.Measure(CellsOf(columns, range));
    return true;
  });
  if (!named) {
    // A filter that leaves nothing.
    out.Add(LayoutHead(report, style) +
            "no slot has a name in which --filter is found\n" +
            LayoutTail(report, style));
    return;
  }
  const std::vector<cli::Value> total = RangeTotal(columns, sum);
  shape.Measure(total, /*is_total=*/true);
  out.Add(LayoutHead(report, style) + shape.Titles());
  ranges([&](const LayoutReport::Range& range) {
    return out.Add(shape.Row(CellsOf(columns, range)));
  });
  out.Add(shape.Row(total) + LayoutTail(report, style));
}

void AsCsv(const Ranges& ranges, Buffer& out) {
  out.Add(CsvTitlesOf(RangeColumns()));
  ranges([&](const LayoutReport::Range& range) {
    return out.Add(CsvLineOf(RangeColumns(), range));
  });
}

// The report as if it had no range, and these put into their place.
std::string AsJson(const LayoutReport& report, const Ranges& ranges,
                   Buffer& out) {
  const absl::StatusOr<std::string> json = cli::AsJson(WithoutRanges(report));
  if (!json.ok()) return absl::StrCat(json.status().message());
  // In no string: there, the quotation marks would be escaped.
  const std::string empty = "\"ranges\": []";
  const size_t at = json->find(empty);
  if (at == std::string::npos) return "the report as JSON has no ranges";
  out.Add(json->substr(0, at + empty.size() - 1));
  bool first = true;
  std::string wrong;
  ranges([&](const LayoutReport::Range& range) {
    absl::StatusOr<std::string> one = cli::AsJson(range);
    if (!one.ok()) {
      wrong = absl::StrCat(one.status().message());
      return false;
    }
    while (!one->empty() && one->back() == '\n') one->pop_back();
    const bool written =
        out.Add(absl::StrCat(first ? "\n   " : ",\n   ",
                             absl::StrReplaceAll(*one, {{"\n", "\n   "}})));
    first = false;
    return written;
  });
  out.Add(
      absl::StrCat(first ? "" : "\n  ", json->substr(at + empty.size() - 1)));
  return wrong;
}

std::string AsTextProto(const LayoutReport& report, const Ranges& ranges,
                        Buffer& out) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(WithoutRanges(report), &text);
  // The field behind them, which is never 0.
  const size_t at = text.find("\n  address_space_bytes:") + 1;
  if (at == 0) return "the report as text has no address space";
  out.Add(text.substr(0, at));
  ranges([&](const LayoutReport::Range& range) {
    std::string one;
    google::protobuf::TextFormat::PrintToString(range, &one);
    while (!one.empty() && one.back() == '\n') one.pop_back();
    return out.Add(absl::StrCat("  ranges {\n    ",
                                absl::StrReplaceAll(one, {{"\n", "\n    "}}),
                                "\n  }\n"));
  });
  out.Add(text.substr(at));
  return "";
}

// Messages that are written one behind the other are merged when they are read.
void AsProto(const LayoutReport& report, const Ranges& ranges, Buffer& out) {
  out.Add(WithoutRanges(report).SerializeAsString());
  ranges([&](const LayoutReport::Range& range) {
    Report one;
    *one.mutable_layout()->add_ranges() = range;
    return out.Add(one.SerializeAsString());
  });
}

}  // namespace

std::string StreamRanges(const LayoutReport& report, Format format,
                         const cli::TextStyle& style, const Ranges& ranges,
                         const Sink& sink) {
  Buffer out(sink);
  std::string wrong;
  switch (format) {
    case CSV:
      AsCsv(ranges, out);
      break;
    case JSON:
      wrong = AsJson(report, ranges, out);
      break;
    case TEXTPROTO:
      wrong = AsTextProto(report, ranges, out);
      break;
    case PROTO:
      AsProto(report, ranges, out);
      break;
    default:
      AsText(report, style, ranges, out);
      break;
  }
  out.Flush();
  return out.wrong().empty() ? wrong : out.wrong();
}

}  // namespace firsttouch::pooldump
