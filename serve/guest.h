// One guest of a server: a process whose memory is filled from an image.
//
// A guest is served in turns. A turn reads what userfaultfd has to tell, places
// pages for some faults in the order in which they came, and, when nobody
// waits, some pages of its working set or of the rest. Whoever runs turns
// (server.h) decides who is next, so that one guest's faults do not keep
// others waiting.
//
// WHAT A GUEST CAN SEE of a page, in every order of events: the image's bytes,
// or zeroes if the image does not store the page or the guest gave it back; in
// no case anything else. Events are read, and pages placed, under one lock, and
// each placing looks up anew what the page begins with. So a page that was
// given back cannot get the image's bytes afterwards: the kernel drops the
// pages only when the event has been read, and refuses to place any (EAGAIN)
// while one is unread.
//
// For server.h; tests of single turns use it too. Threads: any; Turn() of one
// guest in one thread at a time.

#ifndef FIRSTTOUCH_SERVE_GUEST_H_
#define FIRSTTOUCH_SERVE_GUEST_H_

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/control/guests_block.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/early_pages.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/guest_journal.h"
#include "firsttouch/serve/page_placer.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// What happens to a guest that needs a page which cannot be had. It never gets
// other bytes.
enum class OnLoss : uint8_t {
  // A touch of the page is a SIGBUS (UFFDIO_POISON, 6.6). Kills the guest where
  // the kernel cannot.
  kPoison,
  // The process is killed, by SIGKILL. Without a descriptor of the process the
  // page is poisoned.
  kKill,
};

// How a guest is served.
struct GuestOptions {
  // For messages.
  std::string name;

  OnLoss on_loss = OnLoss::kPoison;
  // How long a page that cannot be had is tried again before that.
  std::chrono::milliseconds retry_for{0};

  // What one fault fills at most, around pages that are touched one after the
  // other; a power of two, from kPageBytes. A fault elsewhere fills one page.
  uint64_t most_read_ahead_bytes = uint64_t{64} << 10;

  // Place the image's working set before it is asked for. Pages that lie
  // together are placed together.
  bool place_working_set = true;
  // Placed before that, in this order: RunsOf() what an earlier guest touched.
  // Null: nothing. In pages of the image.
  std::shared_ptr<const std::vector<PageRun>> place_first;
  // Bytes a second of the rest of the image that are placed while nobody waits.
  // 0: none. UINT64_MAX: as fast as it goes.
  uint64_t background_bytes_per_second = 0;

  // Note the order and the time in which the guest touches its pages. Each
  // fault then fills one page, and nothing is placed before it is asked for.
  bool record_touches = false;

  // In how many pieces (address_map.h) its memory may be. A guest whose pages
  // come to lie in more, by what it gives back, moves or unmaps, is not served
  // any more: what is missing is lost to it, as `on_loss` says.
  size_t most_pieces = size_t{1} << 20;

  // A child that the guest forks is served like the guest (the client has asked
  // for the event; otherwise there is none, and no server knows the child).
  // False: a touch of its missing pages is a SIGBUS.
  bool serve_forks = true;
};

// What has been done for a guest; counts since it came.
struct GuestStats {
  uint64_t faults = 0;  // That were answered.
  uint64_t write_protect_faults = 0;
  uint64_t pages_copied = 0;  // From the image. In units of kPageBytes.
  uint64_t pages_zeroed = 0;
  uint64_t pages_placed_early = 0;  // Of both, before they were asked for.
  uint64_t removes = 0;             // Events that the kernel sent.
  uint64_t unmaps = 0;
  uint64_t moves = 0;
  uint64_t forks = 0;
  uint64_t stopped = 0;  // Calls that an unread event made the kernel stop.
  uint64_t waits = 0;    // Faults that waited for a page source or a check.
  uint64_t retries = 0;
  uint64_t lost = 0;   // Faults that ended by GuestOptions::on_loss.
  uint64_t bytes = 0;  // Of its memory, at present.
};

class Guest;

// What a guest asks of whoever serves it.
class GuestHost {
 public:
  virtual ~GuestHost() = default;
  // Runs `job`, which may wait, in a thread that serves nobody. `urgent`: a
  // thread of a guest waits for it.
  virtual void RunElsewhere(bool urgent, std::function<void()> job) = 0;
  // The same, soon, in a thread that has nothing else to do, on a processor
  // that nobody waits for. False where there is none: then the job never runs.
  virtual bool Help(std::function<void()> job) = 0;
  // The guest has forked: the child is a guest of its own.
  virtual void Adopt(std::shared_ptr<Guest> child) = 0;
  // Something that an operator should know: one line.
  virtual void Tell(const std::string& text) = 0;
};

// One class because one lock guards what is known of a guest, and each step of
// a turn changes some of it; how pages are placed, and which early, is apart.
class Guest : public std::enable_shared_from_this<Guest> {
 public:
  using Clock = std::chrono::steady_clock;

  // What a guest is made of.
  struct Parts {
    Kernel* kernel = &RealKernel();
    GuestHost* host = nullptr;  // Must outlive the guest.
    UniqueFd uffd;
    UniqueFd pidfd;  // Of the process; may be none.
    AddressMap map;
    std::shared_ptr<GuestImage> image;
    GuestOptions options;
    // Where what another server must know is kept; null: nowhere.
    std::unique_ptr<GuestJournal> journal;
    // A child that a guest has forked: nobody else has its userfaultfd.
    bool forked = false;
    // Of the process, for readers in other processes; 0: not known.
    pid_t pid = 0;
  };

  // Makes the userfaultfd non-blocking. Errors: OutOfRange for a region that
  // reaches past the image's end; ResourceExhausted where there are no
  // descriptors.
  static absl::StatusOr<std::shared_ptr<Guest>> Create(Parts parts);

  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;
  // Closes the descriptors. Pages that are missing then read as zeroes, unless
  // the client has kept its userfaultfd: see Poison().
  ~Guest();

  // Readable (poll(2)) when a turn is due. Level-triggered.
  int poll_fd() const { return epoll_.get(); }

  // One turn. False: the guest has ended, and there will be no more.
  bool Turn();

  // Turns every page that is missing into a lost one (SIGBUS), or kills the
  // process where the kernel cannot do that, so that the descriptors can be
  // closed without a page that silently reads as zero. For a guest whose memory
  // goes on living without a server. Pages that are there can be written to
  // from then on, and count as changed. False: neither could be done (the host
  // has been told), and to close the descriptors would be wrong.
  bool Poison();

  // Makes threads that wait ask again: for a server that has taken over a
  // userfaultfd from one that has died, which may have read their faults.
  void WakeAll();

  // Places all pages that the image stores and calls `done` (with the guest's
  // lock: it must not call the guest) with OK: the memory needs no server then;
  // or with the first error, when all has been tried, or so much has failed
  // that the rest is not. Memory that the process does not have registered any
  // more needs no pages; the host is told. Another call before that takes its
  // place.
  void FillAll(std::function<void(absl::Status)> done);

  // All pages count as changed, for ChangedPages(): what is known of them was
  // lost with another server.
  void ChangedAll();

  // Gives the guest up to another server, which goes on by its journal. There
  // are no more turns then. Nothing: it has ended, or has no journal.
  struct Descriptors {
    std::string journal;
    UniqueFd uffd;
    UniqueFd pidfd;
  };
  std::optional<Descriptors> Leave();
  // The path of its journal; empty where it has none.
  std::string journal_path() const;
  // Takes the journal away, if there is one: no server will need it.
  void Forget();

  // The pages that differ from the image since it was loaded, or since the last
  // call with `restart`: written to, or given back. Ascending; in the image.
  // Only of regions with track_writes. With `restart` all pages are protected
  // again. Errors: what the kernel says to that; ResourceExhausted: see
  // GuestOptions::most_pieces.
  absl::StatusOr<std::vector<PageRun>> ChangedPages(bool restart);

  // With GuestOptions::record_touches, in order.
  std::vector<Touch> Touches() const;
  // Adds them to the image's working set (init/working_set.h), for the next
  // guests of this image and whoever saves it.
  void TeachWorkingSet() const;

  // Tells readers in other processes of it, as guest `number`, from now on and
  // as long as it is there; in place of what they were told before.
  void PublishIn(GuestsBlock& block, uint64_t number);

  GuestStats Stats() const;
  const std::string& name() const { return options_.name; }
  const std::shared_ptr<GuestImage>& image() const { return image_; }
  uint64_t first_bytes() const { return first_bytes_; }
  bool forked() const { return forked_; }

 private:
  // Somebody waits for the page at `address`.
  struct Fault {
    uintptr_t address = 0;
    bool write = false;
    bool write_protect = false;
    bool minor = false;
    // Set when the page could not be had for the first time.
    std::optional<Clock::time_point> lost_at;
    uint32_t tries = 0;
    bool told = false;  // That it is lost.
    Clock::time_point due{};
    // What making the page ready has come to.
    absl::Status ready;
  };
  explicit Guest(Parts parts);
  absl::Status Watch();
  // What MakeReady() has come to for the fault at `page`, or for what is placed
  // early; the offset is that of what failed.
  void Arrived(uintptr_t page, const absl::Status& status);
  void ArrivedEarly(uint64_t image_offset_bytes, const absl::Status& status);

  // ---- All below: with the lock ----
  // True: there were some.
  bool ReadEvents() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Handle(const Event& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives the guest up where its memory is in too many pieces.
  void LimitPieces() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AdoptChild(int uffd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // False: stopped; the fault is to be served again.
  bool Serve(Fault& fault) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The page cannot be had. False as for Serve().
  bool Lose(Fault& fault, uintptr_t page, uint64_t page_bytes,
            const absl::Status& why, bool retry)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Poisons missing pages of a piece, as far as it is registered. `calls`
  // counts for all pieces.
  Placed PoisonParts(const AddressMap::Piece& piece, uint64_t* calls)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Poisons missing pages, and lets the others be written to.
  Placed PoisonAll(const AddressMap::Piece& piece, uintptr_t start,
                   uintptr_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountLost(uintptr_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Kill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TellJournalIsFull() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WaitFor(const Fault& fault, uintptr_t page, const Placed& needs)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Record(const Fault& fault, const AddressMap::Piece& piece)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The pages that a fault at `page` fills.
  uintptr_t ReadAhead(const AddressMap::Piece& piece, uintptr_t page)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // What is to be placed before the rest.
  void PlanEarly() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Places some pages early, no more than a thread may have to wait for. False:
  // there is nothing to do at the moment.
  bool PlaceEarly() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is to be placed next; may be nothing.
  std::vector<EarlyPages::Some> NextEarly()
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes those out that wait for a check or a page source, which begins.
  void WaitForEarly(std::vector<EarlyPages::Some>& pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What became of placing some early. False: no more for now.
  bool AfterEarly(const EarlyPages::Some& some, const Placed& placed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The pages that are placed early from there on cannot be had: others are.
  void LoseEarly(uint64_t image_offset_bytes, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndFillAll(const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // For readers in other processes: adds to a count of the region that has this
  // place of the image; where the regions are now; how many faults wait.
  void Count(uint64_t image_offset_bytes, uint64_t RegionInBlock::*count,
             uint64_t number = 1) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<size_t> RegionOf(uint64_t image_offset_bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PublishPlaces() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Regions were unmapped or moved since the last PublishPlaces().
  bool places_changed_ ABSL_GUARDED_BY(mutex_) = false;
  void PublishWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void MarkChanged(const AddressMap::Piece& piece, uintptr_t start,
                   uintptr_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Alive() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LookAtProcess() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // When the next turn is due though no descriptor says so.
  std::optional<Clock::duration> NextDue(bool at_once)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetTimer(std::optional<Clock::duration> in)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Kernel& kernel_;
  GuestHost& host_;
  const GuestOptions options_;
  const std::shared_ptr<GuestImage> image_;
  const uint64_t first_bytes_;
  const bool forked_;
  const pid_t pid_;
  const Clock::time_point came_ = Clock::now();
  UniqueFd epoll_;
  UniqueFd timer_;

  mutable Mutex mutex_;
  UniqueFd uffd_ ABSL_GUARDED_BY(mutex_);
  UniqueFd pidfd_ ABSL_GUARDED_BY(mutex_);
  EventReader reader_ ABSL_GUARDED_BY(mutex_);
  PagePlacer placer_ ABSL_GUARDED_BY(mutex_);
  AddressMap map_ ABSL_GUARDED_BY(mutex_);
  const std::unique_ptr<GuestJournal> journal_ ABSL_PT_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  // Every page that is missing is lost.
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;
  // So that it does not follow events any more.
  bool in_too_many_pieces_ ABSL_GUARDED_BY(mutex_) = false;
  // Nor knows where memory is that has been moved since.
  bool has_moved_since_ ABSL_GUARDED_BY(mutex_) = false;

  // Forked children that can be neither served nor poisoned: their descriptors
  // stay open, so that nothing reads as zero.
  std::vector<std::shared_ptr<Guest>> kept_ ABSL_GUARDED_BY(mutex_);

  std::deque<Fault> queue_ ABSL_GUARDED_BY(mutex_);
  // Tried again later.
  std::vector<Fault> later_ ABSL_GUARDED_BY(mutex_);
  // Waiting for MakeReady(), by page.
  std::map<uintptr_t, Fault> waiting_ ABSL_GUARDED_BY(mutex_);
  // What the timer was last set to.
  enum class TimerState : uint8_t { kOff, kOn, kDue };
  TimerState timer_state_ ABSL_GUARDED_BY(mutex_) = TimerState::kOff;
  // Stops in a row without an event to read.
  uint32_t stops_ ABSL_GUARDED_BY(mutex_) = 0;

  // Where a fault would be that goes on from the last one, and what it fills.
  uintptr_t next_in_row_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t read_ahead_bytes_ ABSL_GUARDED_BY(mutex_) = kPageBytes;

  EarlyPages early_ ABSL_GUARDED_BY(mutex_);
  bool early_waits_ ABSL_GUARDED_BY(mutex_) = false;
  // Where pieces begin in the image that could not be had, since the beginning
  // or the last FillAll(); and whether these were too many to go on.
  std::set<uint64_t> early_lost_ ABSL_GUARDED_BY(mutex_);
  bool early_failed_ ABSL_GUARDED_BY(mutex_) = false;
  // When the background may go on, by its rate.
  Clock::time_point background_due_ ABSL_GUARDED_BY(mutex_){};
  std::function<void(absl::Status)> fill_done_ ABSL_GUARDED_BY(mutex_);
  // Of FillAll(): its first error, and whether there was memory that is not
  // registered.
  absl::Status fill_error_ ABSL_GUARDED_BY(mutex_);
  bool fill_unregistered_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<uint64_t> changed_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> touched_ ABSL_GUARDED_BY(mutex_);
  std::vector<Touch> touches_ ABSL_GUARDED_BY(mutex_);
  GuestStats stats_ ABSL_GUARDED_BY(mutex_);

  // Null: nobody is told.
  std::unique_ptr<GuestsBlock::Entry> published_ ABSL_GUARDED_BY(mutex_);
  struct PublishedRegion {
    uint64_t image_offset_bytes = 0;
    uint64_t bytes = 0;
  };
  std::vector<PublishedRegion> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_GUEST_H_
