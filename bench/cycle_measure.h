// The measurements of bench:cycle: each adds rows to a report.
//
// Strategies take turns, in rounds. After the last round the next tenant's
// memory is compared with the image: a strategy that is fast and wrong ends the
// program.

#ifndef FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
#define FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "firsttouch/bench/count_calls.h"
#include "firsttouch/bench/cycle_samples.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

struct CycleSettings {
  // Rounds in which the strategies take turns; cycles of a strategy in a round,
  // at most, and the time after which a round ends even with fewer.
  int rounds = 0;
  int cycles = 0;
  double round_ns = 0;
  // Cycles before the first that counts.
  int warmup = 0;
  // Cycles in which system calls are counted; 0: they are not.
  int counted = 0;
  std::vector<CycleStrategyFactory> strategies;
};

inline constexpr uint32_t kMixedSame = 28;
inline constexpr uint32_t kMixedChurning = 4;

// What one measurement changes.
struct CycleChoice {
  std::string pages;  // "same", "churning", "mixed"
  uint64_t touched_bytes = 0;
  uint32_t k = 0;
};

// One thread, everything warm.
void MeasureSteady(const CycleSettings& settings, const CycleChoice& choice,
                   CycleReport& report);

// As many threads at once as each of the numbers says, in turn in each round.
void MeasureThreads(const CycleSettings& settings, const CycleChoice& choice,
                    const std::vector<uint32_t>& threads, CycleReport& report);

// The first cycle of slots that nobody had before.
void MeasureFirst(const CycleSettings& settings, const CycleChoice& choice,
                  bool image_known, CycleReport& report);

// What an idle slot keeps for itself, all included. Makes no rounds.
void MeasureIdle(const CycleSettings& settings, const CycleChoice& choice,
                 CycleReport& report);

// For other measurements of the same kind.

// Runs `cycle` for as many cycles as a round has and notes the time of each.
void RunRound(const CycleSettings& settings, absl::FunctionRef<void()> cycle,
              std::vector<uint64_t>& ticks);

// Counts what `cycle`, made by `prepare` in a child of its own, asks of the
// kernel, after as many cycles as warm it up. Notes in the report what counted;
// nullopt where nothing does, and where `prepare` returns null.
std::optional<CallCounts> CountOfCycles(
    const CycleSettings& settings,
    absl::FunctionRef<std::function<void()>()> prepare, CycleReport& report);

// Puts what was measured into the row.
void FillTimes(const RoundSamples& samples, CycleRow& row);
void FillCounts(const CycleSettings& settings,
                const std::optional<CallCounts>& counts, CycleRow& row);

// Notes, once, that a strategy is not possible here.
void NoteSkipped(const std::string& strategy, const absl::Status& why,
                 CycleReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
