// Brings pages of a file-backed image into its memfd: the part of an image that
// is on the fault path.
//
// Async-signal-safe: takes no lock, allocates nothing, logs nothing, uses no
// thread-local storage, leaves errno alone. It may wait for a disk. Threads:
// any.

#ifndef FIRSTTOUCH_INIT_IMAGE_FETCH_H_
#define FIRSTTOUCH_INIT_IMAGE_FETCH_H_

#include <atomic>
#include <cstdint>

#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {

struct SourceRequests;

// What is needed for it. Image::fetch() has one; nobody else makes any.
struct ImageFetch {
  Kernel* kernel = nullptr;
  uintptr_t source = 0;              // The image's view, page 0.
  const uint64_t* stored = nullptr;  // The stored pages, a bit each.
  uint64_t pages = 0;                // Of the image.

  // Written before `ready` is set. A `view` of 0 says that the memfd was filled
  // in whole; otherwise it is a mapping of the memfd that this userfaultfd is
  // registered for.
  uintptr_t view = 0;
  int uffd = -1;
  // The process that has the view; in a child of fork it is not mapped, and the
  // userfaultfd belongs to the parent's memory.
  ProcessMark view_made_by;
  // Of an image with a PageSource (page_source.h), which brings its pages; else
  // null.
  SourceRequests* requests = nullptr;
  // Of such an image: pages that come together. Whoever needs one page should
  // not wait for others.
  uint64_t chunk_pages = 0;
  std::atomic<bool> ready{false};
};

// Image::FetchPages, which see, of pages [first, first + pages). `wait_mask`:
// the signal mask to wait for a PageSource with, or null; see PullPages().
int FetchImagePages(const ImageFetch& fetch, uint64_t first, uint64_t pages,
                    const SignalSet* wait_mask = nullptr) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_FETCH_H_
