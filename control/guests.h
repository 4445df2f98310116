// The format of a guests block: what a page server publishes about the guests
// that it serves, for programs of other versions to read.
// docs/control-block.md says how.
//
// It is a memfd named "firsttouch-guests:NAME" of the server's process: a
// header, and records of guests and of their regions. ADDRESSES IN IT ARE THOSE
// OF ANOTHER PROCESS: of the guest, whose pid its record has.
//
// Everything is little-endian, every number is aligned to its size, every text
// is UTF-8 padded with zeroes (not terminated where it fills its field).

#ifndef FIRSTTOUCH_CONTROL_GUESTS_H_
#define FIRSTTOUCH_CONTROL_GUESTS_H_

#include <cstddef>
#include <cstdint>

#include "firsttouch/control/block.h"

namespace firsttouch {

// The first bytes of a block.
inline constexpr char kGuestsMagic[8] = {'F', 'T', 'G',  'U',
                                         'E', 'S', '\r', '\n'};

// As kControlVersion.
inline constexpr uint32_t kGuestsVersion = 1;

// The beginning of the block's name in /proc/PID/fd, behind "/memfd:".
inline constexpr char kGuestsMemfdPrefix[] = "firsttouch-guests:";

struct GuestsHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;   // of this structure, at least sizeof(GuestsHeader)
  uint64_t block_bytes;    // of the memfd
  uint64_t ready;          // as ControlHeader::ready
  uint64_t pid;            // of the server, as ControlHeader::pid
  uint64_t created_ns;     // CLOCK_REALTIME
  char name[64];           // of the server
  ControlSection guests;   // GuestInBlock
  ControlSection regions;  // RegionInBlock
};
static_assert(sizeof(GuestsHeader) == 160);

// More guests than this are not published.
inline constexpr size_t kMaxGuestsInBlock = size_t{1} << 16;

// A guest. `sequence` is odd while the record or the place of a region is being
// changed, and has another value afterwards.
struct GuestInBlock {
  uint64_t sequence;
  // Unique among the guests that the server ever had. 0: there is none, and the
  // rest means nothing.
  uint64_t number;
  // Of the process whose addresses those of the regions are, as the server
  // sees it. 0: not known (a forked child).
  uint64_t pid;
  // Its regions are records `first_region` and following.
  uint64_t first_region;
  uint64_t regions;
  // Faults that wait: for a check, a page source, or another try.
  uint64_t waiting;
  uint64_t image_size_bytes;
  uint64_t image_stored_pages;
  uint64_t image_digest_known;  // 0 or 1
  uint8_t image_digest[32];     // SHA-256
  char image_name[64];          // may be cut
  char name[64];                // may be cut
};
static_assert(sizeof(GuestInBlock) == 232);

// A part of a guest's memory. The counts only grow; they are written word by
// word, and read so.
struct RegionInBlock {
  uint64_t start;  // In the guest's process.
  uint64_t bytes;  // 0: not there any more.
  uint64_t image_offset_bytes;
  uint64_t page_bytes;
  // Faults that were answered: of reads, of writes, of first writes to pages
  // that were protected; and touches of pages that could not be had.
  uint64_t read_faults;
  uint64_t write_faults;
  uint64_t protect_faults;
  uint64_t lost;
  // Pages of 4096 bytes: copied from the image, made zero; of both, those
  // before they were asked for; and given back by the guest.
  uint64_t pages_copied;
  uint64_t pages_zeroed;
  uint64_t pages_early;
  uint64_t pages_given_back;
};
static_assert(sizeof(RegionInBlock) == 96);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_CONTROL_GUESTS_H_
