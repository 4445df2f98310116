// What becomes of a guest's pages that cannot be had.

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/page_placer.h"

namespace firsttouch {
namespace {

constexpr std::chrono::milliseconds kFirstRetry{1};
constexpr std::chrono::milliseconds kLongestRetry{250};

}  // namespace

bool Guest::Lose(Fault& fault, uintptr_t page, uint64_t page_bytes,
                 const absl::Status& why, bool retry) {
  const Clock::time_point now = Clock::now();
  const auto tell = [&](const std::string& end) {
    host_.Tell(absl::StrCat("guest ", options_.name, ": the page at ", "0x",
                            absl::Hex(page), " cannot be had: ", why.ToString(),
                            "; ", end));
  };
  const bool first = !fault.lost_at.has_value();
  if (first) fault.lost_at = now;
  if (retry && now - *fault.lost_at < options_.retry_for) {
    if (std::any_of(later_.begin(), later_.end(), [&](const Fault& other) {
          return other.address == fault.address;
        })) {
      return true;
    }
    if (first) {
      tell(absl::StrCat("it is tried again for ", options_.retry_for.count(),
                        " ms"));
    }
    ++stats_.retries;
    const uint32_t doublings = std::min<uint32_t>(fault.tries++, 8);
    fault.due = now + std::min(kFirstRetry * (1 << doublings), kLongestRetry);
    later_.push_back(fault);
    return true;
  }
  // Told before it is done: whoever sees what has become of the guest can read
  // why. Of a page that nobody told of there is nothing to say yet: most likely
  // it has been unmapped.
  if (retry && !std::exchange(fault.told, true)) {
    CountLost(page);
    tell(options_.on_loss == OnLoss::kKill ? "its process is killed"
                                           : "a touch of it is a SIGBUS");
  }
  if (retry && options_.on_loss == OnLoss::kKill && Kill()) return true;
  switch (placer_.Poison(page, page_bytes, page_bytes).outcome) {
    case Placed::Outcome::kDone:
      if (!std::exchange(fault.told, true)) {
        CountLost(page);
        tell("a touch of it is a SIGBUS");
      }
      placer_.Wake(page, page_bytes);
      return true;
    case Placed::Outcome::kStopped:
      // Served again; what is wrong will be found again.
      if (!ReadEvents()) ++stops_;
      return false;
    case Placed::Outcome::kGone:
      ended_ = true;
      return true;
    case Placed::Outcome::kUnregistered:
      placer_.Wake(page, page_bytes);
      return true;
    case Placed::Outcome::kNotReady:
    case Placed::Outcome::kLost:
      tell(Kill() ? "its process has been killed, since this kernel cannot "
                    "poison pages"
                  : "whoever touches it waits for ever: this kernel cannot "
                    "poison pages, and there is no descriptor of the process "
                    "to kill it by");
      return true;
  }
  return true;
}

void Guest::CountLost(uintptr_t page) {
  ++stats_.lost;
  const std::optional<AddressMap::Piece> piece = map_.Find(page);
  if (piece.has_value()) Count(piece->OffsetOf(page), &RegionInBlock::lost);
}

bool Guest::Kill() {
  return pidfd_ &&
         syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) == 0;
}

bool Guest::Poison() {
  MutexLock lock(&mutex_);
  refused_ = true;
  if (ended_) return true;
  EndFillAll(absl::CancelledError("the guest is not served any more"));
  ReadEvents();
  uint64_t calls = 0;
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    const Placed poisoned = PoisonParts(*piece, &calls);
    if (poisoned.outcome == Placed::Outcome::kGone) {
      ended_ = true;
      return true;
    }
    if (poisoned.outcome == Placed::Outcome::kLost ||
        poisoned.outcome == Placed::Outcome::kStopped) {
      const bool killed = Kill();
      host_.Tell(absl::StrCat("guest ", options_.name,
                              ": its missing pages cannot be poisoned (",
                              poisoned.status.ToString(), ")",
                              killed ? "; its process has been killed" : ""));
      return killed;
    }
    placer_.Wake(piece->start, piece->bytes());
  }
  if (!has_moved_since_) return true;
  const bool killed = Kill();
  host_.Tell(absl::StrCat("guest ", options_.name,
                          ": where some of its memory has been moved to is not "
                          "known, so that missing pages there cannot be "
                          "poisoned",
                          killed ? "; its process has been killed" : ""));
  return killed;
}

Placed Guest::PoisonParts(const AddressMap::Piece& piece, uint64_t* calls) {
  // Some seconds.
  constexpr uint64_t kMostCalls = uint64_t{1} << 22;
  // Beside memory that is not registered any more there may be some that is,
  // and a range of several mappings is refused as a whole.
  std::vector<std::pair<uintptr_t, uintptr_t>> parts = {
      {piece.start, piece.end}};
  while (!parts.empty()) {
    const auto [start, end] = parts.back();
    parts.pop_back();
    if (++*calls > kMostCalls) {
      return {.outcome = Placed::Outcome::kLost,
              .status = absl::ResourceExhaustedError(
                  "too much of its memory is not registered any more")};
    }
    Placed poisoned = PoisonAll(piece, start, end);
    const uint64_t pages = (end - start) / piece.page_bytes;
    if (poisoned.outcome == Placed::Outcome::kUnregistered && pages > 1) {
      const uintptr_t middle = start + pages / 2 * piece.page_bytes;
      parts.emplace_back(middle, end);
      parts.emplace_back(start, middle);
    } else if (poisoned.outcome != Placed::Outcome::kDone &&
               poisoned.outcome != Placed::Outcome::kUnregistered) {
      return poisoned;
    }
  }
  return {};
}

Placed Guest::PoisonAll(const AddressMap::Piece& piece, uintptr_t start,
                        uintptr_t end) {
  Placed poisoned;
  for (uint32_t stops = 0; stops < 100; ++stops) {
    poisoned = placer_.Poison(start, end - start, piece.page_bytes);
    // Nobody may be there to let a page be written to later.
    if (poisoned.outcome == Placed::Outcome::kDone && piece.track_writes) {
      MarkChanged(piece, start, end);
      poisoned = placer_.Unprotect(start, end - start);
    }
    if (poisoned.outcome != Placed::Outcome::kStopped) break;
    if (!ReadEvents()) sched_yield();
  }
  return poisoned;
}

void Guest::LimitPieces() {
  if (map_.pieces() <= options_.most_pieces) return;
  // From here on the map is as it is: it is not to be wrong for anybody.
  in_too_many_pieces_ = true;
  refused_ = true;
  if (journal_ != nullptr) journal_->GiveUp();
  const bool killed = options_.on_loss == OnLoss::kKill && Kill();
  const absl::Status why = absl::ResourceExhaustedError(
      absl::StrCat("its memory is in more than ", options_.most_pieces,
                   " pieces, by what it has given back, moved or unmapped "
                   "(GuestOptions::most_pieces)"));
  host_.Tell(absl::StrCat("guest ", options_.name,
                          " is not served any more: ", why.message(), "; ",
                          killed ? "its process is killed"
                                 : "a touch of a missing page is a SIGBUS"));
  EndFillAll(why);
}

void Guest::TellJournalIsFull() {
  host_.Tell(absl::StrCat(
      "guest ", options_.name, ": there is no room for its events in ",
      journal_->path(), "; no other server can take it over any more"));
}

}  // namespace firsttouch
