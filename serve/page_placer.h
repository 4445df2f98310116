// Places pages of a guest by its userfaultfd.
//
// Nothing of the guest's memory is read here, nor is any mapped: the kernel's
// calls on the userfaultfd copy into the memory that the guest has registered
// with it, and nowhere else.

#ifndef FIRSTTOUCH_SERVE_PAGE_PLACER_H_
#define FIRSTTOUCH_SERVE_PAGE_PLACER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// What became of placing pages.
struct Placed {
  enum class Outcome : uint8_t {
    kDone,
    kStopped,       // An event is unread, or the mappings change.
    kNotReady,      // GuestImage::MakeReady() first.
    kUnregistered,  // No such memory (any more).
    kGone,          // No such process.
    kLost,          // See the status.
  };

  Outcome outcome = Outcome::kDone;
  absl::Status status = absl::OkStatus();
  // kNotReady: of what.
  PageIndex first = PageIndex(0);
  PageCount pages = PageCount(0);
};

// Each call says with its first stop what became of it: the caller reads the
// events, looks up anew what the pages begin with, and calls again. (A retry in
// here would go on with a source that an event may have made wrong.)
//
// Thread-compatible. Not for signal handlers.
class PagePlacer {
 public:
  // All of them outlive the placer. `uffd` is non-blocking.
  PagePlacer(Kernel& kernel, int uffd, const GuestImage& image)
      : kernel_(kernel), uffd_(uffd), image_(image) {}

  // Whether threads that wait for a page go on as soon as it is placed. Later:
  // the caller calls Wake().
  enum class Waking : uint8_t { kAtOnce, kLater };

  // Places [start, end), which is in `piece`. `write`: the first page is about
  // to be written to.
  Placed Place(const AddressMap::Piece& piece, uintptr_t start, uintptr_t end,
               bool write, Waking waking = Waking::kAtOnce);
  // Lets a page be written to.
  Placed Unprotect(uintptr_t page, uint64_t page_bytes);
  // Makes each touch of the missing pages a SIGBUS.
  Placed Poison(uintptr_t start, uint64_t bytes, uint64_t page_bytes);
  // Makes threads that wait for these pages ask again.
  void Wake(uintptr_t start, uint64_t bytes);

  // In units of kPageBytes, since the placer was made.
  uint64_t pages_copied() const { return copied_; }
  uint64_t pages_zeroed() const { return zeroed_; }
  // Pages that another placer has placed for this one.
  void Count(uint64_t copied, uint64_t zeroed) {
    copied_ += copied;
    zeroed_ += zeroed;
  }

 private:
  Placed PlaceHuge(const AddressMap::Piece& piece, uintptr_t page, bool write);
  Placed CopyPages(uintptr_t start, const std::byte* from, uint64_t bytes,
                   bool protect, Waking waking, uint64_t& count);
  Placed ZeroPages(uintptr_t start, uint64_t bytes, bool protect, bool write,
                   Waking waking);
  // What an errno of `what` says.
  Placed After(int error, const std::string& what) const;

  Kernel& kernel_;
  const int uffd_;
  const GuestImage& image_;
  uint64_t copied_ = 0;
  uint64_t zeroed_ = 0;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_PAGE_PLACER_H_
