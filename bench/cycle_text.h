// The report of bench:cycle for people.

#ifndef FIRSTTOUCH_BENCH_CYCLE_TEXT_H_
#define FIRSTTOUCH_BENCH_CYCLE_TEXT_H_

#include <string>

#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// Tables of at most 80 columns; the last one is of the goals.
std::string ToText(const CycleReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_TEXT_H_
