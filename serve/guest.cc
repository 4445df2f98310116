#include "firsttouch/serve/guest.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

// A turn ends after this many: then it is others' turn.
constexpr int kBatchesPerTurn = 8;
constexpr int kFaultsPerTurn = 64;
// What is placed early in one turn; a thread may have to wait for so long.
constexpr uint64_t kEarlyBytes = uint64_t{256} << 10;
// Waiting faults above this are looked through for the same page: a thread that
// signals interrupt asks again each time.
constexpr size_t kManyFaults = 1024;
// How close touches follow each other that are placed together.
constexpr size_t kTouchesTogether = 256;

constexpr std::chrono::milliseconds kFirstRetry{1};
constexpr std::chrono::milliseconds kLongestRetry{250};
// Stops without an event to read that are tried again at once, and how long
// the longest wait after that is.
constexpr uint32_t kStopsAtOnce = 4;
constexpr std::chrono::milliseconds kLongestStop{64};
// How often a guest is looked at of whose end no descriptor tells.
constexpr std::chrono::seconds kLookAtProcess{1};

// Every stop is answered here, by looking at the events and then anew at what
// the page begins with. FillPolicy's own retries would go on with a source that
// an event may have made wrong.
constexpr FillPolicy kFill = {.max_stalls = 0, .wake_present = true};

enum : uint32_t { kOfUffd, kOfTimer, kOfProcess };

absl::Status Add(int epoll, int fd, uint32_t data) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = data;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "epoll_ctl for a descriptor of a guest");
}

std::string Hex(uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

void SetBits(std::vector<uint64_t>& words, uint64_t first, uint64_t end) {
  if (words.size() * 64 < end) words.resize((end + 63) / 64);
  for (uint64_t bit = first; bit < end; ++bit) {
    words[bit / 64] |= uint64_t{1} << (bit % 64);
  }
}

// The runs of bits that are set.
std::vector<PageRun> RunsIn(std::span<const uint64_t> words) {
  const uint64_t bits = words.size() * 64;
  const auto is_set = [&](uint64_t bit) {
    return ((words[bit / 64] >> (bit % 64)) & 1) != 0;
  };
  std::vector<PageRun> runs;
  for (uint64_t bit = 0; bit < bits;) {
    if (words[bit / 64] >> (bit % 64) == 0) {
      bit = (bit / 64 + 1) * 64;
      continue;
    }
    while (!is_set(bit)) ++bit;
    const uint64_t first = bit;
    while (bit < bits && is_set(bit)) ++bit;
    runs.push_back({PageIndex(first), PageCount(bit - first)});
  }
  return runs;
}

}  // namespace

std::vector<PageRun> RunsOf(std::span<const Touch> touches) {
  std::vector<PageRun> runs;
  while (!touches.empty()) {
    const size_t count = std::min(touches.size(), kTouchesTogether);
    std::vector<PageIndex> pages;
    for (const Touch& touch : touches.first(count)) pages.push_back(touch.page);
    std::sort(pages.begin(), pages.end());
    for (const PageIndex page : pages) {
      if (!runs.empty() && runs.back().end() == page) {
        runs.back().length += PageCount(1);
      } else {
        runs.push_back({page, PageCount(1)});
      }
    }
    touches = touches.subspan(count);
  }
  return runs;
}

absl::StatusOr<std::shared_ptr<Guest>> Guest::Create(Parts parts) {
  for (std::optional<AddressMap::Piece> piece = parts.map.Next(0);
       piece.has_value(); piece = parts.map.Next(piece->end)) {
    const uint64_t mask = piece->page_bytes - 1;
    const uint64_t image_end = (parts.image->bytes() + mask) & ~mask;
    if (piece->OffsetOf(piece->end) > image_end) {
      return absl::OutOfRangeError(
          absl::StrCat("the region at ", Hex(piece->start), " ends at ",
                       Hex(piece->OffsetOf(piece->end)), " of image '",
                       parts.image->image().name(), "', which ends at ",
                       Hex(image_end), ": is this the image of this guest?"));
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
      uffd_(std::move(parts.uffd)),
      pidfd_(std::move(parts.pidfd)),
      reader_(kernel_, uffd_.get()),
      map_(std::move(parts.map)) {}

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
  Plan();
  background_ended_ = options_.record_touches;
  SetTimer(Clock::duration::zero());
  return absl::OkStatus();
}

bool Guest::Turn() {
  MutexLock lock(&mutex_);
  if (ended_) return false;
  uint64_t expirations;
  [[maybe_unused]] const ssize_t read_bytes =
      read(timer_.get(), &expirations, sizeof expirations);
  LookAtProcess();
  if (ended_) return false;
  ReadEvents();
  const Clock::time_point now = Clock::now();
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
  if (options_.background_bytes_per_second > 0 && !background_ended_ &&
      !early_waits_ && !early_failed_ && !refused_) {
    at(background_due_);
  }
  const Clock::time_point now = Clock::now();
  if (!pidfd_) at(now + kLookAtProcess);
  if (!due.has_value()) return std::nullopt;
  return std::max(*due - now, Clock::duration::zero());
}

void Guest::SetTimer(std::optional<Clock::duration> in) {
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
    const EventReader::Batch batch = reader_.Read();
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
      for (std::optional<AddressMap::Piece> piece = map_.Next(event.start);
           piece.has_value() && piece->start < event.end;
           piece = map_.Next(piece->end)) {
        MarkChanged(*piece, piece->start, std::min(piece->end, event.end));
      }
      map_.Free(event.start, event.end);
      return;
    case Event::Kind::kUnmap:
      ++stats_.unmaps;
      map_.Unmap(event.start, event.end);
      return;
    case Event::Kind::kRemap:
      ++stats_.moves;
      map_.Move(event.from, event.to, event.bytes);
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
  std::shared_ptr<Guest> child(new Guest(std::move(parts)));
  {
    MutexLock lock(&child->mutex_);
    child->changed_ = changed_;
    child->refused_ = refused_ || !options_.serve_forks;
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
  while (true) {
    const std::optional<AddressMap::Piece> piece = map_.Find(fault.address);
    if (!piece.has_value()) {
      // An event may say where it comes from. If not: memory that has been
      // unmapped since, or that nobody told of.
      if (ReadEvents()) continue;
      return Lose(fault, RoundDownToPage(fault.address), kPageBytes,
                  absl::NotFoundError("it is in none of the guest's regions"),
                  /*retry=*/false);
    }
    const uintptr_t page = fault.address & ~(piece->page_bytes - 1);
    const uintptr_t page_end = page + piece->page_bytes;
    if (refused_) {
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
    Placed placed;
    if (fault.write_protect) {
      placed = Unprotect(page, piece->page_bytes);
    } else {
      if (!alone) end = ReadAhead(*piece, page);
      placed = Place(*piece, page, end, fault.write);
    }
    if (end > page_end && (placed.outcome == Outcome::kNotReady ||
                           placed.outcome == Outcome::kLost)) {
      // What is behind the page need not be there for the page.
      alone = true;
      continue;
    }
    switch (placed.outcome) {
      case Outcome::kDone:
        if (fault.write_protect) {
          ++stats_.write_protect_faults;
          MarkChanged(*piece, page, page_end);
        } else {
          ++stats_.faults;
          next_in_row_ = end;
          if (fault.write) MarkChanged(*piece, page, page_end);
          Record(fault, *piece);
        }
        return true;
      case Outcome::kStopped:
        ++stats_.stopped;
        if (ReadEvents()) continue;
        ++stops_;
        return false;
      case Outcome::kNotReady:
        WaitFor(fault, page, placed);
        return true;
      case Outcome::kUnregistered:
        // The thread finds out what there is now.
        Wake(page, piece->page_bytes);
        return true;
      case Outcome::kGone:
        ended_ = true;
        return true;
      case Outcome::kLost:
        return Lose(fault, page, piece->page_bytes, placed.status,
                    /*retry=*/true);
    }
  }
}

Guest::Placed Guest::Unprotect(uintptr_t page, uint64_t page_bytes) {
  return After(kernel_.WriteProtect(uffd_.get(), page, page_bytes, 0).error,
               "UFFDIO_WRITEPROTECT");
}

bool Guest::Lose(Fault& fault, uintptr_t page, uint64_t page_bytes,
                 const absl::Status& why, bool retry) {
  const Clock::time_point now = Clock::now();
  const auto tell = [&](const std::string& end) {
    host_.Tell(absl::StrCat("guest ", options_.name, ": the page at ",
                            Hex(page), " cannot be had: ", why.ToString(), "; ",
                            end));
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
    ++stats_.lost;
    tell(options_.on_loss == OnLoss::kKill ? "its process is killed"
                                           : "a touch of it is a SIGBUS");
  }
  if (retry && options_.on_loss == OnLoss::kKill && Kill()) return true;
  while (true) {
    const Placed poisoned = PoisonPages(page, page_bytes, page_bytes);
    switch (poisoned.outcome) {
      case Outcome::kDone:
        if (!std::exchange(fault.told, true)) {
          ++stats_.lost;
          tell("a touch of it is a SIGBUS");
        }
        Wake(page, page_bytes);
        return true;
      case Outcome::kStopped:
        if (ReadEvents()) continue;
        // Served again; what is wrong will be found again.
        ++stops_;
        return false;
      case Outcome::kGone:
        ended_ = true;
        return true;
      case Outcome::kUnregistered:
        Wake(page, page_bytes);
        return true;
      case Outcome::kNotReady:
      case Outcome::kLost:
        tell(Kill() ? "its process has been killed, since this kernel cannot "
                      "poison pages"
                    : "whoever touches it waits for ever: this kernel cannot "
                      "poison pages, and there is no descriptor of the process "
                      "to kill it by");
        return true;
    }
  }
}

Guest::Placed Guest::PoisonPages(uintptr_t start, uint64_t bytes,
                                 uint64_t page_bytes) {
  if (page_bytes == kPageBytes) {
    return After(
        PoisonRange(kernel_, uffd_.get(), start, bytes, 0, kFill).error,
        "UFFDIO_POISON");
  }
  for (uint64_t done = 0; done < bytes; done += page_bytes) {
    const int error =
        kernel_.Poison(uffd_.get(), start + done, page_bytes, 0).error;
    if (error == EEXIST || error == 0) continue;
    return After(error, "UFFDIO_POISON");
  }
  return {};
}

bool Guest::Kill() {
  return pidfd_ &&
         syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) == 0;
}

void Guest::Wake(uintptr_t start, uint64_t bytes) {
  kernel_.Wake(uffd_.get(), start, bytes);
}

void Guest::WaitFor(const Fault& fault, uintptr_t page, const Placed& needs) {
  // Whoever waits for the page already is woken together with this one.
  if (!waiting_.emplace(page, fault).second) return;
  ++stats_.waits;
  host_.RunElsewhere(
      /*urgent=*/true, [self = shared_from_this(), page, first = needs.first,
                        pages = needs.pages] {
        self->Arrived(page, self->image_->MakeReady(first, pages));
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
  SetTimer(Clock::duration::zero());
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

Guest::Placed Guest::Place(const AddressMap::Piece& piece, uintptr_t start,
                           uintptr_t end, bool write) {
  const Image& image = image_->image();
  for (uintptr_t at = start; at < end;) {
    const bool written = write && at == start;
    if (piece.page_bytes != kPageBytes) {
      Placed placed = PlaceHuge(piece, at, written);
      if (placed.outcome != Outcome::kDone) return placed;
      at += piece.page_bytes;
      continue;
    }
    // The page that is written to is not protected, the ones behind it are.
    const bool protect = piece.track_writes && !written;
    uint64_t bytes = piece.track_writes && written ? kPageBytes : end - at;
    const PageIndex page = PageContaining(piece.OffsetOf(at));
    const std::optional<PageRun> stored = image.stored().NextRun(page);
    Placed placed;
    if (piece.freed || !stored.has_value()) {
      placed = ZeroPages(at, bytes, protect, written);
    } else if (stored->first > page) {
      bytes = std::min(bytes, (stored->first - page).bytes());
      placed = ZeroPages(at, bytes, protect, written);
    } else {
      bytes = std::min(bytes, stored->length.bytes());
      const PageCount pages = PagesRoundedUp(bytes);
      if (!image_->IsReady(page, pages)) {
        placed = {.outcome = Outcome::kNotReady, .first = page, .pages = pages};
      } else {
        placed = CopyPages(at, image.data() + page.offset_bytes(), bytes,
                           protect, stats_.pages_copied);
      }
    }
    if (placed.outcome != Outcome::kDone) return placed;
    at += bytes;
  }
  return {};
}

Guest::Placed Guest::PlaceHuge(const AddressMap::Piece& piece, uintptr_t page,
                               bool write) {
  constexpr PageCount kPages = PagesRoundedUp(kHugePageBytes);
  const Image& image = image_->image();
  const PageIndex first = PageContaining(piece.OffsetOf(page));
  const uint64_t stored =
      piece.freed ? 0 : image.stored().CountIn(first, kPages);
  const std::byte* from = ZeroBytes();
  if (stored > 0) {
    if (!image_->IsReady(first, kPages)) {
      return {.outcome = Outcome::kNotReady, .first = first, .pages = kPages};
    }
    from = image.data() + first.offset_bytes();
  }
  if (stored > 0 && stored < kPages.value()) {
    // Holes of an image may not be read.
    if (huge_ == nullptr) huge_ = std::make_unique<std::byte[]>(kHugePageBytes);
    std::memset(huge_.get(), 0, kHugePageBytes);
    const PageIndex end = first + kPages;
    for (std::optional<PageRun> run = image.stored().NextRun(first);
         run.has_value() && run->first < end;
         run = image.stored().NextRun(run->end())) {
      const PageCount pages = std::min(run->end(), end) - run->first;
      if (const int error = ReadMapped(
              image.data() + run->first.offset_bytes(),
              {huge_.get() + (run->first - first).bytes(), pages.bytes()})) {
        return After(error, "reading the image");
      }
    }
    from = huge_.get();
  }
  const uint64_t mode = piece.track_writes && !write ? kUffdCopyWp : 0;
  const int error =
      kernel_
          .Copy(uffd_.get(), page, reinterpret_cast<uintptr_t>(from),
                kHugePageBytes, mode)
          .error;
  if (error == EEXIST) {
    Wake(page, kHugePageBytes);
    return {};
  }
  if (error == 0) {
    (stored > 0 ? stats_.pages_copied : stats_.pages_zeroed) += kPages.value();
  }
  return After(error, "UFFDIO_COPY of a huge page");
}

Guest::Placed Guest::CopyPages(uintptr_t start, const std::byte* from,
                               uint64_t bytes, bool protect, uint64_t& count) {
  const FillResult filled =
      CopyRange(kernel_, uffd_.get(), start, reinterpret_cast<uintptr_t>(from),
                bytes, protect ? kUffdCopyWp : 0, kFill);
  count += filled.pages_filled();
  return After(filled.error, "UFFDIO_COPY");
}

Guest::Placed Guest::ZeroPages(uintptr_t start, uint64_t bytes, bool protect,
                               bool write) {
  // The kernel's zero page cannot be write-protected in the same call, and a
  // write to it would be a second fault.
  if (!protect && !(write && bytes == kPageBytes)) {
    const FillResult filled =
        ZeroRange(kernel_, uffd_.get(), start, bytes, 0, kFill);
    stats_.pages_zeroed += filled.pages_filled();
    return After(filled.error, "UFFDIO_ZEROPAGE");
  }
  for (uint64_t done = 0; done < bytes; done += kHugePageBytes) {
    Placed placed = CopyPages(start + done, ZeroBytes(),
                              std::min(bytes - done, kHugePageBytes), protect,
                              stats_.pages_zeroed);
    if (placed.outcome != Outcome::kDone) return placed;
  }
  return {};
}

Guest::Placed Guest::After(int error, const std::string& what) const {
  switch (error) {
    case 0:
      return {};
    case EAGAIN:
    // The guest's own limit of memory (its cgroup): it may be raised, or others
    // may free some.
    case ENOMEM:
      return {.outcome = Outcome::kStopped};
    case ENOENT:
      return {.outcome = Outcome::kUnregistered};
    case ESRCH:
      return {.outcome = Outcome::kGone};
    case EFAULT:
      return {.outcome = Outcome::kLost,
              .status = absl::DataLossError(absl::StrCat(
                  what, ": the bytes of image '", image_->image().name(),
                  "' cannot be read: was its file cut short?"))};
    default:
      return {.outcome = Outcome::kLost,
              .status = absl::ErrnoToStatus(error, what)};
  }
}

void Guest::PlanRun(PageRun run) {
  const uint64_t first = run.first.offset_bytes();
  const uint64_t end = run.end().offset_bytes();
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    const uint64_t from = std::max(first, piece->image_offset_bytes);
    const uint64_t to = std::min(end, piece->OffsetOf(piece->end));
    if (from >= to) continue;
    const uint64_t mask = piece->page_bytes - 1;
    const uintptr_t start =
        (piece->start + (from - piece->image_offset_bytes)) & ~mask;
    plan_.push_back({start, start + ((to - from + mask) & ~mask)});
  }
}

void Guest::Plan() {
  if (options_.record_touches) return;
  if (options_.place_first != nullptr) {
    for (const PageRun& run : *options_.place_first) PlanRun(run);
  }
  if (!options_.place_working_set) return;
  WorkingSet::Words words = image_->image().working_set().read();
  const WorkingSet::Words written = image_->image().working_set().written();
  if (words.size() < written.size()) words.resize(written.size());
  for (size_t i = 0; i < written.size(); ++i) words[i] |= written[i];
  for (const PageRun& run : RunsIn(words)) PlanRun(run);
}

std::optional<Guest::Early> Guest::NextEarly() {
  while (!plan_.empty()) {
    Range& range = plan_.front();
    const std::optional<AddressMap::Piece> piece = map_.Next(range.start);
    if (range.start >= range.end || !piece.has_value() ||
        piece->start >= range.end) {
      plan_.pop_front();
      continue;
    }
    const uintptr_t start = piece->start;
    const uintptr_t end =
        std::min<uint64_t>({piece->end, range.end,
                            start + std::max(kEarlyBytes, piece->page_bytes)});
    range.start = end;
    if (piece->freed) continue;
    return Early{*piece, start, end, false};
  }
  if (background_ended_ ||
      (options_.background_bytes_per_second == 0 && fill_done_ == nullptr)) {
    return std::nullopt;
  }
  const PageMap& stored = image_->image().stored();
  for (std::optional<AddressMap::Piece> piece = map_.Next(background_at_);
       piece.has_value(); piece = map_.Next(background_at_)) {
    background_at_ = piece->end;
    if (piece->freed) continue;
    const std::optional<PageRun> run =
        stored.NextRun(PageContaining(piece->image_offset_bytes));
    if (!run.has_value()) continue;
    const uint64_t mask = piece->page_bytes - 1;
    const uint64_t offset =
        std::max(piece->image_offset_bytes, run->first.offset_bytes() & ~mask);
    if (offset >= piece->OffsetOf(piece->end)) continue;
    const uintptr_t start = piece->start + (offset - piece->image_offset_bytes);
    const uint64_t run_bytes =
        (run->end().offset_bytes() - offset + mask) & ~mask;
    const uintptr_t end =
        std::min<uint64_t>({piece->end, start + run_bytes,
                            start + std::max(kEarlyBytes, piece->page_bytes)});
    background_at_ = end;
    return Early{*piece, start, end, true};
  }
  background_ended_ = true;
  EndFillAll(absl::OkStatus());
  return std::nullopt;
}

bool Guest::PlaceEarly() {
  if (early_waits_ || early_failed_ || refused_) return false;
  const Clock::time_point now = Clock::now();
  if (plan_.empty() && fill_done_ == nullptr && now < background_due_) {
    return false;
  }
  const std::optional<Early> early = NextEarly();
  if (!early.has_value()) return false;
  const uint64_t before = stats_.pages_copied + stats_.pages_zeroed;
  const Placed placed =
      Place(early->piece, early->start, early->end, /*write=*/false);
  stats_.pages_placed_early +=
      stats_.pages_copied + stats_.pages_zeroed - before;
  if (placed.outcome == Outcome::kStopped ||
      placed.outcome == Outcome::kNotReady) {
    // The same again, later.
    if (early->background) {
      background_at_ = early->start;
    } else {
      plan_.push_front({early->start, early->end});
    }
  }
  switch (placed.outcome) {
    case Outcome::kDone:
      stops_ = 0;
      [[fallthrough]];
    case Outcome::kUnregistered:
      // What is not registered needs no page.
      if (early->background && fill_done_ == nullptr) {
        const double seconds =
            static_cast<double>(early->end - early->start) /
            static_cast<double>(options_.background_bytes_per_second);
        background_due_ =
            std::max(background_due_, now) +
            std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
        return false;
      }
      return true;
    case Outcome::kStopped:
      ++stats_.stopped;
      if (!ReadEvents()) ++stops_;
      return true;
    case Outcome::kNotReady:
      early_waits_ = true;
      host_.RunElsewhere(
          /*urgent=*/false, [self = shared_from_this(), first = placed.first,
                             pages = placed.pages] {
            self->ArrivedEarly(self->image_->MakeReady(first, pages));
          });
      return false;
    case Outcome::kGone:
      ended_ = true;
      return false;
    case Outcome::kLost:
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

void Guest::FillAll(std::function<void(absl::Status)> done) {
  MutexLock lock(&mutex_);
  if (ended_ || refused_) {
    done(absl::CancelledError("the guest has ended, or is not served"));
    return;
  }
  fill_done_ = std::move(done);
  early_failed_ = false;
  background_at_ = 0;
  background_ended_ = false;
  SetTimer(Clock::duration::zero());
}

void Guest::EndFillAll(const absl::Status& status) {
  if (fill_done_ == nullptr) return;
  std::exchange(fill_done_, nullptr)(status);
}

bool Guest::Poison() {
  MutexLock lock(&mutex_);
  refused_ = true;
  if (ended_) return true;
  ReadEvents();
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    Placed poisoned;
    for (uint32_t stops = 0; stops < 100; ++stops) {
      poisoned = PoisonPages(piece->start, piece->bytes(), piece->page_bytes);
      if (poisoned.outcome != Outcome::kStopped) break;
      if (!ReadEvents()) sched_yield();
    }
    if (poisoned.outcome == Outcome::kGone) {
      ended_ = true;
      return true;
    }
    if (poisoned.outcome == Outcome::kLost ||
        poisoned.outcome == Outcome::kStopped) {
      const bool killed = Kill();
      host_.Tell(absl::StrCat("guest ", options_.name,
                              ": its missing pages cannot be poisoned (",
                              poisoned.status.ToString(), ")",
                              killed ? "; its process has been killed" : ""));
      return killed;
    }
    Wake(piece->start, piece->bytes());
  }
  return true;
}

void Guest::WakeAll() {
  MutexLock lock(&mutex_);
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    Wake(piece->start, piece->bytes());
  }
}

void Guest::MarkChanged(const AddressMap::Piece& piece, uintptr_t start,
                        uintptr_t end) {
  if (!piece.track_writes) return;
  SetBits(changed_, PageContaining(piece.OffsetOf(start)).value(),
          PageContaining(piece.OffsetOf(end)).value());
}

absl::StatusOr<std::vector<PageRun>> Guest::ChangedPages(bool restart) {
  MutexLock lock(&mutex_);
  if (!ended_) ReadEvents();
  // First protected, then forgotten: a write between the two is a fault that
  // has not been served yet, and counts for the next time.
  for (std::optional<AddressMap::Piece> piece = map_.Next(0);
       restart && piece.has_value(); piece = map_.Next(piece->end)) {
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
          "guest ", options_.name, ": the region at ", Hex(piece->start),
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

std::vector<Touch> Guest::Touches() const {
  MutexLock lock(&mutex_);
  return touches_;
}

void Guest::TeachWorkingSet() const {
  WorkingSet::Words read;
  WorkingSet::Words written;
  for (const Touch& touch : Touches()) {
    const uint64_t page = touch.page.value();
    SetBits(read, page, page + 1);
    if (touch.write) SetBits(written, page, page + 1);
  }
  image_->image().working_set().LearnRead(read);
  image_->image().working_set().LearnWritten(written);
}

GuestStats Guest::Stats() const {
  MutexLock lock(&mutex_);
  GuestStats stats = stats_;
  stats.bytes = map_.bytes();
  return stats;
}

}  // namespace firsttouch
