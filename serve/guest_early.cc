// What a guest is given before it asks for it.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/early_pages.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/page_placer.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

namespace {

// What is placed early before a guest is looked at again: a thread may have to
// wait until that is done.
constexpr uint64_t kMostBytesAtOnce = uint64_t{2} << 20;
// Pieces that cannot be had before nothing is placed early any more: where that
// many are, most likely all are, and each is asked of a page source.
constexpr size_t kMostLostEarly = 16;
// What is checked ahead before other jobs have their turn.
constexpr uint64_t kCheckedPagesAtOnce = 1024;

// Checks pages of the runs before anybody asks for them, from page `from` of
// run `run` on.
void CheckAhead(GuestHost& host, const std::shared_ptr<GuestImage>& image,
                const std::shared_ptr<const std::vector<PageRun>>& runs,
                size_t run, uint64_t from) {
  for (uint64_t left = kCheckedPagesAtOnce; run < runs->size();) {
    const PageRun& pages = (*runs)[run];
    const uint64_t count = std::min(pages.length.value() - from, left);
    // Whoever needs what is damaged will be told.
    if (!image->MakeReady(pages.first + PageCount(from), PageCount(count))
             .ok()) {
      return;
    }
    left -= count;
    from += count;
    if (from == pages.length.value()) {
      from = 0;
      ++run;
    }
    if (left > 0) continue;
    host.RunElsewhere(/*urgent=*/false, [&host, image, runs, run, from] {
      CheckAhead(host, image, runs, run, from);
    });
    return;
  }
}

// Pages that several threads place, each what nobody has begun with.
class SharedPlacing {
 public:
  struct Failure {
    size_t index = 0;
    Placed placed;
  };

  explicit SharedPlacing(std::vector<EarlyPages::Some> pages)
      : pages_(std::move(pages)), counts_(pages_.size()) {}

  // In a thread that helps. Ends at once where all is done.
  void Help(Kernel& kernel, int uffd, const GuestImage& image) {
    {
      MutexLock lock(&mutex_);
      if (closed_) return;
      ++helping_;
    }
    PagePlacer placer(kernel, uffd, image);
    Place(placer);
    MutexLock lock(&mutex_);
    --helping_;
    helped_.SignalAll();
  }

  // In the thread that has the guest: places what nobody else does, and waits
  // for those who help. Nobody uses the guest for this afterwards.
  void PlaceAll(PagePlacer& placer) {
    Place(placer);
    {
      MutexLock lock(&mutex_);
      closed_ = true;
      while (helping_ > 0) helped_.Wait(&mutex_);
    }
    // Threads that wait go on when all is there, and not at each part of it, of
    // which the next one would stop them.
    for (size_t i = 0; i < pages_.size();) {
      const uintptr_t start = pages_[i].start;
      uintptr_t end = pages_[i].end;
      const size_t first = i;
      while (++i < pages_.size() && pages_[i].start == end) end = pages_[i].end;
      if (i > first + 1) placer.Wake(start, end - start);
    }
  }

  // After PlaceAll().
  const std::vector<EarlyPages::Some>& pages() const { return pages_; }
  // How many have been begun with, from the first on.
  size_t begun() const { return std::min(next_.load(), pages_.size()); }
  std::vector<Failure> failures() const {
    MutexLock lock(&mutex_);
    return failures_;
  }
  // Pages of each that were placed; those that were there do not count.
  struct Counts {
    uint64_t copied = 0;
    uint64_t zeroed = 0;
    bool unregistered = false;  // Some of it.
  };
  const std::vector<Counts>& counts() const { return counts_; }

 private:
  bool IsJoined(size_t index) const {
    return (index > 0 && pages_[index - 1].end == pages_[index].start) ||
           (index + 1 < pages_.size() &&
            pages_[index].end == pages_[index + 1].start);
  }

  void Place(PagePlacer& placer) {
    while (!failed_.load(std::memory_order_relaxed)) {
      const size_t index = next_.fetch_add(1);
      if (index >= pages_.size()) return;
      const EarlyPages::Some& some = pages_[index];
      const uint64_t copied = placer.pages_copied();
      const uint64_t zeroed = placer.pages_zeroed();
      const PagePlacer::Waking waking = IsJoined(index)
                                            ? PagePlacer::Waking::kLater
                                            : PagePlacer::Waking::kAtOnce;
      Placed placed = placer.Place(some.piece, some.start, some.end,
                                   /*write=*/false, waking);
      const bool unregistered =
          placed.outcome == Placed::Outcome::kUnregistered;
      if (unregistered) placed = PlaceRegistered(placer, some, waking);
      counts_[index] = {placer.pages_copied() - copied,
                        placer.pages_zeroed() - zeroed, unregistered};
      if (placed.outcome == Placed::Outcome::kDone) continue;
      failed_.store(true, std::memory_order_relaxed);
      MutexLock lock(&mutex_);
      failures_.push_back({index, std::move(placed)});
    }
  }

  // What is not registered needs no page, and those behind it may.
  static Placed PlaceRegistered(PagePlacer& placer,
                                const EarlyPages::Some& some,
                                PagePlacer::Waking waking) {
    for (uintptr_t page = some.start; page < some.end;
         page += some.piece.page_bytes) {
      Placed placed =
          placer.Place(some.piece, page, page + some.piece.page_bytes,
                       /*write=*/false, waking);
      if (placed.outcome != Placed::Outcome::kDone &&
          placed.outcome != Placed::Outcome::kUnregistered) {
        return placed;
      }
    }
    return {};
  }

  const std::vector<EarlyPages::Some> pages_;
  std::vector<Counts> counts_;  // Each of whoever has taken it.
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  mutable Mutex mutex_;
  CondVar helped_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  int helping_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Failure> failures_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

void Guest::PlanEarly() {
  std::vector<PageRun> runs;
  if (options_.place_first != nullptr) runs = *options_.place_first;
  if (options_.place_working_set) {
    const std::vector<PageRun> set =
        RunsOf(image_->image().working_set(), runs);
    runs.insert(runs.end(), set.begin(), set.end());
  }
  if (runs.empty()) return;
  bool first = false;
  const auto shared = image_->Shared(std::move(runs), first);
  early_.Plan(shared, map_);
  // Another guest that has not got all of them yet has had them read.
  if (!first) return;
  // All at once, since a disk is fastest so, and before the first one is
  // needed.
  host_.RunElsewhere(/*urgent=*/false, [&host = host_, image = image_, shared] {
    std::vector<PageRun> by_address = *shared;
    std::sort(
        by_address.begin(), by_address.end(),
        [](const PageRun& a, const PageRun& b) { return a.first < b.first; });
    image->BeginReading(by_address);
    if (image->image().has_source()) return;
    CheckAhead(host, image, shared, 0, 0);
  });
}

std::vector<EarlyPages::Some> Guest::NextEarly() {
  std::vector<EarlyPages::Some> pages;
  const Clock::time_point now = Clock::now();
  for (uint64_t bytes = 0; bytes < kMostBytesAtOnce;) {
    if (early_.first_ones_are_done() && fill_done_ == nullptr &&
        now < background_due_) {
      break;
    }
    const std::optional<EarlyPages::Some> some = early_.Next(
        map_, image_->image().stored(),
        options_.background_bytes_per_second != 0 || fill_done_ != nullptr);
    if (!some.has_value()) break;
    if (early_lost_.contains(some->piece.OffsetOf(some->start))) continue;
    bytes += some->end - some->start;
    pages.push_back(*some);
    if (some->of_the_rest && fill_done_ == nullptr) {
      const double seconds =
          static_cast<double>(some->end - some->start) /
          static_cast<double>(options_.background_bytes_per_second);
      background_due_ =
          std::max(background_due_, now) +
          std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
    }
  }
  return pages;
}

void Guest::WaitForEarly(std::vector<EarlyPages::Some>& pages) {
  std::vector<PageRun> needed;
  // Backwards, so that they come again in their order.
  for (size_t i = pages.size(); i-- > 0;) {
    const EarlyPages::Some& some = pages[i];
    const PageRun run = {PageContaining(some.piece.OffsetOf(some.start)),
                         PagesRoundedUp(some.end - some.start)};
    if (some.piece.freed || image_->IsReady(run.first, run.length)) continue;
    needed.push_back(run);
    early_.PutBack(some);
    pages.erase(pages.begin() + static_cast<ptrdiff_t>(i));
  }
  if (needed.empty()) return;
  early_waits_ = true;
  host_.RunElsewhere(
      /*urgent=*/false,
      [self = shared_from_this(), needed = std::move(needed)] {
        absl::Status status;
        size_t i = needed.size();
        while (i > 0 && status.ok()) {
          --i;
          status = self->image_->MakeReady(needed[i].first, needed[i].length);
        }
        self->ArrivedEarly(needed[i].first.offset_bytes(), status);
      });
}

bool Guest::PlaceEarly() {
  if (early_waits_ || early_failed_ || refused_) return false;
  std::vector<EarlyPages::Some> pages = NextEarly();
  if (pages.empty()) {
    if (early_.rest_is_done()) EndFillAll(std::exchange(fill_error_, {}));
    return false;
  }
  WaitForEarly(pages);
  const auto shared = std::make_shared<SharedPlacing>(std::move(pages));
  if (shared->pages().size() > 1) {
    host_.Help([shared, &kernel = kernel_, uffd = uffd_.get(), image = image_] {
      shared->Help(kernel, uffd, *image);
    });
  }
  PagePlacer placer(kernel_, uffd_.get(), *image_);
  shared->PlaceAll(placer);
  for (size_t i = 0; i < shared->begun(); ++i) {
    const auto& [copied, zeroed, unregistered] = shared->counts()[i];
    const EarlyPages::Some& some = shared->pages()[i];
    const uint64_t offset = some.piece.OffsetOf(some.start);
    placer_.Count(copied, zeroed);
    stats_.pages_placed_early += copied + zeroed;
    if (unregistered) fill_unregistered_ = true;
    Count(offset, &RegionInBlock::pages_copied, copied);
    Count(offset, &RegionInBlock::pages_zeroed, zeroed);
    Count(offset, &RegionInBlock::pages_early, copied + zeroed);
  }
  for (size_t i = shared->pages().size(); i-- > shared->begun();) {
    early_.PutBack(shared->pages()[i]);
  }
  const std::vector<SharedPlacing::Failure> failures = shared->failures();
  if (failures.size() < shared->begun()) stops_ = 0;
  bool more = true;
  const uint64_t stopped = stats_.stopped;
  for (const SharedPlacing::Failure& failure : failures) {
    more = AfterEarly(shared->pages()[failure.index], failure.placed) && more;
  }
  // An event says when the mappings have changed.
  if (stats_.stopped != stopped && !ReadEvents()) ++stops_;
  return more && !early_waits_;
}

bool Guest::AfterEarly(const EarlyPages::Some& some, const Placed& placed) {
  switch (placed.outcome) {
    case Placed::Outcome::kDone:
    case Placed::Outcome::kUnregistered:
      return true;
    case Placed::Outcome::kNotReady:
      // It was, and is not any more.
    case Placed::Outcome::kStopped:
      early_.PutBack(some);
      ++stats_.stopped;
      return true;
    case Placed::Outcome::kGone:
      ended_ = true;
      return false;
    case Placed::Outcome::kLost:
      LoseEarly(some.piece.OffsetOf(some.start), placed.status);
      return !early_failed_;
  }
  return false;
}

void Guest::LoseEarly(uint64_t image_offset_bytes, const absl::Status& why) {
  // A fault there will say it again, and does what is to be done.
  early_lost_.insert(image_offset_bytes);
  early_failed_ = early_lost_.size() >= kMostLostEarly;
  host_.Tell(absl::StrCat(
      "guest ", options_.name, ": pages at ", image_offset_bytes,
      " of its image cannot be placed early",
      early_failed_ ? ", and no more are" : "", ": ", why.ToString()));
  // One of its own, as in Arrived().
  if (fill_error_.ok()) fill_error_ = absl::Status(why.code(), why.message());
  if (early_failed_) EndFillAll(std::exchange(fill_error_, {}));
}

void Guest::EndFillAll(const absl::Status& status) {
  if (fill_done_ == nullptr) return;
  if (std::exchange(fill_unregistered_, false)) {
    host_.Tell(absl::StrCat(
        "guest ", options_.name,
        ": some of its memory is not registered with its userfaultfd any more; "
        "no pages were placed there"));
  }
  std::exchange(fill_done_, nullptr)(status);
}

void Guest::ArrivedEarly(uint64_t image_offset_bytes,
                         const absl::Status& status) {
  MutexLock lock(&mutex_);
  early_waits_ = false;
  if (!status.ok()) LoseEarly(image_offset_bytes, status);
  if (!ended_) SetTimer(Clock::duration::zero());
}

}  // namespace firsttouch
