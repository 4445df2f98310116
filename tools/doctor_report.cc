#include "firsttouch/tools/doctor_report.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch::tools {
namespace {

// What each way of supplying memory needs.
struct ModeNeeds {
  const char* backing;
  const char* resolve;
  std::array<std::string_view, 4> tests;  // empty: none
};
constexpr ModeNeeds kModes[] = {
    {"shared",
     "in-thread",
     {"in-thread.minor", "in-thread.zero", "in-thread.protect-memfd",
      "in-thread.trap"}},
    {"copied",
     "in-thread",
     {"in-thread.copy", "in-thread.zero", "in-thread.trap"}},
    {"shared",
     "handler-thread",
     {"handler-thread.minor", "handler-thread.zero",
      "handler-thread.protect-memfd"}},
    {"copied",
     "handler-thread",
     {"handler-thread.copy", "handler-thread.zero"}},
};

constexpr std::string_view kServesSystemCalls = "handler-thread.system-call";

// These make things faster and have something to take their place.
bool IsOptional(std::string_view id) {
  return id == "process-madvise" || id == "guard";
}

Trial::Outcome OutcomeOf(SelfTestOutcome outcome) {
  switch (outcome) {
    case SelfTestOutcome::kWorks:
      return Trial::WORKS;
    case SelfTestOutcome::kMissing:
      return Trial::MISSING;
    case SelfTestOutcome::kFailed:
      return Trial::FAILED;
    case SelfTestOutcome::kCrashed:
      return Trial::CRASHED;
    case SelfTestOutcome::kHung:
      return Trial::HUNG;
  }
  return Trial::OUTCOME_UNSPECIFIED;
}

bool Works(std::span<const SelfTestResult> tests, std::string_view id) {
  return std::any_of(tests.begin(), tests.end(),
                     [id](const SelfTestResult& result) {
                       return result.test.id == id && result.works();
                     });
}

template <typename Field>
void AddNames(const std::string& joined, Field* field) {
  if (joined == "none") return;
  const std::vector<std::string> names = absl::StrSplit(joined, '|');
  for (const std::string& name : names) *field->Add() = name;
}

}  // namespace

DoctorReport MakeReport(const UffdFacts& facts,
                        std::span<const SelfTestResult> tests) {
  DoctorReport report;
  Machine& machine = *report.mutable_machine();
  machine.set_kernel_release(facts.kernel_release);
  machine.set_architecture(facts.machine);
  machine.set_uid(facts.uid);
  machine.set_cap_sys_ptrace(facts.cap_sys_ptrace);
  machine.set_seccomp_mode(facts.seccomp_mode);
  machine.set_address_bits(facts.address_bits);
  for (const std::string& hint : facts.container_hints) {
    machine.add_container_hints(hint);
  }

  bool some_mode = false;
  bool all = true;
  for (const ModeNeeds& needs : kModes) {
    Mode& mode = *report.add_modes();
    mode.set_backing(needs.backing);
    mode.set_resolve(needs.resolve);
    for (const std::string_view id : needs.tests) {
      if (!id.empty() && !Works(tests, id)) mode.add_missing(std::string(id));
    }
    mode.set_works(mode.missing().empty());
    mode.set_serves_system_calls(
        mode.works() && std::string_view(needs.resolve) == "handler-thread" &&
        Works(tests, kServesSystemCalls));
    some_mode |= mode.works();
    all &= mode.works();
  }

  for (const OpenFact& fact : facts.ways) {
    Way& way = *report.add_ways();
    way.set_name(UffdHowName(fact.how));
    way.set_works(fact.error == 0);
    way.set_error(fact.error);
    if (fact.error != 0) way.set_error_text(ErrnoText(fact.error));
    way.set_remedy(fact.remedy);
  }

  uint64_t unknown = facts.features;
  for (const UffdFeatureInfo& info : kUffdFeatures) {
    Feature& feature = *report.add_features();
    feature.set_name(info.name);
    feature.set_since(info.version);
    feature.set_offered((facts.features & info.bit) != 0);
    unknown &= ~info.bit;
  }
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if ((unknown >> bit) & 1) report.add_unknown_feature_bits(bit);
  }

  for (const MappingFact& fact : facts.mappings) {
    MappingKind& kind = *report.add_mapping_kinds();
    kind.set_kind(fact.kind);
    AddNames(UffdRegisterModeNames(fact.modes), kind.mutable_modes());
    AddNames(UffdIoctlNames(fact.ioctls), kind.mutable_ioctls());
  }

  if (!some_mode) {
    const bool scan = facts.pagemap_scan_error == 0;
    report.add_advice(absl::StrCat(
        "pools work without userfaultfd, supplied by ",
        SupplyName(scan ? Supply::kMappingsScan : Supply::kMappingsDrop),
        ": first touches and system calls are the kernel's own business, but a "
        "cycle makes a system call, ",
        scan ? "" : "each tenant faults in again what it changes, ",
        "growth is an mprotect(2), and each slot takes up to four mappings. "
        "What "
        "follows brings userfaultfd."));
  }
  for (const std::string& text : facts.advice) report.add_advice(text);
  for (const SelfTestResult& result : tests) {
    Trial& test = *report.add_trials();
    test.set_id(std::string(result.test.id));
    test.set_what(std::string(result.test.what));
    test.set_since(std::string(result.test.since));
    test.set_outcome(OutcomeOf(result.outcome));
    test.set_detail(result.detail);
    test.set_recommended(!IsOptional(result.test.id));
    if (test.recommended()) all &= result.works();
    if (!result.works() && result.outcome != SelfTestOutcome::kMissing) {
      report.add_advice(absl::StrCat(
          test.id(), " does not work on Linux ", facts.kernel_release,
          ", which says it has it: keep away from what needs it, or change the "
          "kernel."));
    }
  }

  Limits& limits = *report.mutable_limits();
  if (facts.unprivileged_userfaultfd.has_value()) {
    limits.set_vm_unprivileged_userfaultfd(*facts.unprivileged_userfaultfd);
  }
  if (facts.overcommit_memory.has_value()) {
    limits.set_vm_overcommit_memory(*facts.overcommit_memory);
  }
  if (facts.max_map_count.has_value()) {
    limits.set_vm_max_map_count(*facts.max_map_count);
  }
  limits.set_mapping_count(facts.mapping_count);
  if (facts.address_space_limit_bytes.has_value()) {
    limits.set_rlimit_as_bytes(*facts.address_space_limit_bytes);
  }
  if (facts.descriptor_limit.has_value()) {
    limits.set_rlimit_nofile(*facts.descriptor_limit);
  }
  limits.set_transparent_huge_pages(facts.huge_pages);
  limits.set_shared_transparent_huge_pages(facts.shared_huge_pages);

  report.set_verdict(!some_mode ? DoctorReport::NOTHING_WORKS
                     : all      ? DoctorReport::ALL_RECOMMENDED_WORKS
                                : DoctorReport::DEGRADED);
  return report;
}

int ExitCode(const DoctorReport& report) {
  switch (report.verdict()) {
    case DoctorReport::ALL_RECOMMENDED_WORKS:
      return 0;
    case DoctorReport::DEGRADED:
      return 1;
    default:
      return 2;
  }
}

}  // namespace firsttouch::tools
