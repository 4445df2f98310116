// The measurements of bench:cycle: each adds rows to a report.
//
// Strategies take turns, in rounds. After the last round the next guest's
// memory is compared with the image: a strategy that is fast and wrong ends the
// program.

#ifndef FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
#define FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_

#include <cstdint>
#include <vector>

#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/examples/tenants.h"

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
  // How many threads are at it at once, in the table THREADS.
  std::vector<uint32_t> threads;
};

inline constexpr uint32_t kMixedSame = 28;
inline constexpr uint32_t kMixedChurning = 4;

// Adds the rows of all strategies that are like this one, which has neither a
// strategy nor, in the table THREADS, a number of these.
void MeasureRows(const CycleSettings& settings, const CycleRow& like,
                 CycleReport& report);

// What a guest asks of SQLite in every benchmark: a query for the row `found`,
// an insert, and an update of the row `updated`; both are there. Ends the
// program on a wrong answer.
void RequestOrDie(examples::SqliteGuest& guest, uint64_t found,
                  uint64_t updated);
// The rows that guests ask for who all ask for the same, of so many.
inline uint64_t SameFound(uint64_t rows) { return rows / 8 + 1; }
inline uint64_t SameUpdated(uint64_t rows) { return 7 % rows + 1; }

// The most that SQLite's memory may have.
inline constexpr uint64_t kSqliteMemoryBytes = 64 << 20;

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
