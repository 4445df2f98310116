#include "firsttouch/tools/pooldump/process_text.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/text_lines.h"

namespace firsttouch::pooldump {

using cli::BytesText;
using cli::Column;
using cli::Columns;
using cli::HexText;
using cli::MakeTable;
using cli::PlainTable;
using cli::Printable;
using cli::TableText;
using cli::TextStyle;
using cli::Tint;
using cli::Tinted;
using cli::Value;

namespace {

template <typename Message>
using Repeated = google::protobuf::RepeatedPtrField<Message>;

std::vector<std::string> NamesOf(const Options& options) {
  return {options.columns().begin(), options.columns().end()};
}

// Those that `options` name, or all. The names were looked at before.
template <typename Row>
Columns<Row> Chosen(const Columns<Row>& columns, const Options& options) {
  if (options.columns().empty()) return columns;
  absl::StatusOr<Columns<Row>> chosen =
      cli::ChooseColumns(columns, NamesOf(options));
  return chosen.ok() ? *std::move(chosen) : columns;
}

std::string TimeText(int64_t realtime_ns, const char* format) {
  return absl::FormatTime(format, absl::FromUnixNanos(realtime_ns),
                          absl::UTCTimeZone());
}

// A table of `rows`, of which as many as `options` allow are shown, with what
// has to be said about it.
template <typename Row>
std::string ShownTable(const Columns<Row>& columns, const Repeated<Row>& rows,
                       const std::vector<Value>& total, const Options& options,
                       const TextStyle& style) {
  PlainTable table = MakeTable(columns, rows, false);
  if (!total.empty()) table.totals.push_back(total);
  const size_t all = table.rows.size();
  if (options.limit() != 0 && options.limit() < all) {
    table.rows.resize(options.limit());
  }
  cli::MarkSorted(columns, options.sort(), &table);
  std::vector<std::string> left_out;
  if (options.columns().empty()) {
    const std::string& sort = options.sort();
    const std::string name =
        sort.substr(!sort.empty() && sort.front() == '-' ? 1 : 0);
    std::vector<int> ranks;
    for (const Column<Row>& column : columns) {
      const bool sorted =
          !name.empty() && (column.name == name || column.title == name);
      ranks.push_back(sorted ? 0 : column.rank);
    }
    if (style.columns != 0) cli::ShortenTexts(kMostNameColumns, &table.rows);
    left_out = cli::FitTable(style, ranks, &table);
  }
  std::string out = TableText(table, style);
  if (table.rows.size() < all) {
    AppendSentence(style,
                   absl::StrCat("rows 1-", table.rows.size(), " of ", all,
                                " (--limit=", options.limit(), ")"),
                   &out);
  }
  if (!left_out.empty()) {
    AppendSentence(
        style,
        absl::StrCat("left out for want of room: ",
                     absl::StrJoin(left_out, ", "), " (--columns=all has all)"),
        &out);
  }
  return out;
}

bool NeverUsed(const Slot& slot) {
  return slot.state() == Slot::FREE && slot.image_name().empty() &&
         slot.counters().handovers() == 0 && slot.size_bytes() == 0 &&
         slot.resident_bytes() == 0 && slot.counters().traps() == 0;
}

// A row of sums under columns of slots.
std::vector<Value> TotalRow(const Columns<Slot>& columns,
                            const Totals& totals) {
  Slot sum;
  if (totals.has_pages()) *sum.mutable_pages() = totals.pages();
  *sum.mutable_counters() = totals.counters();
  if (totals.has_rates()) *sum.mutable_rates() = totals.rates();
  sum.set_size_bytes(totals.size_bytes());
  if (totals.has_resident_bytes()) {
    sum.set_resident_bytes(totals.resident_bytes());
  }
  if (totals.has_private_bytes()) sum.set_private_bytes(totals.private_bytes());
  if (totals.has_shared_bytes()) sum.set_shared_bytes(totals.shared_bytes());
  std::vector<Value> row;
  for (const Column<Slot>& column : columns) {
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

void AppendStates(const Totals& totals, const TextStyle& style,
                  std::string* out) {
  std::vector<std::string> parts;
  const auto part = [&](uint64_t count, const char* name,
                        Tint tint = Tint::kNone) {
    if (count > 0) {
      parts.push_back(Tinted(style, tint, absl::StrCat(count, " ", name)));
    }
  };
  part(totals.held(), "held");
  part(totals.free() - std::min(totals.free(), totals.trimming()), "free");
  part(totals.trimming(), "trimming");
  part(totals.parked(), "parked");
  part(totals.returning(), "returning");
  part(totals.quarantined(), "quarantined", Tint::kBad);
  AppendLine(style, "slots",
             absl::StrCat(totals.slots(), ": ", absl::StrJoin(parts, ", ")),
             out);
}

// What idle slots keep, where it has a bound.
void AppendBudget(const PoolSnapshot& pool, const TextStyle& style,
                  std::string* out) {
  if (!pool.options().has_resident_budget_bytes()) return;
  const uint64_t budget = pool.options().resident_budget_bytes();
  std::string text = absl::StrCat(BytesText(budget, style),
                                  " for what slots keep that nobody has");
  if (pool.totals().has_idle_private_bytes()) {
    const uint64_t kept = pool.totals().idle_private_bytes();
    text = absl::StrCat(
        Tinted(style, kept > budget ? Tint::kBad : Tint::kNone,
               absl::StrCat(BytesText(kept, style), " kept",
                            kept > budget ? ", above the budget" : "")),
        "; ", text);
  }
  AppendLine(style, "budget", text, out);
}

void AppendMappings(const Mappings& kernel, const TextStyle& style,
                    std::string* out) {
  AppendLine(style, "kernel",
             absl::StrCat(
                 Plural(kernel.mappings(), "mapping", "mappings"), ", ",
                 BytesText(kernel.rss_bytes(), style), " resident, ",
                 BytesText(kernel.anonymous_bytes(), style), " private",
                 kernel.swap_bytes() == 0
                     ? ""
                     : absl::StrCat(", ", BytesText(kernel.swap_bytes(), style),
                                    " swapped")),
             out);
  if (kernel.outside_bytes() == 0) return;
  AppendLine(style, "",
             Tinted(style, Tint::kBad,
                    absl::StrCat(BytesText(kernel.outside_bytes(), style),
                                 " resident outside of all memories: a fault "
                                 "of firsttouch, please report it")),
             out);
}

void AppendSlots(const PoolSnapshot& pool, const Columns<Slot>& columns,
                 const Options& options, const TextStyle& style,
                 std::string* out) {
  if (pool.slots().empty() && !options.filter().empty()) {
    AppendSentence(style,
                   absl::StrCat("no slot and no image has a name in which "
                                "--filter=",
                                Printable(options.filter()), " is found"),
                   out);
    return;
  }
  Repeated<Slot> shown;
  uint64_t never_used = 0;
  bool torn = false;
  for (const Slot& slot : pool.slots()) {
    if (!options.all() && NeverUsed(slot)) {
      ++never_used;
    } else {
      torn |= slot.torn();
      *shown.Add() = slot;
    }
  }
  absl::StrAppend(
      out, ShownTable(columns, shown, TotalRow(columns, pool.totals()), options,
                      style));
  if (never_used > 0) {
    absl::StrAppend(out, Plural(never_used, "slot", "slots"),
                    " never used (--all lists them)\n");
  }
  if (torn) {
    AppendSentence(style,
                   "~ changed hands while it was read: its numbers may be of "
                   "different moments",
                   out);
  }
}

void AppendImages(const PoolSnapshot& pool, const TextStyle& style,
                  std::string* out) {
  if (pool.images().empty()) return;
  PlainTable images = MakeTable(ImageColumns(), pool.images(), false);
  std::vector<int> ranks;
  for (const Column<Image>& column : ImageColumns()) {
    ranks.push_back(column.rank);
  }
  cli::FitTable(style, ranks, &images);
  absl::StrAppend(out, "\n", TableText(images, style));
}

// What is said of a guest in place of what is said of a pool.
void AppendGuest(const PoolSnapshot& pool, const TextStyle& style,
                 std::string* out) {
  const GuestFacts& guest = pool.guest();
  AppendLine(
      style, "guest",
      absl::StrCat(Printable(pool.name()), " (number ", pool.pool_id(), "), ",
                   guest.pid() == 0 ? std::string("process not known")
                                    : absl::StrCat("process ", guest.pid()),
                   guest.command().empty()
                       ? std::string()
                       : absl::StrCat(" (", Printable(guest.command()), ")")),
      out);
  AppendLine(style, "regions",
             absl::StrCat(pool.totals().slots(), " of ",
                          BytesText(pool.totals().size_bytes(), style),
                          " in all, the lowest at ", HexText(pool.base())),
             out);
  if (guest.waiting_faults() > 0) {
    AppendLine(style, "stalled",
               Tinted(style, Tint::kBad,
                      absl::StrCat(Plural(guest.waiting_faults(), "fault waits",
                                          "faults wait"),
                                   " for a page")),
               out);
  }
  const Counters& counters = pool.totals().counters();
  AppendLine(
      style, "placed",
      absl::StrCat(Plural(counters.pages_copied(), "page", "pages"),
                   " of the image, ", counters.pages_zeroed(), " of zeroes; ",
                   counters.pages_prefilled(), " before they were asked for"),
      out);
  if (counters.pages_dropped() > 0) {
    AppendLine(style, "given back",
               Plural(counters.pages_dropped(), "page", "pages"), out);
  }
}

void AppendPool(const PoolSnapshot& pool, const Columns<Slot>& columns,
                const Options& options, const TextStyle& style,
                std::string* out) {
  if (pool.has_guest()) {
    AppendGuest(pool, style, out);
    *out += '\n';
    AppendSlots(pool, columns, options, style, out);
    AppendImages(pool, style, out);
    return;
  }
  const PoolLayoutNumbers& layout = pool.layout();
  AppendLine(style, "pool",
             absl::StrCat(Printable(pool.name()), " (number ", pool.pool_id(),
                          "), ", BytesText(layout.reservation_bytes(), style),
                          " at ", HexText(pool.base())),
             out);
  AppendLine(
      style, "memories",
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
  AppendLine(style, "supply", supply, out);
  AppendStates(pool.totals(), style, out);
  AppendBudget(pool, style, out);
  if (pool.has_mappings()) AppendMappings(pool.mappings(), style, out);
  *out += '\n';
  AppendSlots(pool, columns, options, style, out);
  AppendImages(pool, style, out);
}

void AppendWarnings(const Repeated<std::string>& warnings,
                    const TextStyle& style, std::string* out) {
  if (!warnings.empty()) *out += '\n';
  for (const std::string& warning : warnings) {
    absl::StrAppend(
        out, Tinted(style, Tint::kWeak, "WARNING"), " ",
        cli::WrappedAt(SentenceColumns(style), 8, Printable(warning)), "\n");
  }
}

std::string CsvRow(std::vector<Value> front, std::vector<Value> cells) {
  front.insert(front.end(), std::make_move_iterator(cells.begin()),
               std::make_move_iterator(cells.end()));
  return cli::CsvLine(front);
}

template <typename Row>
void AppendNames(const Columns<Row>& columns, std::vector<std::string>* names) {
  for (const Column<Row>& column : columns) names->push_back(column.name);
}

// How many pools it has, and how many guests it serves.
std::string HoldingsText(const ProcessSnapshot& process) {
  const auto guests = static_cast<uint64_t>(
      std::count_if(process.pools().begin(), process.pools().end(),
                    [](const PoolSnapshot& pool) { return pool.has_guest(); }));
  const uint64_t pools = static_cast<uint64_t>(process.pools_size()) - guests;
  std::string text;
  if (pools > 0 || !process.serves()) text = Plural(pools, "pool", "pools");
  if (process.serves()) {
    absl::StrAppend(&text, text.empty() ? "" : ", ",
                    Plural(guests, "guest", "guests"));
  }
  return text;
}

}  // namespace

absl::StatusOr<Columns<Slot>> SlotColumnsFor(const Options& options,
                                             bool rated) {
  const Columns<Slot>& all = rated ? RatedSlotColumns() : SlotColumns();
  if (options.columns().empty()) return all;
  return cli::ChooseColumns(all, NamesOf(options));
}

bool HasRates(const ProcessSnapshot& process) {
  return std::any_of(
      process.pools().begin(), process.pools().end(),
      [](const PoolSnapshot& pool) { return pool.totals().has_rates(); });
}

std::string LiveText(const ProcessSnapshot& process, const Options& options,
                     const TextStyle& style) {
  std::string out;
  if ((options.batch() || options.command() == Options::SHOW) &&
      process.realtime_ns() != 0) {
    AppendLine(style, "time",
               TimeText(process.realtime_ns(), "%Y-%m-%d %H:%M:%S UTC"), &out);
  }
  AppendLine(
      style, "process",
      absl::StrCat(process.pid(), process.command().empty() ? "" : " (",
                   Printable(process.command()),
                   process.command().empty() ? "" : ")", ", ",
                   process.stopped().empty()
                       ? ""
                       : Tinted(style, Tint::kWeak, process.stopped()) + ", ",
                   HoldingsText(process)),
      &out);
  const Columns<Slot> columns = Chosen(
      options.batch() || HasRates(process) ? RatedSlotColumns() : SlotColumns(),
      options);
  for (const PoolSnapshot& pool : process.pools()) {
    out += '\n';
    AppendPool(pool, columns, options, style, &out);
  }
  AppendWarnings(process.warnings(), style, &out);
  return out;
}

std::string CoreText(const CoreReport& report, const Options& options,
                     const TextStyle& style) {
  std::string out;
  AppendLine(style, "core", Printable(report.path()), &out);
  AppendLine(style, "ended by",
             report.crash_text().empty()
                 ? "nothing: it was taken while the process lived"
                 : report.crash_text(),
             &out);
  return out + LiveText(report.process(), options, style);
}

std::string PsText(const PsReport& report, const Options& options,
                   const TextStyle& style) {
  std::string out;
  if (report.processes().empty()) {
    AppendSentence(
        style,
        options.filter().empty()
            ? std::string("no process that may be looked at has a pool of "
                          "firsttouch")
            : absl::StrCat("no process with a pool has a command or a user in "
                           "which --filter=",
                           Printable(options.filter()), " is found"),
        &out);
  } else {
    out = ShownTable(Chosen(PsColumns(), options), report.processes(), {},
                     options, style);
  }
  if (report.forbidden() > 0) {
    AppendSentence(
        style,
        absl::StrCat(Plural(report.forbidden(), "process", "processes"),
                     " of others may have pools, and may not be looked at: run "
                     "pooldump as root"),
        &out);
  }
  AppendWarnings(report.warnings(), style, &out);
  return out;
}

std::string DiffText(const DiffReport& report, const Options& options,
                     const TextStyle& style) {
  std::string out;
  AppendLine(style, "from", Printable(report.before_path()), &out);
  AppendLine(
      style, "to",
      absl::StrCat(Printable(report.path()),
                   report.has_seconds()
                       ? absl::StrFormat(", %.1f s later", report.seconds())
                       : std::string()),
      &out);
  AppendLine(style, "process",
             absl::StrCat(report.pid(), report.command().empty() ? "" : " (",
                          Printable(report.command()),
                          report.command().empty() ? "" : ")"),
             &out);
  const Columns<DiffReport::Change> columns = Chosen(DiffColumns(), options);
  for (const DiffReport::Pool& pool : report.pools()) {
    out += '\n';
    AppendLine(
        style, "pool",
        absl::StrCat(Printable(pool.name()), " (number ", pool.pool_id(), ")"),
        &out);
    AppendLine(style, "changed",
               absl::StrCat(pool.changed_slots(), " of ",
                            Plural(pool.slots(), "slot", "slots"), ", ",
                            pool.changed_states(), " of them in state"),
               &out);
    if (pool.changes().empty()) continue;
    std::vector<Value> total;
    for (const auto& column : columns) {
      const bool text = column.name == "was" || column.name == "state" ||
                        column.name == "image" || column.name == "image-was";
      total.push_back(column.name == "slot" ? Value::Text("total", Tint::kHead)
                      : text                ? Value::Text("")
                                            : column.value(pool.sum()));
    }
    absl::StrAppend(&out, "\n",
                    ShownTable(columns, pool.changes(), total, options, style));
  }
  AppendWarnings(report.warnings(), style, &out);
  return out;
}

std::string SlotsCsvTitles(const Options& options, bool rated) {
  std::vector<std::string> titles;
  if (options.batch()) titles.emplace_back("time");
  titles.insert(titles.end(), {"pool", "pool-number"});
  AppendNames(Chosen(rated ? RatedSlotColumns() : SlotColumns(), options),
              &titles);
  return cli::CsvTitles(titles);
}

std::string SlotsCsvRows(const ProcessSnapshot& process, const Options& options,
                         bool rated) {
  const Columns<Slot> columns =
      Chosen(rated ? RatedSlotColumns() : SlotColumns(), options);
  std::vector<Value> front;
  if (options.batch()) {
    front.push_back(
        Value::Text(TimeText(process.realtime_ns(), "%Y-%m-%dT%H:%M:%E3SZ")));
  }
  std::string out;
  for (const PoolSnapshot& pool : process.pools()) {
    std::vector<Value> of_pool = front;
    of_pool.push_back(Value::Text(pool.name()));
    of_pool.push_back(Value::Count(pool.pool_id()));
    for (const Slot& slot : pool.slots()) {
      out += CsvRow(of_pool, cli::CellsOf(columns, slot));
    }
  }
  return out;
}

std::string PsCsv(const PsReport& report, const Options& options) {
  return cli::TableCsv(
      MakeTable(Chosen(PsColumns(), options), report.processes(), true));
}

std::string DiffCsv(const DiffReport& report, const Options& options) {
  const auto columns = Chosen(DiffColumns(), options);
  std::vector<std::string> titles = {"pool", "pool-number"};
  AppendNames(columns, &titles);
  std::string out = cli::CsvTitles(titles);
  for (const DiffReport::Pool& pool : report.pools()) {
    for (const DiffReport::Change& change : pool.changes()) {
      out += CsvRow({Value::Text(pool.name()), Value::Count(pool.pool_id())},
                    cli::CellsOf(columns, change));
    }
  }
  return out;
}

}  // namespace firsttouch::pooldump
