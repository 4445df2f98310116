// Fills the memory of other processes (microVMs above all) from an image. See
// README.md beside this file.

#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/listener.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/firsttouchd/systemd.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {
namespace {

constexpr char kName[] = "firsttouchd";

// What is asked for cannot be done: an image that cannot be opened, a socket
// that cannot be listened at.
constexpr int kExitFailed = 2;

struct Words {
  std::vector<std::string> listen;
  std::string image;
  std::vector<std::string> parents;
  std::string store;
  std::string name;
  std::string on_loss = "poison";
  std::string retry_for = "0s";
  std::string at_end = "poison";
  std::string user;
  uint64_t read_ahead_kib = 64;
  uint64_t background_mib = 0;
  uint64_t threads = 2;
  uint64_t max_guests = 4096;
  bool record = false;
  bool kill_refused = false;
  bool refuse_forks = false;
};

// One line, in one write, so that lines of threads do not mix.
void Log(const std::string& text) {
  const std::string line = absl::StrCat(kName, ": ", text, "\n");
  fwrite(line.data(), 1, line.size(), stderr);
}

std::unique_ptr<CLI::App> MakeCommandLine(Words& words) {
  std::unique_ptr<CLI::App> app = cli::MakeApp(
      {.name = kName,
       .version = "0.1.0",
       .description =
           "Fills the memory of other processes from an image, as they touch "
           "it: of microVMs that are restored from a snapshot, and of whoever "
           "speaks Firecracker's userfaultfd protocol.",
       .examples =
           "  firsttouchd --listen /run/vm/pages.sock --image base.ftimg\n"
           "  firsttouchd --listen /run/vm/pages.sock --store images "
           "--name base\n",
       .exit_codes = {{0, "ended by SIGTERM or SIGINT"},
                      {kExitFailed,
                       "the image cannot be opened, or the socket not be "
                       "listened at"}},
       .manual = {{"SYSTEMD",
                   "Sockets of socket activation (LISTEN_FDS) are listened at "
                   "in addition. Readiness is told to NOTIFY_SOCKET "
                   "(Type=notify)."}},
       .environment = {{"LISTEN_FDS", "Listening sockets, with LISTEN_PID."},
                       {"NOTIFY_SOCKET", "Who is told of readiness."}},
       .single = true});
  app->add_option("--listen", words.listen, "A Unix socket to listen at")
      ->type_name("FILE");
  app->add_option("--image", words.image, "The image file that is served")
      ->type_name("FILE");
  app->add_option("--parent", words.parents,
                  "A file that the image, a delta, may need")
      ->type_name("FILE");
  app->add_option("--store", words.store,
                  "The folder of an image store, instead of --image")
      ->type_name("DIRECTORY");
  app->add_option("--name", words.name, "The image's name in the store")
      ->type_name("NAME");
  app->add_option("--on-loss", words.on_loss,
                  "What becomes of a guest that touches a page which cannot be "
                  "had: a SIGBUS, or SIGKILL")
      ->check(CLI::IsMember({"poison", "kill"}));
  app->add_option("--retry-for", words.retry_for,
                  "How long such a page is tried again before that")
      ->type_name("DURATION");
  app->add_option("--at-end", words.at_end,
                  "What becomes of missing pages of guests when this program "
                  "ends: a SIGBUS at a touch, or waiting for another server")
      ->check(CLI::IsMember({"poison", "leave"}));
  app->add_option("--user", words.user,
                  "The user to become once image and sockets are open")
      ->type_name("USER");
  app->add_option("--read-ahead-kib", words.read_ahead_kib,
                  "What one fault fills at most, where pages are touched in a "
                  "row")
      ->check(CLI::Range(4, 2048));
  app->add_option("--background-mib", words.background_mib,
                  "MiB a second of the rest of the image that are placed while "
                  "nobody waits")
      ->check(CLI::Range(0, 1 << 20));
  app->add_option("--threads", words.threads, "Threads that serve guests")
      ->check(CLI::Range(1, 256));
  app->add_option("--max-guests", words.max_guests, "Guests at a time")
      ->check(CLI::Range(1, 1 << 20));
  app->add_flag("--record", words.record,
                "Note which pages guests touch, and keep them with the image "
                "when a guest ends");
  app->add_flag("--kill-refused", words.kill_refused,
                "Kill clients whose memory is refused: Firecracker would wait "
                "for ever");
  app->add_flag("--refuse-forks", words.refuse_forks,
                "Children that a guest forks are not served");
  return app;
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

// The image, and how to keep what was learned of it.
struct Served {
  std::shared_ptr<GuestImage> image;
  std::unique_ptr<ImageStore> store;
  std::function<absl::Status()> save;
};

absl::StatusOr<Served> OpenFile(const Words& words) {
  std::map<Digest, std::string> parents;
  for (const std::string& path : words.parents) {
    absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
    if (!info.ok()) return info.status();
    parents[info->content] = path;
  }
  OpenImageOptions options;
  options.find_parent =
      [parents](const Digest& content) -> absl::StatusOr<std::string> {
    const auto found = parents.find(content);
    if (found != parents.end()) return found->second;
    return absl::NotFoundError(
        absl::StrCat("the image needs a parent with the digest ",
                     content.ToHex(), ", which none of --parent has"));
  };
  absl::StatusOr<std::shared_ptr<GuestImage>> image =
      GuestImage::OpenFile(words.image, options);
  if (!image.ok()) return image.status();
  Served served;
  served.image = *std::move(image);
  served.save = [image = served.image, path = words.image] {
    WriteImageFileOptions write;
    write.parent = image->image().parent();
    return WriteImageFile(image->image(), path, write).status();
  };
  return served;
}

absl::StatusOr<Served> OpenStore(const Words& words) {
  absl::StatusOr<std::unique_ptr<ImageStore>> store =
      ImageStore::Open({.directory = words.store});
  if (!store.ok()) return store.status();
  absl::StatusOr<ImageRef> image = (*store)->Get(words.name);
  if (!image.ok()) return image.status();
  Served served;
  served.store = *std::move(store);
  served.image = GuestImage::Create(*std::move(image));
  served.save = [store = served.store.get()] { return store->Flush(); };
  return served;
}

// Serves until a signal comes.
absl::Status Serve(const Words& words, absl::Duration retry_for) {
  absl::StatusOr<std::vector<UniqueFd>> sockets = InheritedSockets();
  if (!sockets.ok()) return sockets.status();
  for (const std::string& path : words.listen) {
    absl::StatusOr<UniqueFd> socket = ListenAt(path);
    if (!socket.ok()) return socket.status();
    sockets->push_back(*std::move(socket));
  }
  if (sockets->empty()) {
    return absl::InvalidArgumentError(
        "there is no socket to listen at: say --listen, or use socket "
        "activation");
  }
  absl::StatusOr<Served> served =
      words.image.empty() ? OpenStore(words) : OpenFile(words);
  if (!served.ok()) return served.status();
  if (!words.user.empty()) {
    if (absl::Status became = BecomeUser(words.user); !became.ok()) {
      return became;
    }
  }
  // Threads inherit the mask; the signals are taken by sigwait below.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  ServerOptions options;
  options.threads = static_cast<uint32_t>(words.threads);
  options.max_guests = words.max_guests;
  options.at_end = words.at_end == "leave" ? ServerOptions::AtEnd::kLeave
                                           : ServerOptions::AtEnd::kPoison;
  options.tell = Log;
  options.ended = [&](const std::shared_ptr<Guest>& guest) {
    const GuestStats stats = guest->Stats();
    Log(absl::StrCat("guest ", guest->name(), " has ended: ", stats.faults,
                     " faults, ", stats.pages_copied, " pages copied, ",
                     stats.pages_placed_early, " placed early, ", stats.lost,
                     " lost"));
    if (!words.record) return;
    guest->TeachWorkingSet();
    // Saving takes as long as the image is large: not in this thread.
    kill(getpid(), SIGUSR1);
  };
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) return server.status();

  ListenerOptions listen;
  listen.image = [&](const PeerProcess&) { return served->image; };
  listen.guest.on_loss =
      words.on_loss == "kill" ? OnLoss::kKill : OnLoss::kPoison;
  listen.guest.retry_for = absl::ToChronoMilliseconds(retry_for);
  listen.guest.most_read_ahead_bytes = words.read_ahead_kib << 10;
  listen.guest.background_bytes_per_second = words.background_mib << 20;
  listen.guest.record_touches = words.record;
  listen.guest.serve_forks = !words.refuse_forks;
  listen.kill_refused = words.kill_refused;
  listen.tell = Log;
  listen.arrived = [](uint64_t, const PeerProcess& peer) {
    Log(absl::StrCat("guest pid ", peer.pid, " of user ", peer.uid,
                     " is served"));
  };
  std::vector<std::unique_ptr<Listener>> listeners;
  for (UniqueFd& socket : *sockets) {
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Start(**server, std::move(socket), listen);
    if (!listener.ok()) return listener.status();
    listeners.push_back(*std::move(listener));
  }
  if (const absl::Status told = Notify("READY=1"); !told.ok()) {
    Log(told.ToString());
  }
  const auto save = [&] {
    if (const absl::Status saved = served->save(); !saved.ok()) {
      Log(absl::StrCat("what guests touch cannot be kept: ", saved.ToString()));
    }
  };
  int signal = 0;
  while (sigwait(&ends, &signal) == 0 && signal == SIGUSR1) save();
  if (const absl::Status told = Notify("STOPPING=1"); !told.ok()) {
    Log(told.ToString());
  }
  listeners.clear();
  server->reset();
  return absl::OkStatus();
}

int Main(const std::vector<std::string>& arguments) {
  Words words;
  const std::unique_ptr<CLI::App> app = MakeCommandLine(words);
  if (const std::optional<cli::Ending> ending = cli::Parse(*app, arguments)) {
    return cli::End(kName, *ending);
  }
  absl::Duration retry_for;
  std::string wrong;
  if (!absl::ParseDuration(words.retry_for, &retry_for) ||
      retry_for < absl::ZeroDuration()) {
    wrong = absl::StrCat("--retry-for: \"", words.retry_for,
                         "\" is not a duration, such as 5s");
  } else if (words.image.empty() == words.store.empty() ||
             words.store.empty() != words.name.empty()) {
    wrong = "say either --image FILE, or --store DIRECTORY with --name NAME";
  } else if ((words.read_ahead_kib & (words.read_ahead_kib - 1)) != 0) {
    wrong = absl::StrCat("--read-ahead-kib: ", words.read_ahead_kib,
                         " is no power of two");
  }
  if (!wrong.empty()) {
    return cli::End(kName, {.exit_code = cli::kExitUsage,
                            .error = absl::StrCat(wrong,
                                                  "; firsttouchd --help tells "
                                                  "more")});
  }
  if (const absl::Status served = Serve(words, retry_for); !served.ok()) {
    return cli::End(kName, {.exit_code = kExitFailed,
                            .error = absl::StrCat(served.message())});
  }
  return 0;
}

}  // namespace
}  // namespace firsttouch::firsttouchd

int main(int argc, char** argv) {
  return firsttouch::firsttouchd::Main(
      std::vector<std::string>(argv + 1, argv + argc));
}
