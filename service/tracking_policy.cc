#include "firsttouch/service/tracking_policy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "firsttouch/init/image.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {
namespace {

// kAsync has to promise to cost less than this part of kSignal's cost before it
// is tried: its cost is only estimated until then, and changing the tracking
// costs something, too.
constexpr double kWorthTrying = 0.75;

}  // namespace

TrackingCosts EstimateCosts(const ChurnSample& sample, const PageCosts& costs) {
  TrackingCosts estimate;
  estimate.signal_ns = sample.faulted * costs.signal_ns +
                       sample.retained * (sample.restore_ns + sample.memory_ns);

  const double regular = std::min(sample.regular, sample.changed);
  const double churning = sample.changed - regular;
  const double again = regular * costs.kernel_fault_ns + costs.protect_ns +
                       sample.pages * costs.scan_page_ns +
                       sample.changed * costs.protect_page_ns;
  const double wasted = churning * sample.restore_ns / 2;
  const double cycles =
      wasted > 0 ? std::max(1.0, std::sqrt(again / wasted)) : 1e9;
  estimate.async_ns =
      costs.scan_ns + sample.pages * costs.scan_page_ns +
      churning * (costs.kernel_fault_ns + costs.first_restore_ns) +
      again / cycles + regular * sample.restore_ns + wasted * cycles +
      sample.private_pages * sample.memory_ns;
  return estimate;
}

void TrackingPolicy::Vote(const ChurnSample& sample, const PageCosts& costs) {
  if (fixed_) return;
  const TrackingCosts estimate = EstimateCosts(sample, costs);
  const Tracking now = tracking();
  const bool other_is_cheaper =
      now == Tracking::kSignal
          ? estimate.async_ns < kWorthTrying * estimate.signal_ns
          : estimate.signal_ns < estimate.async_ns;
  if (!other_is_cheaper) {
    if (votes_.load(std::memory_order_relaxed) != 0) {
      votes_.store(0, std::memory_order_relaxed);
    }
    return;
  }
  if (votes_.fetch_add(1, std::memory_order_relaxed) + 1 < kVotes) return;
  votes_.store(0, std::memory_order_relaxed);
  tracking_.store(
      now == Tracking::kSignal ? Tracking::kAsync : Tracking::kSignal,
      std::memory_order_relaxed);
}

bool KernelMayServe(const Image& image) {
  if (image.fetch() != nullptr) return false;
  constexpr uint64_t kFewPages = 256;
  const uint64_t holes = image.pages().value() - image.stored_pages();
  return holes <= kFewPages || holes <= image.stored_pages();
}

std::shared_ptr<TrackingPolicy> TrackingPolicies::Find(const ImageRef& image) {
  MutexLock lock(&mutex_);
  Known& known = known_[image->id()];
  if (known.policy == nullptr) {
    known.image = image->Hold();
    known.policy = std::make_shared<TrackingPolicy>(
        forced_, async_works_ && KernelMayServe(*image),
        image->pages().value());
  }
  std::shared_ptr<TrackingPolicy> policy = known.policy;
  if (known_.size() >= prune_at_) {
    std::erase_if(known_,
                  [](const auto& one) { return one.second.image.expired(); });
    prune_at_ = std::max<size_t>(64, 2 * known_.size());
  }
  return policy;
}

}  // namespace firsttouch
