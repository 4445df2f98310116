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
#include "firsttouch/tools/pooldump/slot_picture.h"
#include "google/protobuf/text_format.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {

using cli::BytesText;
using cli::Column;
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

// No line of sentences is wider.
constexpr size_t kMostColumns = 100;
constexpr size_t kLabelColumns = 16;

// "label    value" lines.
void Line(const TextStyle& style, const std::string& label,
          const std::string& value, std::string* out) {
  absl::StrAppend(
      out, Tinted(style, Tint::kHead, label),
      std::string(
          label.size() < kLabelColumns ? kLabelColumns - label.size() : 1, ' '),
      WrappedAt(kMostColumns, kLabelColumns, value), "\n");
}

std::string Plural(uint64_t number, const char* one, const char* many) {
  return absl::StrCat(number, " ", number == 1 ? one : many);
}

void WarningsText(const google::protobuf::RepeatedPtrField<Warning>& warnings,
                  const TextStyle& style, std::string* out) {
  if (!warnings.empty()) *out += '\n';
  for (const Warning& warning : warnings) {
    const std::string kind = warning.fatal() ? "ERROR" : "WARNING";
    absl::StrAppend(
        out, Tinted(style, warning.fatal() ? Tint::kBad : Tint::kWeak, kind),
        " ", WrappedAt(kMostColumns, kind.size() + 1, warning.text()),
        "\n  remedy: ", WrappedAt(kMostColumns, 10, warning.remedy()), "\n");
  }
}

bool NeverUsed(const Slot& slot) {
  return slot.state() == Slot::FREE && slot.image_name().empty() &&
         slot.counters().handovers() == 0 && slot.size_bytes() == 0 &&
         slot.resident_bytes() == 0 && slot.counters().traps() == 0;
}

// A row of sums under the columns of slots.
std::vector<Value> TotalRow(const Totals& totals) {
  Slot sum;
  if (totals.has_pages()) *sum.mutable_pages() = totals.pages();
  *sum.mutable_counters() = totals.counters();
  sum.set_size_bytes(totals.size_bytes());
  if (totals.has_resident_bytes()) {
    sum.set_resident_bytes(totals.resident_bytes());
  }
  if (totals.has_private_bytes()) sum.set_private_bytes(totals.private_bytes());
  if (totals.has_shared_bytes()) sum.set_shared_bytes(totals.shared_bytes());
  std::vector<Value> row;
  for (const Column<Slot>& column : SlotColumns()) {
    if (column.name == "slot") {
      row.push_back(Value::Text("total", Tint::kHead));
    } else if (column.name == "state" || column.name == "image") {
      row.push_back(Value::Text(""));
    } else {
      row.push_back(column.value(sum));
    }
  }
  return row;
}

void StatesText(const Totals& totals, const TextStyle& style,
                std::string* out) {
  std::vector<std::string> parts;
  const auto part = [&](uint64_t count, const char* name, Tint tint) {
    if (count > 0) {
      parts.push_back(Tinted(style, tint, absl::StrCat(count, " ", name)));
    }
  };
  part(totals.held(), "held", Tint::kGood);
  part(totals.free(), "free", Tint::kNone);
  part(totals.parked(), "parked", Tint::kNone);
  part(totals.returning(), "returning", Tint::kWeak);
  part(totals.quarantined(), "quarantined", Tint::kBad);
  Line(style, "slots",
       absl::StrCat(totals.slots(), ": ", absl::StrJoin(parts, ", ")), out);
}

void PoolText(const PoolSnapshot& pool, bool all, const TextStyle& style,
              std::string* out) {
  const PoolLayoutNumbers& layout = pool.layout();
  Line(style, "pool",
       absl::StrCat(Printable(pool.name()), " (number ", pool.pool_id(), "), ",
                    BytesText(layout.reservation_bytes(), style), " at ",
                    HexText(pool.base())),
       out);
  Line(style, "memories",
       absl::StrCat(BytesText(layout.max_memory_bytes(), style), ", guard ",
                    BytesText(layout.guard_after_bytes(), style), ", ",
                    layout.memories_per_instance(), " an instance"),
       out);
  // A pool of mappings has neither backing nor resolve.
  std::string supply = Printable(pool.options().supply());
  for (const std::string* part :
       {&pool.options().backing(), &pool.options().resolve()}) {
    if (!part->empty()) absl::StrAppend(&supply, ", ", Printable(*part));
  }
  Line(style, "supply", supply, out);
  StatesText(pool.totals(), style, out);
  if (pool.has_mappings()) {
    const Mappings& kernel = pool.mappings();
    Line(style, "kernel",
         absl::StrCat(
             Plural(kernel.mappings(), "mapping", "mappings"), ", ",
             BytesText(kernel.rss_bytes(), style), " resident, ",
             BytesText(kernel.anonymous_bytes(), style), " private",
             kernel.swap_bytes() == 0
                 ? ""
                 : absl::StrCat(", ", BytesText(kernel.swap_bytes(), style),
                                " swapped")),
         out);
    if (kernel.outside_bytes() > 0) {
      Line(style, "",
           Tinted(style, Tint::kBad,
                  absl::StrCat(BytesText(kernel.outside_bytes(), style),
                               " resident outside of all memories: a fault of "
                               "firsttouch, please report it")),
           out);
    }
  }
  *out += '\n';
  google::protobuf::RepeatedPtrField<Slot> shown;
  uint64_t never_used = 0;
  bool torn = false;
  for (const Slot& slot : pool.slots()) {
    if (!all && NeverUsed(slot)) {
      ++never_used;
    } else {
      torn |= slot.torn();
      *shown.Add() = slot;
    }
  }
  PlainTable table = MakeTable(SlotColumns(), shown, false);
  table.totals.push_back(TotalRow(pool.totals()));
  absl::StrAppend(out, TableText(table, style));
  if (never_used > 0) {
    absl::StrAppend(out, Plural(never_used, "slot", "slots"),
                    " never used (--all lists them)\n");
  }
  if (torn) {
    absl::StrAppend(out,
                    "~ changed hands while it was read: its numbers may be of "
                    "different moments\n");
  }
  if (!pool.images().empty()) {
    absl::StrAppend(
        out, "\n",
        TableText(MakeTable(ImageColumns(), pool.images(), false), style));
  }
}

template <typename Row, typename Rows>
std::string Csv(const Columns<Row>& columns, const Rows& rows) {
  return TableCsv(MakeTable(columns, rows, true));
}

// Slots of all pools, with the pool's name in front.
std::string SlotsCsv(const ProcessSnapshot& process) {
  PlainTable all;
  all.titles =
      MakeTable(SlotColumns(), google::protobuf::RepeatedPtrField<Slot>(), true)
          .titles;
  all.titles.insert(all.titles.begin(), {"pool", "pool-number"});
  for (const PoolSnapshot& pool : process.pools()) {
    for (std::vector<Value>& row :
         MakeTable(SlotColumns(), pool.slots(), true).rows) {
      row.insert(row.begin(),
                 {Value::Text(pool.name()), Value::Count(pool.pool_id())});
      all.rows.push_back(std::move(row));
    }
  }
  return TableCsv(all);
}

absl::StatusOr<std::string> AsCsv(const Report& report) {
  switch (report.of_case()) {
    case Report::kLayout:
      return Csv(RangeColumns(), report.layout().ranges());
    case Report::kLive:
      return SlotsCsv(report.live());
    case Report::kCore:
      return SlotsCsv(report.core().process());
    case Report::kLocate:
      return Csv(FoundColumns(), report.locate().found());
    case Report::kMap:
      return Csv(PageRunColumns(), report.map().runs());
    case Report::kImage:
      return Csv(ImageRunColumns(), report.image().runs());
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

absl::Status FilterAndSortPools(const Options& options, const Filter& filter,
                                ProcessSnapshot* process) {
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
        SortRows(SlotColumns(), options.sort(), pool.mutable_slots());
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
    case Report::OF_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

std::string LayoutHead(const LayoutReport& report, const TextStyle& style) {
  std::string out;
  const auto bytes = [&style](uint64_t number) {
    return BytesText(number, style);
  };
  Line(style, "pool",
       absl::StrCat(
           report.name() == kUnnamed ? "" : Printable(report.name()) + ": ",
           Plural(report.instances(), "instance", "instances"), " of ",
           Plural(report.memories_per_instance(), "memory", "memories"), ", ",
           Plural(report.slots(), "slot", "slots")),
       &out);
  const double percent = 100 * report.address_space_share();
  Line(style, "reservation",
       absl::StrCat(
           bytes(report.reservation_bytes()), ", ",
           percent < 0.01 ? "less than 0.01" : absl::StrFormat("%.3g", percent),
           "% of the ", bytes(report.address_space_bytes()),
           " that a process has"),
       &out);
  Line(style, "stride", bytes(report.slot_stride_bytes()), &out);
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
  Line(style, "supply",
       absl::StrCat(report.supply(), ": ", report.supply_reason()), &out);
  Line(style, "backing",
       absl::StrCat(report.backing(), ": ", report.backing_reason()), &out);
  Line(style, "mappings",
       absl::StrCat("at most ", report.mappings(), ": ",
                    report.fixed_mappings(), ", and ",
                    report.mappings_per_slot(), " for each slot in use",
                    report.machine().has_max_map_count()
                        ? absl::StrCat(" (vm.max_map_count is ",
                                       report.machine().max_map_count(), ")")
                        : ""),
       &out);
  Line(style, "page tables",
       absl::StrCat(bytes(report.page_table_bytes_sparse()),
                    " with a page of each memory there, ",
                    bytes(report.page_table_bytes_full()), " with all"),
       &out);
  Line(style, "book-keeping",
       absl::StrCat(bytes(report.record_bytes()), " at once, ",
                    bytes(report.page_state_bytes_sparse()),
                    " more when each slot was used a little, ",
                    bytes(report.page_state_bytes_full()),
                    " more when all pages were"),
       &out);
  Line(style, "largest here",
       absl::StrCat(Plural(report.largest_instances(), "instance", "instances"),
                    " (", report.largest_limit(), ")"),
       &out);
  Line(style, "fits here",
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

std::string LiveText(const ProcessSnapshot& process, bool all,
                     const TextStyle& style) {
  std::string out;
  Line(style, "process",
       absl::StrCat(process.pid(), process.command().empty() ? "" : " (",
                    Printable(process.command()),
                    process.command().empty() ? "" : ")", ", ",
                    process.stopped().empty()
                        ? ""
                        : Tinted(style, Tint::kWeak, process.stopped()) + ", ",
                    Plural(static_cast<uint64_t>(process.pools_size()), "pool",
                           "pools")),
       &out);
  for (const PoolSnapshot& pool : process.pools()) {
    out += '\n';
    PoolText(pool, all, style, &out);
  }
  if (!process.warnings().empty()) out += '\n';
  for (const std::string& warning : process.warnings()) {
    absl::StrAppend(&out, Tinted(style, Tint::kWeak, "WARNING"), " ",
                    Printable(warning), "\n");
  }
  return out;
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

std::string CoreText(const CoreReport& report, bool all,
                     const TextStyle& style) {
  std::string out;
  Line(style, "core", Printable(report.path()), &out);
  if (!report.crash_text().empty()) {
    Line(style, "ended by", report.crash_text(), &out);
  } else {
    Line(style, "ended by", "nothing: it was taken while the process lived",
         &out);
  }
  return out + LiveText(report.process(), all, style);
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
      return AsCsv(report);
    default:
      break;
  }
  switch (report.of_case()) {
    case Report::kLayout:
      return LayoutText(report.layout(), style);
    case Report::kLive:
      return LiveText(report.live(), options.all(), style);
    case Report::kLocate:
      return LocateText(report.locate(), style);
    case Report::kCore:
      return CoreText(report.core(), options.all(), style);
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
