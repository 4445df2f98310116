// The report of bench:images: its goals, and itself for people.

#ifndef FIRSTTOUCH_BENCH_IMAGES_TEXT_H_
#define FIRSTTOUCH_BENCH_IMAGES_TEXT_H_

#include <string>

#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// Adds the goals of what the report has. What was not measured has none.
void AddGoals(ImagesReport& report);

// Tables of at most 80 columns; the last one is of the goals.
std::string ToText(const ImagesReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_IMAGES_TEXT_H_
