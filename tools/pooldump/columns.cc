#include "firsttouch/tools/pooldump/columns.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/location_text.h"

namespace firsttouch::pooldump {

using cli::Column;
using cli::Columns;
using cli::Tint;
using cli::Value;

namespace {

// Only what deserves attention has a colour.
Value StateValue(const Slot& slot) {
  // "~": its fields may be of different moments.
  return Value::Text(
      slot.torn() ? slot.state_name() + "~" : slot.state_name(),
      slot.state() == Slot::QUARANTINED ? Tint::kBad : Tint::kNone);
}

// In the order of numbers, the smallest first.
Value Rising(uint64_t number) {
  Value value = Value::Count(number);
  value.rising = true;
  return value;
}

Value Known(bool is_known, Value value) {
  return is_known ? std::move(value) : Value::Unknown();
}

Value TextOrUnknown(const std::string& text) {
  return Known(!text.empty(), Value::Text(text));
}

Value CountOrDim(uint64_t number, Tint tint = Tint::kNone) {
  return Value::Count(number, number == 0 ? Tint::kDim : tint);
}

Value BytesOrDim(uint64_t number) {
  return Value::Bytes(number, number == 0 ? Tint::kDim : Tint::kNone);
}

Value Grown(int64_t change, Tint tint = Tint::kNone) {
  return Value::CountChange(change, change == 0 ? Tint::kDim : tint);
}

Value GrownBytes(int64_t change) {
  return Value::BytesChange(change, change == 0 ? Tint::kDim : Tint::kNone);
}

// A column of a counter.
template <uint64_t (Counters::*counter)() const>
Column<Slot> FaultColumn(const char* name, const char* title, int rank) {
  return {name, title,
          [](const Slot& slot) {
            return slot.counters().faults_unknown()
                       ? Value::Unknown()
                       : CountOrDim((slot.counters().*counter)());
          },
          rank};
}

template <uint64_t (Counters::*counter)() const>
Column<Slot> CounterColumn(const char* name, const char* title, int rank) {
  return {
      name, title,
      [](const Slot& slot) { return CountOrDim((slot.counters().*counter)()); },
      rank};
}

template <uint64_t (PageCounts::*count)() const>
Column<Slot> PagesColumn(const char* name, int rank) {
  return {name, "",
          [](const Slot& slot) {
            return Known(slot.has_pages(), CountOrDim((slot.pages().*count)()));
          },
          rank};
}

Value RateOrDim(double rate, Tint tint = Tint::kNone) {
  return Value::Rate(rate, rate == 0 ? Tint::kDim : tint);
}

}  // namespace

const Columns<LayoutReport::Range>& RangeColumns() {
  using Range = LayoutReport::Range;
  static const auto& columns = *new Columns<Range>{
      {"offset", "",
       [](const Range& range) { return Value::Hex(range.offset_bytes()); }},
      {"bytes", "size",
       [](const Range& range) { return Value::Bytes(range.bytes()); }},
      {"times", "",
       [](const Range& range) { return Value::Count(range.count()); }},
      {"every", "",
       [](const Range& range) {
         return Known(range.stride_bytes() != 0,
                      Value::Bytes(range.stride_bytes()));
       }},
      {"slot", "",
       [](const Range& range) { return TextOrUnknown(range.slot_name()); }},
      {"purpose", "",
       [](const Range& range) { return Value::Text(range.purpose()); }},
      {"option", "",
       [](const Range& range) { return Value::Text(range.cause()); }},
  };
  return columns;
}

const Columns<Slot>& SlotColumns() {
  static const auto& columns = *new Columns<Slot>{
      {"slot", "", [](const Slot& slot) { return Rising(slot.slot()); }},
      {"state", "", StateValue},
      {"image", "",
       [](const Slot& slot) { return TextOrUnknown(slot.image_name()); }, 4},
      {"size", "",
       [](const Slot& slot) { return BytesOrDim(slot.size_bytes()); }, 6},
      {"resident", "",
       [](const Slot& slot) {
         return Known(slot.has_resident_bytes(),
                      BytesOrDim(slot.resident_bytes()));
       },
       5},
      {"private", "",
       [](const Slot& slot) {
         return Known(slot.has_private_bytes(),
                      BytesOrDim(slot.private_bytes()));
       },
       2},
      {"shared", "",
       [](const Slot& slot) {
         return Known(slot.has_shared_bytes(), BytesOrDim(slot.shared_bytes()));
       },
       8},
      PagesColumn<&PageCounts::clean>("clean", 15),
      PagesColumn<&PageCounts::untracked>("untracked", 16),
      PagesColumn<&PageCounts::dirty>("dirty", 9),
      PagesColumn<&PageCounts::hot>("hot", 10),
      FaultColumn<&Counters::minor_faults>("minor-faults", "minor", 14),
      FaultColumn<&Counters::missing_read_faults>("read-faults", "read", 13),
      FaultColumn<&Counters::missing_write_faults>("write-faults", "write", 12),
      FaultColumn<&Counters::write_protect_faults>("protect-faults", "protect",
                                                   11),
      {"traps", "",
       [](const Slot& slot) {
         return CountOrDim(slot.counters().traps(), Tint::kBad);
       },
       3},
      CounterColumn<&Counters::handovers>("handovers", "", 7),
      CounterColumn<&Counters::binds>("binds", "", 17),
      CounterColumn<&Counters::kernel_calls>("kernel-calls", "calls", 18),
  };
  return columns;
}

const Columns<Slot>& RatedSlotColumns() {
  static const auto& columns = *new Columns<Slot>([] {
    const auto of_slot = [](const char* name) {
      for (const Column<Slot>& column : SlotColumns()) {
        if (column.name == name) return column;
      }
      return Column<Slot>();
    };
    Columns<Slot> all = {
        of_slot("slot"),
        of_slot("state"),
        {"faults/s", "",
         [](const Slot& slot) {
           return Known(slot.rates().has_faults(),
                        RateOrDim(slot.rates().faults()));
         },
         1},
        {"traps/s", "",
         [](const Slot& slot) {
           return Known(slot.has_rates(),
                        RateOrDim(slot.rates().traps(), Tint::kBad));
         },
         1},
        {"handovers/s", "",
         [](const Slot& slot) {
           return Known(slot.has_rates(), RateOrDim(slot.rates().handovers()));
         },
         1},
    };
    for (const char* name : {"private", "resident", "image", "size", "traps"}) {
      all.push_back(of_slot(name));
    }
    for (const Column<Slot>& column : SlotColumns()) {
      const bool there = std::any_of(
          all.begin(), all.end(),
          [&](const Column<Slot>& one) { return one.name == column.name; });
      if (!there) all.push_back(column);
    }
    return all;
  }());
  return columns;
}

const Columns<Image>& ImageColumns() {
  static const auto& columns = *new Columns<Image>{
      {"image", "",
       [](const Image& image) { return Value::Text(image.name()); }},
      {"size", "",
       [](const Image& image) { return Value::Bytes(image.size_bytes()); }},
      {"stored", "",
       [](const Image& image) { return Value::Count(image.stored_pages()); }},
      {"slots", "",
       [](const Image& image) { return Value::Count(image.slots()); }},
      {"held", "",
       [](const Image& image) { return Value::Count(image.held()); }},
      {"digest", "",
       [](const Image& image) { return TextOrUnknown(image.digest()); }, 1},
  };
  return columns;
}

const Columns<PsReport::Process>& PsColumns() {
  using Process = PsReport::Process;
  static const auto& columns = *new Columns<Process>{
      {"pid", "",
       [](const Process& process) {
         return Rising(static_cast<uint64_t>(process.pid()));
       }},
      {"user", "",
       [](const Process& process) { return Value::Text(process.user()); }, 5},
      {"command", "",
       [](const Process& process) { return Value::Text(process.command()); }},
      {"pools", "",
       [](const Process& process) { return Value::Count(process.pools()); }, 6},
      {"slots", "",
       [](const Process& process) { return Value::Count(process.slots()); }, 4},
      {"held", "",
       [](const Process& process) { return CountOrDim(process.held()); }, 2},
      {"resident", "",
       [](const Process& process) {
         return Known(process.has_resident_bytes(),
                      BytesOrDim(process.resident_bytes()));
       },
       1},
      {"private", "",
       [](const Process& process) {
         return Known(process.has_private_bytes(),
                      BytesOrDim(process.private_bytes()));
       },
       3},
      {"traps", "",
       [](const Process& process) {
         return CountOrDim(process.traps(), Tint::kBad);
       },
       7},
      {"traps/s", "",
       [](const Process& process) {
         return Known(process.has_traps_per_second(),
                      RateOrDim(process.traps_per_second(), Tint::kBad));
       },
       2},
      {"quarantined", "",
       [](const Process& process) {
         return CountOrDim(process.quarantined(), Tint::kBad);
       },
       8},
      {"runs", "",
       [](const Process& process) {
         return process.stopped().empty()
                    ? Value::Text("yes", Tint::kDim)
                    : Value::Text(process.stopped(), Tint::kWeak);
       },
       9},
  };
  return columns;
}

const Columns<DiffReport::Change>& DiffColumns() {
  using Change = DiffReport::Change;
  static const auto& columns = *new Columns<Change>{
      {"slot", "", [](const Change& change) { return Rising(change.slot()); }},
      {"was", "",
       [](const Change& change) {
         return Known(change.state_before() != change.state(),
                      Value::Text(change.state_before()));
       }},
      {"state", "",
       [](const Change& change) {
         return Value::Text(change.state(), change.state() == "quarantined"
                                                ? Tint::kBad
                                                : Tint::kNone);
       }},
      {"private", "",
       [](const Change& change) {
         return Known(change.has_private_bytes(),
                      GrownBytes(change.private_bytes()));
       },
       1},
      {"resident", "",
       [](const Change& change) {
         return Known(change.has_resident_bytes(),
                      GrownBytes(change.resident_bytes()));
       },
       3},
      {"image-was", "",
       [](const Change& change) {
         return Known(change.image_before() != change.image(),
                      TextOrUnknown(change.image_before()));
       },
       12},
      {"image", "",
       [](const Change& change) { return TextOrUnknown(change.image()); }, 5},
      {"size", "",
       [](const Change& change) { return GrownBytes(change.size_bytes()); }, 6},
      {"shared", "",
       [](const Change& change) {
         return Known(change.has_shared_bytes(),
                      GrownBytes(change.shared_bytes()));
       },
       8},
      {"dirty", "",
       [](const Change& change) {
         return Known(change.has_dirty_pages(), Grown(change.dirty_pages()));
       },
       9},
      {"hot", "",
       [](const Change& change) {
         return Known(change.has_hot_pages(), Grown(change.hot_pages()));
       },
       10},
      {"faults", "",
       [](const Change& change) {
         return Known(change.has_faults(), Grown(change.faults()));
       },
       7},
      {"traps", "",
       [](const Change& change) { return Grown(change.traps(), Tint::kBad); },
       2},
      {"handovers", "",
       [](const Change& change) { return Grown(change.handovers()); }, 4},
      {"binds", "", [](const Change& change) { return Grown(change.binds()); },
       11},
      {"kernel-calls", "calls",
       [](const Change& change) { return Grown(change.kernel_calls()); }, 13},
  };
  return columns;
}

const Columns<LocateReport::Found>& FoundColumns() {
  using Found = LocateReport::Found;
  static const auto& columns = *new Columns<Found>{
      {"address", "",
       [](const Found& found) {
         return Value::Hex(found.location().address());
       }},
      {"line", "",
       [](const Found& found) {
         return Known(found.line() != 0, Value::Count(found.line()));
       }},
      {"pool", "",
       [](const Found& found) {
         return Known(found.location().place() != Location::NO_POOL,
                      Value::Text(found.location().pool()));
       }},
      {"pool-number", "",
       [](const Found& found) {
         return Known(found.location().pool_id() != 0,
                      Value::Count(found.location().pool_id()));
       }},
      {"slot", "",
       [](const Found& found) {
         return Known(found.location().place() != Location::NO_POOL,
                      Value::Count(found.location().slot()));
       }},
      {"offset", "",
       [](const Found& found) {
         return Known(found.location().place() != Location::NO_POOL,
                      Value::Signed(found.location().offset_bytes()));
       }},
      {"page", "",
       [](const Found& found) {
         return Known(found.location().place() == Location::MEMORY,
                      Value::Count(found.location().page()));
       }},
      {"what", "",
       [](const Found& found) { return Value::Text(found.text()); }},
  };
  return columns;
}

const Columns<PageRun>& PageRunColumns() {
  static const auto& columns = *new Columns<PageRun>{
      {"first-page", "",
       [](const PageRun& run) { return Rising(run.first_page()); }},
      {"pages", "",
       [](const PageRun& run) { return Value::Count(run.pages()); }},
      {"state", "",
       [](const PageRun& run) {
         return Value::Text(PageStateText(run.state()));
       }},
      {"source", "",
       [](const PageRun& run) {
         return Value::Text(PageSourceText(run.source()));
       }},
      {"resident", "",
       [](const PageRun& run) {
         switch (run.resident()) {
           case 0:
             return Value::Text("no");
           case 1:
             return Value::Text("shared");
           case 2:
             return Value::Text("private");
           default:
             return Value::Unknown();
         }
       }},
  };
  return columns;
}

const Columns<imagetool::MapReport::Run>& ImageRunColumns() {
  using imagetool::MapReport;
  using Run = MapReport::Run;
  static const auto& columns = *new Columns<Run>{
      {"first-page", "",
       [](const Run& run) { return Rising(run.range().first_page()); }},
      {"pages", "",
       [](const Run& run) { return Value::Count(run.range().pages()); }},
      {"state", "",
       [](const Run& run) {
         return Value::Text(
             absl::AsciiStrToLower(MapReport::State_Name(run.state())));
       }},
  };
  return columns;
}

}  // namespace firsttouch::pooldump
