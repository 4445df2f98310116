#include "firsttouch/tools/firsttouchd/daemon.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/serve/guest_journal.h"
#include "firsttouch/tools/firsttouchd/systemd.h"

namespace firsttouch::firsttouchd {
namespace {

// Keys of sockets in Belongings: the path; of systemd's this and the name.
constexpr char kOfSystemd[] = "systemd:";
constexpr char kMetricsKey[] = "metrics:";
constexpr char kHandOverKey[] = "successor";

// All deadlines together that clients and a successor have.
constexpr std::chrono::milliseconds kLongestHandOver{60'000};

void LogUnlessOk(const absl::Status& status) {
  if (!status.ok()) Log(absl::StrCat(status.message()));
}

absl::Status BecomeUser(const std::string& user) {
  errno = 0;
  const passwd* const entry = getpwnam(user.c_str());
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no user ", user));
  }
  if (setgroups(0, nullptr) != 0 || setgid(entry->pw_gid) != 0 ||
      setuid(entry->pw_uid) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("becoming user ", user));
  }
  return absl::OkStatus();
}

// A guest has four descriptors.
void AllowManyDescriptors() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::StatusOr<UniqueFd> Copy(const UniqueFd& fd) {
  UniqueFd copy(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return absl::ErrnoToStatus(errno, "a second descriptor");
  return copy;
}

std::string NameOf(const std::string& journal) {
  return std::filesystem::path(journal).filename();
}

}  // namespace

void Log(const std::string& text) {
  const std::string line = absl::StrCat("firsttouchd: ", text, "\n");
  fwrite(line.data(), 1, line.size(), stderr);
}

const SocketPlan& Daemon::PlanFor(const std::string& key) const {
  for (const SocketPlan& socket : plan_.sockets) {
    if (socket.path.empty()
            ? absl::StartsWith(
                  key, absl::StrCat(kOfSystemd, socket.systemd_name, ":"))
            : key == socket.path) {
      return socket;
    }
  }
  return plan_.others;
}

absl::Status Daemon::OpenSockets(bool replace) {
  absl::StatusOr<Inherited> inherited = TakeInherited();
  if (!inherited.ok()) return inherited.status();
  for (Inherited::Named& kept : inherited->kept) {
    kept_[kept.name] = std::move(kept.fd);
  }
  if (replace) {
    absl::StatusOr<Successor> successor = Successor::Ask(plan_.state);
    if (successor.ok()) {
      belongings_ = std::move(successor->belongings());
      successor_.emplace(*std::move(successor));
    } else if (!absl::IsUnavailable(successor.status())) {
      return successor.status();
    }
  }
  const std::string metrics = absl::StrCat(kMetricsKey, plan_.metrics);
  // Sockets of another server that are not this one's are closed.
  std::erase_if(belongings_.sockets, [&](const auto& entry) {
    const std::string& key = entry.first;
    return key != kHandOverKey && !absl::StartsWith(key, kOfSystemd) &&
           (key != metrics || plan_.metrics.empty()) &&
           &PlanFor(key) == &plan_.others;
  });
  for (size_t i = 0; i < inherited->sockets.size(); ++i) {
    belongings_
        .sockets[absl::StrCat(kOfSystemd, inherited->sockets[i].name, ":", i)] =
        std::move(inherited->sockets[i].fd);
  }
  const auto listen = [&](const std::string& key, const std::string& path,
                          int type) -> absl::Status {
    if (belongings_.sockets.contains(key)) return absl::OkStatus();
    absl::StatusOr<UniqueFd> socket = ListenAt(path, 0600, type);
    if (!socket.ok()) return socket.status();
    belongings_.sockets[key] = *std::move(socket);
    return absl::OkStatus();
  };
  for (const SocketPlan& socket : plan_.sockets) {
    if (socket.path.empty()) continue;
    if (absl::Status listens = listen(socket.path, socket.path, SOCK_STREAM);
        !listens.ok()) {
      return listens;
    }
  }
  if (belongings_.sockets.empty()) {
    return absl::InvalidArgumentError(
        "there is no socket to listen at: say --listen, or use socket "
        "activation");
  }
  if (!plan_.metrics.empty()) {
    if (absl::Status listens = listen(metrics, plan_.metrics, SOCK_STREAM);
        !listens.ok()) {
      return listens;
    }
  }
  if (!plan_.user.empty()) {
    if (absl::Status became = BecomeUser(plan_.user); !became.ok()) {
      return became;
    }
  }
  if (plan_.state.empty()) return absl::OkStatus();
  // The lock comes before the socket: whose socket it is, is clear then.
  absl::StatusOr<std::unique_ptr<StateFolder>> state =
      StateFolder::Open(plan_.state, std::move(belongings_.lock));
  if (!state.ok()) return state.status();
  state_ = *std::move(state);
  return listen(kHandOverKey, HandOverPath(plan_.state), SOCK_SEQPACKET);
}

absl::Status Daemon::Open(bool replace) {
  AllowManyDescriptors();
  // Whoever reads the log may end before this does.
  signal(SIGPIPE, SIG_IGN);
  for (const Image& image : plan_.images) {
    absl::StatusOr<std::unique_ptr<ServedImage>> served =
        ServedImage::Open(image, Log);
    if (!served.ok()) return served.status();
    images_.push_back(*std::move(served));
  }
  if (absl::Status opened = OpenSockets(replace); !opened.ok()) return opened;
  // Threads inherit the mask.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  signals_.reset(signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return absl::ErrnoToStatus(errno, "signalfd");
  return absl::OkStatus();
}

absl::StatusOr<GuestArrival> Daemon::FindGuest(const std::string& path) {
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path);
  if (!left.ok()) return left.status();
  const GuestRecord& record = left->journal->record();
  GuestArrival arrival;
  arrival.taken_over = true;
  const auto passed = belongings_.guests.find(NameOf(path));
  if (passed != belongings_.guests.end()) {
    arrival.uffd = std::move(passed->second.uffd);
    arrival.pidfd = std::move(passed->second.pidfd);
    belongings_.guests.erase(passed);
  }
  const auto kept = kept_.find(NameOf(path));
  if (!arrival.uffd && kept != kept_.end()) {
    arrival.uffd = std::move(kept->second);
  }
  if (!arrival.pidfd) {
    absl::StatusOr<UniqueFd> process = OpenProcess(record);
    // Who sent the userfaultfd need not be whose memory it is: what is at hand
    // tells itself whether that is there (Server::Attach).
    if (absl::IsNotFound(process.status()) && !arrival.uffd) {
      left->journal->Forget();
      return process.status();
    }
    if (process.ok()) arrival.pidfd = *std::move(process);
  }
  if (!arrival.uffd) {
    absl::StatusOr<UniqueFd> uffd = DescriptorOf(record, arrival.pidfd.get());
    if (!uffd.ok()) return uffd.status();
    arrival.uffd = *std::move(uffd);
  }
  for (const std::unique_ptr<ServedImage>& image : images_) {
    if (record.image_digest == image->digest()) arrival.image = image->image();
  }
  if (arrival.image == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "its image ", record.image, ", with the digest ",
        record.image_digest.has_value() ? record.image_digest->ToHex() : "?",
        ", is none of those that are served here"));
  }
  arrival.options = PlanFor(record.socket).guest;
  arrival.options.name = record.name;
  // It has begun long ago.
  arrival.options.place_working_set = false;
  arrival.options.record_touches = false;
  arrival.lose_missing = !left->journal->complete();
  if (arrival.lose_missing) {
    Log(absl::StrCat("guest ", record.name,
                     ": what it gave back is not known, since not all of it is "
                     "recorded; its missing pages are lost to it"));
  }
  if (left->lost_fork) {
    Log(absl::StrCat("guest ", record.name,
                     ": a child that it forked when the server was killed may "
                     "have read missing pages as zeroes"));
  }
  arrival.map = std::move(left->map);
  arrival.journal = std::move(left->journal);
  return arrival;
}

std::vector<GuestArrival> Daemon::FindGuests() {
  std::vector<GuestArrival> guests;
  if (state_ == nullptr) return guests;
  absl::StatusOr<std::vector<std::string>> journals = state_->Journals();
  if (!journals.ok()) {
    LogUnlessOk(journals.status());
    return guests;
  }
  for (const std::string& path : *journals) {
    const bool passed = belongings_.guests.contains(NameOf(path));
    absl::StatusOr<GuestArrival> guest = FindGuest(path);
    if (guest.ok()) {
      guests.push_back(*std::move(guest));
    } else {
      Log(absl::StrCat(NameOf(path),
                       " is not taken over: ", guest.status().message(),
                       absl::IsNotFound(guest.status())
                           ? ""
                           : "; threads of it that touch missing pages wait"));
      if (passed && !absl::IsNotFound(guest.status())) ++left_behind_;
    }
  }
  // Of guests that have ended meanwhile.
  belongings_.guests.clear();
  for (const auto& [name, uffd] : kept_) {
    if (!std::filesystem::exists(absl::StrCat(plan_.state, "/", name))) {
      LogUnlessOk(KeepNoMore(name));
    }
  }
  return guests;
}

absl::Status Daemon::Prepare(const std::string& socket, const PeerProcess& peer,
                             GuestArrival& arrival) {
  const ServedImage& image = *images_[PlanFor(socket).image];
  arrival.options.place_first = image.place_first();
  if (state_ == nullptr) return absl::OkStatus();
  absl::StatusOr<AddressMap> map = AddressMap::Create(arrival.regions);
  if (!map.ok()) return map.status();
  GuestRecord record = RecordOf(peer.pid, arrival.uffd.get());
  record.name = arrival.options.name;
  record.image = image.label();
  record.image_digest = image.digest();
  record.socket = socket;
  absl::StatusOr<std::unique_ptr<GuestJournal>> journal =
      state_->Add(record, *map);
  if (!journal.ok()) return journal.status();
  arrival.journal = *std::move(journal);
  if (plan_.keep_descriptors) {
    LogUnlessOk(Keep(NameOf(arrival.journal->path()), arrival.uffd.get()));
  } else if (record.uffd_number < 0) {
    Log(absl::StrCat(
        "guest ", record.name,
        " can be handed over, but not taken over after a kill: its "
        "descriptors cannot be looked at (which needs the rights of a "
        "debugger), or it has closed its userfaultfd"));
  }
  return absl::OkStatus();
}

void Daemon::Ended(const std::shared_ptr<Guest>& guest) {
  const GuestStats stats = guest->Stats();
  Log(absl::StrCat("guest ", guest->name(), " has ended: ", stats.faults,
                   " faults, ", stats.pages_copied, " pages copied, ",
                   stats.pages_placed_early, " placed early, ", stats.lost,
                   " lost"));
  {
    MutexLock lock(&mutex_);
    Add(stats, &ended_);
    ended_.bytes = 0;
    ++ended_guests_;
    std::erase_if(counted_, [](const auto& one) { return one.expired(); });
    counted_.push_back(guest);
  }
  if (plan_.keep_descriptors && !guest->journal_path().empty()) {
    LogUnlessOk(KeepNoMore(NameOf(guest->journal_path())));
  }
  if (!plan_.record) return;
  for (const std::unique_ptr<ServedImage>& image : images_) {
    if (image->image() == guest->image()) image->Learn(*guest);
  }
  // Saving takes as long as the image is large: not in this thread.
  saver_->Request();
}

std::string Daemon::Metrics() {
  // A guest that ends meanwhile waits for this lock, and is in the server.
  MutexLock lock(&mutex_);
  GuestStats sum = ended_;
  size_t guests = 0;
  for (const uint64_t id : server_->guests()) {
    const std::shared_ptr<Guest> guest = server_->Find(id);
    if (guest == nullptr ||
        std::any_of(counted_.begin(), counted_.end(),
                    [&](const auto& one) { return one.lock() == guest; })) {
      continue;
    }
    ++guests;
    Add(guest->Stats(), &sum);
  }
  return OpenMetricsText(sum, guests, ended_guests_);
}

void Daemon::SaveImages() {
  for (const std::unique_ptr<ServedImage>& image : images_) {
    if (const absl::Status saved = image->Save(); !saved.ok()) {
      Log(absl::StrCat("what guests touch cannot be kept: ", saved.message()));
    }
  }
}

absl::Status Daemon::Start(std::vector<GuestArrival> guests) {
  // It outlives a server that nobody has taken over from: guests do not wait
  // until an image has been written.
  if (saver_ == nullptr) {
    absl::StatusOr<std::unique_ptr<Saver>> saver =
        Saver::Start([this] { SaveImages(); });
    if (!saver.ok()) return saver.status();
    saver_ = *std::move(saver);
  }
  ServerOptions options = plan_.server;
  options.tell = Log;
  options.ended = [this](const std::shared_ptr<Guest>& guest) { Ended(guest); };
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) return server.status();
  server_ = *std::move(server);
  for (GuestArrival& guest : guests) {
    const std::string name = guest.options.name;
    const std::string journal = NameOf(guest.journal->path());
    if (const absl::Status goes_on = guest.journal->GoOn(*guest.map);
        !goes_on.ok()) {
      // Without a record rather than not at all. The old one would be wrong.
      Log(absl::StrCat("guest ", name,
                       " cannot be taken over again: ", goes_on.message()));
      guest.journal->Forget();
      guest.journal = nullptr;
    } else if (!guest.lose_missing && !guest.journal->complete()) {
      Log(absl::StrCat("guest ", name,
                       " cannot be taken over again without losing its missing "
                       "pages: there is no room for a new record of it"));
    }
    const absl::Status taken = server_->Attach(std::move(guest)).status();
    Log(taken.ok() ? absl::StrCat("guest ", name, " is taken over")
                   : absl::StrCat("guest ", name,
                                  " is not taken over: ", taken.message()));
    if (plan_.keep_descriptors && absl::IsNotFound(taken)) {
      LogUnlessOk(KeepNoMore(journal));
    }
  }
  for (const auto& [key, socket] : belongings_.sockets) {
    if (key == kHandOverKey) continue;
    absl::StatusOr<UniqueFd> copy = Copy(socket);
    if (!copy.ok()) return copy.status();
    if (absl::StartsWith(key, kMetricsKey)) {
      absl::StatusOr<std::unique_ptr<MetricsServer>> metrics =
          MetricsServer::Start(*std::move(copy), [this] { return Metrics(); });
      if (!metrics.ok()) return metrics.status();
      metrics_ = *std::move(metrics);
      continue;
    }
    const SocketPlan& plan = PlanFor(key);
    ListenerOptions listen;
    listen.image = [image = images_[plan.image]->image()](const PeerProcess&) {
      return image;
    };
    listen.guest = plan.guest;
    listen.users = plan.users;
    listen.kill_refused = plan.kill_refused;
    listen.prepare = [this, key = key](const PeerProcess& peer,
                                       GuestArrival& arrival) {
      return Prepare(key, peer, arrival);
    };
    if (plan_.keep_descriptors) {
      listen.refused = [](const std::string& journal) {
        LogUnlessOk(KeepNoMore(NameOf(journal)));
      };
    }
    listen.tell = Log;
    listen.arrived = [](uint64_t, const PeerProcess& peer) {
      Log(absl::StrCat("guest pid ", peer.pid, " of user ", peer.uid,
                       " is served"));
    };
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Start(*server_, *std::move(copy), listen);
    if (!listener.ok()) return listener.status();
    listeners_.push_back(*std::move(listener));
  }
  LogUnlessOk(Notify("READY=1"));
  return absl::OkStatus();
}

Daemon::Ending Daemon::Wait() {
  const std::optional<std::chrono::milliseconds> watchdog = WatchdogPeriod();
  const auto hand_over = belongings_.sockets.find(kHandOverKey);
  while (true) {
    std::array<pollfd, 2> waits = {
        {{.fd = signals_.get(), .events = POLLIN, .revents = 0},
         {.fd = hand_over == belongings_.sockets.end()
                    ? -1
                    : hand_over->second.get(),
          .events = POLLIN,
          .revents = 0}}};
    if (watchdog.has_value()) {
      // Takes the lock that serving guests takes.
      server_->guests();
      LogUnlessOk(Notify("WATCHDOG=1"));
    }
    const int ready =
        poll(waits.data(), waits.size(),
             watchdog.has_value() ? static_cast<int>(watchdog->count()) : -1);
    if (ready <= 0) continue;
    if (waits[0].revents != 0) return Ending::kSignal;
    if (waits[1].revents != 0) return Ending::kSuccessor;
  }
}

bool Daemon::HandOverAll() {
  absl::StatusOr<UniqueFd> successor =
      AcceptSuccessor(belongings_.sockets[kHandOverKey].get());
  if (!successor.ok()) {
    LogUnlessOk(successor.status());
    // Where there are no descriptors it waits, and is not asked at once again.
    poll(nullptr, 0, 100);
    return false;
  }
  // Clients and the successor have deadlines, which are longer than a
  // watchdog's may be.
  const WatchdogMeanwhile watchdog(kLongestHandOver);
  metrics_.reset();
  for (const std::unique_ptr<Listener>& listener : listeners_) {
    listener->Drain();
  }
  listeners_.clear();
  for (Guest::Descriptors& guest : server_->HandOver()) {
    belongings_.guests[NameOf(guest.journal)] = {std::move(guest.uffd),
                                                 std::move(guest.pidfd)};
  }
  server_.reset();
  belongings_.lock.reset(fcntl(state_->lock(), F_DUPFD_CLOEXEC, 0));
  const absl::Status handed = HandOver(successor->get(), belongings_);
  if (handed.ok()) {
    Log(absl::StrCat("another firsttouchd goes on with ",
                     belongings_.guests.size(), " guests"));
    return true;
  }
  Log(absl::StrCat("nobody has taken over, and this server goes on: ",
                   handed.message()));
  return false;
}

absl::Status Daemon::Run(bool replace) {
  if (absl::Status opened = Open(replace); !opened.ok()) return opened;
  std::vector<GuestArrival> guests = FindGuests();
  if (successor_.has_value()) {
    if (left_behind_ > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(left_behind_,
                       " guests of the other server cannot be served by this "
                       "one; that one goes on"));
    }
    if (absl::Status taken = successor_->Take(); !taken.ok()) return taken;
    successor_.reset();
  }
  while (true) {
    if (absl::Status started = Start(std::move(guests)); !started.ok()) {
      return started;
    }
    while (server_ != nullptr) {
      if (Wait() == Ending::kSignal) {
        LogUnlessOk(Notify("STOPPING=1"));
        metrics_.reset();
        listeners_.clear();
        server_.reset();
        return absl::OkStatus();
      }
      if (HandOverAll()) return absl::OkStatus();
    }
    guests = FindGuests();
  }
}

}  // namespace firsttouch::firsttouchd
