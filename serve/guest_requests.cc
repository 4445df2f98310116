// What others ask of a guest between its turns.

#include <cerrno>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/page_placer.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/abi.h"

namespace firsttouch {

void Guest::FillAll(std::function<void(absl::Status)> done) {
  MutexLock lock(&mutex_);
  if (ended_ || refused_) {
    done(absl::CancelledError("the guest has ended, or is not served"));
    return;
  }
  fill_done_ = std::move(done);
  fill_error_ = absl::OkStatus();
  fill_unregistered_ = false;
  early_lost_.clear();
  early_failed_ = false;
  early_.RestartRest();
  SetTimer(Clock::duration::zero());
}

void Guest::WakeAll() {
  MutexLock lock(&mutex_);
  if (ended_) return;
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    placer_.Wake(piece->start, piece->bytes());
  }
}

absl::StatusOr<std::vector<PageRun>> Guest::ChangedPages(bool restart) {
  MutexLock lock(&mutex_);
  if (!ended_) ReadEvents();
  if (in_too_many_pieces_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "guest ", options_.name,
        ": what it has given back since it was in too many pieces is not known "
        "(GuestOptions::most_pieces)"));
  }
  // First protected, then forgotten: a write between the two is a fault that
  // has not been served yet, and counts for the next time.
  for (std::optional<AddressMap::Piece> piece = map_.Next(0);
       restart && !ended_ && piece.has_value(); piece = map_.Next(piece->end)) {
    if (!piece->track_writes) continue;
    int error = EAGAIN;
    for (uint32_t stops = 0; error == EAGAIN && stops < 100; ++stops) {
      error = kernel_
                  .WriteProtect(uffd_.get(), piece->start, piece->bytes(),
                                kUffdWriteProtectWp)
                  .error;
      if (error == EAGAIN && !ReadEvents()) sched_yield();
    }
    if (error == ENOENT) {
      return absl::FailedPreconditionError(absl::StrCat(
          "guest ", options_.name, ": the region at ", "0x",
          absl::Hex(piece->start),
          " is not registered for write protection (UFFDIO_REGISTER_MODE_WP), "
          "though the client said that its writes are to be tracked"));
    }
    if (error != 0) {
      return absl::ErrnoToStatus(error, absl::StrCat("guest ", options_.name,
                                                     ": UFFDIO_WRITEPROTECT"));
    }
  }
  std::vector<PageRun> runs = RunsIn(changed_);
  if (restart) changed_.clear();
  return runs;
}

void Guest::ChangedAll() {
  MutexLock lock(&mutex_);
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    MarkChanged(*piece, piece->start, piece->end);
  }
}

std::optional<Guest::Descriptors> Guest::Leave() {
  MutexLock lock(&mutex_);
  if (ended_ || journal_ == nullptr) return std::nullopt;
  ended_ = true;
  EndFillAll(absl::UnavailableError("another server goes on with the guest"));
  // Nothing uses their numbers any more: the guest has ended, for this process.
  return Descriptors{journal_->path(), std::move(uffd_), std::move(pidfd_)};
}

std::string Guest::journal_path() const {
  MutexLock lock(&mutex_);
  return journal_ == nullptr ? "" : journal_->path();
}

void Guest::Forget() {
  MutexLock lock(&mutex_);
  if (journal_ != nullptr) journal_->Forget();
}

std::vector<Touch> Guest::Touches() const {
  MutexLock lock(&mutex_);
  return touches_;
}

void Guest::TeachWorkingSet() const {
  Teach(Touches(), image_->image().working_set());
}

GuestStats Guest::Stats() const {
  MutexLock lock(&mutex_);
  GuestStats stats = stats_;
  stats.pages_copied = placer_.pages_copied();
  stats.pages_zeroed = placer_.pages_zeroed();
  stats.bytes = map_.bytes();
  return stats;
}

}  // namespace firsttouch
