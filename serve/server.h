// A page server: fills the memory of other processes from images.
//
//   absl::StatusOr<std::unique_ptr<Server>> server = Server::Start({});
//   GuestArrival arrival;
//   arrival.uffd = ...;      // from the guest's process (handshake.h)
//   arrival.regions = ...;
//   arrival.image = ...;     // GuestImage::OpenFile(...)
//   absl::StatusOr<uint64_t> id = (*server)->Attach(std::move(arrival));
//
// A pool of threads serves all guests in turns (guest.h): each guest has one
// thread at most, which goes on to whoever has waited longest after a number of
// faults. So a guest that faults without end takes its share and no more. What
// has to wait (a page source, the check of a digest) does so in threads of its
// own.
//
// WHOSE MEMORY IS WRITTEN TO. Only that of the process that the userfaultfd
// belongs to: the kernel's calls take addresses in that process, and refuse
// what is not registered. Whoever sends a userfaultfd could make these calls
// itself, so that this lends nobody a right. A userfaultfd of this process' own
// memory is refused.
//
// Threads: all methods, any thread. Fork: a child must not use it.

#ifndef FIRSTTOUCH_SERVE_SERVER_H_
#define FIRSTTOUCH_SERVE_SERVER_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/guests_block.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/guest_journal.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

struct ServerOptions {
  uint32_t threads = 2;          // That serve guests; at least 1.
  uint32_t waiting_threads = 4;  // That wait for pages; at least 1.

  size_t max_guests = 4096;
  uint64_t max_guest_bytes = uint64_t{1} << 40;  // Of one guest's regions.
  uint64_t max_total_bytes = uint64_t{1} << 44;

  // What becomes of guests that are there when the server is destroyed.
  enum class AtEnd : uint8_t {
    // Their missing pages are lost to them (Guest::Poison): a touch is a
    // SIGBUS, and nothing reads as zero that is not.
    kPoison,
    // Nothing: another process has the descriptors too, and takes over. To
    // forked children, whose descriptors nobody else has, what kPoison says.
    kLeave,
  };
  AtEnd at_end = AtEnd::kPoison;

  // By which people and pooldump find it: 1 to 64 bytes.
  std::string name = "server";
  // Tell readers in other processes of the guests (control/guests.h).
  bool publish = true;

  // One line that an operator should know. Any thread; must not call the
  // server or a guest.
  std::function<void(const std::string& text)> tell;
  // A guest has ended, or is being detached: what it touched, and what was done
  // for it, can still be asked for. Once for each, in a thread that serves
  // guests or in that of Detach(); must not wait long.
  std::function<void(const std::shared_ptr<Guest>& guest)> ended;
};

// A guest that is to be served.
struct GuestArrival {
  UniqueFd uffd;
  UniqueFd pidfd;  // Of its process. May be none: then it cannot be killed.
  std::vector<GuestRegion> regions;
  std::shared_ptr<GuestImage> image;
  GuestOptions options;
  // Another server has served it before: threads may wait for an answer to what
  // that one has read, and pages that it knows to have changed are not known.
  // The limits of ServerOptions do not refuse it.
  bool taken_over = false;
  // What the guest has given back is not known: its missing pages are lost to
  // it (Guest::Poison) from the start.
  bool lose_missing = false;
  // What became of the regions meanwhile (GuestJournal::Open), in place of
  // them.
  std::optional<AddressMap> map;
  // Kept up to date from the start, for the server after this one; null: none.
  std::unique_ptr<GuestJournal> journal;
};

class Server : private GuestHost {
 public:
  // Errors: InvalidArgument (no threads), ResourceExhausted (threads,
  // descriptors).
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      ServerOptions options, Kernel& kernel = RealKernel());

  // Stops serving; see ServerOptions::at_end. Waits for what a page source is
  // doing.
  ~Server() override;

  // From now on the guest is served. Gives its number, never 0. Errors name the
  // value and the rule: InvalidArgument (a descriptor that is no userfaultfd,
  // or had no handshake; regions that AddressMap::Create refuses),
  // PermissionDenied (a userfaultfd of this process' own memory), OutOfRange (a
  // region behind the image's end), NotFound (the process has ended),
  // ResourceExhausted (a limit of the options, or of the system). A journal's
  // file is taken away then; that of a guest which is taken over stays, unless
  // its process has ended.
  absl::StatusOr<uint64_t> Attach(GuestArrival arrival);

  // The guest, or null where it has ended. It may be used as long as the server
  // lives; its descriptors stay open as long as somebody has it.
  std::shared_ptr<Guest> Find(uint64_t id);

  // Ends serving a guest. `complete`: it has all its pages (Guest::FillAll),
  // or is served by another; otherwise what is missing is lost to it
  // (Guest::Poison). NotFound; Unavailable where neither poisoning nor killing
  // is possible: the guest then stays.
  absl::Status Detach(uint64_t id, bool complete);

  // Stops serving, so that another server can go on with the guests that have a
  // journal: these are what it gives. To others happens what ServerOptions::
  // at_end says. The last call before the destructor.
  std::vector<Guest::Descriptors> HandOver();

  // Waits until the guest has ended.
  void WaitForEnd(uint64_t id);

  std::vector<uint64_t> guests() const;  // Ascending.

 private:
  Server(ServerOptions options, Kernel& kernel);
  absl::Status StartThreads();
  void Stop();
  absl::StatusOr<uint64_t> AttachWhole(GuestArrival arrival);
  void ServeGuests();
  void RunJobs();
  absl::Status CheckDescriptor(int uffd);
  absl::StatusOr<uint64_t> Add(std::shared_ptr<Guest> guest, bool limited);
  void End(uint64_t id, const std::shared_ptr<Guest>& guest);
  void Remove(uint64_t id);

  void RunElsewhere(bool urgent, std::function<void()> job) override;
  bool Help(std::function<void()> job) override;
  void Adopt(std::shared_ptr<Guest> child) override;
  void Tell(const std::string& text) override;

  const ServerOptions options_;
  Kernel& kernel_;
  UniqueFd epoll_;
  UniqueFd stop_;  // An eventfd: readable once the server is to end.
  std::vector<std::thread> threads_;
  // Null where nothing is to be published.
  std::shared_ptr<GuestsBlock> published_;
  std::atomic<uint64_t> last_id_{0};

  mutable Mutex mutex_;
  CondVar guests_changed_;
  uint64_t total_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::shared_ptr<Guest>> guests_ ABSL_GUARDED_BY(mutex_);
  // Of these, whose end is being told.
  std::set<uint64_t> ending_ ABSL_GUARDED_BY(mutex_);

  // Processors that this process may use.
  const unsigned processors_ =
      std::max(std::thread::hardware_concurrency(), 1u);
  // Threads that serve a guest at the moment.
  std::atomic<uint32_t> serving_{0};

  Mutex jobs_mutex_;
  CondVar jobs_changed_;
  // Threads that wait for a job.
  size_t idle_ ABSL_GUARDED_BY(jobs_mutex_) = 0;
  // Threads that run a job that is not urgent.
  size_t background_ ABSL_GUARDED_BY(jobs_mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(jobs_mutex_) = false;
  std::deque<std::function<void()>> urgent_jobs_ ABSL_GUARDED_BY(jobs_mutex_);
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(jobs_mutex_);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_SERVER_H_
