// What a cycle is to reach, held against what was measured.

#ifndef FIRSTTOUCH_BENCH_CYCLE_GOALS_H_
#define FIRSTTOUCH_BENCH_CYCLE_GOALS_H_

#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// Adds to the report the goals that its rows can tell of, all of them for
// default options. A ratio of two strategies is taken within each round; what
// counts is the median of these.
void AddGoals(CycleReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_GOALS_H_
