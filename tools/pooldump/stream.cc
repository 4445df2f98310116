#include "firsttouch/tools/pooldump/stream.h"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/json.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/print.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/wire_format_lite.h"

namespace firsttouch::pooldump {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 16;

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
  const Sink& sink_;
  std::string text_;
  std::string wrong_;
};

// Elements that protobuf's printer is given at once: a call costs as much as
// tens of them.
constexpr int kTogether = 64;

Report WithoutRanges(const LayoutReport& report) {
  Report whole;
  *whole.mutable_layout() = report;
  whole.mutable_layout()->clear_ranges();
  return whole;
}

// Where the first `mark` of a report as JSON ends. Marks have quotation marks,
// which are escaped in strings: so it is in none.
absl::StatusOr<size_t> EndOf(const std::string& mark, const std::string& json) {
  const size_t at = json.find(mark);
  if (at != std::string::npos) return at + mark.size();
  return absl::InternalError(absl::StrCat("the report as JSON has no ", mark));
}

// The elements of the one field of `full` that has some, as JSON has them in
// it: from the line feed in front of the first to the end of the last. `front`
// and `behind` are the bytes around them where there are none.
absl::StatusOr<std::string> ElementsAsJson(const Report& full, size_t front,
                                           size_t behind) {
  const absl::StatusOr<std::string> json = cli::AsJson(full);
  if (!json.ok()) return json.status();
  // The bracket behind the last has a line of its own.
  const size_t end = json->size() - behind - std::string("\n  ").size();
  return json->substr(front, end - front);
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
    shape.Measure(cli::CellsOf(columns, range));
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
    return out.Add(shape.Row(cli::CellsOf(columns, range)));
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
  const absl::StatusOr<size_t> at = EndOf("\"ranges\": [", *json);
  if (!at.ok()) return absl::StrCat(at.status().message());
  // With other fields left out, which would be printed each time.
  Report together;
  together.mutable_layout();
  const absl::StatusOr<std::string> empty = cli::AsJson(together);
  if (!empty.ok()) return absl::StrCat(empty.status().message());
  const absl::StatusOr<size_t> front = EndOf("\"ranges\": [", *empty);
  if (!front.ok()) return absl::StrCat(front.status().message());
  out.Add(json->substr(0, *at));
  bool first = true;
  std::string wrong;
  const auto print = [&] {
    auto& batch = *together.mutable_layout()->mutable_ranges();
    if (batch.empty()) return true;
    const absl::StatusOr<std::string> some =
        ElementsAsJson(together, *front, empty->size() - *front);
    batch.Clear();
    if (!some.ok()) {
      wrong = absl::StrCat(some.status().message());
      return false;
    }
    return out.Add(absl::StrCat(std::exchange(first, false) ? "" : ",", *some));
  };
  ranges([&](const LayoutReport::Range& range) {
    *together.mutable_layout()->add_ranges() = range;
    return together.layout().ranges_size() < kTogether || print();
  });
  if (wrong.empty()) print();
  out.Add(absl::StrCat(first ? "" : "\n  ", json->substr(*at)));
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

absl::StatusOr<LocateStream> LocateStream::Open(Format format,
                                                const std::string& source) {
  std::unique_ptr<std::FILE, CloseFile> file(std::tmpfile());
  if (file == nullptr) {
    return absl::ErrnoToStatus(errno, "a temporary file in " P_tmpdir);
  }
  LocateStream stream(format, std::move(file));
  if (absl::Status begun = stream.Begin(source); !begun.ok()) return begun;
  return stream;
}

absl::Status LocateStream::Begin(const std::string& source) {
  Report report;
  report.mutable_locate()->set_source(source);
  switch (format_) {
    case JSON: {
      const absl::StatusOr<std::string> json = cli::AsJson(report);
      if (!json.ok()) return json.status();
      const absl::StatusOr<size_t> found = EndOf("\"found\": [", *json);
      const absl::StatusOr<size_t> log = EndOf("\"log\": \"", *json);
      if (!found.ok()) return found.status();
      if (!log.ok()) return log.status();
      head_ = json->substr(0, *found);
      middle_ = json->substr(*found, *log - *found);
      tail_ = json->substr(*log);
      head_bytes_ = head_.size();
      together_ = std::move(report);
      together_.mutable_locate();
      return absl::OkStatus();
    }
    case TEXTPROTO: {
      std::string text;
      google::protobuf::TextFormat::PrintToString(report, &text);
      const size_t end = text.rfind('}');
      head_ = text.substr(0, end);
      middle_ = "  log: \"";
      tail_ = "\"\n" + text.substr(end);
      return absl::OkStatus();
    }
    default:
      head_ = report.SerializeAsString();
      return absl::OkStatus();
  }
}

absl::Status LocateStream::AddFound(const LocateReport::Found& found,
                                    std::string* out) {
  switch (format_) {
    case JSON:
      *together_.mutable_locate()->add_found() = found;
      return together_.locate().found_size() < kTogether ? absl::OkStatus()
                                                         : Print(out);
    case TEXTPROTO: {
      std::string one;
      google::protobuf::TextFormat::PrintToString(found, &one);
      while (!one.empty() && one.back() == '\n') one.pop_back();
      absl::StrAppend(out, "  found {\n    ",
                      absl::StrReplaceAll(one, {{"\n", "\n    "}}), "\n  }\n");
      break;
    }
    default: {
      // Messages that are written one behind the other are merged.
      Report report;
      *report.mutable_locate()->add_found() = found;
      *out += report.SerializeAsString();
      break;
    }
  }
  any_found_ = true;
  return absl::OkStatus();
}

absl::Status LocateStream::Add(const std::string& line,
                               const std::vector<LocateReport::Found>& found,
                               std::string* out) {
  *out += std::exchange(head_, "");
  for (const LocateReport::Found& one : found) {
    if (absl::Status added = AddFound(one, out); !added.ok()) return added;
  }
  absl::StrAppend(&lines_, line, "\n");
  return lines_.size() < kPieceBytes ? absl::OkStatus() : Spool();
}

absl::Status LocateStream::Print(std::string* out) {
  auto& found = *together_.mutable_locate()->mutable_found();
  if (found.empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> some =
      ElementsAsJson(together_, head_bytes_, middle_.size() + tail_.size());
  if (!some.ok()) return some.status();
  absl::StrAppend(out, std::exchange(any_found_, true) ? "," : "", *some);
  found.Clear();
  return absl::OkStatus();
}

absl::Status LocateStream::Spool() {
  LocateReport piece;
  piece.set_log(std::exchange(lines_, ""));
  std::string text;
  if (format_ == JSON) {
    absl::StatusOr<std::string> json = cli::AsJsonLine(piece);
    if (!json.ok()) return json.status();
    const std::string log = "\"log\":\"";
    const size_t begin = json->find(log) + log.size();
    text = json->substr(begin, json->rfind('"') - begin);
  } else if (format_ == TEXTPROTO) {
    google::protobuf::TextFormat::PrintToString(piece, &text);
    const size_t begin = text.find('"') + 1;
    text = text.substr(begin, text.rfind('"') - begin);
  } else {
    text = piece.log();
  }
  bytes_ += text.size();
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size()) {
    return absl::OkStatus();
  }
  return absl::ErrnoToStatus(errno, "a temporary file in " P_tmpdir);
}

absl::Status LocateStream::Finish(const Sink& sink, std::string* wrong) {
  const bool empty = bytes_ == 0 && lines_.empty();
  if (!lines_.empty()) {
    if (absl::Status spooled = Spool(); !spooled.ok()) return spooled;
  }
  std::string out = std::exchange(head_, "");
  if (absl::Status printed = Print(&out); !printed.ok()) return printed;
  if (format_ == JSON && any_found_) out += "\n  ";
  if (format_ == PROTO && !empty) {
    // The field `log` of a Report that has nothing else.
    if (bytes_ > size_t{1} << 30) {
      return absl::OutOfRangeError(
          absl::StrCat("the text has ", bytes_,
                       " bytes, and a message of proto at most 1 GiB: take "
                       "--format=json or csv"));
    }
    // Written when they end.
    google::protobuf::io::StringOutputStream string(&middle_);
    google::protobuf::io::CodedOutputStream coded(&string);
    using Wire = google::protobuf::internal::WireFormatLite;
    const auto text = static_cast<uint32_t>(bytes_);
    const uint32_t text_tag = Wire::MakeTag(LocateReport::kLogFieldNumber,
                                            Wire::WIRETYPE_LENGTH_DELIMITED);
    coded.WriteTag(Wire::MakeTag(Report::kLocateFieldNumber,
                                 Wire::WIRETYPE_LENGTH_DELIMITED));
    coded.WriteVarint32(static_cast<uint32_t>(
        google::protobuf::io::CodedOutputStream::VarintSize32(text_tag) +
        google::protobuf::io::CodedOutputStream::VarintSize32(text) + bytes_));
    coded.WriteTag(text_tag);
    coded.WriteVarint32(text);
  }
  if (format_ == TEXTPROTO && empty) {
    // A field that is empty is not printed.
    middle_.clear();
    tail_ = "}\n";
  }
  out += middle_;
  *wrong = sink(out);
  std::rewind(file_.get());
  out.resize(kPieceBytes);
  while (wrong->empty()) {
    const size_t got = std::fread(out.data(), 1, kPieceBytes, file_.get());
    if (got == 0) break;
    *wrong = sink(out.substr(0, got));
  }
  if (std::ferror(file_.get()) != 0) {
    return absl::ErrnoToStatus(errno, "a temporary file in " P_tmpdir);
  }
  if (wrong->empty()) *wrong = sink(tail_);
  return absl::OkStatus();
}

}  // namespace firsttouch::pooldump
