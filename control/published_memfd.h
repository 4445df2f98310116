// The memfd that a block for readers in other processes is in. Internal to this
// folder.
//
// Thread-safe. Not for signal handlers.

#ifndef FIRSTTOUCH_CONTROL_PUBLISHED_MEMFD_H_
#define FIRSTTOUCH_CONTROL_PUBLISHED_MEMFD_H_

#include <cstdint>
#include <string>

#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Makes a memfd of `bytes` bytes, close-on-exec, which SealPublished() seals
// once it is mapped. No descriptor where that is impossible: `why` then says,
// for people, why. `what` is what it is for: "control block".
UniqueFd OpenPublished(MemfdCalls& calls, const std::string& name,
                       uint64_t bytes, const char* what, std::string& why);

// From here on no process gets another writable mapping of it
// (F_SEAL_FUTURE_WRITE, Linux 5.1), or resizes it. Where the kernel lacks the
// first: a reader that runs as this user could write, as it could by other
// ways.
void SealPublished(MemfdCalls& calls, int fd);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_CONTROL_PUBLISHED_MEMFD_H_
