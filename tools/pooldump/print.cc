#include "firsttouch/tools/pooldump/print.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/json.h"
#include "firsttouch/tools/imagetool/map_picture.h"
#include "firsttouch/tools/picture/picture.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/location_text.h"
#include "firsttouch/tools/pooldump/process_text.h"
#include "firsttouch/tools/pooldump/slot_picture.h"
#include "firsttouch/tools/pooldump/text_lines.h"
#include "google/protobuf/text_format.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {

using cli::BytesText;
using cli::Columns;
using cli::HexText;
using cli::MakeTable;
using cli::PlainTable;
using cli::Printable;
using cli::SortRows;
using cli::TableCsv;
using cli::TableText;
using cli::TextStyle;
using cli::Tint;
using cli::Tinted;
using cli::Value;
using cli::WrappedAt;

namespace {

void WarningsText(const google::protobuf::RepeatedPtrField<Warning>& warnings,
                  const TextStyle& style, std::string* out) {
  const size_t columns = SentenceColumns(style);
  if (!warnings.empty()) *out += '\n';
  for (const Warning& warning : warnings) {
    const std::string kind = warning.fatal() ? "ERROR" : "WARNING";
    absl::StrAppend(
        out, Tinted(style, warning.fatal() ? Tint::kBad : Tint::kWeak, kind),
        " ", WrappedAt(columns, kind.size() + 1, warning.text()),
        "\n  remedy: ", WrappedAt(columns, 10, warning.remedy()), "\n");
  }
}

template <typename Row, typename Rows>
std::string Csv(const Columns<Row>& columns, const Rows& rows) {
  return TableCsv(MakeTable(columns, rows, true));
}

// Titles and rows; rates where the process has some.
std::string SlotsCsv(const ProcessSnapshot& process, const Options& options) {
  const bool rated = HasRates(process);
  return SlotsCsvTitles(options, rated) + SlotsCsvRows(process, options, rated);
}

absl::StatusOr<std::string> AsCsv(const Report& report,
                                  const Options& options) {
  switch (report.of_case()) {
    case Report::kLayout:
      return Csv(RangeColumns(), report.layout().ranges());
    case Report::kLive:
      return SlotsCsv(report.live(), options);
    case Report::kCore:
      return SlotsCsv(report.core().process(), options);
    case Report::kLocate:
      return Csv(FoundColumns(), report.locate().found());
    case Report::kMap:
      return Csv(PageRunColumns(), report.map().runs());
    case Report::kImage:
      return Csv(ImageRunColumns(), report.image().runs());
    case Report::kPs:
      return PsCsv(report.ps(), options);
    case Report::kDiff:
      return DiffCsv(report.diff(), options);
    case Report::OF_NOT_SET:
      break;
  }
  return absl::InternalError("an empty report");
}

picture::TerminalOptions TerminalOf(const Options& options,
                                    const TextStyle& style) {
  picture::TerminalOptions terminal = {.color = style.color};
  if (options.width() != 0) terminal.columns = options.width();
  if (options.lines() != 0) terminal.lines = options.lines();
  return terminal;
}

// Text says how many rows there are beyond the limit, and cuts for itself.
template <typename Rows>
void KeepLimit(const Options& options, Rows* rows) {
  const auto limit = static_cast<int>(options.limit());
  if (limit == 0 || options.format() == TEXT || rows->size() <= limit) return;
  rows->DeleteSubrange(limit, rows->size() - limit);
}

// Checks the names of --columns, sorts, and keeps the limit.
template <typename Row, typename Rows>
absl::Status SortAndCut(const Columns<Row>& columns, const std::string& sort,
                        const Options& options, Rows* rows) {
  const absl::Status chosen =
      cli::ChooseColumns(columns,
                         {options.columns().begin(), options.columns().end()})
          .status();
  if (!chosen.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--columns: ", chosen.message()));
  }
  if (absl::Status status = SortRows(columns, sort, rows); !status.ok()) {
    return status;
  }
  KeepLimit(options, rows);
  return absl::OkStatus();
}

absl::Status FilterAndSortPools(const Options& options, const Filter& filter,
                                ProcessSnapshot* process) {
  const bool rated = options.batch() || HasRates(*process);
  for (PoolSnapshot& pool : *process->mutable_pools()) {
    if (filter) {
      google::protobuf::RepeatedPtrField<Slot> kept;
      for (Slot& slot : *pool.mutable_slots()) {
        if (filter(SlotName(pool.name(), slot.slot())) ||
            (!slot.image_name().empty() && filter(slot.image_name()))) {
          kept.Add()->Swap(&slot);
        }
      }
      pool.mutable_slots()->Swap(&kept);
      google::protobuf::RepeatedPtrField<Image> images;
      for (Image& image : *pool.mutable_images()) {
        if (filter(image.name())) images.Add()->Swap(&image);
      }
      pool.mutable_images()->Swap(&images);
    }
    absl::Status status =
        SortAndCut(rated ? RatedSlotColumns() : SlotColumns(), options.sort(),
                   options, pool.mutable_slots());
    if (!status.ok() && !rated) {
      return absl::InvalidArgumentError(absl::StrCat(
          status.message(),
          "; and rates, where a process is looked at more than once "
          "(--interval, --count, --watch)"));
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status FilterAndSortPs(const Options& options, const Filter& filter,
                             PsReport* report) {
  if (filter) {
    google::protobuf::RepeatedPtrField<PsReport::Process> kept;
    for (PsReport::Process& process : *report->mutable_processes()) {
      if (filter(process.command()) || filter(process.user())) {
        kept.Add()->Swap(&process);
      }
    }
    report->mutable_processes()->Swap(&kept);
  }
  return SortAndCut(PsColumns(), options.sort(), options,
                    report->mutable_processes());
}

absl::Status FilterAndSortDiff(const Options& options, const Filter& filter,
                               DiffReport* report) {
  for (DiffReport::Pool& pool : *report->mutable_pools()) {
    google::protobuf::RepeatedPtrField<DiffReport::Change> kept;
    for (DiffReport::Change& change : *pool.mutable_changes()) {
      if (!options.all() && !change.changed()) continue;
      if (filter && !filter(SlotName(pool.name(), change.slot())) &&
          (change.image().empty() || !filter(change.image()))) {
        continue;
      }
      kept.Add()->Swap(&change);
    }
    pool.mutable_changes()->Swap(&kept);
    absl::Status status = SortAndCut(DiffColumns(), options.sort(), options,
                                     pool.mutable_changes());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Filter> MakeFilter(const Options& options) {
  if (options.filter().empty()) return Filter();
  RE2::Options quiet;
  quiet.set_log_errors(false);
  const auto regex = std::make_shared<RE2>(options.filter(), quiet);
  if (!regex->ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--filter: \"", options.filter(),
                     "\" is no regular expression of RE2: ", regex->error()));
  }
  return [regex](const std::string& name) {
    return RE2::PartialMatch(name, *regex);
  };
}

bool Keeps(const Filter& filter, const Location& location) {
  return !filter || filter(SlotName(location.pool(), location.slot())) ||
         filter(location.image_name());
}

absl::Status FilterAndSort(const Options& options, Report* report) {
  const absl::StatusOr<Filter> made = MakeFilter(options);
  if (!made.ok()) return made.status();
  const Filter& filter = *made;
  const std::string& sort = options.sort();
  switch (report->of_case()) {
    case Report::kLayout: {
      auto* ranges = report->mutable_layout()->mutable_ranges();
      if (filter && options.all()) {
        google::protobuf::RepeatedPtrField<LayoutReport::Range> kept;
        for (LayoutReport::Range& range : *ranges) {
          if (filter(range.slot_name())) kept.Add()->Swap(&range);
        }
        ranges->Swap(&kept);
      }
      return SortRows(RangeColumns(), sort, ranges);
    }
    case Report::kLive:
      return FilterAndSortPools(options, filter, report->mutable_live());
    case Report::kCore:
      return FilterAndSortPools(options, filter,
                                report->mutable_core()->mutable_process());
    case Report::kLocate: {
      auto* found = report->mutable_locate()->mutable_found();
      if (filter) {
        google::protobuf::RepeatedPtrField<LocateReport::Found> kept;
        for (LocateReport::Found& one : *found) {
          if (Keeps(filter, one.location())) kept.Add()->Swap(&one);
        }
        found->Swap(&kept);
      }
      return SortRows(FoundColumns(), sort, found);
    }
    case Report::kMap:
      return SortRows(PageRunColumns(), sort,
                      report->mutable_map()->mutable_runs());
    case Report::kImage:
      return SortRows(ImageRunColumns(), sort,
                      report->mutable_image()->mutable_runs());
    case Report::kPs:
      return FilterAndSortPs(options, filter, report->mutable_ps());
    case Report::kDiff:
      return FilterAndSortDiff(options, filter, report->mutable_diff());
    case Report::OF_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

namespace {

// "4.58% of", "228.9 times".
std::string ShareText(double share) {
  if (share >= 10) return absl::StrFormat("%.1f times", share);
  const double percent = 100 * share;
  return percent < 0.01 ? "less than 0.01% of"
                        : absl::StrFormat("%.3g%% of", percent);
}

}  // namespace

std::string LayoutHead(const LayoutReport& report, const TextStyle& style) {
  std::string out;
  const auto bytes = [&style](uint64_t number) {
    return BytesText(number, style);
  };
  AppendLine(
      style, "pool",
      absl::StrCat(
          report.name() == kUnnamed ? "" : Printable(report.name()) + ": ",
          Plural(report.instances(), "instance", "instances"), " of ",
          Plural(report.memories_per_instance(), "memory", "memories"), ", ",
          Plural(report.slots(), "slot", "slots")),
      &out);
  AppendLine(
      style, "reservation",
      absl::StrCat(bytes(report.reservation_bytes()), ", ",
                   ShareText(report.address_space_share()), " the ",
                   bytes(report.address_space_bytes()), " that a process has"),
      &out);
  AppendLine(style, "stride", bytes(report.slot_stride_bytes()), &out);
  return out + '\n';
}

Columns<LayoutReport::Range> ShownRangeColumns(bool repeats, bool named) {
  Columns<LayoutReport::Range> columns;
  for (const auto& column : RangeColumns()) {
    if (!repeats && (column.name == "times" || column.name == "every")) {
      continue;
    }
    if (!named && column.name == "slot") continue;
    columns.push_back(column);
  }
  return columns;
}

std::vector<Value> RangeTotal(const Columns<LayoutReport::Range>& columns,
                              uint64_t bytes) {
  std::vector<Value> total(columns.size(), Value::Text(""));
  total[0] = Value::Text("total", Tint::kHead);
  total[1] = Value::Bytes(bytes);
  return total;
}

std::string LayoutTail(const LayoutReport& report, const TextStyle& style) {
  std::string out = "\n";
  const auto bytes = [&style](uint64_t number) {
    return BytesText(number, style);
  };
  AppendLine(style, "supply",
             absl::StrCat(report.supply(), ": ", report.supply_reason()), &out);
  AppendLine(style, "backing",
             absl::StrCat(report.backing(), ": ", report.backing_reason()),
             &out);
  AppendLine(style, "mappings",
             absl::StrCat(
                 "at most ", report.mappings(), ": ", report.fixed_mappings(),
                 ", and ", report.mappings_per_slot(), " for each slot in use",
                 report.machine().has_max_map_count()
                     ? absl::StrCat(" (vm.max_map_count is ",
                                    report.machine().max_map_count(), ")")
                     : ""),
             &out);
  AppendLine(style, "page tables",
             absl::StrCat(bytes(report.page_table_bytes_sparse()),
                          " with a page of each memory there, ",
                          bytes(report.page_table_bytes_full()), " with all"),
             &out);
  AppendLine(style, "book-keeping",
             absl::StrCat(bytes(report.record_bytes()), " at once, ",
                          bytes(report.page_state_bytes_sparse()),
                          " more when each slot was used a little, ",
                          bytes(report.page_state_bytes_full()),
                          " more when all pages were"),
             &out);
  AppendLine(
      style, "largest here",
      absl::StrCat(Plural(report.largest_instances(), "instance", "instances"),
                   " (", report.largest_limit(), ")"),
      &out);
  AppendLine(style, "fits here",
             report.fits() ? Tinted(style, Tint::kGood, "yes")
                           : Tinted(style, Tint::kBad, "no"),
             &out);
  if (!report.needs().empty()) {
    PlainTable needs;
    needs.titles = {"needs", "Linux", "here", "to"};
    for (const Need& need : report.needs()) {
      needs.rows.push_back(
          {Value::Text(need.name()), Value::Text(need.since()),
           need.here()       ? Value::Text("yes", Tint::kGood)
           : need.required() ? Value::Text("NO", Tint::kBad)
                             : Value::Text("no", Tint::kWeak),
           Value::Text(absl::StrCat(need.purpose(),
                                    need.required() ? "" : " (optional)"))});
    }
    absl::StrAppend(&out, "\n", TableText(needs, style));
  }
  WarningsText(report.warnings(), style, &out);
  return out;
}

std::string LayoutText(const LayoutReport& report, const TextStyle& style) {
  // Columns that would say nothing are left out.
  bool repeats = false;
  bool named = false;
  uint64_t sum = 0;
  for (const LayoutReport::Range& range : report.ranges()) {
    repeats |= range.count() > 1;
    named |= !range.slot_name().empty();
    sum += range.bytes() * range.count();
  }
  const Columns<LayoutReport::Range> columns =
      ShownRangeColumns(repeats, named);
  PlainTable table = MakeTable(columns, report.ranges(), false);
  table.totals.push_back(RangeTotal(columns, sum));
  return absl::StrCat(LayoutHead(report, style), TableText(table, style),
                      LayoutTail(report, style));
}

std::string FoundBelow(const LocateReport::Found& found,
                       const TextStyle& style) {
  return absl::StrCat(
      "    ^ ", Tinted(style, Tint::kHead, HexText(found.location().address())),
      "  ", found.text(), "\n");
}

std::string LocateText(const LocateReport& report, const TextStyle& style) {
  std::string out;
  if (report.log().empty()) {
    for (const LocateReport::Found& found : report.found()) {
      absl::StrAppend(
          &out, Tinted(style, Tint::kHead, HexText(found.location().address())),
          "  ", found.text(), "\n");
    }
    return out;
  }
  // The text as it is, and below each line what is known of its addresses.
  std::multimap<uint64_t, const LocateReport::Found*> by_line;
  for (const LocateReport::Found& found : report.found()) {
    if (found.location().place() != Location::NO_POOL) {
      by_line.emplace(found.line(), &found);
    }
  }
  uint64_t number = 0;
  std::vector<std::string> lines = absl::StrSplit(report.log(), '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  for (const std::string& line : lines) {
    absl::StrAppend(&out, line, "\n");
    const auto [begin, end] = by_line.equal_range(++number);
    for (auto found = begin; found != end; ++found) {
      out += FoundBelow(*found->second, style);
    }
  }
  return out;
}

absl::StatusOr<std::string> PrintReport(const Report& report,
                                        const Options& options,
                                        const TextStyle& style) {
  switch (options.format()) {
    case JSON:
      return cli::AsJson(report);
    case TEXTPROTO: {
      std::string text;
      google::protobuf::TextFormat::PrintToString(report, &text);
      return text;
    }
    case PROTO:
      return report.SerializeAsString();
    case CSV:
      return AsCsv(report, options);
    default:
      break;
  }
  switch (report.of_case()) {
    case Report::kLayout:
      return LayoutText(report.layout(), style);
    case Report::kLive:
      return LiveText(report.live(), options, style);
    case Report::kLocate:
      return LocateText(report.locate(), style);
    case Report::kCore:
      return CoreText(report.core(), options, style);
    case Report::kPs:
      return PsText(report.ps(), options, style);
    case Report::kDiff:
      return DiffText(report.diff(), options, style);
    case Report::kMap: {
      absl::StatusOr<picture::PageMapPicture> picture =
          SlotPicture(report.map(), style);
      if (!picture.ok()) return picture.status();
      return picture::TerminalText(*picture, TerminalOf(options, style));
    }
    case Report::kImage:
      return imagetool::TerminalPictureOf(report.image(),
                                          TerminalOf(options, style), style);
    case Report::OF_NOT_SET:
      break;
  }
  return absl::InternalError("an empty report");
}

absl::StatusOr<std::string> PictureFile(const Report& report, bool html,
                                        const TextStyle& style) {
  if (report.has_image()) {
    return html ? imagetool::HtmlOf(report.image(), style)
                : imagetool::SvgOf(report.image(), style);
  }
  absl::StatusOr<picture::PageMapPicture> picture =
      SlotPicture(report.map(), style);
  if (!picture.ok()) return picture.status();
  return html ? picture::Html(*picture) : picture::Svg(*picture);
}

}  // namespace firsttouch::pooldump
