// Which tracking is cheapest for the guests of an image.
//
// What a cycle costs beyond its unavoidable part depends on how a guest changes
// pages. Three numbers, counted over a sampling window of one slot, determine
// it:
//
//   changed   pages changed per cycle (w)
//   regular   those of them that the cycle before had changed, too (r);
//             d = w - r are other pages
//   faulted   pages per cycle whose first write took a fault (c), if they
//             were tracked by signal
//
// kSignal: every changed page stays retained for some sixty cycles, h pages
// in all, and is restored in each; a write to another one is a signal.
//   cost = c s + h q
// kAsync: one scan per cycle; a write to a protected page is a fault that the
// kernel resolves alone; every B cycles all pages are protected again, after
// which the r pages fault once more. In between, pages that are not written any
// more are restored unchanged, d B / 2 on average: the waste.
//   cost = scan + d (f + g) + (r f + p) / B + r q + d B / 2 q
// with p what protecting costs, and B
// at its best, the square root of (r f + p) / (d q / 2). That B is not
// computed: protecting again as soon as the waste exceeds what protecting costs
// amortises it and is equivalent (ski rental; ShouldProtectAll).
//
// A guest that always writes the same pages has d = 0, and then nothing beats
// kSignal: it makes no system call at all. When most of an image changes, h is
// the whole image, all of it retained, and restoring it is one pass over it:
// never slower than copying the image. kAsync is for the guests in between.
//
// Both also pay for the memory of the pages that they keep (retention.h):
// kSignal for the h retained ones, kAsync for every page that leases change at
// all, since a protected page stays private.
//
// s, f, g are the signal_ns, kernel_fault_ns and first_restore_ns of
// page_costs.h. q is what restores of the slot have taken for each page; where
// that was not measured, restore_ns or restore_zero_ns of page_costs.h.

#ifndef FIRSTTOUCH_SERVICE_TRACKING_POLICY_H_
#define FIRSTTOUCH_SERVICE_TRACKING_POLICY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/retention.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/page_words.h"

namespace firsttouch {

// What was counted over a sampling window of one slot, per cycle.
struct ChurnSample {
  double changed = 0;
  double regular = 0;
  double faulted = 0;
  // Pages that stay retained under kSignal.
  double retained = 0;
  // The cost of restoring one of them, on average.
  double restore_ns = PageCosts().restore_ns;
  // Pages that a scan has to walk over.
  double pages = 0;
  // Pages that stay private under kAsync, and what the memory of a page is
  // worth.
  double private_pages = 0;
  double memory_ns = 0;
};

struct TrackingCosts {
  double signal_ns = 0;
  double async_ns = 0;
};

TrackingCosts EstimateCosts(const ChurnSample& sample,
                            const PageCosts& costs = {});

// What protecting all pages again would cost.
struct ProtectCosts {
  // Pages that the kernel walks over, and those of them that are dirty.
  uint64_t pages = 0;
  uint64_t dirty = 0;
  // Pages that the last two guests both changed: they will fault again.
  uint64_t regular = 0;
};

// kAsync: whether protecting all pages again pays, now that restoring unchanged
// pages has cost `wasted_ns`.
inline bool ShouldProtectAll(uint64_t wasted_ns, const ProtectCosts& all,
                             const PageCosts& costs = {}) {
  return static_cast<double>(wasted_ns) >
         costs.protect_ns +
             static_cast<double>(all.pages) * costs.scan_page_ns +
             static_cast<double>(all.dirty) * costs.protect_page_ns +
             static_cast<double>(all.regular) * costs.kernel_fault_ns;
}

// The choice for one image in one pool. Any thread.
class TrackingPolicy {
 public:
  // `forced`: always this one. Otherwise kSignal until the votes say something
  // else; `async_works` says whether the kernel can do kAsync.
  // The image has `image_pages` pages.
  TrackingPolicy(std::optional<Tracking> forced, bool async_works,
                 uint64_t image_pages = 0)
      : fixed_(forced.has_value() || !async_works),
        tracking_(async_works ? forced.value_or(Tracking::kSignal)
                              : Tracking::kSignal),
        read_then_written_(WordsFor(image_pages)) {}

  Tracking tracking() const {
    return tracking_.load(std::memory_order_relaxed);
  }
  // Whether votes count at all.
  bool fixed() const { return fixed_; }

  // Adds the sample of one slot as a vote. The choice changes when kVotes
  // samples in a row, of any slots, say that the other way is cheaper by more
  // than a quarter (from kAsync back to kSignal: cheaper at all).
  void Vote(const ChurnSample& sample, const PageCosts& costs = {});

  static constexpr int kVotes = 2;

  // How often leases of the image change each page.
  ChangeRates& rates() { return rates_; }

  // SlotState::read_then_written for the slots of the image. Null until it is
  // known which pages are worth keeping: until then pages are seldom given
  // back, so that there is little to be won.
  std::atomic<uint64_t>* read_then_written() {
    return rates_.version() == 0 ? nullptr : read_then_written_.data();
  }

 private:
  const bool fixed_;
  std::atomic<Tracking> tracking_;
  std::atomic<int> votes_{0};
  ChangeRates rates_;
  std::vector<std::atomic<uint64_t>> read_then_written_;
};

// Whether the kernel may resolve the reads of an image's pages by itself. False
// where pages come into the memfd on demand, since it would read zeroes. False
// also where the image has many holes: a zero page that the kernel reads
// allocates a page in the memfd, which then stays allocated. A few holes do no
// harm.
bool KernelMayServe(const Image& image);

// The policies of all live images that were ever bound in a pool. Any thread;
// not on the steady path.
class TrackingPolicies {
 public:
  // `async_works`: there is a second userfaultfd, and image pages are shared.
  TrackingPolicies(std::optional<Tracking> forced, bool async_works)
      : forced_(forced), async_works_(async_works) {}

  std::shared_ptr<TrackingPolicy> Find(const ImageRef& image);

 private:
  struct Known {
    std::weak_ptr<const Image> image;
    std::shared_ptr<TrackingPolicy> policy;
  };

  const std::optional<Tracking> forced_;
  const bool async_works_;
  Mutex mutex_;
  std::unordered_map<uint64_t, Known> known_ ABSL_GUARDED_BY(mutex_);
  size_t prune_at_ ABSL_GUARDED_BY(mutex_) = 64;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_TRACKING_POLICY_H_
