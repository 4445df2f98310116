// On the fault path: see image_fetch.h.

#include "firsttouch/init/image_fetch.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "firsttouch/init/source_requests.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/page_words.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Calls fill(first_page, pages) for each run of stored pages in [begin, end),
// within its word of the map. Ends with the first error.
template <typename Fill>
int ForEachStoredRun(const ImageFetch& fetch, uint64_t begin, uint64_t end,
                     Fill fill) {
  int error = 0;
  ForEachWordOf(begin, end, [&](uint64_t index, uint64_t bits) {
    ForEachRun(fetch.stored[index] & bits, [&](uint64_t bit, uint64_t pages) {
      if (error == 0) error = fill(index * kPagesPerWord + bit, pages);
    });
  });
  return error;
}

}  // namespace

int FetchImagePages(const ImageFetch& fetch, uint64_t first, uint64_t pages,
                    const SignalSet* wait_mask) noexcept {
  if (!fetch.ready.load(std::memory_order_acquire)) return EBADF;
  if (fetch.view == 0) return 0;
  if (!fetch.view_made_by.IsHere()) {
    return fetch.requests != nullptr ? ECHILD : EBADF;
  }
  const uint64_t begin = std::min(first, fetch.pages);
  const uint64_t end = begin + std::min(pages, fetch.pages - begin);
  if (fetch.requests != nullptr) {
    return ForEachStoredRun(
        fetch, begin, end, [&](uint64_t page, uint64_t count) {
          return PullPages(*fetch.requests, page, page + count, wait_mask);
        });
  }
  return ForEachStoredRun(
      fetch, begin, end, [&](uint64_t page, uint64_t count) {
        const uint64_t offset = page * kPageBytes;
        // A source that cannot be read gives EFAULT here, where a plain read of
        // it would be a SIGBUS. Somebody else's page (EEXIST) is as good as
        // ours.
        return CopyRange(*fetch.kernel, fetch.uffd, fetch.view + offset,
                         fetch.source + offset, count * kPageBytes, 0, {})
            .error;
      });
}

}  // namespace firsttouch
