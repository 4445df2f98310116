// What a guest is given before it asks for it.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/early_pages.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/page_placer.h"
#include "firsttouch/serve/touches.h"

namespace firsttouch {

void Guest::PlanEarly() {
  std::vector<PageRun> runs;
  if (options_.place_first != nullptr) runs = *options_.place_first;
  if (options_.place_working_set) {
    const std::vector<PageRun> set =
        RunsOf(image_->image().working_set(), runs);
    runs.insert(runs.end(), set.begin(), set.end());
  }
  if (runs.empty()) return;
  const auto shared = image_->Shared(std::move(runs));
  early_.Plan(shared, map_);
  // All at once, since a disk is fastest so, and before the first one is
  // needed.
  host_.RunElsewhere(/*urgent=*/false, [image = image_, shared] {
    image->BeginReading(*shared);
  });
}

bool Guest::PlaceEarly() {
  for (uint64_t bytes = 0; bytes < EarlyPages::kMostBytes;) {
    if (!PlaceSomeEarly(bytes)) return false;
  }
  return true;
}

bool Guest::PlaceSomeEarly(uint64_t& bytes) {
  if (early_waits_ || early_failed_ || refused_) return false;
  const Clock::time_point now = Clock::now();
  if (early_.first_ones_are_done() && fill_done_ == nullptr &&
      now < background_due_) {
    return false;
  }
  const std::optional<EarlyPages::Some> early = early_.Next(
      map_, image_->image().stored(),
      options_.background_bytes_per_second != 0 || fill_done_ != nullptr);
  if (!early.has_value()) {
    if (early_.rest_is_done()) EndFillAll(absl::OkStatus());
    return false;
  }
  bytes += early->end - early->start;
  const uint64_t before = placer_.pages_copied() + placer_.pages_zeroed();
  const Placed placed =
      placer_.Place(early->piece, early->start, early->end, /*write=*/false);
  stats_.pages_placed_early +=
      placer_.pages_copied() + placer_.pages_zeroed() - before;
  if (placed.outcome == Placed::Outcome::kStopped ||
      placed.outcome == Placed::Outcome::kNotReady) {
    early_.PutBack(*early);
  }
  switch (placed.outcome) {
    case Placed::Outcome::kDone:
      stops_ = 0;
      [[fallthrough]];
    case Placed::Outcome::kUnregistered:
      // What is not registered needs no page.
      if (early->of_the_rest && fill_done_ == nullptr) {
        const double seconds =
            static_cast<double>(early->end - early->start) /
            static_cast<double>(options_.background_bytes_per_second);
        background_due_ =
            std::max(background_due_, now) +
            std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
        return false;
      }
      return true;
    case Placed::Outcome::kStopped:
      ++stats_.stopped;
      if (!ReadEvents()) ++stops_;
      bytes = EarlyPages::kMostBytes;
      return true;
    case Placed::Outcome::kNotReady:
      early_waits_ = true;
      host_.RunElsewhere(
          /*urgent=*/false, [self = shared_from_this(), first = placed.first,
                             pages = placed.pages] {
            self->ArrivedEarly(self->image_->MakeReady(first, pages));
          });
      return false;
    case Placed::Outcome::kGone:
      ended_ = true;
      return false;
    case Placed::Outcome::kLost:
      // A fault there will say it again, and does what is to be done.
      early_failed_ = true;
      host_.Tell(absl::StrCat(
          "guest ", options_.name,
          ": no more pages are placed early: ", placed.status.ToString()));
      EndFillAll(placed.status);
      return false;
  }
  return false;
}

void Guest::EndFillAll(const absl::Status& status) {
  if (fill_done_ == nullptr) return;
  std::exchange(fill_done_, nullptr)(status);
}

void Guest::ArrivedEarly(const absl::Status& status) {
  MutexLock lock(&mutex_);
  early_waits_ = false;
  if (!status.ok()) {
    early_failed_ = true;
    host_.Tell(
        absl::StrCat("guest ", options_.name,
                     ": no more pages are placed early: ", status.ToString()));
    EndFillAll(status);
  }
  if (!ended_) SetTimer(Clock::duration::zero());
}

}  // namespace firsttouch
