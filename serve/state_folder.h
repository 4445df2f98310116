// What a server keeps of its guests for the server after it: a folder with a
// journal (guest_journal.h) for each.
//
//   absl::StatusOr<std::unique_ptr<StateFolder>> folder =
//       StateFolder::Open("/run/firsttouchd");
//   arrival.journal = (*folder)->Add(record, map);   // before it is served
//   ...
//   for (const std::string& path : (*folder)->Journals()) ...  // after a crash
//
// One server uses a folder at a time. Who can write to it is trusted with what
// guests see; so it belongs to the server's user, and nobody else may write to
// it.
//
// Threads: any, but for Journals(), which is for the start. Not for signal
// handlers.

#ifndef FIRSTTOUCH_SERVE_STATE_FOLDER_H_
#define FIRSTTOUCH_SERVE_STATE_FOLDER_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest_journal.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

class StateFolder {
 public:
  // Makes the folder (mode 0700) where there is none. `lock`: what another
  // server has passed on of lock(); otherwise the folder is locked anew.
  // Errors: FailedPrecondition (not on a tmpfs, another's, others may write to
  // it), Unavailable (another server uses it), and what the system gives.
  static absl::StatusOr<std::unique_ptr<StateFolder>> Open(
      const std::string& path, UniqueFd lock = UniqueFd());

  const std::string& path() const { return path_; }
  // Held as long as any process has this descriptor.
  int lock() const { return lock_.get(); }

  // A journal for a new guest. Errors: those of GuestJournal::Create.
  absl::StatusOr<std::unique_ptr<GuestJournal>> Add(const GuestRecord& record,
                                                    const AddressMap& map);

  // The paths of the journals that are there, ascending.
  absl::StatusOr<std::vector<std::string>> Journals() const;

 private:
  StateFolder(std::string path, UniqueFd lock)
      : path_(std::move(path)), lock_(std::move(lock)) {}

  const std::string path_;
  const UniqueFd lock_;
  std::atomic<uint64_t> last_number_{0};
};

// Whether a descriptor of this process is a userfaultfd.
bool IsUserfaultfd(int fd);

// What tells a guest's process and its userfaultfd from others; what cannot be
// found out stays as in an empty record. (To look at another process'
// descriptors needs the rights of a debugger.)
GuestRecord RecordOf(pid_t pid, int uffd);

// The process of a record. NotFound: it has ended. FailedPrecondition: it is
// not known which one it was. Other errors: what the system gives.
absl::StatusOr<UniqueFd> OpenProcess(const GuestRecord& record);

// Its userfaultfd, by pidfd_getfd (5.6). Errors: FailedPrecondition where its
// number is not known, or is another descriptor's now; PermissionDenied and
// others as the system gives them, with the way out.
absl::StatusOr<UniqueFd> DescriptorOf(const GuestRecord& record, int pidfd);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_STATE_FOLDER_H_
