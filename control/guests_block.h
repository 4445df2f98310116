// The memory in which a page server publishes its guests, shared with readers:
// creates it, and writes it. guests.h has the format.
//
//   std::unique_ptr<GuestsBlock> block = GuestsBlock::Create(calls, "vms",
//   100); std::shared_ptr<GuestsBlock::Entry> entry = block->Publish(facts,
//   regions); entry->Add(0, &RegionInBlock::read_faults);
//
// Readers take no lock and change nothing, as for control_block.h. Where there
// can be no memfd, nothing is published, and why() says why.
//
// Threads: any. Fork: the child has no such memory, and must not use it.

#ifndef FIRSTTOUCH_CONTROL_GUESTS_BLOCK_H_
#define FIRSTTOUCH_CONTROL_GUESTS_BLOCK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

class GuestsBlock : public std::enable_shared_from_this<GuestsBlock> {
 public:
  struct Facts {
    uint64_t number = 0;  // Not 0.
    uint64_t pid = 0;     // 0: not known.
    std::string_view name;
    std::string_view image_name;
    uint64_t image_size_bytes = 0;
    uint64_t image_stored_pages = 0;
    std::optional<std::span<const uint8_t, 32>> image_digest;
  };
  struct Place {
    uint64_t start = 0;
    uint64_t bytes = 0;
    uint64_t image_offset_bytes = 0;
    uint64_t page_bytes = 0;
  };

  // The records of one guest, which go with it. Thread-compatible; the records
  // of others do not matter.
  class Entry {
   public:
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    ~Entry();

    size_t regions() const { return regions_; }
    // Where a region is now.
    void Move(size_t region, uint64_t start, uint64_t bytes,
              uint64_t image_offset_bytes);
    void Add(size_t region, uint64_t RegionInBlock::*count,
             uint64_t number = 1);
    void SetWaiting(uint64_t faults);

   private:
    friend class GuestsBlock;
    Entry(std::shared_ptr<GuestsBlock> block, size_t guest, size_t first_region,
          size_t regions)
        : block_(std::move(block)),
          guest_(guest),
          first_region_(first_region),
          regions_(regions) {}
    // Calls `change` between two numbers that tell readers of it.
    template <typename Change>
    void Changing(Change change);

    const std::shared_ptr<GuestsBlock> block_;
    const size_t guest_;
    const size_t first_region_;
    const size_t regions_;
  };

  // For `guests` guests at most. Memory is taken as guests come.
  static std::shared_ptr<GuestsBlock> Create(MemfdCalls& calls,
                                             std::string_view server_name,
                                             size_t guests);
  GuestsBlock(const GuestsBlock&) = delete;
  GuestsBlock& operator=(const GuestsBlock&) = delete;
  // Readers find nothing from here on.
  ~GuestsBlock();

  // Makes a guest visible. Null: nothing is published, or there is no room.
  std::unique_ptr<Entry> Publish(const Facts& facts,
                                 std::span<const Place> regions);

  bool published() const { return address_ != nullptr; }
  const std::string& why() const { return why_; }

 private:
  explicit GuestsBlock(size_t guests) : most_guests_(guests) {}
  void Open(MemfdCalls& calls, std::string_view server_name);
  GuestsHeader& header() const {
    return *reinterpret_cast<GuestsHeader*>(address_);
  }
  GuestInBlock& guest(size_t index) const;
  RegionInBlock& region(size_t index) const;

  const size_t most_guests_;
  std::byte* address_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t regions_offset_ = 0;
  UniqueFd fd_;
  std::string why_;

  Mutex mutex_;
  // Which records are taken.
  std::vector<bool> guests_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_CONTROL_GUESTS_BLOCK_H_
