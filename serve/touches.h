// What guests touch first, and in which order: recorded in one run, placed
// early in the next ones.

#ifndef FIRSTTOUCH_SERVE_TOUCHES_H_
#define FIRSTTOUCH_SERVE_TOUCHES_H_

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// The first touch of a page.
struct Touch {
  PageIndex page{0};  // In the image.
  bool write = false;
  std::chrono::nanoseconds after{0};  // Since the guest came.

  friend bool operator==(const Touch&, const Touch&) = default;
};

// Touches as runs to place: those that follow each other closely (4096 of them)
// in ascending order and joined, so that few calls place many pages.
std::vector<PageRun> RunsOf(std::span<const Touch> touches);

// The pages of a working set that are in none of the runs `without`, ascending.
std::vector<PageRun> RunsOf(const WorkingSet& working_set,
                            std::span<const PageRun> without = {});

// Puts pages [first, end) into a set of pages as working sets are.
void AddPages(WorkingSet::Words& words, uint64_t first, uint64_t end);
// The runs of such a set, ascending.
std::vector<PageRun> RunsIn(std::span<const uint64_t> words);

// Adds the touches to a working set.
void Teach(std::span<const Touch> touches, WorkingSet& working_set);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_TOUCHES_H_
