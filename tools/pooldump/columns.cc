#include "firsttouch/tools/pooldump/columns.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::pooldump {

using cli::Column;
using cli::Columns;
using cli::HexText;
using cli::Printable;
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
            return slot.has_pages() ? CountOrDim((slot.pages().*count)())
                                    : Value::Unknown();
          },
          rank};
}

Value RateOrDim(double rate, Tint tint = Tint::kNone) {
  return Value::Rate(rate, rate == 0 ? Tint::kDim : tint);
}

std::string Offset(int64_t offset) {
  const bool below = offset < 0;
  const uint64_t distance = below ? uint64_t{0} - static_cast<uint64_t>(offset)
                                  : static_cast<uint64_t>(offset);
  return absl::StrCat(below ? "-" : "", distance, " (", below ? "-" : "",
                      HexText(distance), ")");
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
         return range.stride_bytes() == 0 ? Value::Unknown()
                                          : Value::Bytes(range.stride_bytes());
       }},
      {"slot", "",
       [](const Range& range) {
         return range.slot_name().empty() ? Value::Unknown()
                                          : Value::Text(range.slot_name());
       }},
      {"purpose", "",
       [](const Range& range) { return Value::Text(range.purpose()); }},
      {"option", "",
       [](const Range& range) { return Value::Text(range.cause()); }},
  };
  return columns;
}

const Columns<Slot>& SlotColumns() {
  static const auto& columns = *new Columns<Slot>{
      // In the order of their numbers, the smallest first.
      {"slot", "",
       [](const Slot& slot) {
         Value value = Value::Count(slot.slot());
         value.rising = true;
         return value;
       }},
      {"state", "", StateValue},
      {"image", "",
       [](const Slot& slot) {
         return slot.image_name().empty() ? Value::Unknown()
                                          : Value::Text(slot.image_name());
       },
       4},
      {"size", "",
       [](const Slot& slot) { return BytesOrDim(slot.size_bytes()); }, 6},
      {"resident", "",
       [](const Slot& slot) {
         return slot.has_resident_bytes() ? BytesOrDim(slot.resident_bytes())
                                          : Value::Unknown();
       },
       5},
      {"private", "",
       [](const Slot& slot) {
         return slot.has_private_bytes() ? BytesOrDim(slot.private_bytes())
                                         : Value::Unknown();
       },
       2},
      {"shared", "",
       [](const Slot& slot) {
         return slot.has_shared_bytes() ? BytesOrDim(slot.shared_bytes())
                                        : Value::Unknown();
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
           return slot.rates().has_faults() ? RateOrDim(slot.rates().faults())
                                            : Value::Unknown();
         },
         1},
        {"traps/s", "",
         [](const Slot& slot) {
           return slot.has_rates() ? RateOrDim(slot.rates().traps(), Tint::kBad)
                                   : Value::Unknown();
         },
         1},
        {"handovers/s", "",
         [](const Slot& slot) {
           return slot.has_rates() ? RateOrDim(slot.rates().handovers())
                                   : Value::Unknown();
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
       [](const Image& image) {
         return image.digest().empty() ? Value::Unknown()
                                       : Value::Text(image.digest());
       },
       1},
  };
  return columns;
}

const Columns<PsReport::Process>& PsColumns() {
  using Process = PsReport::Process;
  static const auto& columns = *new Columns<Process>{
      {"pid", "",
       [](const Process& process) {
         Value value = Value::Count(static_cast<uint64_t>(process.pid()));
         value.rising = true;
         return value;
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
         return process.has_resident_bytes()
                    ? BytesOrDim(process.resident_bytes())
                    : Value::Unknown();
       },
       1},
      {"private", "",
       [](const Process& process) {
         return process.has_private_bytes()
                    ? BytesOrDim(process.private_bytes())
                    : Value::Unknown();
       },
       3},
      {"traps", "",
       [](const Process& process) {
         return CountOrDim(process.traps(), Tint::kBad);
       },
       7},
      {"traps/s", "",
       [](const Process& process) {
         return process.has_traps_per_second()
                    ? RateOrDim(process.traps_per_second(), Tint::kBad)
                    : Value::Unknown();
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
  const auto text = [](const std::string& now) {
    return now.empty() ? Value::Unknown() : Value::Text(now);
  };
  static const auto& columns = *new Columns<Change>{
      {"slot", "",
       [](const Change& change) {
         Value value = Value::Count(change.slot());
         value.rising = true;
         return value;
       }},
      {"was", "",
       [](const Change& change) {
         return change.state_before() == change.state()
                    ? Value::Unknown()
                    : Value::Text(change.state_before());
       }},
      {"state", "",
       [](const Change& change) {
         return Value::Text(change.state(), change.state() == "quarantined"
                                                ? Tint::kBad
                                                : Tint::kNone);
       }},
      {"private", "",
       [](const Change& change) {
         return change.has_private_bytes() ? GrownBytes(change.private_bytes())
                                           : Value::Unknown();
       },
       1},
      {"resident", "",
       [](const Change& change) {
         return change.has_resident_bytes()
                    ? GrownBytes(change.resident_bytes())
                    : Value::Unknown();
       },
       3},
      {"image-was", "",
       [text](const Change& change) {
         return change.image_before() == change.image()
                    ? Value::Unknown()
                    : text(change.image_before());
       },
       12},
      {"image", "",
       [text](const Change& change) { return text(change.image()); }, 5},
      {"size", "",
       [](const Change& change) { return GrownBytes(change.size_bytes()); }, 6},
      {"shared", "",
       [](const Change& change) {
         return change.has_shared_bytes() ? GrownBytes(change.shared_bytes())
                                          : Value::Unknown();
       },
       8},
      {"dirty", "",
       [](const Change& change) {
         return change.has_dirty_pages() ? Grown(change.dirty_pages())
                                         : Value::Unknown();
       },
       9},
      {"hot", "",
       [](const Change& change) {
         return change.has_hot_pages() ? Grown(change.hot_pages())
                                       : Value::Unknown();
       },
       10},
      {"faults", "",
       [](const Change& change) {
         return change.has_faults() ? Grown(change.faults()) : Value::Unknown();
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
         return found.line() == 0 ? Value::Unknown()
                                  : Value::Count(found.line());
       }},
      {"pool", "",
       [](const Found& found) {
         return found.location().place() == Location::NO_POOL
                    ? Value::Unknown()
                    : Value::Text(found.location().pool());
       }},
      {"pool-number", "",
       [](const Found& found) {
         return found.location().pool_id() == 0
                    ? Value::Unknown()
                    : Value::Count(found.location().pool_id());
       }},
      {"slot", "",
       [](const Found& found) {
         return found.location().place() == Location::NO_POOL
                    ? Value::Unknown()
                    : Value::Count(found.location().slot());
       }},
      {"offset", "",
       [](const Found& found) {
         return found.location().place() == Location::NO_POOL
                    ? Value::Unknown()
                    : Value::Signed(found.location().offset_bytes());
       }},
      {"page", "",
       [](const Found& found) {
         return found.location().place() == Location::MEMORY
                    ? Value::Count(found.location().page())
                    : Value::Unknown();
       }},
      {"what", "",
       [](const Found& found) { return Value::Text(found.text()); }},
  };
  return columns;
}

const Columns<PageRun>& PageRunColumns() {
  static const auto& columns = *new Columns<PageRun>{
      {"first-page", "",
       [](const PageRun& run) {
         Value value = Value::Count(run.first_page());
         value.rising = true;
         return value;
       }},
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
       [](const Run& run) {
         Value value = Value::Count(run.range().first_page());
         value.rising = true;
         return value;
       }},
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

uint64_t Faults(const Counters& counters) {
  return counters.minor_faults() + counters.missing_read_faults() +
         counters.missing_write_faults() + counters.write_protect_faults();
}

std::string PageStateText(PageState state) {
  switch (state) {
    case PAGE_MISSING:
      return "missing";
    case PAGE_CLEAN:
      return "clean";
    case PAGE_UNTRACKED:
      return "untracked";
    case PAGE_DIRTY:
      return "dirty";
    case PAGE_HOT:
      return "hot";
    default:
      return "unknown";
  }
}

std::string ResidencyText(int resident) {
  switch (resident) {
    case 0:
      return "not resident";
    case 1:
      return "resident, shared";
    case 2:
      return "resident, private";
    default:
      return "unknown";
  }
}

std::string PageSourceText(PageSource source) {
  switch (source) {
    case PAGE_OF_ZEROES:
      return "zeroes";
    case PAGE_OF_IMAGE:
      return "image";
    case PAGE_OUTSIDE:
      return "outside";
    default:
      return "unknown";
  }
}

std::string LocationText(const Location& location) {
  if (location.place() == Location::NO_POOL ||
      location.place() == Location::PLACE_UNSPECIFIED) {
    return location.mapping().empty()
               ? "in no pool"
               : absl::StrCat("in no pool: ", Printable(location.mapping()));
  }
  // A pool on paper may have no name.
  const std::string name = Printable(location.pool());
  std::string text =
      absl::StrCat(name == kUnnamed ? name : absl::StrCat("pool ", name),
                   ", slot ", location.slot());
  if (location.memory() != 0 || location.instance() != location.slot()) {
    absl::StrAppend(&text, " (instance ", location.instance(), ", memory ",
                    location.memory(), ")");
  }
  absl::StrAppend(&text, ", offset ", Offset(location.offset_bytes()));
  switch (location.place()) {
    case Location::GUARD_BEFORE:
      return text + ": guard, in front of the first memory";
    case Location::GUARD_AFTER:
      return text + ": guard, behind the memory";
    case Location::GUARD_UNOWNED:
      return absl::StrCat(text, ": guard, of nobody: slot ",
                          location.slot() + 1, " reaches there, too");
    default:
      break;
  }
  absl::StrAppend(&text, ", page ", location.page());
  if (!location.has_slot()) return text + ": inside the memory's maximum";
  if (location.page_state() != PAGE_STATE_UNSPECIFIED) {
    absl::StrAppend(&text, " (", PageStateText(location.page_state()), ")");
  } else if (location.has_resident()) {
    absl::StrAppend(&text, " (", ResidencyText(location.resident()), ")");
  }
  if (location.in_bounds()) {
    absl::StrAppend(&text, ": in bounds");
  } else if (location.page_in_bounds()) {
    absl::StrAppend(&text, ": above the size of ", location.size_bytes(),
                    " bytes, in its last page (not guarded)");
  } else if (location.size_bytes() == 0 &&
             location.slot_state() != Slot::HELD) {
    absl::StrAppend(&text, ": nobody holds the slot");
  } else {
    absl::StrAppend(&text, ": out of bounds, above the size of ",
                    location.size_bytes(), " bytes");
  }
  if (location.has_image_page()) {
    absl::StrAppend(&text, "; page ", location.image_page(), " of image ",
                    Printable(location.image_name()));
  } else if (location.page_source() == PAGE_OF_ZEROES) {
    absl::StrAppend(&text, "; zeroes at first");
  }
  return text;
}

std::string CrashText(const Crash& crash) {
  std::string text = crash.signal_name().empty()
                         ? absl::StrCat("signal ", crash.signal())
                         : crash.signal_name();
  if (crash.thread_id() != 0) {
    absl::StrAppend(&text, " in thread ", crash.thread_id());
  }
  if (!crash.has_address()) return text + ", without an address";
  absl::StrAppend(&text, " at ", HexText(crash.address()));
  if (crash.has_location()) {
    absl::StrAppend(&text, ": ", LocationText(crash.location()));
  }
  return text;
}

}  // namespace firsttouch::pooldump
