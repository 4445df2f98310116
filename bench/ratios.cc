// What firsttouch costs, as a multiple of the kernel's own way of the same
// thing, both measured in turn in this process.
//
//   bazel run -c opt //bench:ratios
//   bazel run -c opt //bench:ratios -- --format=json
//
// A ratio is taken within a round, of the best of some measurements of each
// side that are some ms apart; the table shows the median of the rounds' ratios
// and their quartiles. Exits with 0 whether a goal was reached or not: a busy
// machine must not fail a build.

#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/locator_fixture.h"
#include "firsttouch/bench/machine.h"
#include "firsttouch/bench/quantiles.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/touch_strategies.h"
#include "firsttouch/bench/trap_strategies.h"
#include "firsttouch/uffd/units.h"

ABSL_FLAG(std::string, format, "text", "text or json");
ABSL_FLAG(int32_t, rounds, 21, "how often each pair is measured");
ABSL_FLAG(int32_t, repeats, 5,
          "measurements of each side in a round, of which the best counts");

namespace firsttouch::bench {
namespace {

// One measurement, in ns for one of its unit.
using Measure = std::function<double()>;

struct Contest {
  std::string name;
  std::string ours_name;
  std::string theirs_name;
  std::string unit;
  Measure ours;
  Measure theirs;  // may be empty: `goal` is in ns then
  std::optional<double> goal;
};

// Time of Touch(), divided by the number of units in it.
Measure Touching(std::shared_ptr<TouchStrategy> strategy, uint64_t unit_bytes) {
  const uint64_t units = kTouchBytes / unit_bytes;
  return [strategy = std::move(strategy), units] {
    strategy->Prepare();
    const uint64_t start = NowTicks();
    strategy->Touch();
    return TicksToNs(NowTicks() - start) / static_cast<double>(units);
  };
}

Measure PoolTouching(const PoolTouch& touch, uint64_t unit_bytes) {
  return Touching(MakePoolTouch(touch), unit_bytes);
}

Measure KernelTouching(const KernelTouch& touch, uint64_t unit_bytes) {
  return Touching(MakeKernelTouch(touch), unit_bytes);
}

Measure Trapping(std::shared_ptr<TrapStrategy> strategy) {
  return [strategy = std::move(strategy)] {
    constexpr int kTraps = 200;
    const uint64_t start = NowTicks();
    strategy->Trap(kTraps);
    return TicksToNs(NowTicks() - start) / kTraps;
  };
}

// The same with a fault handler that blocks no signal while it works.
Measure WithoutMask(Measure measure) {
  return [measure = std::move(measure)] {
    struct sigaction installed = {};
    sigaction(SIGBUS, nullptr, &installed);
    struct sigaction unmasked = installed;
    sigemptyset(&unmasked.sa_mask);
    sigaction(SIGBUS, &unmasked, nullptr);
    const double ns = measure();
    sigaction(SIGBUS, &installed, nullptr);
    return ns;
  };
}

std::vector<Contest> Contests() {
  constexpr uint64_t kFaultAroundBytes = 64 << 10;
  std::vector<Contest> contests;

  contests.push_back(
      {"read image pages, shared", "CONTINUE, up to 1 MiB",
       "private file mapping", "4 KiB page",
       PoolTouching({.fault_around_bytes = kFaultAroundBytes}, kPageBytes),
       KernelTouching({.kind = KernelTouchKind::kFault}, kPageBytes), 1.3});
  contests.push_back({"write image pages, shared", "COPY, up to 64 KiB",
                      "copy-on-write fault", "4 KiB page",
                      PoolTouching({.access = Access::kWrite,
                                    .fault_around_bytes = kFaultAroundBytes},
                                   kPageBytes),
                      KernelTouching({.kind = KernelTouchKind::kFault,
                                      .access = Access::kWrite},
                                     kPageBytes),
                      std::nullopt});

  for (Access access : {Access::kRead, Access::kWrite}) {
    const PoolTouch copied{.access = access,
                           .fault_around_bytes = kFaultAroundBytes,
                           .backing = Backing::kCopied};
    PoolTouch handler = copied;
    handler.resolve = Resolve::kHandlerThread;
    const char* const verb = access == Access::kRead ? "read" : "write";
    contests.push_back(
        {absl::StrCat("fill 64 KiB by ", verb, ", copied"), "COPY in-thread",
         "memcpy into fresh memory", "64 KiB",
         PoolTouching(copied, kFaultAroundBytes),
         KernelTouching({.kind = KernelTouchKind::kCopy,
                         .access = Access::kWrite,
                         .fault_around_bytes = kFaultAroundBytes},
                        kFaultAroundBytes),
         0.8});
    contests.push_back({absl::StrCat("fill 64 KiB by ", verb, ", copied"),
                        "COPY in-thread", "COPY by handler thread", "64 KiB",
                        PoolTouching(copied, kFaultAroundBytes),
                        PoolTouching(handler, kFaultAroundBytes), 0.45});
  }
  contests.push_back({"write zero pages", "COPY, up to 64 KiB",
                      "anonymous fault", "4 KiB page",
                      PoolTouching({.content = Content::kZero,
                                    .access = Access::kWrite,
                                    .fault_around_bytes = kFaultAroundBytes},
                                   kPageBytes),
                      KernelTouching({.kind = KernelTouchKind::kFault,
                                      .content = Content::kZero,
                                      .access = Access::kWrite},
                                     kPageBytes),
                      std::nullopt});

  const PoolTouch single_pages{.access = Access::kWrite,
                               .fault_around_bytes = kPageBytes};
  contests.push_back(
      {"write image pages, one by one", "with sa_mask", "without sa_mask",
       "fault", PoolTouching(single_pages, kPageBytes),
       WithoutMask(PoolTouching(single_pages, kPageBytes)), std::nullopt});

  for (Access access : {Access::kRead, Access::kWrite}) {
    for (bool restore_mask : {false, true}) {
      contests.push_back(
          {absl::StrCat("trap by ", access == Access::kRead ? "read" : "write"),
           "SIGBUS, in-thread",
           restore_mask ? "the same, mask restored" : "mprotect + SIGSEGV",
           "trap and siglongjmp",
           Trapping(MakePoolTrap(Resolve::kInThread, access)),
           Trapping(MakeKernelTrap(access, restore_mask)), 1.2});
    }
  }

  constexpr int kLookupRounds = 100;
  const auto fixture = std::make_shared<LocatorFixture>(16);
  contests.push_back(
      {"locate an address", "16 pools, overlapping", "", "lookup",
       [fixture] { return LookupThroughputNs(*fixture, kLookupRounds); },
       nullptr, 5.0});
  contests.push_back(
      {"locate an address", "16 pools, one by one", "", "lookup",
       [fixture] { return LookupLatencyNs(*fixture, kLookupRounds); }, nullptr,
       std::nullopt});
  return contests;
}

// The least disturbed of some measurements.
double BestOf(const Measure& measure, int repeats) {
  double best = measure();
  for (int i = 1; i < repeats; ++i) best = std::min(best, measure());
  return best;
}

RatioReport Run(int rounds, int repeats) {
  RatioReport report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(rounds);
  const std::vector<Contest> contests = Contests();
  struct Samples {
    std::vector<double> ours, theirs, ratios;
  };
  std::vector<Samples> samples(contests.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contests.size(); ++i) {
      const Contest& contest = contests[i];
      const double ours = BestOf(contest.ours, repeats);
      samples[i].ours.push_back(ours);
      if (contest.theirs == nullptr) {
        samples[i].ratios.push_back(ours);
        continue;
      }
      const double theirs = BestOf(contest.theirs, repeats);
      samples[i].theirs.push_back(theirs);
      samples[i].ratios.push_back(ours / theirs);
    }
  }
  for (size_t i = 0; i < contests.size(); ++i) {
    const Contest& contest = contests[i];
    Ratio& ratio = *report.add_ratios();
    ratio.set_name(contest.name);
    ratio.set_ours(contest.ours_name);
    ratio.set_theirs(contest.theirs_name);
    ratio.set_unit(contest.unit);
    ratio.set_ours_ns(Median(samples[i].ours));
    if (contest.theirs != nullptr) {
      ratio.set_theirs_ns(Median(samples[i].theirs));
    }
    ratio.set_ratio(Median(samples[i].ratios));
    ratio.set_lower_quartile(Quantile(samples[i].ratios, 0.25));
    ratio.set_upper_quartile(Quantile(samples[i].ratios, 0.75));
    if (contest.goal.has_value()) {
      ratio.set_goal(*contest.goal);
      ratio.set_reached(ratio.ratio() <= *contest.goal);
    }
  }
  return report;
}

std::string ToText(const RatioReport& report) {
  std::string text = MachineText(report.machine());
  absl::StrAppendFormat(
      &text, "%d rounds; ratio: median (quartiles) of ours / theirs\n\n",
      report.rounds());
  for (const Ratio& ratio : report.ratios()) {
    const bool alone = !ratio.has_theirs_ns();
    absl::StrAppend(&text, ratio.name(), ", per ", ratio.unit(), "\n");
    absl::StrAppendFormat(&text, "  %-24s %8s ns\n", ratio.ours(),
                          Short(ratio.ours_ns()));
    if (!alone) {
      absl::StrAppendFormat(&text, "  %-24s %8s ns\n", ratio.theirs(),
                            Short(ratio.theirs_ns()));
    }
    absl::StrAppendFormat(&text, "  %-24s %8s %s (%s to %s)",
                          alone ? "time" : "ratio", Short(ratio.ratio()),
                          alone ? "ns" : "  ", Short(ratio.lower_quartile()),
                          Short(ratio.upper_quartile()));
    if (ratio.has_goal()) {
      absl::StrAppend(&text, "  goal ", Short(ratio.goal()), ": ",
                      ratio.reached() ? "reached" : "NOT reached");
    }
    absl::StrAppend(&text, "\n\n");
  }
  return text;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Costs of firsttouch as multiples of the kernel's own.");
  absl::ParseCommandLine(argc, argv);
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    Die(absl::StrCat("--format=", format, " is neither text nor json"));
  }
  const int rounds = absl::GetFlag(FLAGS_rounds);
  const int repeats = absl::GetFlag(FLAGS_repeats);
  if (rounds < 1 || repeats < 1) {
    Die("--rounds and --repeats must be at least 1");
  }
  const RatioReport report = Run(rounds, repeats);
  std::cout << (format == "json" ? ToJson(report) : ToText(report));
  if (!std::cout.flush()) {
    std::cerr << "standard output cannot be written\n";
    return 74;  // EX_IOERR
  }
  return 0;
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
