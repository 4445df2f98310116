#include "firsttouch/bench/cycle_strategies.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/scan_restore.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kImagePages = kCycleImageBytes / kPageBytes;

// This library.

class PoolSlot : public CycleSlot {
 public:
  explicit PoolSlot(Service& pool) : pool_(pool) {}

  std::byte* Acquire(const ImageRef& image) override {
    if (image != wanted_.image) wanted_.image = image;
    memory_ = OrDie(pool_.Acquire(wanted_));
    return memory_.base();
  }
  void Release(PageList) override { OrDie(memory_.Release()); }

 private:
  Service& pool_;
  // Kept, as a host would that serves many tenants of one image.
  MemoryOptions wanted_{.size_bytes = kCycleMemoryBytes};
  Memory memory_;
};

class Pool : public CycleStrategy {
 public:
  explicit Pool(std::unique_ptr<Service> pool) : pool_(std::move(pool)) {}

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

constexpr LayoutOptions Layout(uint32_t slots) {
  return {.instances = slots,
          .max_memory_bytes = kCycleMemoryBytes,
          .guard_after_bytes = 2 << 20};
}

absl::StatusOr<std::unique_ptr<CycleStrategy>> MakePoolStrategy(
    uint32_t slots, ServiceOptions options) {
  options.layout = Layout(slots);
  absl::StatusOr<std::unique_ptr<Service>> pool =
      Service::Create(std::move(options));
  if (!pool.ok()) return pool.status();
  return std::make_unique<Pool>(*std::move(pool));
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
class Mappings : public CycleStrategy {
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
absl::StatusOr<std::unique_ptr<CycleStrategy>> MakeMappings(uint32_t) {
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
  void Release(PageList) override {
    restore_.Restore(base(), kCycleMemoryBytes,
                     std::span(image_bytes(), kCycleImageBytes));
  }

 private:
  ScanRestore restore_ = OrDie(ScanRestore::Open());
};

// Anonymous memory that the image is copied into.
class CopySlot : public MappingSlot {
 protected:
  void Bind(const ImageRef& image) override {
    memcpy(base(), image->data(), kCycleImageBytes);
  }
};

absl::StatusOr<std::unique_ptr<CycleStrategy>> MakeScanStrategy(
    uint32_t slots) {
  if (const auto scan = ScanRestore::Open(); !scan.ok()) return scan.status();
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

const std::vector<CycleStrategyFactory>& AllCycleStrategies() {
  static const auto* const strategies = new std::vector<CycleStrategyFactory>{
      {kDefaultName,
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "default"});
       }},
      {"not published",
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "private", .publish = false});
       }},
      {"copied, in-thread",
       [](uint32_t slots) {
         return MakePoolStrategy(
             slots,
             {.name = "copied",
              .supply = UserfaultfdOptions{.backing = Backing::kCopied}});
       }},
      {"shared, handler thread",
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "shared-handler",
                                         .supply = UserfaultfdOptions{
                                             .backing = Backing::kShared,
                                             .faults = InHandlerThreads{}}});
       }},
      {"copied, handler thread",
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "copied-handler",
                                         .supply = UserfaultfdOptions{
                                             .backing = Backing::kCopied,
                                             .faults = InHandlerThreads{}}});
       }},
      {"tracking: signal",
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "signal",
                                         .supply = UserfaultfdOptions{
                                             .backing = Backing::kShared,
                                             .tracking = Tracking::kSignal}});
       }},
      {"tracking: async",
       [](uint32_t slots) {
         return MakePoolStrategy(slots, {.name = "async",
                                         .supply = UserfaultfdOptions{
                                             .backing = Backing::kShared,
                                             .tracking = Tracking::kAsync}});
       }},
      {"mappings-drop",
       [](uint32_t slots) {
         return MakePoolStrategy(slots,
                                 {.name = "mappings-drop",
                                  .supply = MappingOptions{.scan = false}});
       }},
      {"mappings-scan",
       [](uint32_t slots) {
         return MakePoolStrategy(
             slots,
             {.name = "mappings-scan", .supply = MappingOptions{.scan = true}});
       }},
      {kCopyOnWriteName, MakeMappings<DontNeedSlot>},
      {kScanName, MakeScanStrategy},
      {kCopyImageName, MakeMappings<CopyAllSlot>},
      {kLimitName, MakeMappings<CopyChangedSlot>, /*is_limit=*/true},
  };
  return *strategies;
}

std::string DescribeDefaultOptions() {
  const absl::StatusOr<std::unique_ptr<Service>> pool =
      Service::Create({.layout = Layout(1)});
  if (!pool.ok()) return pool.status().ToString();
  if (IsMappings((*pool)->supply())) {
    return SupplyName((*pool)->supply());
  }
  return absl::StrCat(SupplyName((*pool)->supply()), ", ",
                      BackingName((*pool)->backing()), ", ",
                      ResolveName(Resolve::kInThread));
}

}  // namespace firsttouch::bench
