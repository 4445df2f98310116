// Copies of image granules that lie ready to be moved into a slot: the part of
// the staging area (staging.h) that the fault path sees.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.
//
// A cell has room for the pages of one chunk of an image (a granule, or what of
// it one PageGroup tells of), each at its place in the chunk; pages that the
// image does not store are holes. Who moves a cell from which state to which:
//
//   filler      kEmpty, kUsed -> kFilling -> kReady, or kEmpty where that fails
//   filler      kReady -> kFilling, for another chunk or an image that is gone
//   fault path  kReady -> kClaimed -> kUsed
//
// Only the filler (one thread) writes to a cell's memory and key, and only
// while it is kFilling; only who has claimed it moves pages out. The number of
// times that a cell was filled is part of its state, so that a claim succeeds
// only if the key that it was made for is still the cell's.
//
// A claim that never ends (a handler of the host that leaves a fault by
// longjmp, where signals.h is not heeded) costs the cell, nothing else.

#ifndef FIRSTTOUCH_SERVICE_STAGED_CELLS_H_
#define FIRSTTOUCH_SERVICE_STAGED_CELLS_H_

#include <atomic>
#include <cstdint>

#include "firsttouch/uffd/units.h"

namespace firsttouch {

enum class StagedStatus : uint64_t {
  kEmpty,
  kFilling,
  kReady,
  kClaimed,
  kUsed,
};

struct alignas(64) StagedCell {
  // StagedStatus in the low kStatusBits, above them how often it was filled.
  std::atomic<uint64_t> state{0};
  // The key: the image's id, and which chunk of it. Filler.
  std::atomic<uint64_t> image{0};
  std::atomic<uint64_t> chunk{0};
  // Pages of it that the image stores. Filler.
  std::atomic<uint64_t> pages{0};
  // Filler. Misses of its set when it was filled.
  uint64_t filled_at = 0;
  // Filler. Pages may lie in it.
  bool holds_pages = false;
  // What somebody looked for and did not find; image 0: nothing. Two wishes at
  // once may mix; the filler checks.
  std::atomic<uint64_t> wish_image{0};
  std::atomic<uint64_t> wish_chunk{0};

  static constexpr int kStatusBits = 3;
  static constexpr StagedStatus StatusIn(uint64_t state) {
    return static_cast<StagedStatus>(state & ((1 << kStatusBits) - 1));
  }
  static constexpr uint64_t With(uint64_t state, StagedStatus status) {
    return (state >> kStatusBits << kStatusBits) |
           static_cast<uint64_t>(status);
  }
};

// Cells in sets of kWays; a chunk may lie in one set only.
struct StagedCells {
  static constexpr uint64_t kWays = 4;

  StagedCell* cells = nullptr;
  uint64_t sets = 0;
  // Of the first cell; cell i lies i * cell_pages behind it.
  uintptr_t base = 0;
  // A power of two, at most kPagesPerGroup.
  uint64_t cell_pages = 0;
  // A bit for each set in which there is something to do.
  std::atomic<uint64_t>* work = nullptr;
  // A futex: 1 where some bit was set since the filler looked.
  std::atomic<uint32_t> wanted{0};

  uint64_t SetOf(uint64_t image, uint64_t chunk) const {
    // Neighbours lie in different sets.
    return (image * 0x9E3779B97F4A7C15u / 2 + chunk) % sets;
  }
  uintptr_t AddressOf(const StagedCell& cell) const {
    return base +
           static_cast<uint64_t>(&cell - cells) * cell_pages * kPageBytes;
  }
};

// The ready copy of a chunk, which the caller has to itself now; null where
// there is none, and then the filler is asked for one. `image` is not 0.
StagedCell* ClaimStaged(StagedCells& cells, uint64_t image,
                        uint64_t chunk) noexcept;

// Ends a claim, whatever was taken out of the cell. The filler fills it up.
void GiveBackStaged(StagedCells& cells, StagedCell& cell) noexcept;

// Has the filler look for work.
void WakeStagedFiller(StagedCells& cells) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STAGED_CELLS_H_
