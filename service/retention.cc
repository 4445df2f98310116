#include "firsttouch/service/retention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <utility>

#include "firsttouch/service/page_costs.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// A page that is changed in fewer of the counted leases than these may be one
// that is changed much more seldom, or more often.
constexpr uint32_t kLeastThatTells = 3;
constexpr uint32_t kAlmostAll = kLeasesCounted - 4;

}  // namespace

double PageMemoryNs(uint64_t bytes_per_us, uint32_t keeping_slots) {
  if (bytes_per_us == 0) return 0;
  return static_cast<double>(kPageBytes) * keeping_slots * 1000 /
         static_cast<double>(bytes_per_us);
}

uint32_t LeastChanges(const PageCosts& costs, double memory_ns) {
  // Otherwise it is this machine's speed that decides, and not the memory.
  if (memory_ns <= costs.restore_ns) return 0;
  const double share = (costs.restore_ns + memory_ns) / costs.signal_ns;
  const double changes = std::ceil(share * kLeasesCounted);
  if (changes < kLeastThatTells) return 0;
  return static_cast<uint32_t>(std::min<double>(changes, kAlmostAll));
}

bool ShouldGiveBack(const PageCosts& costs, double rent_ns, uint64_t pages) {
  return pages != 0 && rent_ns > costs.drop_ns + static_cast<double>(pages) *
                                                     costs.drop_page_ns;
}

void ChangeRates::Add(std::span<const uint64_t> changed,
                      uint32_t least_changes) {
  MutexLock lock(&mutex_);
  if (counted_.size() < changed.size()) {
    counted_.resize(changed.size());
    changes_.resize(changed.size() * 64);
  }
  for (size_t index = 0; index < changed.size(); ++index) {
    counted_[index] |= changed[index];
    for (uint64_t bits = changed[index]; bits != 0; bits &= bits - 1) {
      ++changes_[index * 64 + std::countr_zero(bits)];
    }
  }
  if (++leases_ < kLeasesCounted) return;
  Words regular(counted_.size());
  for (size_t index = 0; index < counted_.size(); ++index) {
    for (uint64_t bits = counted_[index]; bits != 0; bits &= bits - 1) {
      const uint64_t page = bits & -bits;
      uint8_t& changes = changes_[index * 64 + std::countr_zero(bits)];
      if (changes >= least_changes) regular[index] |= page;
      changes /= 2;
      if (changes == 0) counted_[index] &= ~page;
    }
  }
  leases_ /= 2;
  regular_ = std::move(regular);
  version_.fetch_add(1, std::memory_order_release);
}

ChangeRates::Words ChangeRates::Regular() const {
  MutexLock lock(&mutex_);
  return regular_;
}

}  // namespace firsttouch
