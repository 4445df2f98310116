// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/staged_cells.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace firsttouch {
namespace {

void AskForWork(StagedCells& cells, uint64_t set) {
  cells.work[set / 64].fetch_or(uint64_t{1} << (set % 64),
                                std::memory_order_release);
  WakeStagedFiller(cells);
}

}  // namespace

StagedCell* ClaimStaged(StagedCells& cells, uint64_t image,
                        uint64_t chunk) noexcept {
  const uint64_t set = cells.SetOf(image, chunk);
  StagedCell* const first = cells.cells + set * StagedCells::kWays;
  for (StagedCell* cell = first; cell != first + StagedCells::kWays; ++cell) {
    uint64_t state = cell->state.load(std::memory_order_acquire);
    if (cell->image.load(std::memory_order_relaxed) != image ||
        cell->chunk.load(std::memory_order_relaxed) != chunk) {
      continue;
    }
    switch (StagedCell::StatusIn(state)) {
      case StagedStatus::kReady:
        // Succeeds only if the cell was not filled anew since `state` was read:
        // the key is the one that was compared. Acquire: the filler's writes.
        if (cell->state.compare_exchange_strong(
                state, StagedCell::With(state, StagedStatus::kClaimed),
                std::memory_order_acq_rel, std::memory_order_relaxed)) {
          return cell;
        }
        return nullptr;
      case StagedStatus::kFilling:
      case StagedStatus::kClaimed:
      case StagedStatus::kUsed:
        // Somebody was faster; it will be back.
        return nullptr;
      case StagedStatus::kEmpty:
        break;
    }
  }
  StagedCell& wish = first[chunk / cells.sets % StagedCells::kWays];
  if (wish.wish_image.load(std::memory_order_relaxed) == 0) {
    wish.wish_chunk.store(chunk, std::memory_order_relaxed);
    wish.wish_image.store(image, std::memory_order_release);
    AskForWork(cells, set);
  }
  return nullptr;
}

void GiveBackStaged(StagedCells& cells, StagedCell& cell) noexcept {
  // Nobody else changes the state of a claimed cell.
  cell.state.store(StagedCell::With(cell.state.load(std::memory_order_relaxed),
                                    StagedStatus::kUsed),
                   std::memory_order_release);
  AskForWork(cells,
             static_cast<uint64_t>(&cell - cells.cells) / StagedCells::kWays);
}

void WakeStagedFiller(StagedCells& cells) noexcept {
  if (cells.wanted.exchange(1, std::memory_order_acq_rel) != 0) return;
  const int saved = errno;
  syscall(SYS_futex, &cells.wanted, FUTEX_WAKE_PRIVATE, 1);
  errno = saved;
}

}  // namespace firsttouch
