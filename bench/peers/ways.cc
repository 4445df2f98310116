#include "bench/peers/ways.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply_choice.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

using wasm2c::GuestMemory;
using wasm2c::MemoryRequest;

// This library.

class PoolSlot : public CycleSlot {
 public:
  PoolSlot(Service& pool, uint64_t size_bytes)
      : pool_(pool), wanted_({.size_bytes = size_bytes}) {}

  std::byte* Acquire(const ImageRef& image) override {
    if (image != wanted_.image) wanted_.image = image;
    memory_ = OrDie(pool_.Acquire(wanted_));
    return memory_.base();
  }
  void Release(std::optional<PageList>, uint64_t) override {
    OrDie(memory_.Release());
  }
  void Grow(uint64_t, uint64_t to) override { OrDie(memory_.Grow(to)); }

 private:
  Service& pool_;
  // Kept, as a host would that serves many guests of one image.
  MemoryOptions wanted_;
  Memory memory_;
};

// The others: memory that is reserved once for each slot, and stays with its
// image as long as the next guest has the same.

class MappingSlot : public CycleSlot {
 public:
  explicit MappingSlot(uint64_t bytes) : mapping_(bytes) {}

  std::byte* Acquire(const ImageRef& image) override {
    if (image != image_) {
      image_ = image;
      if (image != nullptr) Bind();
    }
    return base();
  }
  void Grow(uint64_t from, uint64_t to) override {
    Allow(from, to, PROT_READ | PROT_WRITE);
  }
  void Close(uint64_t from, uint64_t to) override {
    Allow(from, to, PROT_NONE);
  }

 protected:
  // Makes the memory show the image, which is there.
  virtual void Bind() { mapping_.Bind(image_); }

  // Makes [from, to) zero, or the mapped file's, again.
  void Drop(uint64_t from, uint64_t to) {
    if (from < to) mapping_.Drop(from, to);
  }

  std::byte* base() const { return mapping_.base(); }
  // Whole pages; none without an image.
  std::span<const std::byte> image_bytes() const {
    if (image_ == nullptr) return {};
    return {image_->data(), image_->pages().bytes()};
  }

 private:
  void Allow(uint64_t from, uint64_t to, int access) {
    if (mprotect(base() + from, to - from, access) != 0) Die("mprotect failed");
  }

  ImageRef image_;
  Mapping mapping_;
};

// Copy-on-write, and the kernel throws all changed pages away.
class DontNeedSlot : public MappingSlot {
 public:
  using MappingSlot::MappingSlot;
  void Release(std::optional<PageList>, uint64_t bytes) override {
    Drop(0, bytes);
  }
};

// Copy-on-write, and PAGEMAP_SCAN (6.7) tells which pages are private: they are
// copied back and stay, so that all that was ever written is copied each time.
// As Wasmtime does it.
class ScanSlot : public MappingSlot {
 public:
  using MappingSlot::MappingSlot;

  void Release(std::optional<PageList>, uint64_t bytes) override {
    const auto start = reinterpret_cast<uintptr_t>(base());
    ScanRequest request = ScanRequest::PrivateCopies(start, start + bytes);
    request.none_of |= kPageIsPfnZero;
    // Neighbours are one region whatever they are.
    request.report = 0;
    const ScanResult scan =
        ScanPages(RealKernel(), pagemap_.fd(), request, regions_.data(),
                  regions_.size(), [&](const PageRegion& region) {
                    PutBack(region.start - start, region.end - start);
                    return true;
                  });
    if (!scan.ok()) Die("PAGEMAP_SCAN failed");
  }

 private:
  void PutBack(uint64_t from, uint64_t to) {
    const std::span<const std::byte> image = image_bytes();
    const uint64_t end = std::min<uint64_t>(to, image.size());
    if (from < end) memcpy(base() + from, image.data() + from, end - from);
    from = std::max(from, end);
    if (from < to) memset(base() + from, 0, to - from);
  }

  Pagemap pagemap_ = OrDie(Pagemap::Open(RealKernel()));
  std::vector<PageRegion> regions_ = std::vector<PageRegion>(512);
};

// Anonymous memory that the image is copied into: all of it, always. What lies
// behind it is dropped if anything there can have changed, which (to its
// advantage) it is told.
class CopyAllSlot : public MappingSlot {
 public:
  using MappingSlot::MappingSlot;
  void Release(std::optional<PageList> changed, uint64_t bytes) override {
    Bind();
    const uint64_t pages = image_bytes().size() / kPageBytes;
    if (!changed.has_value() ||
        std::any_of(changed->begin(), changed->end(),
                    [&](uint32_t page) { return page >= pages; })) {
      Drop(image_bytes().size(), bytes);
    }
  }

 protected:
  void Bind() override {
    if (image_bytes().empty()) return;
    memcpy(base(), image_bytes().data(), image_bytes().size());
  }
};

// Only the pages that changed, in the order in which they did, told for free.
// Nobody who has to find them out can be faster.
class CopyChangedSlot : public CopyAllSlot {
 public:
  using CopyAllSlot::CopyAllSlot;
  void Release(std::optional<PageList> changed, uint64_t) override {
    if (!changed.has_value()) Die("the limit must be told what has changed");
    const uint64_t image_pages = image_bytes().size() / kPageBytes;
    const std::byte* const image = image_bytes().data();
    for (uint32_t page : *changed) {
      std::byte* const to = base() + page * kPageBytes;
      if (page < image_pages) {
        memcpy(to, image + page * kPageBytes, kPageBytes);
      } else {
        memset(to, 0, kPageBytes);
      }
    }
  }
};

template <typename Slot>
std::unique_ptr<CycleSlot> NewMappingSlot(uint64_t bytes) {
  return std::make_unique<Slot>(bytes);
}

// A guest's memory in a slot. Nobody asks it for what it does not have.
class SlotMemory : public GuestMemory {
 public:
  SlotMemory(CycleSlot& slot, std::byte* base, uint64_t size_bytes,
             uint64_t max_bytes)
      : slot_(slot),
        base_(base),
        max_bytes_(max_bytes),
        size_bytes_(size_bytes) {}
  ~SlotMemory() override {
    slot_.Release(std::nullopt, RoundUpToPage(size_bytes_));
  }

  std::byte* base() const override { return base_; }
  uint64_t size_bytes() const override { return size_bytes_; }
  absl::Status Grow(uint64_t new_size_bytes) override {
    if (new_size_bytes > max_bytes_) {
      return absl::OutOfRangeError(absl::StrCat("new size ", new_size_bytes,
                                                " bytes exceeds ", max_bytes_));
    }
    size_bytes_ = new_size_bytes;
    return absl::OkStatus();
  }
  // The kernel supplies any page in bounds to a system call, too.
  absl::Status MakeReady(uint64_t, uint64_t, Access) override {
    return absl::OkStatus();
  }
  absl::Status Reset() override { return absl::UnimplementedError("Reset"); }
  absl::StatusOr<ImageRef> Snapshot(std::string_view) override {
    return absl::UnimplementedError("Snapshot");
  }

 private:
  CycleSlot& slot_;
  std::byte* const base_;
  const uint64_t max_bytes_;
  uint64_t size_bytes_;
};

class SlotSource : public wasm2c::MemorySource {
 public:
  SlotSource(std::unique_ptr<CycleSlot> slot, uint64_t max_bytes)
      : slot_(std::move(slot)), max_bytes_(max_bytes) {}

  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override {
    if (requests.size() != 1 || requests[0].size_bytes > max_bytes_) {
      return absl::OutOfRangeError(absl::StrCat(
          "one memory of at most ", max_bytes_, " bytes is possible"));
    }
    if (requests[0].image != image_) {
      image_ = requests[0].image;
      dense_ = image_ == nullptr ? nullptr : DenseCopy(*image_);
    }
    std::vector<std::unique_ptr<GuestMemory>> memories;
    memories.push_back(std::make_unique<SlotMemory>(
        *slot_, slot_->Acquire(dense_), requests[0].size_bytes, max_bytes_));
    return memories;
  }

 private:
  // Without holes: to map or to read the image's own would fill them, for
  // everybody.
  static ImageRef DenseCopy(const Image& image) {
    ImageRef copy = OrDie(ImageFromCallback(
        {.name = "dense", .size_bytes = image.pages().bytes()},
        [&](PageIndex page, std::span<std::byte, kPageBytes> bytes) {
          memcpy(bytes.data(), image.PageBytes(page), kPageBytes);
          return absl::OkStatus();
        }));
    ReadEachPage(copy->data(), copy->pages().bytes());
    return copy;
  }

  const std::unique_ptr<CycleSlot> slot_;
  const uint64_t max_bytes_;
  ImageRef image_;
  ImageRef dense_;
};

}  // namespace

std::optional<ServiceOptions> PoolOptionsOf(const std::string& word) {
  using enum Supply;
  using enum Backing;
  using enum Resolve;
  using enum Tracking;
  const std::pair<const char*, SupplyChoice> supplies[] = {
      {"firsttouch", AnySupply()},
      {"unpublished", AnySupply()},
      {"copied", ChoiceOf(kUserfaultfd, kCopied)},
      {"handler", ChoiceOf(kUserfaultfd, kShared, kHandlerThread)},
      {"copied-handler", ChoiceOf(kUserfaultfd, kCopied, kHandlerThread)},
      {"signal", ChoiceOf(kUserfaultfd, kShared, kInThread, kSignal)},
      {"async", ChoiceOf(kUserfaultfd, kShared, kInThread, kAsync)},
      {"mappings-drop", ChoiceOf(kMappingsDrop)},
      {"mappings-scan", ChoiceOf(kMappingsScan)}};
  for (const auto& [name, supply] : supplies) {
    if (word != name) continue;
    return ServiceOptions{
        .name = word, .supply = supply, .publish = word != "unpublished"};
  }
  return std::nullopt;
}

absl::StatusOr<Way> OpenWay(const std::string& word,
                            const LayoutOptions& layout, uint64_t size_bytes) {
  const uint64_t bytes = layout.max_memory_bytes;
  if (std::optional<ServiceOptions> options = PoolOptionsOf(word)) {
    options->layout = layout;
    auto made = Service::Create(*std::move(options));
    if (!made.ok()) return made.status();
    Service& pool = **made;
    return Way{*std::move(made), bytes, [&pool, size_bytes] {
                 return std::make_unique<PoolSlot>(pool, size_bytes);
               }};
  }
  const std::map<std::string, std::unique_ptr<CycleSlot> (*)(uint64_t)> slots =
      {{"dontneed", NewMappingSlot<DontNeedSlot>},
       {"scan", NewMappingSlot<ScanSlot>},
       {"memcpy", NewMappingSlot<CopyAllSlot>},
       {"limit", NewMappingSlot<CopyChangedSlot>}};
  const auto found = slots.find(word);
  if (found == slots.end()) {
    return absl::NotFoundError(absl::StrCat(word, ": there is no such way"));
  }
  return Way{nullptr, bytes,
             [new_slot = found->second, bytes] { return new_slot(bytes); }};
}

std::unique_ptr<wasm2c::MemorySource> Way::NewSource() const {
  if (pool == nullptr) return SourceOf(new_slot(), max_memory_bytes);
  return OrDie(wasm2c::PoolMemorySource::Create(pool.get()));
}

std::unique_ptr<wasm2c::MemorySource> SourceOf(std::unique_ptr<CycleSlot> slot,
                                               uint64_t max_bytes) {
  return std::make_unique<SlotSource>(std::move(slot), max_bytes);
}

void RequestOrDie(examples::SqliteGuest& guest, uint64_t rows,
                  uint64_t number) {
  constexpr uint64_t kOwner = 4711;
  // Steps without a pattern that a page could follow.
  const uint64_t found = (number == 0 ? rows / 8 : number * 7919 % rows) + 1;
  const uint64_t updated = (number == 0 ? 7 : number * 104'729) % rows + 1;
  const auto got = guest.Run([=](Z_sqlite_guest_instance_t* instance) {
    if (Z_sqlite_guestZ_find(instance, found) != found) return 1;
    if (Z_sqlite_guestZ_insert(instance, kOwner, 1) != 0) return 2;
    if (Z_sqlite_guestZ_update(instance, updated, kOwner) != 0) return 3;
    return 0;
  });
  if (!got.ok()) Die(got.status().ToString());
  if (*got != 0) Die(absl::StrCat("SQLite's answer ", *got, " is wrong"));
}

}  // namespace firsttouch::bench
