#include "firsttouch/tools/pooldump/layout_report.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/ids.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/blocks_touched.h"
#include "firsttouch/tools/pooldump/location_text.h"
#include "firsttouch/tools/pooldump/machine.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

// What UffdSupply and MappingSupply count with.
constexpr uint64_t kFixedMappings = 4;
constexpr uint64_t kMappingsShared = 2;
constexpr uint64_t kMappingsCopied = 0;
constexpr uint64_t kMappingsMapped = 3;
constexpr uint64_t kMappingsAsync = 4;

constexpr uint64_t kMostRanges = 4'000'000;

// Page tables of x86-64: one of 4 KiB for each of these.
constexpr std::array<uint64_t, 3> kTableSpans = {
    uint64_t{1} << 21, uint64_t{1} << 30, uint64_t{1} << 39};

bool Has(const Machine& machine, const std::string& feature) {
  return std::find(machine.features().begin(), machine.features().end(),
                   feature) != machine.features().end();
}

// The facts without what concerns the other limits.
LimitFacts Only(Limit limit, const LimitFacts& facts) {
  LimitFacts only;
  only.address_space_bits = 64;
  switch (limit) {
    case Limit::kAddressSpace:
      only.address_space_bits = facts.address_space_bits;
      only.largest_gap_bytes = facts.largest_gap_bytes;
      only.mapped_bytes = facts.mapped_bytes;
      break;
    case Limit::kRlimitAs:
      only.rlimit_as_bytes = facts.rlimit_as_bytes;
      only.mapped_bytes = facts.mapped_bytes;
      break;
    case Limit::kMapCount:
      only.max_map_count = facts.max_map_count;
      only.maps = facts.maps;
      break;
    case Limit::kOvercommit:
      only.overcommit = facts.overcommit;
      only.commit_limit_bytes = facts.commit_limit_bytes;
      only.committed_bytes = facts.committed_bytes;
      break;
  }
  return only;
}

std::string Size(uint64_t bytes) { return cli::BytesText(bytes, {}); }

// The same as a flag takes it, without a loss: "2GiB", "8192KiB", "4097".
std::string FlagSize(uint64_t bytes) {
  std::string text = Size(bytes);
  if (text.find('.') != std::string::npos) {
    text = bytes % 1024 == 0 ? absl::StrCat(bytes / 1024, "KiB")
                             : absl::StrCat(bytes);
  }
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  return text;
}

class Analysis {
 public:
  Analysis(const PlacedConfig& config, const PoolLayout& layout,
           const Machine& machine)
      : config_(config),
        layout_(layout),
        machine_(machine),
        limits_(LimitsOf(machine)) {}

  absl::StatusOr<LayoutReport> Make(const LayoutReportOptions& options);

 private:
  void Numbers();
  absl::Status Ranges(const LayoutReportOptions& options);
  void Collapsed();
  void ChooseSupply();
  void ChooseBacking();
  void Costs();
  void Needs();
  void JudgeEachLimit();
  absl::Status JudgeGuards();
  void Warn(bool fatal, std::string text, std::string remedy);
  bool MayShare() const;
  uint64_t MappingsWith(uint64_t per_slot) const {
    return kFixedMappings + per_slot * layout_.slots();
  }
  bool MappingsFit(uint64_t per_slot) const {
    return MappingsWith(per_slot) + machine_.mappings() <=
           limits_.max_map_count;
  }

  const PlacedConfig& config_;
  const PoolLayout& layout_;
  const Machine& machine_;
  const LimitFacts limits_;
  LayoutReport report_;
};

void Analysis::Warn(bool fatal, std::string text, std::string remedy) {
  Warning& warning = *report_.add_warnings();
  warning.set_fatal(fatal);
  warning.set_text(std::move(text));
  warning.set_remedy(std::move(remedy));
}

void Analysis::Numbers() {
  const LayoutOptions& asked = layout_.options();
  report_.set_name(config_.config.name().empty()
                       ? kUnnamed
                       : cli::Printable(config_.config.name()));
  report_.set_instances(asked.instances);
  report_.set_memories_per_instance(asked.memories_per_instance);
  report_.set_max_memory_bytes(asked.max_memory_bytes);
  report_.set_guard_before_bytes(asked.guard_before_bytes);
  report_.set_guard_after_bytes(asked.guard_after_bytes);
  report_.set_page_bytes(asked.page_bytes);
  report_.set_granule_bytes(asked.fault_around_bytes);
  report_.set_reservation_bytes(layout_.reservation_bytes());
  report_.set_slots(layout_.slots());
  report_.set_slot_stride_bytes(layout_.slot_stride_bytes());
  const uint64_t space =
      machine_.address_space_bits() == 0 || machine_.address_space_bits() > 63
          ? uint64_t{1} << 47
          : uint64_t{1} << machine_.address_space_bits();
  report_.set_address_space_bytes(space);
  report_.set_address_space_share(
      static_cast<double>(layout_.reservation_bytes()) /
      static_cast<double>(space));
  *report_.mutable_machine() = machine_;
}

void Analysis::Collapsed() {
  // The guard in front stands once; the rest repeats with each slot.
  for (const LayoutRange& range : layout_.Ranges()) {
    if (range.slot.value() > 0) break;
    LayoutReport::Range& line = *report_.add_ranges();
    line.set_offset_bytes(range.offset_bytes);
    line.set_bytes(range.bytes);
    line.set_purpose(std::string(LayoutRangeKindName(range.kind)));
    line.set_cause(std::string(range.cause));
    const bool once = range.kind == LayoutRangeKind::kGuardBefore;
    line.set_count(once ? 1 : layout_.slots());
    if (line.count() > 1) line.set_stride_bytes(layout_.slot_stride_bytes());
  }
}

absl::Status Analysis::Ranges(const LayoutReportOptions& options) {
  if (!options.all) {
    Collapsed();
    return absl::OkStatus();
  }
  uint64_t ranges = 0;
  absl::Status too_many = absl::InvalidArgumentError(absl::StrCat(
      "--all would print more than ", kMostRanges,
      " ranges: choose some slots with --filter, or leave out --all"));
  if (!options.wanted && layout_.slots() > kMostRanges / 2) return too_many;
  ForEachRange(layout_, report_.name(), options.wanted,
               [&](const LayoutReport::Range& range) {
                 if (!options.leave_out) *report_.add_ranges() = range;
                 return ++ranges <= kMostRanges;
               });
  return ranges > kMostRanges ? too_many : absl::OkStatus();
}

void Analysis::ChooseSupply() {
  report_.set_resolve(config_.config.resolve().empty()
                          ? "in-thread"
                          : config_.config.resolve());
  if (!config_.config.supply().empty()) {
    report_.set_supply(config_.config.supply());
    report_.set_supply_reason("asked for");
    return;
  }
  const bool in_thread = report_.resolve() == "in-thread";
  if (!machine_.userfaultfd()) {
    report_.set_supply_reason("userfaultfd is refused");
  } else if (!Has(machine_, "PAGEFAULT_FLAG_WP") ||
             (in_thread && !Has(machine_, "SIGBUS"))) {
    report_.set_supply_reason("this kernel's userfaultfd is too old");
  } else {
    report_.set_supply("userfaultfd");
    report_.set_supply_reason("kernel and permissions allow it");
    return;
  }
  report_.set_supply(machine_.pagemap_scan() ? "mappings-scan"
                                             : "mappings-drop");
}

bool Analysis::MayShare() const {
  return Has(machine_, "MISSING_SHMEM") && Has(machine_, "MINOR_SHMEM") &&
         Has(machine_, "WP_HUGETLBFS_SHMEM") && Has(machine_, "WP_UNPOPULATED");
}

void Analysis::ChooseBacking() {
  if (report_.supply() != "userfaultfd") {
    report_.set_backing("shared");
    report_.set_backing_reason("mappings share the image's clean pages");
    report_.set_mappings_per_slot(kMappingsMapped);
  } else if (!config_.config.backing().empty()) {
    report_.set_backing(config_.config.backing());
    report_.set_backing_reason("asked for");
  } else if (!MayShare()) {
    report_.set_backing("copied");
    report_.set_backing_reason("this kernel lacks what shared needs (6.4)");
  } else if (!MappingsFit(kMappingsShared)) {
    report_.set_backing("copied");
    report_.set_backing_reason(absl::StrCat(
        "vm.max_map_count ", limits_.max_map_count,
        " leaves no two mappings for each of ", layout_.slots(), " slots"));
    Warn(false,
         absl::StrCat("mapping limit: clean pages are not shared between "
                      "slots, since that takes ",
                      MappingsWith(kMappingsShared),
                      " mappings and vm.max_map_count is ",
                      limits_.max_map_count),
         absl::StrCat("sysctl -w vm.max_map_count=",
                      MappingsWith(kMappingsShared) + machine_.mappings(),
                      ", or fewer instances"));
  } else {
    report_.set_backing("shared");
    report_.set_backing_reason("the kernel has all it needs");
  }
  if (report_.supply() == "userfaultfd") {
    const bool shared = report_.backing() == "shared";
    report_.set_mappings_per_slot(shared ? kMappingsShared : kMappingsCopied);
    if (shared && MappingsFit(kMappingsShared) && Has(machine_, "WP_ASYNC") &&
        !MappingsFit(kMappingsAsync)) {
      Warn(false,
           absl::StrCat("mapping limit: guests that write to other pages each "
                        "time cannot be followed by the kernel, which takes ",
                        MappingsWith(kMappingsAsync),
                        " mappings where vm.max_map_count is ",
                        limits_.max_map_count),
           absl::StrCat("sysctl -w vm.max_map_count=",
                        MappingsWith(kMappingsAsync) + machine_.mappings(),
                        ", or leave it if the guests are steady"));
    }
  }
  report_.set_fixed_mappings(kFixedMappings);
  report_.set_mappings(MappingsWith(report_.mappings_per_slot()));
}

void Analysis::Costs() {
  const LayoutOptions& asked = layout_.options();
  const uint64_t slots = layout_.slots();
  uint64_t sparse = 0;
  uint64_t full = 0;
  for (const uint64_t span : kTableSpans) {
    sparse += BlocksTouched(layout_.first_memory_offset_bytes(),
                            layout_.slot_stride_bytes(), slots,
                            asked.page_bytes, span);
    full += BlocksTouched(layout_.first_memory_offset_bytes(),
                          layout_.slot_stride_bytes(), slots,
                          layout_.memory_bytes(), span);
  }
  report_.set_page_table_bytes_sparse(sparse * kPageBytes);
  report_.set_page_table_bytes_full(full * kPageBytes);

  report_.set_record_bytes(slots *
                           (sizeof(SlotState) + SlotAllocator::kBytesPerSlot));
  const uint64_t states =
      PageStates::BytesFor(PagesRoundedUp(layout_.memory_bytes()));
  report_.set_page_state_reserved_bytes(slots * states);
  report_.set_page_state_bytes_sparse(slots * std::min(states, kPageBytes));
  report_.set_page_state_bytes_full(slots * states);
}

void Analysis::Needs() {
  const auto need = [this](const char* name, const char* since,
                           const char* purpose, bool required, bool here) {
    Need& line = *report_.add_needs();
    line.set_name(name);
    line.set_since(since);
    line.set_purpose(purpose);
    line.set_required(required);
    line.set_here(here);
    if (!required || here) return;
    Warn(true,
         absl::StrCat(name, " (Linux ", since, ") is needed to ", purpose,
                      ", and is not here"),
         report_.supply() == "userfaultfd"
             ? "leave --supply and --backing unset, or change the kernel or "
               "the permissions; //tools:doctor says which"
             : "--supply=mappings-drop");
  };
  const auto feature = [&](const char* name, const char* since,
                           const char* purpose, bool required) {
    need(name, since, purpose, required, Has(machine_, name));
  };
  const bool scan = machine_.pagemap_scan();
  if (report_.supply() != "userfaultfd") {
    if (report_.supply() == "mappings-scan") {
      need("PAGEMAP_SCAN", "6.7", "find the pages that a tenant changed", true,
           scan);
    }
    if (!machine_.userfaultfd()) {
      Warn(false,
           absl::StrCat("userfaultfd is not to be had: pages are supplied by ",
                        report_.supply(),
                        ", and a cycle is not free of system calls"),
           machine_.userfaultfd_remedy().empty()
               ? "//tools:doctor says what to change"
               : machine_.userfaultfd_remedy());
    }
    return;
  }
  need("userfaultfd", "4.3", "know of first touches", true,
       machine_.userfaultfd());
  feature("PAGEFAULT_FLAG_WP", "5.7", "know of first writes", true);
  const bool in_thread = report_.resolve() == "in-thread";
  if (in_thread) {
    feature("SIGBUS", "4.14", "resolve faults in the thread that took them",
            true);
  }
  const bool shared = report_.backing() == "shared";
  if (shared) {
    feature("MISSING_SHMEM", "4.11", "supply pages of an image", true);
    feature("MINOR_SHMEM", "5.14", "share the image's clean pages", true);
    feature("WP_HUGETLBFS_SHMEM", "5.19", "protect pages of an image", true);
    need("CONTINUE_MODE_WP", "6.4", "share and protect a page in one call",
         true, Has(machine_, "WP_UNPOPULATED"));
  }
  if (!in_thread) {
    feature("EXACT_ADDRESS", "5.18", "tell a trap's address to the byte",
            false);
    feature("POISON", "6.6", "trap without changing mappings", false);
    need("faults of the kernel", "5.11", "let system calls touch missing pages",
         false, machine_.kernel_faults());
  }
  need("PAGEMAP_SCAN", "6.7", "find changed pages without faults", false, scan);
  if (shared) {
    feature("WP_ASYNC", "6.7", "follow dirty-set churn", false);
  }
}

void Analysis::JudgeEachLimit() {
  const LimitUse use{.fixed_maps = kFixedMappings,
                     .maps_per_slot = report_.mappings_per_slot()};
  report_.set_fits(true);
  uint32_t largest = ~uint32_t{0};
  for (const Limit limit : {Limit::kAddressSpace, Limit::kRlimitAs,
                            Limit::kMapCount, Limit::kOvercommit}) {
    const LimitVerdict verdict =
        JudgeLimits(layout_, use, Only(limit, limits_));
    if (verdict.largest_instances < largest) {
      largest = verdict.largest_instances;
      const bool gap =
          limit == Limit::kAddressSpace && machine_.has_largest_gap_bytes();
      report_.set_largest_limit(
          gap ? absl::StrCat("the largest gap of the address space, ",
                             Size(machine_.largest_gap_bytes()))
              : std::string(LimitName(limit)));
    }
    if (!verdict.exceeded.has_value()) continue;
    report_.set_fits(false);
    const std::string fewer =
        verdict.largest_instances == 0
            ? "smaller memories or guards: not even one instance fits"
            : absl::StrCat(
                  "at most ", verdict.largest_instances,
                  verdict.largest_instances == 1 ? " instance" : " instances",
                  ", or smaller memories or guards");
    switch (limit) {
      case Limit::kAddressSpace:
        Warn(true,
             absl::StrCat("address space: ", Size(verdict.asked),
                          " are needed, and of ", limits_.address_space_bits,
                          " bits ", Size(verdict.available),
                          " are free in one piece"),
             fewer);
        break;
      case Limit::kRlimitAs:
        Warn(true,
             absl::StrCat("RLIMIT_AS: ", Size(verdict.asked),
                          " are needed, guards included, and ",
                          Size(verdict.available), " of ",
                          Size(limits_.rlimit_as_bytes), " are left"),
             absl::StrCat("ulimit -v unlimited, or ", fewer));
        break;
      case Limit::kMapCount:
        Warn(true,
             absl::StrCat("mapping limit: up to ", verdict.asked,
                          " mappings are needed, and ", verdict.available,
                          " of vm.max_map_count ", limits_.max_map_count,
                          " are left"),
             absl::StrCat("sysctl -w vm.max_map_count=",
                          verdict.asked + machine_.mappings(),
                          ", --backing=copied, or ", fewer));
        break;
      case Limit::kOvercommit:
        Warn(true,
             absl::StrCat("overcommit: vm.overcommit_memory=2 counts all ",
                          Size(verdict.asked), " as committed, and ",
                          Size(verdict.available), " are left"),
             absl::StrCat("sysctl -w vm.overcommit_memory=0, or ", fewer));
        break;
    }
  }
  report_.set_largest_instances(largest);
  if (!report_.fits()) return;
  // What the limits above do not know: the states of pages are reserved, too.
  const uint64_t all =
      report_.reservation_bytes() + report_.page_state_reserved_bytes();
  if (limits_.rlimit_as_bytes != kUnlimited &&
      all > limits_.rlimit_as_bytes - limits_.mapped_bytes) {
    report_.set_fits(false);
    Warn(true,
         absl::StrCat("RLIMIT_AS: with the book-keeping ", Size(all),
                      " are needed, and ",
                      Size(limits_.rlimit_as_bytes - limits_.mapped_bytes),
                      " are left"),
         "ulimit -v unlimited, or fewer instances");
  } else if (limits_.overcommit == Overcommit::kNever) {
    Warn(false,
         absl::StrCat("overcommit: vm.overcommit_memory=2 counts the whole "
                      "reservation as committed, ",
                      Size(report_.reservation_bytes())),
         "sysctl -w vm.overcommit_memory=0");
  }
  if (report_.address_space_share() > 0.5) {
    Warn(false,
         "address space: the pool takes more than half of it, so that no "
         "second one of its kind fits",
         "smaller memories or guards, if a second one is to come");
  }
}

absl::Status Analysis::JudgeGuards() {
  const absl::StatusOr<uint64_t> offset =
      SizeOf(config_, "largest_static_offset_bytes");
  if (!offset.ok()) return offset.status();
  const uint64_t guard = layout_.options().guard_after_bytes;
  if (*offset > guard) {
    Warn(false,
         absl::StrCat("guard: a constant offset of up to ", Size(*offset),
                      " reaches past the guard of ", Size(guard),
                      ", into the next memory"),
         absl::StrCat(
             "--guard-bytes=",
             FlagSize((*offset + kPageBytes - 1) / kPageBytes * kPageBytes),
             ", or check such accesses"));
    return absl::OkStatus();
  }
  const uint32_t bits = config_.config.index_bits();
  if (bits == 0) {
    if (guard == 0) {
      Warn(false, "guard: there is none, and neighbouring memories touch",
           "--guard-bytes, unless each access is checked");
    }
    return absl::OkStatus();
  }
  // The highest byte that index + offset + access (16 bytes) can reach.
  unsigned __int128 reach = static_cast<unsigned __int128>(1) << bits;
  reach += *offset;
  reach += 15;
  const unsigned __int128 room =
      static_cast<unsigned __int128>(layout_.memory_bytes()) + guard;
  if (reach <= room) return absl::OkStatus();
  if (bits >= 63) {
    Warn(false,
         absl::StrCat("guard: an index of ", bits,
                      " bits reaches any address of the process"),
         "no guard helps: check each access, and set --index-bits=0");
    return absl::OkStatus();
  }
  const auto wanted =
      static_cast<uint64_t>(reach) - layout_.memory_bytes() + kPageBytes - 1;
  Warn(
      false,
      absl::StrCat("guard: an unchecked index of ", bits,
                   " bits and an offset of up to ", Size(*offset), " reach ",
                   Size(static_cast<uint64_t>(reach)),
                   ", past memory and guard of together ",
                   Size(static_cast<uint64_t>(room))),
      absl::StrCat("--guard-bytes=", FlagSize(wanted / kPageBytes * kPageBytes),
                   ", or check such accesses"));
  return absl::OkStatus();
}

absl::StatusOr<LayoutReport> Analysis::Make(
    const LayoutReportOptions& options) {
  Numbers();
  if (absl::Status status = Ranges(options); !status.ok()) return status;
  ChooseSupply();
  ChooseBacking();
  Costs();
  Needs();
  JudgeEachLimit();
  if (absl::Status status = JudgeGuards(); !status.ok()) return status;
  for (const Warning& warning : report_.warnings()) {
    if (warning.fatal()) report_.set_fits(false);
  }
  return std::move(report_);
}

}  // namespace

std::string SlotName(const std::string& pool, uint32_t slot) {
  return absl::StrCat(pool, "/", slot);
}

void ForEachRange(
    const PoolLayout& layout, const std::string& name,
    const std::function<bool(const std::string&)>& wanted,
    const std::function<bool(const LayoutReport::Range&)>& visit) {
  uint32_t named = ~uint32_t{0};
  std::string slot;
  bool is_wanted = false;
  LayoutReport::Range line;
  for (const LayoutRange& range : layout.Ranges()) {
    if (range.slot.value() != named) {
      named = range.slot.value();
      slot = SlotName(name, named);
      is_wanted = !wanted || wanted(slot);
    }
    if (!is_wanted) continue;
    line.set_offset_bytes(range.offset_bytes);
    line.set_bytes(range.bytes);
    line.set_count(1);
    line.set_purpose(std::string(LayoutRangeKindName(range.kind)));
    line.set_cause(std::string(range.cause));
    line.set_first_slot(named);
    line.set_slot_name(slot);
    if (!visit(line)) return;
  }
}

absl::StatusOr<LayoutReport> MakeLayoutReport(
    const PlacedConfig& config, const Machine& machine,
    const LayoutReportOptions& options) {
  absl::StatusOr<PoolLayout> layout = LayoutOf(config);
  if (!layout.ok()) return layout.status();
  return Analysis(config, *layout, machine).Make(options);
}

}  // namespace firsttouch::pooldump
