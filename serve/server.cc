#include "firsttouch/serve/server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/guests_block.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/signal_masked_thread.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

constexpr uint64_t kStopId = 0;

// What /proc says that a descriptor is.
std::string KindOfDescriptor(int fd) {
  std::array<char, 256> kind;
  const ssize_t length = readlink(absl::StrCat("/proc/self/fd/", fd).c_str(),
                                  kind.data(), kind.size());
  return length < 0 ? "nothing" : std::string(kind.data(), length);
}

// Whether a userfaultfd belongs to the memory of this process. The kernel does
// not tell; but UFFDIO_COPY first looks whether there is registered memory at
// the address, of any userfaultfd, and then reads the source. So with a source
// that cannot be read, what it says of a page of ours changes when the page's
// registration ends, if the memory is ours; and nothing is ever written. (The
// guest may have memory at the same address: a fork of this process most
// likely has.)
absl::StatusOr<bool> IsOwnMemory(Kernel& kernel, int fd) {
  constexpr size_t kBytes = 2 * kPageBytes;
  void* const pages = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap of a page");
  const uintptr_t address = reinterpret_cast<uintptr_t>(pages);
  const uintptr_t unreadable = address + kPageBytes;
  absl::StatusOr<bool> own = [&]() -> absl::StatusOr<bool> {
    if (mprotect(static_cast<char*>(pages) + kPageBytes, kPageBytes,
                 PROT_NONE) != 0) {
      return absl::ErrnoToStatus(errno, "mprotect of a page");
    }
    absl::StatusOr<Uffd> ours = Uffd::Open(kernel, {});
    if (!ours.ok()) return ours.status();
    if (absl::Status registered = ours->Register(
            address, kPageBytes, kUffdRegisterMissing, kUffdIoctlCopy);
        !registered.ok()) {
      return registered;
    }
    const auto says = [&] {
      return kernel.Copy(fd, address, unreadable, kPageBytes, kUffdCopyDontWake)
          .error;
    };
    if (says() != EFAULT) return false;
    if (absl::Status ended = ours->Unregister(address, kPageBytes);
        !ended.ok()) {
      return ended;
    }
    return says() == ENOENT;
  }();
  munmap(pages, kBytes);
  return own;
}

// The number of the process of a pidfd, as this process sees it; 0: not known.
pid_t PidOf(int pidfd) {
  std::ifstream lines(absl::StrCat("/proc/self/fdinfo/", pidfd));
  for (std::string word; lines >> word;) {
    pid_t pid = 0;
    if (word == "Pid:") return lines >> pid && pid > 0 ? pid : 0;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(ServerOptions options,
                                                      Kernel& kernel) {
  if (options.threads == 0 || options.waiting_threads == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a server with ", options.threads, " threads and ",
        options.waiting_threads, " waiting threads; each must be at least 1"));
  }
  std::unique_ptr<Server> server(new Server(std::move(options), kernel));
  if (server->options_.publish) {
    // Twice as many: children that are forked have no other limit.
    server->published_ =
        GuestsBlock::Create(RealMemfdCalls(), server->options_.name,
                            2 * server->options_.max_guests);
    if (!server->published_->published()) {
      server->Tell(absl::StrCat("guests are not shown to pooldump: ",
                                server->published_->why()));
    }
  }
  if (absl::Status started = server->StartThreads(); !started.ok()) {
    return started;
  }
  return server;
}

Server::Server(ServerOptions options, Kernel& kernel)
    : options_(std::move(options)), kernel_(kernel) {}

absl::Status Server::StartThreads() {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return absl::ErrnoToStatus(errno, "epoll_create1 for a server");
  stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_) return absl::ErrnoToStatus(errno, "eventfd for a server");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kStopId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl for a server");
  }
  for (uint32_t i = 0; i < options_.threads + options_.waiting_threads; ++i) {
    const bool serves = i < options_.threads;
    absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
        serves ? "ft-serve" : "ft-serve-wait",
        [this, serves] { serves ? ServeGuests() : RunJobs(); });
    if (!thread.ok()) {
      return absl::Status(
          thread.status().code(),
          absl::StrCat("a server's thread ", i + 1, " of ",
                       options_.threads + options_.waiting_threads, ": ",
                       thread.status().message()));
    }
    threads_.push_back(*std::move(thread));
  }
  return absl::OkStatus();
}

void Server::Stop() {
  {
    MutexLock lock(&jobs_mutex_);
    stopping_ = true;
    urgent_jobs_.clear();
    jobs_.clear();
    jobs_changed_.SignalAll();
  }
  if (stop_) eventfd_write(stop_.get(), 1);
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

Server::~Server() {
  Stop();
  const bool leave = options_.at_end == ServerOptions::AtEnd::kLeave;
  while (true) {
    std::map<uint64_t, std::shared_ptr<Guest>> left;
    {
      MutexLock lock(&mutex_);
      left.swap(guests_);
    }
    if (left.empty()) return;
    for (const auto& [id, guest] : left) {
      if (leave && !guest->forked()) continue;
      // May read of a fork: the child is among the guests then.
      if (guest->Poison()) guest->Forget();
    }
  }
}

std::vector<Guest::Descriptors> Server::HandOver() {
  Stop();
  std::map<uint64_t, std::shared_ptr<Guest>> guests;
  {
    MutexLock lock(&mutex_);
    guests = guests_;
  }
  std::vector<Guest::Descriptors> leaving;
  for (const auto& [id, guest] : guests) {
    std::optional<Guest::Descriptors> left = guest->Leave();
    if (!left.has_value()) continue;
    leaving.push_back(*std::move(left));
    MutexLock lock(&mutex_);
    guests_.erase(id);
  }
  return leaving;
}

void Server::ServeGuests() {
  while (true) {
    epoll_event event{};
    const int count = epoll_wait(epoll_.get(), &event, 1, -1);
    if (count <= 0) continue;
    if (event.data.u64 == kStopId) return;
    const uint64_t id = event.data.u64;
    const std::shared_ptr<Guest> guest = Find(id);
    if (guest == nullptr) continue;
    ++serving_;
    const bool goes_on = guest->Turn();
    --serving_;
    if (!goes_on) {
      End(id, guest);
      continue;
    }
    // Behind those that have become ready meanwhile. Fails where the guest was
    // detached.
    epoll_event again{};
    again.events = EPOLLIN | EPOLLONESHOT;
    again.data.u64 = id;
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, guest->poll_fd(), &again);
  }
}

void Server::RunJobs() {
  while (true) {
    std::function<void()> job;
    bool urgent = false;
    {
      MutexLock lock(&jobs_mutex_);
      // What nobody waits for leaves a thread to what somebody does.
      const size_t most_background =
          std::max<size_t>(options_.waiting_threads, 2) - 1;
      while (!stopping_ && urgent_jobs_.empty() &&
             (jobs_.empty() || background_ >= most_background)) {
        ++idle_;
        jobs_changed_.Wait(&jobs_mutex_);
        --idle_;
      }
      if (stopping_) return;
      urgent = !urgent_jobs_.empty();
      std::deque<std::function<void()>>& queue = urgent ? urgent_jobs_ : jobs_;
      job = std::move(queue.front());
      queue.pop_front();
      if (!urgent) ++background_;
    }
    job();
    if (urgent) continue;
    MutexLock lock(&jobs_mutex_);
    --background_;  // And looks itself for what waited for that.
  }
}

void Server::RunElsewhere(bool urgent, std::function<void()> job) {
  MutexLock lock(&jobs_mutex_);
  if (stopping_) return;
  (urgent ? urgent_jobs_ : jobs_).push_back(std::move(job));
  jobs_changed_.Signal();
}

bool Server::Help(std::function<void()> job) {
  // A processor that a guest needs, or another thread that serves, is none to
  // help on: whoever has begun would wait for the helper.
  {
    MutexLock lock(&mutex_);
    if (serving_ + guests_.size() >= processors_) return false;
  }
  MutexLock lock(&jobs_mutex_);
  if (stopping_ || idle_ <= urgent_jobs_.size() + jobs_.size()) return false;
  urgent_jobs_.push_back(std::move(job));
  jobs_changed_.Signal();
  return true;
}

void Server::Tell(const std::string& text) {
  if (options_.tell != nullptr) options_.tell(text);
}

absl::Status Server::CheckDescriptor(int uffd) {
  const std::string kind = KindOfDescriptor(uffd);
  if (kind != "anon_inode:[userfaultfd]") {
    return absl::InvalidArgumentError(absl::StrCat(
        "the guest's descriptor is ", kind, " and no userfaultfd"));
  }
  absl::StatusOr<bool> own = IsOwnMemory(kernel_, uffd);
  if (!own.ok()) {
    return absl::Status(
        own.status().code(),
        absl::StrCat("whether a userfaultfd is one of the server's own memory "
                     "cannot be found out: ",
                     own.status().message()));
  }
  if (*own) {
    return absl::PermissionDeniedError(
        "the guest's userfaultfd belongs to the server's own memory, which is "
        "not served");
  }
  const int error = kernel_
                        .ZeroPage(uffd, kAddressEnd - kPageBytes, kPageBytes,
                                  kUffdZeroPageDontWake)
                        .error;
  if (error == EINVAL) {
    return absl::InvalidArgumentError(
        "the guest's userfaultfd has had no handshake (UFFDIO_API)");
  }
  if (error == ESRCH) {
    return absl::NotFoundError("the guest's process has ended");
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Server::Attach(GuestArrival arrival) {
  const std::string journal =
      arrival.journal == nullptr ? "" : arrival.journal->path();
  const bool taken_over = arrival.taken_over;
  absl::StatusOr<uint64_t> id = AttachWhole(std::move(arrival));
  if (!id.ok() && !journal.empty() &&
      (!taken_over || absl::IsNotFound(id.status()))) {
    unlink(journal.c_str());
  }
  return id;
}

absl::StatusOr<uint64_t> Server::AttachWhole(GuestArrival arrival) {
  absl::StatusOr<AddressMap> map = arrival.map.has_value()
                                       ? *std::move(arrival.map)
                                       : AddressMap::Create(arrival.regions);
  if (!map.ok()) return map.status();
  if (!arrival.taken_over && map->bytes() > options_.max_guest_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the guest's regions have ", map->bytes(),
                     " bytes; one guest may have ", options_.max_guest_bytes,
                     " (ServerOptions::max_guest_bytes)"));
  }
  if (absl::Status checked = CheckDescriptor(arrival.uffd.get());
      !checked.ok()) {
    return checked;
  }
  Guest::Parts parts;
  parts.kernel = &kernel_;
  parts.host = this;
  parts.uffd = std::move(arrival.uffd);
  if (arrival.pidfd) parts.pid = PidOf(arrival.pidfd.get());
  parts.pidfd = std::move(arrival.pidfd);
  parts.map = *std::move(map);
  parts.image = std::move(arrival.image);
  parts.options = std::move(arrival.options);
  parts.journal = std::move(arrival.journal);
  absl::StatusOr<std::shared_ptr<Guest>> guest =
      Guest::Create(std::move(parts));
  if (!guest.ok()) return guest.status();
  if (arrival.taken_over) (*guest)->ChangedAll();
  if (arrival.lose_missing && !(*guest)->Poison()) {
    return absl::UnavailableError(
        absl::StrCat("guest ", (*guest)->name(),
                     ": its missing pages can be neither served nor poisoned"));
  }
  absl::StatusOr<uint64_t> id = Add(*guest, /*limited=*/!arrival.taken_over);
  if (id.ok() && arrival.taken_over) (*guest)->WakeAll();
  return id;
}

absl::StatusOr<uint64_t> Server::Add(std::shared_ptr<Guest> guest,
                                     bool limited) {
  const uint64_t id = ++last_id_;
  // Not with the lock, as in Remove().
  if (published_ != nullptr) guest->PublishIn(*published_, id);
  MutexLock lock(&mutex_);
  if (limited && guests_.size() >= options_.max_guests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", guests_.size(),
                     " guests, as many as there may be "
                     "(ServerOptions::max_guests)"));
  }
  const uint64_t bytes = guest->first_bytes();
  if (limited && (bytes > options_.max_total_bytes ||
                  total_bytes_ > options_.max_total_bytes - bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("guests have ", total_bytes_, " bytes, and ", bytes,
                     " more would exceed ", options_.max_total_bytes,
                     " (ServerOptions::max_total_bytes)"));
  }
  epoll_event event{};
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.u64 = id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, guest->poll_fd(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "epoll_ctl for a guest");
  }
  total_bytes_ += bytes;
  guests_[id] = std::move(guest);
  return id;
}

void Server::Adopt(std::shared_ptr<Guest> child) {
  absl::StatusOr<uint64_t> id = Add(child, /*limited=*/true);
  if (id.ok()) return;
  Tell(absl::StrCat("guest ", child->name(),
                    " is refused: ", id.status().ToString()));
  if (child->Poison()) return;
  // To drop it would make its missing pages read as zeroes.
  id = Add(child, /*limited=*/false);
  if (!id.ok()) Tell(absl::StrCat("guest ", child->name(), " cannot be kept"));
}

void Server::End(uint64_t id, const std::shared_ptr<Guest>& guest) {
  {
    // Its process may end while it is detached.
    MutexLock lock(&mutex_);
    if (!guests_.contains(id) || !ending_.insert(id).second) return;
  }
  if (options_.ended != nullptr) options_.ended(guest);
  Remove(id);
}

void Server::Remove(uint64_t id) {
  std::shared_ptr<Guest> guest;
  {
    MutexLock lock(&mutex_);
    const auto it = guests_.find(id);
    if (it == guests_.end()) return;
    guest = std::move(it->second);
    total_bytes_ -= guest->first_bytes();
    guests_.erase(it);
    ending_.erase(id);
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, guest->poll_fd(), nullptr);
    guests_changed_.SignalAll();
  }
  // Not with the lock: a guest that forks asks for it with its own.
  guest->Forget();
}

std::shared_ptr<Guest> Server::Find(uint64_t id) {
  MutexLock lock(&mutex_);
  const auto it = guests_.find(id);
  return it == guests_.end() ? nullptr : it->second;
}

absl::Status Server::Detach(uint64_t id, bool complete) {
  const std::shared_ptr<Guest> guest = Find(id);
  if (guest == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no guest ", id));
  }
  if (!complete && !guest->Poison()) {
    return absl::UnavailableError(absl::StrCat(
        "guest ", guest->name(),
        ": its missing pages can be neither poisoned nor served by nobody"));
  }
  End(id, guest);
  return absl::OkStatus();
}

void Server::WaitForEnd(uint64_t id) {
  MutexLock lock(&mutex_);
  while (guests_.contains(id)) guests_changed_.Wait(&mutex_);
}

std::vector<uint64_t> Server::guests() const {
  MutexLock lock(&mutex_);
  std::vector<uint64_t> ids;
  for (const auto& [id, guest] : guests_) ids.push_back(id);
  return ids;
}

}  // namespace firsttouch
