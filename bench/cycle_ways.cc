#include "firsttouch/bench/cycle_ways.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/scene.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kImagePages = kCycleImageBytes / kPageBytes;

// This library.

class PoolSlot : public CycleSlot {
 public:
  explicit PoolSlot(Service& pool) : pool_(pool) {}

  std::byte* Acquire(const ImageRef& image) override {
    memory_ =
        OrDie(pool_.Acquire({.image = image, .size_bytes = kCycleMemoryBytes}));
    return memory_.base();
  }
  void Release(PageList) override { OrDie(memory_.Release()); }

 private:
  Service& pool_;
  Memory memory_;
};

class Pool : public CycleWay {
 public:
  explicit Pool(const PoolShape& shape) : pool_(MakePool(shape)) {}

  std::unique_ptr<CycleSlot> NewSlot() override {
    return std::make_unique<PoolSlot>(*pool_);
  }
  std::optional<uint64_t> PrivateBytesOfAll() override {
    // NOLINTNEXTLINE: the pool's first address.
    return PrivateBytes(reinterpret_cast<const std::byte*>(pool_->base()),
                        pool_->layout().reservation_bytes());
  }

 private:
  const std::unique_ptr<Service> pool_;
};

template <Backing kBacking, Resolve kResolve>
std::unique_ptr<CycleWay> MakePoolWay(uint32_t slots) {
  return std::make_unique<Pool>(PoolShape{.backing = kBacking,
                                          .resolve = kResolve,
                                          .slots = slots,
                                          .memory_bytes = kCycleMemoryBytes});
}

template <Supply kSupply>
std::unique_ptr<CycleWay> MakeMappedWay(uint32_t slots) {
  return std::make_unique<Pool>(PoolShape{
      .supply = kSupply, .slots = slots, .memory_bytes = kCycleMemoryBytes});
}

std::unique_ptr<CycleWay> MakeMappedScanWay(uint32_t slots) {
  if (!Pagemap::Open(RealKernel()).ok()) return nullptr;
  return MakeMappedWay<Supply::kMappingsScan>(slots);
}

// The others: memory that is reserved once for each slot, and stays with its
// image as long as the next tenant has the same.

class MappingSlot : public CycleSlot {
 public:
  std::byte* Acquire(const ImageRef& image) override {
    if (image != image_) {
      image_ = image;
      Bind(image);
    }
    return base();
  }

  std::optional<uint64_t> PrivateBytesOfSlot() const {
    return PrivateBytes(base(), mapping_.bytes());
  }

 protected:
  virtual void Bind(const ImageRef& image) { mapping_.Bind(image); }

  std::byte* base() const { return mapping_.base(); }
  const std::byte* image_bytes() const { return image_->data(); }
  Mapping& mapping() { return mapping_; }

 private:
  ImageRef image_;
  Mapping mapping_{kCycleMemoryBytes};
};

template <typename Slot>
class Mappings : public CycleWay {
 public:
  std::unique_ptr<CycleSlot> NewSlot() override {
    auto slot = std::make_unique<Slot>();
    slots_.push_back(slot.get());
    return slot;
  }
  std::optional<uint64_t> PrivateBytesOfAll() override {
    uint64_t sum = 0;
    for (const MappingSlot* slot : slots_) {
      const std::optional<uint64_t> bytes = slot->PrivateBytesOfSlot();
      if (!bytes.has_value()) return std::nullopt;
      sum += *bytes;
    }
    return sum;
  }

 private:
  std::vector<const MappingSlot*> slots_;
};

template <typename Slot>
std::unique_ptr<CycleWay> MakeMappings(uint32_t) {
  return std::make_unique<Mappings<Slot>>();
}

// Copy-on-write, and the kernel throws all changed pages away.
class DontNeedSlot : public MappingSlot {
 public:
  void Release(PageList) override { mapping().Drop(); }
};

// Copy-on-write, and PAGEMAP_SCAN (6.7) tells which pages are private: they are
// copied back and stay. As Wasmtime does it.
class ScanSlot : public MappingSlot {
 public:
  ScanSlot() : pagemap_(OrDie(Pagemap::Open(RealKernel()))) {}

  void Release(PageList) override {
    ScanRequest request;
    request.start = reinterpret_cast<uintptr_t>(base());
    request.end = request.start + kCycleMemoryBytes;
    request.all_of = kPageIsWritten;
    request.any_of = kPageIsPresent | kPageIsSwapped;
    request.none_of = kPageIsFile | kPageIsPfnZero;
    const ScanResult scan = ScanPages(
        RealKernel(), pagemap_.fd(), request, regions_, kRegions,
        [&](const PageRegion& region) {
          Restore(region.start - request.start, region.end - request.start);
          return true;
        });
    if (!scan.ok()) Die("PAGEMAP_SCAN failed");
  }

 private:
  void Restore(uint64_t from, uint64_t to) {
    if (from < kCycleImageBytes) {
      const uint64_t end = std::min(to, kCycleImageBytes);
      memcpy(base() + from, image_bytes() + from, end - from);
      from = end;
    }
    if (from < to) memset(base() + from, 0, to - from);
  }

  static constexpr size_t kRegions = 512;
  Pagemap pagemap_;
  PageRegion regions_[kRegions];
};

// Anonymous memory that the image is copied into.
class CopySlot : public MappingSlot {
 protected:
  void Bind(const ImageRef& image) override {
    memcpy(base(), image->data(), kCycleImageBytes);
  }
};

std::unique_ptr<CycleWay> MakeScanWay(uint32_t slots) {
  if (!Pagemap::Open(RealKernel()).ok()) return nullptr;
  return MakeMappings<ScanSlot>(slots);
}

// All of the image, always. What lies behind it is dropped if anything there
// can have changed, which (to its advantage) it is told.
class CopyAllSlot : public CopySlot {
 public:
  void Release(PageList changed) override {
    memcpy(base(), image_bytes(), kCycleImageBytes);
    const bool behind =
        std::any_of(changed.begin(), changed.end(),
                    [](uint32_t page) { return page >= kImagePages; });
    if (behind &&
        madvise(base() + kCycleImageBytes, kCycleMemoryBytes - kCycleImageBytes,
                MADV_DONTNEED) != 0) {
      Die("MADV_DONTNEED failed");
    }
  }
};

// Only the pages that changed, in the order in which they did, told for free.
// Nobody who has to find them out can be faster.
class CopyChangedSlot : public CopySlot {
 public:
  void Release(PageList changed) override {
    for (uint32_t page : changed) {
      std::byte* const to = base() + page * kPageBytes;
      if (page < kImagePages) {
        memcpy(to, image_bytes() + page * kPageBytes, kPageBytes);
      } else {
        memset(to, 0, kPageBytes);
      }
    }
  }
};

}  // namespace

const std::vector<CycleWayFactory>& AllCycleWays() {
  static const auto* const ways = new std::vector<CycleWayFactory>{
      {"shared, in-thread", MakePoolWay<Backing::kShared, Resolve::kInThread>},
      {"copied, in-thread", MakePoolWay<Backing::kCopied, Resolve::kInThread>},
      {"shared, handler thread",
       MakePoolWay<Backing::kShared, Resolve::kHandlerThread>},
      {"copied, handler thread",
       MakePoolWay<Backing::kCopied, Resolve::kHandlerThread>},
      {"mappings-drop", MakeMappedWay<Supply::kMappingsDrop>},
      {"mappings-scan", MakeMappedScanWay},
      {kCopyOnWriteName, MakeMappings<DontNeedSlot>},
      {"CoW + PAGEMAP_SCAN", MakeScanWay},
      {"memcpy of the image", MakeMappings<CopyAllSlot>},
      {kLimitName, MakeMappings<CopyChangedSlot>,
       /*is_limit=*/true},
  };
  return *ways;
}

}  // namespace firsttouch::bench
