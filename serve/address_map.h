// Where the memory of a guest is in its process, and what each page of it
// begins with.
//
// A guest tells its regions once. From then on its process may move them
// (mremap), unmap parts of them, and give pages back (madvise); userfaultfd
// reports each of these, and this map follows. A page is in one of three
// states: it begins as the image has it, it was given back and is zero, or it
// is not the guest's memory (any more).
//
//   absl::StatusOr<AddressMap> map = AddressMap::Create(regions);
//   if (!map.ok()) return map.status();
//   map->Free(start, end);                        // madvise(MADV_DONTNEED)
//   std::optional<AddressMap::Piece> piece = map->Find(address);
//   if (piece.has_value() && piece->freed) ...    // the page is zero
//
// Costs: memory and time go with the number of pieces, which regions, moves and
// separate ranges of given-back pages make; neighbours that continue each other
// are one piece. Whoever keeps a map of somebody else's memory bounds pieces().
//
// Threads: thread-compatible. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_ADDRESS_MAP_H_
#define FIRSTTOUCH_SERVE_ADDRESS_MAP_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// The huge page that guests may have besides kPageBytes.
inline constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

// The end of the addresses that a process on x86-64 has by default.
inline constexpr uint64_t kAddressEnd = (uint64_t{1} << 47) - kPageBytes;

// The most regions that one guest may have.
inline constexpr size_t kMaxGuestRegions = 256;

// A part of a guest's memory, as the guest tells it.
struct GuestRegion {
  uintptr_t start = 0;  // In the guest's process.
  uint64_t bytes = 0;
  uint64_t image_offset_bytes = 0;  // Where `start` is in the image.
  // What the kernel maps at once: kPageBytes, or kHugePageBytes (hugetlb).
  // Start, size and offset are multiples of it.
  uint64_t page_bytes = kPageBytes;
  // The region is registered for write protection, and the server is to find
  // out which pages the guest changes.
  bool track_writes = false;
};

class AddressMap {
 public:
  // Pages that lie together and begin in the same way.
  struct Piece {
    uintptr_t start = 0;
    uintptr_t end = 0;  // Exclusive.
    // Where `start` is in the image; also of pages that were given back.
    uint64_t image_offset_bytes = 0;
    uint64_t page_bytes = kPageBytes;
    bool track_writes = false;
    // The guest gave these pages back: they are zero, whatever the image has.
    bool freed = false;

    uint64_t bytes() const { return end - start; }
    // Where an address of the piece is in the image.
    uint64_t OffsetOf(uintptr_t address) const {
      return image_offset_bytes + (address - start);
    }
  };

  // Errors, InvalidArgument: no region, or more than kMaxGuestRegions; one that
  // is empty, not aligned to its pages, or does not lie in user space; an
  // offset that wraps; two that overlap. Each names the region by its number,
  // the value and the rule.
  static absl::StatusOr<AddressMap> Create(
      std::span<const GuestRegion> regions);

  // A map as another one was: its pieces, in any order and number. Errors as
  // for Create, which limits their number to kMaxGuestRegions.
  static absl::StatusOr<AddressMap> FromPieces(std::span<const Piece> pieces);

  // The piece that has this address, if any has.
  std::optional<Piece> Find(uintptr_t address) const;

  // The piece that has `from`, or else the first behind it, cut to begin at
  // `from` or later.
  std::optional<Piece> Next(uintptr_t from) const;

  // Pages of [start, end) are zero from now on, where they are the guest's.
  // Rounded to the pages of each piece, so that no page that was given back in
  // part loses bytes: the kernel does not drop such a page either.
  void Free(uintptr_t start, uintptr_t end);

  // [start, end) is not the guest's memory any more.
  void Unmap(uintptr_t start, uintptr_t end);

  // What was in [from, from + bytes) is at `to` now, in place of what was
  // there.
  void Move(uintptr_t from, uintptr_t to, uint64_t bytes);

  // Bytes and pieces that are there now.
  uint64_t bytes() const;
  size_t pieces() const { return pieces_.size(); }

 private:
  // Makes `address` a border between pieces where it lies in one.
  void Cut(uintptr_t address);
  // Joins the pieces on both sides of `address` where one continues the other.
  void Join(uintptr_t address);

  absl::btree_map<uintptr_t, Piece> pieces_;  // By start.
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_ADDRESS_MAP_H_
