#include "firsttouch/tools/imagetool/text.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::imagetool {
namespace {

using cli::BytesText;
using cli::PlainTable;
using cli::TextStyle;
using cli::Tint;
using cli::Tinted;
using cli::Value;

// "label    value" lines.
void Line(const TextStyle& style, const std::string& label,
          const std::string& value, std::string* out) {
  if (value.empty()) return;
  absl::StrAppend(out, Tinted(style, Tint::kHead, label),
                  std::string(label.size() < 14 ? 14 - label.size() : 1, ' '),
                  value, "\n");
}

std::string Pages(uint64_t pages) {
  return absl::StrCat(pages, pages == 1 ? " page" : " pages");
}

// "17 pages of 4 KiB": not those of WebAssembly, of 64 KiB.
std::string HostPages(uint64_t pages) {
  return absl::StrCat(Pages(pages), " of ", BytesText(kPageBytes, {}));
}

// "17 pages, 68 KiB"
std::string PagesAndBytes(uint64_t pages, const TextStyle& style) {
  return absl::StrCat(Pages(pages), ", ", BytesText(pages * kPageBytes, style));
}

// "512", or "512-767".
std::string RangeText(const PageRange& range) {
  if (range.pages() == 1) return absl::StrCat(range.first_page());
  return absl::StrCat(range.first_page(), "-",
                      range.first_page() + range.pages() - 1);
}

// The cells that a table of pages begins with.
std::vector<Value> RangeCells(const PageRange& range) {
  return {Value::Text(RangeText(range)),
          Value::Hex(range.first_page() * kPageBytes),
          Value::Bytes(range.pages() * kPageBytes)};
}

std::string MemoryText(const BuildReport::Memory& memory,
                       const TextStyle& style) {
  return absl::StrCat(
      memory.index(),
      memory.import().empty() ? ""
                              : absl::StrCat(", imported as ", memory.import()),
      ", ", Pages(memory.initial_pages()), " of ",
      BytesText(memory.page_bytes(), style),
      memory.is_64() ? ", 64-bit addresses" : "",
      memory.shared() ? ", shared" : "", ", ", memory.segments(),
      memory.segments() == 1 ? " active segment" : " active segments");
}

// Of each kind a few by name: a module may have thousands.
void LeftOutText(const BuildReport& report, const TextStyle& style,
                 std::string* out) {
  constexpr int kNamed = 4;
  for (const bool passive : {true, false}) {
    int count = 0;
    uint64_t more_bytes = 0;
    for (const BuildReport::LeftOut& segment : report.left_out()) {
      if (segment.passive() != passive) continue;
      if (++count > kNamed) {
        more_bytes += segment.bytes();
        continue;
      }
      const std::string text =
          absl::StrCat("segment ", segment.index(), ", ",
                       BytesText(segment.bytes(), style), ": ");
      Line(style, "left out",
           passive ? absl::StrCat(text, "passive, the program copies it itself")
                   : Tinted(style, Tint::kWeak,
                            absl::StrCat(text, "its offset needs ",
                                         segment.needs())),
           out);
    }
    if (count <= kNamed) continue;
    Line(style, "left out",
         absl::StrCat(count - kNamed, " more of this kind, ",
                      BytesText(more_bytes, style),
                      "; --format=json lists them"),
         out);
  }
}

}  // namespace

std::string TextOf(const ImageReport& report, const TextStyle& style) {
  std::string out;
  const uint64_t pages = report.pages();
  const bool delta = !report.parent().empty();
  Line(style, "image", report.name(), &out);
  Line(style, "file",
       absl::StrCat(report.path(), ", version ", report.version(), ", ",
                    BytesText(report.file_bytes(), style), ", ",
                    BytesText(report.disk_bytes(), style), " on disk"),
       &out);
  Line(style, "memory",
       absl::StrCat(BytesText(report.size_bytes(), style), ", ",
                    HostPages(pages)),
       &out);
  Line(style, "stored",
       absl::StrCat(
           PagesAndBytes(report.stored_pages(), style), " (",
           absl::StrFormat(
               "%.1f",
               pages == 0 ? 0.0
                          : 100.0 * static_cast<double>(report.stored_pages()) /
                                static_cast<double>(pages)),
           " %), ", report.extents(),
           report.extents() == 1 ? " extent" : " extents"),
       &out);
  Line(style, "checksums", report.page_checksums() ? "of each page" : "", &out);
  if (delta) {
    Line(style, "zeroed", Pages(report.zeroed_pages()), &out);
  }
  Line(style, "working set",
       report.written_pages() == 0 && report.read_pages() == 0
           ? "not known"
           : absl::StrCat(Pages(report.written_pages()), " written, ",
                          Pages(report.read_pages()), " read or written"),
       &out);
  Line(style, "content", report.content(), &out);
  Line(style, "parent", report.parent(), &out);
  Line(style, "source", report.source(), &out);
  Line(style, "sha256", report.source_sha256(), &out);
  Line(style, "comment", report.comment(), &out);
  Line(style, "made by", report.tool(), &out);
  if (report.created_unix_seconds() != 0) {
    Line(style, "made at",
         absl::FormatTime("%Y-%m-%d %H:%M:%S UTC",
                          absl::FromUnixSeconds(report.created_unix_seconds()),
                          absl::UTCTimeZone()),
         &out);
  }
  return out;
}

std::string TextOf(const BuildReport& report, const TextStyle& style) {
  std::string out;
  for (const BuildReport::Built& built : report.built()) {
    if (!out.empty()) out += '\n';
    const ImageReport& image = built.image();
    Line(style, "built",
         absl::StrCat(image.path(), ": ", BytesText(image.size_bytes(), style),
                      " of memory, ", HostPages(image.stored_pages()),
                      " stored, ",
                      BytesText(image.stored_pages() * kPageBytes, style)),
         &out);
    if (built.has_memory()) {
      Line(style, "memory", MemoryText(built.memory(), style), &out);
    }
    Line(style, "content", image.content(), &out);
    Line(style, "parent", image.parent(), &out);
  }
  LeftOutText(report, style, &out);
  if (report.has_start()) {
    Line(style, "note",
         "the module has a start function, which may change its memory", &out);
  }
  return out;
}

std::string TextOf(const ListReport& report, const TextStyle& style) {
  PlainTable table{.titles = {"pages", "offset", "size", "in file", "sha256"}};
  for (const ListReport::Extent& extent : report.extents()) {
    std::vector<Value> row = RangeCells(extent.range());
    row.push_back(Value::Hex(extent.file_offset()));
    row.push_back(Value::Text(extent.sha256()));
    table.rows.push_back(std::move(row));
  }
  for (const PageRange& range : report.zeroed()) {
    std::vector<Value> row = RangeCells(range);
    row.push_back(Value::Unknown());
    row.push_back(Value::Text("made zero"));
    table.rows.push_back(std::move(row));
  }
  if (table.rows.empty()) return "no pages are stored: all of it is zero\n";
  return TableText(table, style);
}

std::string TextOf(const DiffReport& report, const TextStyle& style) {
  std::string out;
  const std::string& a = report.a();
  const std::string& b = report.b();
  if (report.a_size_bytes() != report.b_size_bytes()) {
    Line(style, "size",
         absl::StrCat(BytesText(report.a_size_bytes(), style), " in ", a, ", ",
                      BytesText(report.b_size_bytes(), style), " in ", b),
         &out);
  }
  Line(style, "pages",
       absl::StrCat(report.different_pages(), " differ, ", report.equal_pages(),
                    " stored in both are equal"),
       &out);
  if (report.ranges().empty()) return out;
  PlainTable table{.titles = {"pages", "offset", "size", "differ", "how"}};
  for (const DiffReport::Range& range : report.ranges()) {
    std::vector<Value> row = RangeCells(range.range());
    row.push_back(Value::Bytes(range.bytes()));
    row.push_back(range.kind() == DiffReport::CHANGED
                      ? Value::Text("changed", Tint::kWeak)
                  : range.kind() == DiffReport::ONLY_A
                      ? Value::Text(absl::StrCat("only in ", a), Tint::kBad)
                      : Value::Text(absl::StrCat("only in ", b), Tint::kGood));
    table.rows.push_back(std::move(row));
  }
  return absl::StrCat(out, "\n", TableText(table, style));
}

std::string TextOf(const VerifyReport& report, const TextStyle& style) {
  std::string out;
  for (const VerifyReport::File& file : report.files()) {
    if (!file.error().empty()) {
      absl::StrAppend(&out, Tinted(style, Tint::kBad, "BAD"), "  ", file.path(),
                      ": ", file.error(), "\n");
      continue;
    }
    absl::StrAppend(&out, Tinted(style, Tint::kGood, "ok"), "   ", file.path(),
                    ": ", file.stored_pages(), " stored ",
                    file.stored_pages() == 1 ? "page matches" : "pages match",
                    file.without_parent()
                        ? "; a delta, whose parent was not looked at (--parent)"
                        : "",
                    "\n");
  }
  return out;
}

std::string TextOf(const PackReport& report, const TextStyle& style) {
  std::string out;
  Line(style, "packed",
       absl::StrCat(
           report.path(), ": ", BytesText(report.stored_bytes(), style),
           " of stored pages",
           report.has_packed_bytes()
               ? absl::StrCat(" in ", BytesText(report.packed_bytes(), style))
               : ""),
       &out);
  return out;
}

std::string TextOf(const StatsReport& report, const TextStyle& style) {
  PlainTable table{.titles = {"image", "pages", "zero", "shared", "unique"}};
  uint64_t shared = 0, unique = 0;
  for (const StatsReport::Image& image : report.images()) {
    shared += image.shared_pages();
    unique += image.unique_pages();
    table.rows.push_back(
        {Value::Text(image.path()), Value::Count(image.pages()),
         Value::Count(image.zero_pages()), Value::Count(image.shared_pages()),
         Value::Count(image.unique_pages())});
  }
  table.totals.push_back({Value::Text("total", Tint::kHead),
                          Value::Count(report.pages()),
                          Value::Count(report.zero_pages()),
                          Value::Count(shared), Value::Count(unique)});
  std::string out = absl::StrCat(TableText(table, style), "\n");
  Line(style, "stored", PagesAndBytes(report.stored_pages(), style), &out);
  Line(style, "distinct",
       absl::StrCat(PagesAndBytes(report.distinct_pages(), style),
                    ": what an ImageStore holds of them"),
       &out);
  for (const StatsReport::Failure& failure : report.failures()) {
    absl::StrAppend(&out, Tinted(style, Tint::kBad, "BAD"), "  ",
                    failure.path(), ": ", failure.error(), "\n");
  }
  return out;
}

namespace {

Value TextOrNone(const std::string& text) {
  return text.empty() ? Value::Unknown() : Value::Text(text);
}

using Titles = std::vector<std::string>;

Titles ImageTitles() {
  return {"path",         "name",         "size_bytes", "pages",
          "stored_pages", "zeroed_pages", "extents",    "written_pages",
          "read_pages",   "file_bytes",   "disk_bytes", "content",
          "parent",       "source",       "comment",    "created_unix_seconds"};
}

Titles ListTitles() { return {"first_page", "pages", "file_offset", "sha256"}; }

Titles DiffTitles() { return {"first_page", "pages", "bytes", "kind"}; }

Titles VerifyTitles() { return {"path", "stored_pages", "error"}; }

Titles PackTitles() { return {"path", "stored_bytes", "packed_bytes"}; }

Titles StatsTitles() {
  return {"path",         "pages",        "zero_pages",
          "shared_pages", "unique_pages", "error"};
}

Titles MapTitles() { return {"first_page", "pages", "state"}; }

std::vector<Value> ImageCells(const ImageReport& image) {
  return {Value::Text(image.path()),
          Value::Text(image.name()),
          Value::Bytes(image.size_bytes()),
          Value::Count(image.pages()),
          Value::Count(image.stored_pages()),
          Value::Count(image.zeroed_pages()),
          Value::Count(image.extents()),
          Value::Count(image.written_pages()),
          Value::Count(image.read_pages()),
          Value::Bytes(image.file_bytes()),
          Value::Bytes(image.disk_bytes()),
          Value::Text(image.content()),
          TextOrNone(image.parent()),
          TextOrNone(image.source()),
          TextOrNone(image.comment()),
          Value::Signed(image.created_unix_seconds())};
}

}  // namespace

std::vector<std::pair<std::string, std::vector<std::string>>> CsvColumns() {
  return {{"build,info,merge,unpack", ImageTitles()},
          {"ls", ListTitles()},
          {"diff", DiffTitles()},
          {"verify", VerifyTitles()},
          {"pack", PackTitles()},
          {"stats", StatsTitles()},
          {"map", MapTitles()}};
}

std::string CsvOf(const ImageReport& report) {
  return cli::TableCsv({ImageTitles(), {ImageCells(report)}, {}});
}

std::string CsvOf(const BuildReport& report) {
  PlainTable table{.titles = ImageTitles()};
  for (const BuildReport::Built& built : report.built()) {
    table.rows.push_back(ImageCells(built.image()));
  }
  return cli::TableCsv(table);
}

std::string CsvOf(const ListReport& report) {
  PlainTable table{.titles = ListTitles()};
  for (const ListReport::Extent& extent : report.extents()) {
    table.rows.push_back({Value::Count(extent.range().first_page()),
                          Value::Count(extent.range().pages()),
                          Value::Count(extent.file_offset()),
                          Value::Text(extent.sha256())});
  }
  for (const PageRange& range : report.zeroed()) {
    table.rows.push_back({Value::Count(range.first_page()),
                          Value::Count(range.pages()), Value::Unknown(),
                          Value::Unknown()});
  }
  return cli::TableCsv(table);
}

std::string CsvOf(const DiffReport& report) {
  PlainTable table{.titles = DiffTitles()};
  for (const DiffReport::Range& range : report.ranges()) {
    table.rows.push_back({Value::Count(range.range().first_page()),
                          Value::Count(range.range().pages()),
                          Value::Bytes(range.bytes()),
                          Value::Text(DiffReport::Kind_Name(range.kind()))});
  }
  return cli::TableCsv(table);
}

std::string CsvOf(const VerifyReport& report) {
  PlainTable table{.titles = VerifyTitles()};
  for (const VerifyReport::File& file : report.files()) {
    table.rows.push_back({Value::Text(file.path()),
                          file.error().empty()
                              ? Value::Count(file.stored_pages())
                              : Value::Unknown(),
                          TextOrNone(file.error())});
  }
  return cli::TableCsv(table);
}

std::string CsvOf(const PackReport& report) {
  return cli::TableCsv(
      {PackTitles(),
       {{Value::Text(report.path()), Value::Bytes(report.stored_bytes()),
         report.has_packed_bytes() ? Value::Bytes(report.packed_bytes())
                                   : Value::Unknown()}},
       {}});
}

std::string CsvOf(const StatsReport& report) {
  PlainTable table{.titles = StatsTitles()};
  for (const StatsReport::Image& image : report.images()) {
    table.rows.push_back(
        {Value::Text(image.path()), Value::Count(image.pages()),
         Value::Count(image.zero_pages()), Value::Count(image.shared_pages()),
         Value::Count(image.unique_pages()), Value::Unknown()});
  }
  for (const StatsReport::Failure& failure : report.failures()) {
    std::vector<Value> row(table.titles.size());
    row.front() = Value::Text(failure.path());
    row.back() = Value::Text(failure.error());
    table.rows.push_back(std::move(row));
  }
  return cli::TableCsv(table);
}

std::string CsvOf(const MapReport& report) {
  PlainTable table{.titles = MapTitles()};
  for (const MapReport::Run& run : report.runs()) {
    table.rows.push_back({Value::Count(run.range().first_page()),
                          Value::Count(run.range().pages()),
                          Value::Text(MapReport::State_Name(run.state()))});
  }
  return cli::TableCsv(table);
}

}  // namespace firsttouch::imagetool
