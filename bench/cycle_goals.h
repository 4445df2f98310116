// What a cycle is to reach, held against what was measured.

#ifndef FIRSTTOUCH_BENCH_CYCLE_GOALS_H_
#define FIRSTTOUCH_BENCH_CYCLE_GOALS_H_

#include <string>

#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// What rows have in common that differ in their strategy only, for people:
// "steady, k=4 same of 1 MiB".
std::string Situation(const CycleRow& row);

// Adds to the report the goals that its rows can tell of, all of them for
// default options. A ratio of two strategies is taken within each round; what
// counts is the median of these.
void AddGoals(CycleReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_GOALS_H_
