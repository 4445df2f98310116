#include "firsttouch/service/staging.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/quiet_thread.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// After a round of work, so that guests that touch one granule after the other
// pay for one wake-up.
constexpr timespec kRest = {.tv_sec = 0, .tv_nsec = 1'000'000};

// A cell that served nobody while its set missed this often serves others.
constexpr uint64_t kPatience = 16;

void Sleep(std::atomic<uint32_t>& futex, const timespec* most) {
  syscall(SYS_futex, &futex, FUTEX_WAIT_PRIVATE, 0, most);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Staging>> Staging::Start(
    Kernel& kernel, const Uffd& uffd, const std::string& name, uint64_t bytes,
    uint64_t granule_pages) {
  std::unique_ptr<Staging> staging(new Staging(kernel, uffd));
  if (absl::Status status = staging->Map(bytes, granule_pages, name);
      !status.ok()) {
    return status;
  }
  absl::StatusOr<std::thread> thread = StartQuietThread(
      absl::StrCat("ft-stage:", name), [raw = staging.get()] { raw->Run(); });
  if (!thread.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no thread to fill staging_bytes of pool \"", name, "\": ",
        thread.status().message(), "; raise the limit of threads (ulimit -u)"));
  }
  staging->thread_ = *std::move(thread);
  return staging;
}

absl::Status Staging::Map(uint64_t bytes, uint64_t granule_pages,
                          const std::string& name) {
  const uint64_t cell_pages = std::min(granule_pages, kPagesPerGroup);
  const uint64_t set_bytes = StagedCells::kWays * cell_pages * kPageBytes;
  if (bytes < set_bytes || bytes > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "staging_bytes ", bytes, " of pool \"", name, "\" is not in ",
        set_bytes, " (", StagedCells::kWays, " granules) to ", kMaxBytes,
        ": 0 is without a staging area"));
  }
  cells_.cell_pages = cell_pages;
  cells_.sets = bytes / set_bytes;
  cell_records_ =
      std::make_unique<StagedCell[]>(cells_.sets * StagedCells::kWays);
  cells_.cells = cell_records_.get();
  work_ = std::make_unique<std::atomic<uint64_t>[]>((cells_.sets + 63) / 64);
  cells_.work = work_.get();
  misses_.resize(cells_.sets);

  const uint64_t area_bytes = this->bytes();
  const CallResult mapped =
      kernel_.Mmap(0, area_bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!mapped.ok()) {
    return absl::ErrnoToStatus(
        mapped.error, absl::StrCat("mmap of staging_bytes ", area_bytes,
                                   " for pool \"", name, "\""));
  }
  cells_.base = static_cast<uintptr_t>(mapped.value);
  // A child that shared pages would keep them from being moved.
  const MappingResult set =
      SetMappingProperties(kernel_, cells_.base, area_bytes, {});
  if (!set.ok()) {
    return absl::ErrnoToStatus(
        set.error,
        absl::StrCat(set.call, " of staging_bytes of pool \"", name, "\""));
  }
  if (absl::Status status =
          uffd_.Register(cells_.base, area_bytes, kUffdRegisterMissing,
                         kUffdIoctlCopy | kUffdIoctlMove);
      !status.ok()) {
    return status;
  }
  const CallResult opened =
      kernel_.Mprotect(cells_.base, area_bytes, PROT_READ | PROT_WRITE);
  if (opened.ok()) return absl::OkStatus();
  return absl::ErrnoToStatus(
      opened.error,
      absl::StrCat("mprotect of staging_bytes of pool \"", name, "\""));
}

Staging::~Staging() {
  if (thread_.joinable()) {
    ending_.store(1, std::memory_order_release);
    syscall(SYS_futex, &ending_, FUTEX_WAKE_PRIVATE, 1);
    // Also where somebody has set it and not come to the call that wakes.
    cells_.wanted.store(1, std::memory_order_release);
    syscall(SYS_futex, &cells_.wanted, FUTEX_WAKE_PRIVATE, 1);
    thread_.join();
  }
  if (cells_.base != 0) kernel_.Munmap(cells_.base, bytes());
}

uint64_t Staging::Use(const ImageRef& image) {
  if (image == nullptr || image->has_source()) return 0;
  MutexLock lock(&mutex_);
  if (images_.try_emplace(image->id(), image).second) {
    images_changed_ = true;
    WakeStagedFiller(cells_);
  }
  return image->id();
}

uint64_t Staging::ready_bytes() const {
  uint64_t pages = 0;
  for (uint64_t i = 0; i < cells_.sets * StagedCells::kWays; ++i) {
    const StagedCell& cell = cells_.cells[i];
    if (StagedCell::StatusIn(cell.state.load(std::memory_order_acquire)) ==
        StagedStatus::kReady) {
      pages += cell.pages.load(std::memory_order_relaxed);
    }
  }
  return pages * kPageBytes;
}

void Staging::Run() {
  while (ending_.load(std::memory_order_acquire) == 0) {
    // Acquire: whoever finds 1 in it has its work seen by this round.
    if (cells_.wanted.exchange(0, std::memory_order_acq_rel) == 0) {
      Sleep(cells_.wanted, nullptr);
      continue;
    }
    Tidy();
    Sleep(ending_, &kRest);
  }
}

void Staging::Tidy() {
  ForgetGoneImages();
  for (uint64_t word = 0; word < (cells_.sets + 63) / 64; ++word) {
    if (work_[word].load(std::memory_order_relaxed) == 0) continue;
    uint64_t bits = work_[word].exchange(0, std::memory_order_acquire);
    for (; bits != 0; bits &= bits - 1) {
      TidySet(word * 64 + static_cast<uint64_t>(std::countr_zero(bits)));
    }
  }
}

void Staging::ForgetGoneImages() {
  bool some = false;
  {
    MutexLock lock(&mutex_);
    if (!images_changed_) return;
    images_changed_ = false;
    some = std::erase_if(images_, [](const auto& entry) {
             return entry.second.expired();
           }) != 0;
  }
  if (!some) return;
  for (uint64_t i = 0; i < cells_.sets * StagedCells::kWays; ++i) {
    StagedCell& cell = cells_.cells[i];
    uint64_t state = cell.state.load(std::memory_order_acquire);
    if (StagedCell::StatusIn(state) != StagedStatus::kReady ||
        Find(cell.image.load(std::memory_order_relaxed)) != nullptr) {
      continue;
    }
    const uint64_t filling = StagedCell::With(state, StagedStatus::kFilling);
    if (cell.state.compare_exchange_strong(state, filling,
                                           std::memory_order_acq_rel) &&
        Drop(cell)) {
      cell.state.store(StagedCell::With(filling, StagedStatus::kEmpty),
                       std::memory_order_release);
    }
  }
}

ImageRef Staging::Find(uint64_t image_id) {
  MutexLock lock(&mutex_);
  const auto found = images_.find(image_id);
  return found == images_.end() ? nullptr : found->second.lock();
}

void Staging::TidySet(uint64_t set) {
  StagedCell* const first = cells_.cells + set * StagedCells::kWays;
  for (StagedCell* cell = first; cell != first + StagedCells::kWays; ++cell) {
    const uint64_t state = cell->state.load(std::memory_order_acquire);
    if (StagedCell::StatusIn(state) != StagedStatus::kUsed) continue;
    cell->state.store(StagedCell::With(state, StagedStatus::kFilling),
                      std::memory_order_relaxed);
    Fill(*cell, Find(cell->image.load(std::memory_order_relaxed)),
         cell->chunk.load(std::memory_order_relaxed));
  }
  for (StagedCell* wish = first; wish != first + StagedCells::kWays; ++wish) {
    const uint64_t image = wish->wish_image.load(std::memory_order_acquire);
    if (image == 0) continue;
    const uint64_t chunk = wish->wish_chunk.load(std::memory_order_relaxed);
    wish->wish_image.store(0, std::memory_order_relaxed);
    Grant(set, image, chunk);
  }
}

void Staging::Grant(uint64_t set, uint64_t image_id, uint64_t chunk) {
  const ImageRef image = Find(image_id);
  if (image == nullptr || cells_.SetOf(image_id, chunk) != set) return;
  StagedCell* const first = cells_.cells + set * StagedCells::kWays;
  StagedCell* into = nullptr;
  for (StagedCell* cell = first; cell != first + StagedCells::kWays; ++cell) {
    const StagedStatus status =
        StagedCell::StatusIn(cell->state.load(std::memory_order_acquire));
    if (status == StagedStatus::kEmpty) {
      if (into == nullptr) into = cell;
      continue;
    }
    if (cell->image.load(std::memory_order_relaxed) == image_id &&
        cell->chunk.load(std::memory_order_relaxed) == chunk) {
      return;
    }
  }
  if (into == nullptr) {
    const uint64_t misses = ++misses_[set];
    for (StagedCell* cell = first; cell != first + StagedCells::kWays; ++cell) {
      const StagedStatus status =
          StagedCell::StatusIn(cell->state.load(std::memory_order_acquire));
      if (status == StagedStatus::kReady &&
          misses - cell->filled_at > kPatience &&
          (into == nullptr || cell->filled_at < into->filled_at)) {
        into = cell;
      }
    }
  }
  if (into == nullptr) return;
  uint64_t state = into->state.load(std::memory_order_acquire);
  // Fails where the one in it has been claimed just now.
  if ((StagedCell::StatusIn(state) == StagedStatus::kEmpty ||
       StagedCell::StatusIn(state) == StagedStatus::kReady) &&
      into->state.compare_exchange_strong(
          state, StagedCell::With(state, StagedStatus::kFilling),
          std::memory_order_acq_rel)) {
    Fill(*into, image, chunk);
  }
}

void Staging::Fill(StagedCell& cell, const ImageRef& image, uint64_t chunk) {
  const uint64_t state = cell.state.load(std::memory_order_relaxed);
  const bool same = image != nullptr &&
                    cell.image.load(std::memory_order_relaxed) == image->id() &&
                    cell.chunk.load(std::memory_order_relaxed) == chunk;
  // What was not taken of the same chunk stays. A cell whose pages cannot be
  // given back stays as it is: nobody looks into one that is being filled.
  if (!same && !Drop(cell)) return;
  uint64_t stored = 0;
  bool filled = true;
  const uint64_t first_page = chunk * cells_.cell_pages;
  if (image != nullptr && first_page < image->pages().value()) {
    const uint64_t group = first_page / kPagesPerGroup;
    stored = image->stored_words()[group] &
             GroupMask(group, first_page, first_page + cells_.cell_pages);
    cell.holds_pages = true;
    ForEachRun(stored, [&](uint64_t bit, uint64_t pages) {
      if (!filled) return;
      const uint64_t page = group * kPagesPerGroup + bit;
      // By the kernel: it says EFAULT where a file has been cut short.
      filled =
          CopyRange(
              kernel_, uffd_.fd(),
              cells_.AddressOf(cell) + (page - first_page) * kPageBytes,
              reinterpret_cast<uintptr_t>(image->data()) + page * kPageBytes,
              pages * kPageBytes, kUffdCopyDontWake, {})
              .ok();
    });
  }
  if (!filled || stored == 0) {
    if (Drop(cell)) {
      cell.state.store(StagedCell::With(state, StagedStatus::kEmpty),
                       std::memory_order_release);
    }
    return;
  }
  cell.filled_at =
      misses_[static_cast<uint64_t>(&cell - cells_.cells) / StagedCells::kWays];
  cell.image.store(image->id(), std::memory_order_relaxed);
  cell.chunk.store(chunk, std::memory_order_relaxed);
  cell.pages.store(std::popcount(stored), std::memory_order_relaxed);
  const uint64_t anew = state + (uint64_t{1} << StagedCell::kStatusBits);
  cell.state.store(StagedCell::With(anew, StagedStatus::kReady),
                   std::memory_order_release);
}

bool Staging::Drop(StagedCell& cell) {
  if (!cell.holds_pages) return true;
  if (!DropMappedPages(kernel_, cells_.AddressOf(cell),
                       cells_.cell_pages * kPageBytes)
           .ok()) {
    return false;
  }
  cell.holds_pages = false;
  return true;
}

}  // namespace firsttouch
