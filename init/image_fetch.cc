// On the fault path: see image_fetch.h.

#include "firsttouch/init/image_fetch.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "firsttouch/init/source_requests.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr uint64_t kPagesPerWord = 64;

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
    for (uint64_t page = begin; page < end;) {
      const uint64_t shift = page % kPagesPerWord;
      const uint64_t word = fetch.stored[page / kPagesPerWord] >> shift;
      if (word == 0) {
        page += kPagesPerWord - shift;
        continue;
      }
      page += std::countr_zero(word);
      const uint64_t run = std::countr_one(word >> std::countr_zero(word));
      if (page >= end) break;
      const uint64_t run_end = std::min(page + run, end);
      if (const int error =
              PullPages(*fetch.requests, page, run_end, wait_mask)) {
        return error;
      }
      page = run_end;
    }
    return 0;
  }
  for (uint64_t page = begin; page < end;) {
    // The run of stored pages at `page`, within its word of the map.
    const uint64_t shift = page % kPagesPerWord;
    const uint64_t word = fetch.stored[page / kPagesPerWord] >> shift;
    const uint64_t skip =
        std::min<uint64_t>(std::countr_zero(word), kPagesPerWord - shift);
    if (skip > 0) {
      page += skip;
      continue;
    }
    const uint64_t run = std::min<uint64_t>(std::countr_one(word), end - page);
    const uint64_t offset = page * kPageBytes;
    // A source that cannot be read gives EFAULT here, where a plain read of it
    // would be a SIGBUS. Somebody else's page (EEXIST) is as good as ours.
    const FillResult fill =
        CopyRange(*fetch.kernel, fetch.uffd, fetch.view + offset,
                  fetch.source + offset, run * kPageBytes, 0, {});
    if (!fill.ok()) return fill.error;
    page += run;
  }
  return 0;
}

}  // namespace firsttouch
