#include "firsttouch/serve/guest.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

// A turn ends after this many: then it is others' turn.
constexpr int kBatchesPerTurn = 8;
constexpr int kFaultsPerTurn = 64;
// So often a fault is tried that the guest's own events interrupt.
constexpr int kTriesPerTurn = 8;
// Waiting faults above this are looked through for the same page: a thread that
// signals interrupt asks again each time.
constexpr size_t kManyFaults = 1024;

// Checked behind a page that was waited for.
constexpr PageCount kCheckedAhead(16);

// Stops without an event to read that are tried again at once, and how long
// the longest wait after that is.
constexpr uint32_t kStopsAtOnce = 4;
constexpr std::chrono::milliseconds kLongestStop{64};
// How often a guest is looked at of whose end no descriptor tells.
constexpr std::chrono::seconds kLookAtProcess{1};

enum : uint32_t { kOfUffd, kOfTimer, kOfProcess };

absl::Status Add(int epoll, int fd, uint32_t data) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = data;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "epoll_ctl for a descriptor of a guest");
}

}  // namespace

absl::StatusOr<std::shared_ptr<Guest>> Guest::Create(Parts parts) {
  for (std::optional<AddressMap::Piece> piece = parts.map.Next(0);
       piece.has_value(); piece = parts.map.Next(piece->end)) {
    const uint64_t mask = piece->page_bytes - 1;
    const uint64_t image_end = (parts.image->bytes() + mask) & ~mask;
    if (piece->OffsetOf(piece->end) > image_end) {
      return absl::OutOfRangeError(absl::StrCat(
          "the region at ", "0x", absl::Hex(piece->start), " ends at ", "0x",
          absl::Hex(piece->OffsetOf(piece->end)), " of image '",
          parts.image->image().name(), "', which ends at ", "0x",
          absl::Hex(image_end), ": is this the image of this guest?"));
    }
  }
  std::shared_ptr<Guest> guest(new Guest(std::move(parts)));
  if (absl::Status watched = guest->Watch(); !watched.ok()) return watched;
  return guest;
}

Guest::Guest(Parts parts)
    : kernel_(*parts.kernel),
      host_(*parts.host),
      options_(std::move(parts.options)),
      image_(std::move(parts.image)),
      first_bytes_(parts.map.bytes()),
      forked_(parts.forked),
      pid_(parts.pid),
      uffd_(std::move(parts.uffd)),
      pidfd_(std::move(parts.pidfd)),
      reader_(kernel_, uffd_.get()),
      placer_(kernel_, uffd_.get(), *image_),
      map_(std::move(parts.map)),
      journal_(std::move(parts.journal)) {}

Guest::~Guest() = default;

absl::Status Guest::Watch() {
  MutexLock lock(&mutex_);
  const int flags = fcntl(uffd_.get(), F_GETFL);
  if (flags < 0 || fcntl(uffd_.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return absl::ErrnoToStatus(errno, "fcntl on a guest's userfaultfd");
  }
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return absl::ErrnoToStatus(errno, "epoll_create1 for a guest");
  timer_.reset(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!timer_) return absl::ErrnoToStatus(errno, "timerfd_create for a guest");
  if (absl::Status s = Add(epoll_.get(), uffd_.get(), kOfUffd); !s.ok()) {
    return s;
  }
  if (absl::Status s = Add(epoll_.get(), timer_.get(), kOfTimer); !s.ok()) {
    return s;
  }
  if (pidfd_) {
    if (absl::Status s = Add(epoll_.get(), pidfd_.get(), kOfProcess); !s.ok()) {
      return s;
    }
  }
  if (options_.record_touches) {
    early_.EndRest();
  } else {
    PlanEarly();
  }
  SetTimer(Clock::duration::zero());
  return absl::OkStatus();
}

bool Guest::Turn() {
  MutexLock lock(&mutex_);
  if (ended_) return false;
  // The end of the process is looked for where nothing else is to be done: each
  // call here is one that somebody waits for.
  if (!ReadEvents()) LookAtProcess();
  if (ended_) return false;
  const Clock::time_point now =
      later_.empty() ? Clock::time_point() : Clock::now();
  for (size_t i = 0; i < later_.size();) {
    if (later_[i].due > now) {
      ++i;
      continue;
    }
    queue_.push_back(std::move(later_[i]));
    later_.erase(later_.begin() + static_cast<ptrdiff_t>(i));
  }
  bool stopped = false;
  for (int i = 0; i < kFaultsPerTurn && !queue_.empty() && !ended_; ++i) {
    Fault fault = std::move(queue_.front());
    queue_.pop_front();
    if (Serve(fault)) {
      stops_ = 0;
      continue;
    }
    queue_.push_front(std::move(fault));
    stopped = true;
    break;
  }
  bool more = false;
  if (!stopped && queue_.empty() && !ended_) more = PlaceEarly();
  if (ended_) {
    EndFillAll(absl::CancelledError("the guest has ended"));
    return false;
  }
  PublishWaiting();
  if (std::exchange(places_changed_, false)) PublishPlaces();
  SetTimer(NextDue(more));
  return true;
}

std::optional<Guest::Clock::duration> Guest::NextDue(bool at_once) {
  if (stops_ > 0) {
    // No event may come that says when the mappings have changed.
    if (stops_ <= kStopsAtOnce) {
      sched_yield();
      return Clock::duration::zero();
    }
    const uint32_t doublings = std::min<uint32_t>(stops_ - kStopsAtOnce, 7) - 1;
    return std::min(std::chrono::milliseconds(1 << doublings), kLongestStop);
  }
  if (at_once || !queue_.empty()) return Clock::duration::zero();
  std::optional<Clock::time_point> due;
  const auto at = [&due](Clock::time_point when) {
    due = due.has_value() ? std::min(*due, when) : when;
  };
  for (const Fault& fault : later_) at(fault.due);
  if (options_.background_bytes_per_second > 0 && !early_.rest_is_done() &&
      !early_waits_ && !early_failed_ && !refused_) {
    at(background_due_);
  }
  const Clock::time_point now = Clock::now();
  if (!pidfd_) at(now + kLookAtProcess);
  if (!due.has_value()) return std::nullopt;
  return std::max(*due - now, Clock::duration::zero());
}

void Guest::SetTimer(std::optional<Clock::duration> in) {
  // A timer that has run out is readable until it is set again: nothing needs
  // to be done for a guest that stays due, or one that stays idle.
  const TimerState state = !in.has_value()                  ? TimerState::kOff
                           : *in <= Clock::duration::zero() ? TimerState::kDue
                                                            : TimerState::kOn;
  if (state == timer_state_ && state != TimerState::kOn) return;
  timer_state_ = state;
  itimerspec spec{};
  if (in.has_value()) {
    // Zero would disarm it.
    const int64_t ns = std::max<int64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(*in).count(), 1);
    spec.it_value.tv_sec = ns / 1'000'000'000;
    spec.it_value.tv_nsec = ns % 1'000'000'000;
  }
  timerfd_settime(timer_.get(), 0, &spec, nullptr);
}

bool Guest::Alive() {
  // A page that no mapping has: only whether there is a process is of interest.
  return kernel_
             .ZeroPage(uffd_.get(), kAddressEnd - kPageBytes, kPageBytes,
                       kUffdZeroPageDontWake)
             .error != ESRCH;
}

void Guest::LookAtProcess() {
  epoll_event events[3];
  const int count = epoll_wait(epoll_.get(), events, 3, 0);
  bool look = !pidfd_;
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u32 == kOfProcess) look = true;
  }
  if (!look) return;
  if (!Alive()) {
    ended_ = true;
    return;
  }
  // Whoever sent the descriptor has ended, and the memory has not.
  pidfd_.reset();
}

bool Guest::ReadEvents() {
  bool any = false;
  for (int i = 0; i < kBatchesPerTurn; ++i) {
    EventReader::Batch batch;
    if (journal_ == nullptr) {
      batch = reader_.Read();
    } else {
      const bool complete = journal_->complete();
      journal_->BeginRead(map_);
      batch = reader_.Read(journal_->landing());
      journal_->EndRead(batch.events.size());
      if (complete && !journal_->complete()) TellJournalIsFull();
    }
    if (batch.error != 0) {
      host_.Tell(absl::StrCat(
          "guest ", options_.name,
          ": its events cannot be read: ", ErrnoText(batch.error)));
      return any;
    }
    if (batch.events.empty()) return any;
    any = true;
    // Faults may be read before the event that explains them, so that they wait
    // until all has been read.
    for (const Event& event : batch.events) Handle(event);
    if (journal_ != nullptr) journal_->Answered();
    // The kernel fills a batch as long as it has events.
    if (batch.events.size() < EventReader::kBatch) return any;
  }
  return any;
}

void Guest::Handle(const Event& event) {
  switch (event.kind) {
    case Event::Kind::kPagefault: {
      if (queue_.size() >= kManyFaults &&
          std::any_of(queue_.begin(), queue_.end(), [&](const Fault& other) {
            return other.address == event.address &&
                   other.write_protect == event.is_write_protect();
          })) {
        return;
      }
      Fault fault;
      fault.address = event.address;
      fault.write = event.is_write();
      fault.write_protect = event.is_write_protect();
      fault.minor = event.is_minor();
      queue_.push_back(std::move(fault));
      return;
    }
    case Event::Kind::kRemove:
      ++stats_.removes;
      if (in_too_many_pieces_) return;
      for (std::optional<AddressMap::Piece> piece = map_.Next(event.start);
           piece.has_value() && piece->start < event.end;
           piece = map_.Next(piece->end)) {
        const uintptr_t end = std::min(piece->end, event.end);
        MarkChanged(*piece, piece->start, end);
        Count(piece->image_offset_bytes, &RegionInBlock::pages_given_back,
              (end - piece->start) / kPageBytes);
      }
      map_.Free(event.start, event.end);
      LimitPieces();
      return;
    case Event::Kind::kUnmap:
      ++stats_.unmaps;
      if (in_too_many_pieces_) return;
      map_.Unmap(event.start, event.end);
      LimitPieces();
      places_changed_ = true;
      return;
    case Event::Kind::kRemap:
      ++stats_.moves;
      if (in_too_many_pieces_) has_moved_since_ = true;
      if (in_too_many_pieces_) return;
      map_.Move(event.from, event.to, event.bytes);
      LimitPieces();
      // What has moved may be behind where the filling is.
      if (fill_done_ != nullptr) early_.RestartRest();
      places_changed_ = true;
      return;
    case Event::Kind::kFork:
      ++stats_.forks;
      AdoptChild(event.forked_fd);
      return;
    case Event::Kind::kUnknown:
      host_.Tell(absl::StrCat(
          "guest ", options_.name,
          ": an event of a kind that is not known: ", event.raw_kind));
      return;
  }
}

void Guest::AdoptChild(int uffd) {
  Parts parts;
  parts.kernel = &kernel_;
  parts.host = &host_;
  parts.uffd.reset(uffd);
  parts.map = map_;
  parts.image = image_;
  parts.options = options_;
  parts.options.name = absl::StrCat(options_.name, "/fork", stats_.forks);
  parts.options.place_working_set = false;
  parts.options.place_first = nullptr;
  parts.forked = true;
  std::shared_ptr<Guest> child(new Guest(std::move(parts)));
  {
    MutexLock lock(&child->mutex_);
    child->changed_ = changed_;
    child->refused_ = refused_ || !options_.serve_forks;
    child->in_too_many_pieces_ = in_too_many_pieces_;
    child->has_moved_since_ = has_moved_since_;
  }
  if (absl::Status watched = child->Watch(); !watched.ok()) {
    host_.Tell(absl::StrCat(
        "guest ", options_.name,
        ": its forked child cannot be served: ", watched.ToString()));
    if (!child->Poison()) kept_.push_back(std::move(child));
    return;
  }
  if (!options_.serve_forks) child->Poison();
  host_.Adopt(std::move(child));
}

bool Guest::Serve(Fault& fault) {
  bool alone = false;  // Without read-ahead.
  int tries = 0;       // That events have interrupted.
  while (true) {
    const std::optional<AddressMap::Piece> piece = map_.Find(fault.address);
    if (!piece.has_value()) {
      // An event may say where it comes from. If not: memory that has been
      // unmapped since, or that nobody told of.
      if (ReadEvents()) {
        if (++tries < kTriesPerTurn) continue;
        return false;
      }
      // Moved by a guest that is not followed any more: the page is there.
      if (fault.write_protect &&
          placer_.Unprotect(RoundDownToPage(fault.address), kPageBytes)
                  .outcome == Placed::Outcome::kDone) {
        return true;
      }
      return Lose(fault, RoundDownToPage(fault.address), kPageBytes,
                  absl::NotFoundError("it is in none of the guest's regions"),
                  /*retry=*/false);
    }
    const uintptr_t page = fault.address & ~(piece->page_bytes - 1);
    const uintptr_t page_end = page + piece->page_bytes;
    if (refused_ && !fault.write_protect) {
      return Lose(fault, page, piece->page_bytes,
                  absl::UnavailableError("the guest is not served any more"),
                  /*retry=*/false);
    }
    if (absl::Status ready = std::exchange(fault.ready, absl::OkStatus());
        !ready.ok()) {
      return Lose(fault, page, piece->page_bytes, ready, /*retry=*/true);
    }
    if (fault.minor) {
      return Lose(fault, page, piece->page_bytes,
                  absl::UnimplementedError(
                      "it was registered for minor faults, and only missing "
                      "pages and write protection are served"),
                  /*retry=*/false);
    }
    uintptr_t end = page_end;
    const uint64_t offset = piece->OffsetOf(page);
    const uint64_t copied = placer_.pages_copied();
    const uint64_t zeroed = placer_.pages_zeroed();
    Placed placed;
    if (fault.write_protect) {
      placed = placer_.Unprotect(page, piece->page_bytes);
    } else {
      if (!alone) end = ReadAhead(*piece, page);
      placed = placer_.Place(*piece, page, end, fault.write);
    }
    Count(offset, &RegionInBlock::pages_copied,
          placer_.pages_copied() - copied);
    Count(offset, &RegionInBlock::pages_zeroed,
          placer_.pages_zeroed() - zeroed);
    if (end > page_end && (placed.outcome == Placed::Outcome::kNotReady ||
                           placed.outcome == Placed::Outcome::kLost)) {
      // What is behind the page need not be there for the page.
      alone = true;
      continue;
    }
    switch (placed.outcome) {
      case Placed::Outcome::kDone:
        if (fault.write_protect) {
          ++stats_.write_protect_faults;
          Count(offset, &RegionInBlock::protect_faults);
          MarkChanged(*piece, page, page_end);
        } else {
          ++stats_.faults;
          Count(offset, fault.write ? &RegionInBlock::write_faults
                                    : &RegionInBlock::read_faults);
          next_in_row_ = end;
          if (fault.write) MarkChanged(*piece, page, page_end);
          Record(fault, *piece);
        }
        return true;
      case Placed::Outcome::kStopped:
        ++stats_.stopped;
        if (!ReadEvents()) {
          ++stops_;
        } else if (++tries < kTriesPerTurn) {
          continue;
        }
        return false;
      case Placed::Outcome::kNotReady:
        WaitFor(fault, page, placed);
        return true;
      case Placed::Outcome::kUnregistered:
        // The thread finds out what there is now.
        placer_.Wake(page, piece->page_bytes);
        return true;
      case Placed::Outcome::kGone:
        ended_ = true;
        return true;
      case Placed::Outcome::kLost:
        return Lose(fault, page, piece->page_bytes, placed.status,
                    /*retry=*/true);
    }
  }
}

void Guest::WaitFor(const Fault& fault, uintptr_t page, const Placed& needs) {
  // Whoever waits for the page already is woken together with this one.
  if (!waiting_.emplace(page, fault).second) return;
  ++stats_.waits;
  host_.RunElsewhere(
      /*urgent=*/true, [self = shared_from_this(), page, first = needs.first,
                        pages = needs.pages] {
        self->Arrived(page, self->image_->MakeReady(first, pages));
        // What a next fault in a row wants. Whoever needs it is told of errors.
        if (!self->image_->image().has_source()) {
          self->image_->MakeReady(first + pages, kCheckedAhead).IgnoreError();
        }
      });
}

void Guest::Arrived(uintptr_t page, const absl::Status& status) {
  MutexLock lock(&mutex_);
  auto waiter = waiting_.extract(page);
  if (waiter.empty() || ended_) return;
  // One of its own: a Status that two threads have is counted in abseil, where
  // ThreadSanitizer does not see it.
  waiter.mapped().ready = absl::Status(status.code(), status.message());
  queue_.push_back(std::move(waiter.mapped()));
  PublishWaiting();
  SetTimer(Clock::duration::zero());
}

void Guest::Record(const Fault& fault, const AddressMap::Piece& piece) {
  if (!options_.record_touches || piece.freed) return;
  const PageIndex page = PageContaining(piece.OffsetOf(fault.address));
  if (touched_.size() <= page.value() / 64) {
    touched_.resize(page.value() / 64 + 1);
  }
  uint64_t& word = touched_[page.value() / 64];
  const uint64_t bit = uint64_t{1} << (page.value() % 64);
  if ((word & bit) != 0) return;
  word |= bit;
  touches_.push_back({page, fault.write, Clock::now() - came_});
}

uintptr_t Guest::ReadAhead(const AddressMap::Piece& piece, uintptr_t page) {
  if (options_.record_touches || piece.page_bytes != kPageBytes) {
    return page + piece.page_bytes;
  }
  read_ahead_bytes_ =
      page == next_in_row_
          ? std::min(read_ahead_bytes_ * 2,
                     std::max(options_.most_read_ahead_bytes, kPageBytes))
          : kPageBytes;
  return std::min<uint64_t>(page + read_ahead_bytes_, piece.end);
}

void Guest::MarkChanged(const AddressMap::Piece& piece, uintptr_t start,
                        uintptr_t end) {
  if (!piece.track_writes) return;
  AddPages(changed_, PageContaining(piece.OffsetOf(start)).value(),
           PageContaining(piece.OffsetOf(end)).value());
}

}  // namespace firsttouch
