// Which pages a fill takes along with the one that was touched.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_FILL_RANGES_H_
#define FIRSTTOUCH_SERVICE_FILL_RANGES_H_

#include <cstdint>

#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Neighbouring pages.
struct PageRange {
  uint64_t first = 0;
  uint64_t pages = 0;

  uint64_t end() const { return first + pages; }
};

// The ranges of one slot, of which all but FaultAround() and AheadOfReader()
// lie within the touched page's 64-page word. What is known of pages may change
// meanwhile: a fill skips pages that are there.
class FillRanges {
 public:
  // Nothing from `size_pages` on is filled.
  FillRanges(const FaultPool& fault_pool, SlotState& slot, uint64_t size_pages)
      : fault_pool_(fault_pool), slot_(slot), size_pages_(size_pages) {}

  // Whether image pages may still have to be fetched.
  bool HasSource() const;

  // Pages of a word of which nothing says that they are there.
  uint64_t Missing(uint64_t group) const;

  // The fault-around range of `page`, cut at the size, and to what the image's
  // source gives at once.
  PageRange FaultAround(uint64_t page) const;

  // The same or, for a guest that reads the image upwards, twice as many pages
  // as last time, up to 1 MiB.
  PageRange AheadOfReader(uint64_t page) const;

  // The run of missing pages around `page`, which counts as one, within its
  // fault-around range: pages that the image stores, or that start as zeroes.
  PageRange ImageRunAround(uint64_t page) const;
  PageRange ZeroRunAround(uint64_t page) const;

  // For a write to `page`: that page or, for a guest that fills upwards page by
  // page, twice as many from there on as last time, up to the next page that is
  // there or starts with other bytes.
  PageRange ImageRunFrom(uint64_t page) const;
  PageRange ZeroRunFrom(uint64_t page) const;

 private:
  // The bits of the word of `page` whose pages are in the same mapping. A
  // mapped image ends at image_pages; where the kernel resolves faults by
  // itself, our registration begins at kernel_pages; no fill may cross either.
  uint64_t SameMapping(uint64_t page) const;
  PageRange RunAround(uint64_t page, uint64_t eligible) const;
  PageRange RunFrom(uint64_t page, FillRun& last, uint64_t eligible,
                    uint64_t most) const;

  const FaultPool& fault_pool_;
  SlotState& slot_;
  const uint64_t size_pages_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_FILL_RANGES_H_
