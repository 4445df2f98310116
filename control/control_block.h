// The memory in which a pool keeps its records, shared with readers: creates
// it, and writes what the service does not write by itself. block.h has the
// format.
//
// NOTHING THAT A READER DOES CAN CHANGE OR BLOCK THE POOL. The memfd is sealed:
// no process, this one included, gets another writable mapping of it
// (F_SEAL_FUTURE_WRITE, Linux 5.1) or resizes it. Readers take no lock.
//
// FORK. The child of fork(2) finds a private copy at the same address, and no
// descriptor: it cannot write to its parent's block, and does not look as if it
// had the pool. (A child by a bare clone(2) shares the block; the service
// writes nothing in a process that did not make the pool.)
//
// WITHOUT A MEMFD (refused, table of descriptors full, RLIMIT_FSIZE), or where
// publishing is not wanted, the same memory is private: the pool works all the
// same, and why() says why no reader finds it.
//
// CORE DUMPS contain the block, as far as the kernel dumps such memory by
// default, except for page states that would be large
// (kMaxDumpedPageStatesBytes).

#ifndef FIRSTTOUCH_CONTROL_CONTROL_BLOCK_H_
#define FIRSTTOUCH_CONTROL_CONTROL_BLOCK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/block.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// The longest name of a pool, in bytes.
inline constexpr size_t kMaxPoolNameBytes = sizeof(ControlHeader::name);

// Page states larger than this are left out of core dumps: the kernel would
// allocate each page of them that was never used.
inline constexpr uint64_t kMaxDumpedPageStatesBytes = uint64_t{64} << 20;

// InvalidArgument, with the name, the rule and the way out, for a name that is
// empty, longer than kMaxPoolNameBytes, or has control characters: the name is
// shown to people, one per line, and identifies the pool.
absl::Status CheckPoolName(std::string_view name);

class ControlBlock {
 public:
  struct Shape {
    uint32_t slots = 0;
    // Bytes of a slot's record, a multiple of 64.
    uint64_t slot_bytes = 0;
    // Bytes of a slot's page states, a multiple of 64.
    uint64_t page_states_bytes = 0;
  };

  // The texts and names that Publish() writes besides the header's numbers.
  struct Text {
    std::span<const ControlField> fields;
    std::span<const ControlName> states;
    std::span<const ControlName> trackings;
    // Cut off where it does not fit.
    std::string_view description;
  };

  // An image, as NoteImage() describes it.
  struct ImageFacts {
    uint64_t id = 0;
    uint64_t size_bytes = 0;
    uint64_t stored_pages = 0;
    std::optional<std::span<const uint8_t, 32>> digest;
    std::string_view name;
  };

  // Creates a block that is all zero. `publish` false: in private memory.
  // Errors: that of mmap(2) where there is no memory of either kind, naming the
  // bytes. `kernel` must outlive the block.
  static absl::StatusOr<std::unique_ptr<ControlBlock>> Create(
      Kernel& kernel, MemfdCalls& calls, std::string_view pool_name,
      const Shape& shape, bool publish);

  ControlBlock(const ControlBlock&) = delete;
  ControlBlock& operator=(const ControlBlock&) = delete;
  // Readers find nothing from here on. Must not run in a child of fork(2).
  ~ControlBlock();

  // The slot's record: zeroed, aligned to 64 bytes, as large as the shape says.
  std::byte* slot_record(uint32_t slot) const {
    return address_ + slots_offset_ + slot * shape_.slot_bytes;
  }
  std::byte* page_states(uint32_t slot) const {
    return address_ + pages_offset_ + slot * shape_.page_states_bytes;
  }

  // Makes the pool visible to readers. `facts` has the pool's numbers and
  // `planes`; the rest of the header is filled in here. Called once.
  void Publish(const ControlHeader& facts, const Text& text);

  // Notes what the slot is bound to from here on; the second function returns
  // the id that was noted last. No two threads may call this for one slot at
  // once; different slots are independent.
  void NoteImage(uint32_t slot, const ImageFacts& image);
  uint64_t image_id(uint32_t slot) const;

  // Whether readers can find the block; why() says, for people, why not.
  bool published() const { return static_cast<bool>(fd_); }
  const std::string& why() const { return why_; }
  // The whole block.
  const std::byte* address() const { return address_; }
  uint64_t bytes() const { return bytes_; }

 private:
  friend class ForkRegistry;

  ControlBlock(Kernel& kernel, const Shape& shape);

  // Makes fd_ a memfd of bytes_ bytes, or says in why_ why that is impossible.
  void OpenMemfd(MemfdCalls& calls, std::string_view pool_name);
  // Whether fd_ is still the descriptor that was opened: a host may have closed
  // every descriptor that it does not know. Async-signal-safe.
  bool OwnsDescriptor() const;
  ControlHeader& header() const {
    return *reinterpret_cast<ControlHeader*>(address_);
  }

  Kernel& kernel_;
  const Shape shape_;
  uint64_t slots_offset_ = 0;
  uint64_t images_offset_ = 0;
  uint64_t pages_offset_ = 0;
  uint64_t bytes_ = 0;
  std::byte* address_ = nullptr;
  UniqueFd fd_;
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
  std::string why_;
  // The next in the list of the blocks that fork(2) has to make private.
  ControlBlock* next_ = nullptr;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_CONTROL_CONTROL_BLOCK_H_
