#include "firsttouch/tools/pooldump/machine.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/uffd/abi.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch::pooldump {

Machine MachineOf(const LimitFacts& limits, const UffdFacts& facts) {
  Machine machine;
  machine.set_kernel_release(facts.kernel_release);
  machine.set_address_space_bits(limits.address_space_bits);
  if (limits.largest_gap_bytes != kUnlimited) {
    machine.set_largest_gap_bytes(limits.largest_gap_bytes);
  }
  if (limits.rlimit_as_bytes != kUnlimited) {
    machine.set_rlimit_as_bytes(limits.rlimit_as_bytes);
  }
  machine.set_mapped_bytes(limits.mapped_bytes);
  if (limits.max_map_count != kUnlimited) {
    machine.set_max_map_count(limits.max_map_count);
  }
  machine.set_mappings(limits.maps);
  machine.set_overcommit_memory(static_cast<uint32_t>(limits.overcommit));
  if (limits.commit_limit_bytes != kUnlimited) {
    machine.set_commit_limit_bytes(limits.commit_limit_bytes);
  }
  machine.set_committed_bytes(limits.committed_bytes);

  machine.set_userfaultfd(facts.can_open);
  machine.set_kernel_faults(facts.kernel_faults);
  for (const OpenFact& way : facts.ways) {
    if (!facts.can_open && !way.remedy.empty()) {
      machine.set_userfaultfd_remedy(way.remedy);
      break;
    }
  }
  for (const UffdFeatureInfo& feature : kUffdFeatures) {
    if ((facts.features & feature.bit) != 0) {
      machine.add_features(std::string(feature.name));
    }
  }
  machine.set_pagemap_scan(facts.pagemap_scan_error == 0);
  return machine;
}

Machine ThisMachine(Kernel& kernel) {
  return MachineOf(ReadLimitFacts(), Probe(kernel));
}

absl::StatusOr<Machine> ReadMachine(const std::string& path) {
  absl::StatusOr<std::string> text = cli::ReadFile(path, kMostConfigBytes);
  if (!text.ok()) return text.status();
  Machine machine;
  // As --format=json prints it.
  if (absl::StartsWith(absl::StripLeadingAsciiWhitespace(*text), "{")) {
    Report report;
    const auto parsed =
        google::protobuf::util::JsonStringToMessage(*text, &report);
    if (parsed.ok() && report.has_layout()) return report.layout().machine();
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is JSON, but not what layout --format=json prints",
        parsed.ok() ? std::string()
                    : absl::StrCat(": ", parsed.message().ToString())));
  }
  const absl::Status status = cli::ParseText(path, *text, &machine, nullptr);
  if (status.ok()) return machine;
  // The whole report, as it was printed there.
  Report report;
  if (cli::ParseText(path, *text, &report, nullptr).ok() &&
      report.has_layout()) {
    return report.layout().machine();
  }
  return status;
}

LimitFacts LimitsOf(const Machine& machine) {
  LimitFacts facts;
  if (machine.address_space_bits() != 0) {
    facts.address_space_bits = machine.address_space_bits();
  }
  if (machine.has_largest_gap_bytes()) {
    facts.largest_gap_bytes = machine.largest_gap_bytes();
  }
  if (machine.has_rlimit_as_bytes()) {
    facts.rlimit_as_bytes = machine.rlimit_as_bytes();
  }
  facts.mapped_bytes = machine.mapped_bytes();
  if (machine.has_max_map_count()) {
    facts.max_map_count = machine.max_map_count();
  }
  facts.maps = machine.mappings();
  facts.overcommit = machine.overcommit_memory() == 1 ? Overcommit::kAlways
                     : machine.overcommit_memory() == 2
                         ? Overcommit::kNever
                         : Overcommit::kHeuristic;
  if (machine.has_commit_limit_bytes()) {
    facts.commit_limit_bytes = machine.commit_limit_bytes();
  }
  facts.committed_bytes = machine.committed_bytes();
  return facts;
}

}  // namespace firsttouch::pooldump
