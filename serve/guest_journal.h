// What a server must know of a guest to go on where another one was killed, in
// a file that is right at any instant.
//
// A given-back page must stay zero. The kernel tells once that pages are given
// back, and drops them as soon as the event has been read: what is written down
// after that comes too late for a server that is killed in between. So events
// are read into the file itself (a shared mapping): the system call that
// acknowledges an event is the one that records it.
//
//   BeginRead();                        // makes room
//   reader.Read(journal->landing());    // events are in the file from here on
//   EndRead(count);                     // appends them to the log in the file
//   Answered();                         // a fork, too, has been answered
//
// The file has the regions, or what has become of them, when it is made; then a
// log of events; then where events land. Once the log is full, a new file takes
// the place of the old one, by rename.
//
// WHAT IT OUTLIVES: the death of the process at any instruction. Nothing is
// synced to a disk, since no guest outlives the machine. The file must be on a
// tmpfs (StateFolder sees to it): of another file system, a page may be taken
// away for writing it back at the moment at which the kernel copies an event.
//
// Threads: thread-compatible. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_GUEST_JOURNAL_H_
#define FIRSTTOUCH_SERVE_GUEST_JOURNAL_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/events.h"

namespace firsttouch {

// Who a guest is.
struct GuestRecord {
  pid_t pid = 0;
  // When the process started, in clock ticks since the machine did: what tells
  // it from another that gets its number later.
  uint64_t start_time_ticks = 0;
  // The process' own number of its userfaultfd, by which it can be had again;
  // -1: not known. The inode tells it from another, where the kernel gives each
  // its own.
  int uffd_number = -1;
  uint64_t uffd_inode = 0;
  std::string name;    // GuestOptions::name.
  std::string image;   // What the server calls it.
  std::string socket;  // At which it came, likewise.
  std::optional<Digest> image_digest;

  friend bool operator==(const GuestRecord&, const GuestRecord&) = default;
};

class GuestJournal {
 public:
  // What a file of a server that is gone has.
  struct Left;

  // Makes the file; a file of that name is replaced. Errors: ResourceExhausted
  // (no room), and what else the system gives, with the path.
  static absl::StatusOr<std::unique_ptr<GuestJournal>> Create(
      const std::string& path, const GuestRecord& record,
      const AddressMap& map);

  // Reads a file that was left, and changes nothing: GoOn() is for that.
  // Errors: DataLoss for what no journal ever is, with the path and the rule.
  static absl::StatusOr<Left> Open(const std::string& path);
  // Before anything else is done with a journal that was left: puts a new file
  // in place of it. Nobody else may be using the old one. Where there is no
  // room for the new one, the old one stays, and says that it lacks events: it
  // is not complete() from then on. Errors: those of Create, where the old one
  // cannot be changed either.
  absl::Status GoOn(const AddressMap& map);

  GuestJournal(const GuestJournal&) = delete;
  GuestJournal& operator=(const GuestJournal&) = delete;
  // The file stays.
  ~GuestJournal();

  // Makes room for a read into landing(). `map` is what all events so far have
  // made of the regions. Where that needs a new file and there is no room, the
  // journal is not complete() from then on.
  void BeginRead(const AddressMap& map);
  std::span<uffd_msg, EventReader::kBatch> landing();
  // So many have been read.
  void EndRead(size_t count);
  // They have been answered. BeginRead() says so otherwise, as late as that.
  void Answered();

  // Whether the file has all that has happened.
  bool complete() const { return complete_; }
  // The file does not have it any more: complete() is false from now on.
  void GiveUp();
  // Takes the file away: the guest has ended, or needs no server.
  void Forget();

  const std::string& path() const { return path_; }
  const GuestRecord& record() const { return record_; }

 private:
  struct File;  // As it is in memory.

  GuestJournal(std::string path, GuestRecord record)
      : path_(std::move(path)), record_(std::move(record)) {}
  // Puts a new file under the name.
  absl::Status Write(const AddressMap& map);
  // Uses the file that is there, without its log. False: that cannot be.
  bool MapOld();
  void Unmap();
  uffd_msg* log() const;

  const std::string path_;
  const GuestRecord record_;
  bool complete_ = true;
  File* file_ = nullptr;
  size_t file_bytes_ = 0;
  uint64_t log_capacity_ = 0;
  size_t landed_ = 0;  // Messages of landing() that may not be zero.
};

struct GuestJournal::Left {
  AddressMap map;
  // A fork was being answered when the server was killed: the descriptor of the
  // child is gone with it, and what the child missed it may have read as zero.
  bool lost_fork = false;
  // Its complete() is false where pages may have been given back that `map`
  // does not know of.
  std::unique_ptr<GuestJournal> journal;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_GUEST_JOURNAL_H_
