// The measurements of bench:cycle, which add rows to a report, and what these
// are to reach.
//
// Strategies take turns, in rounds. After the last round the next guest's
// memory is compared with the image: a strategy that is fast and wrong ends the
// program.

#ifndef FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
#define FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_

#include <cstdint>
#include <string>
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

// What rows have in common that differ in their strategy only, for people:
// "steady, k=4 same of 1 MiB".
std::string Situation(const CycleRow& row);

// Adds to the report the goals that its rows can tell of, all of them for
// default options. A ratio of two strategies is taken within each round; what
// counts is the median of these.
void AddGoals(CycleReport& report);

// What a guest asks of SQLite in every benchmark, of a table of so many rows: a
// query, an insert and an update. All that have number 0 ask for the same rows,
// each of the others for its own. Ends the program on a wrong answer.
void RequestOrDie(examples::SqliteGuest& guest, uint64_t rows, uint64_t number);

// The most that SQLite's memory may have.
inline constexpr uint64_t kSqliteMemoryBytes = 64 << 20;

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_MEASURE_H_
