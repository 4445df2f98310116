// On the fault path: async-signal-safe, takes no lock, allocates nothing, logs
// nothing, uses no thread-local storage.

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "firsttouch/init/image.h"
#include "firsttouch/init/image_on_demand.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

int Image::FetchPages(PageIndex first, PageCount pages) const noexcept {
  if (on_demand_ == nullptr) return 0;
  const OnDemand& demand = *on_demand_;
  if (demand.memfd.load(std::memory_order_acquire) < 0) return EBADF;
  if (demand.view == 0) return 0;
  const uint64_t begin = std::min(first.value(), stored_.pages().value());
  const uint64_t end =
      begin + std::min(pages.value(), stored_.pages().value() - begin);
  for (uint64_t page = begin; page < end;) {
    // The run of stored pages at `page`, within its word of the map.
    const uint64_t shift = page % PageMap::kPagesPerWord;
    const uint64_t word = stored_.Word(page / PageMap::kPagesPerWord) >> shift;
    const uint64_t skip = std::min<uint64_t>(std::countr_zero(word),
                                             PageMap::kPagesPerWord - shift);
    if (skip > 0) {
      page += skip;
      continue;
    }
    const uint64_t run = std::min<uint64_t>(std::countr_one(word), end - page);
    const uint64_t offset = PageIndex(page).offset_bytes();
    // A source that cannot be read gives EFAULT here, where a plain read of it
    // would be a SIGBUS. Somebody else's page (EEXIST) is as good as ours.
    const FillResult fill =
        CopyRange(demand.kernel, demand.uffd_fd, demand.view + offset,
                  reinterpret_cast<uintptr_t>(data_) + offset,
                  PageCount(run).bytes(), 0, {});
    if (!fill.ok()) return fill.error;
    page += run;
  }
  return 0;
}

}  // namespace firsttouch
