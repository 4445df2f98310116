#include "firsttouch/control/published_memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace firsttouch {
namespace {

// Linux 6.3 and 5.1.
constexpr unsigned kMfdNoexecSeal = 0x0008;
constexpr int kSealFutureWrite = 0x0010;

}  // namespace

UniqueFd OpenPublished(MemfdCalls& calls, const std::string& name,
                       uint64_t bytes, const char* what, std::string& why) {
  const MemfdResult limit = calls.FileSizeLimit();
  if (limit.ok() && bytes > static_cast<uint64_t>(limit.value)) {
    // Trying would raise SIGXFSZ.
    why = absl::StrCat("RLIMIT_FSIZE ", limit.value, " is below the ", bytes,
                       " bytes of its ", what,
                       ", for which it counts too: raise it (ulimit -f)");
    return UniqueFd();
  }
  constexpr unsigned kFlags = MFD_ALLOW_SEALING | MFD_CLOEXEC;
  MemfdResult created = calls.Create(name.c_str(), kFlags | kMfdNoexecSeal);
  if (created.error == EINVAL) created = calls.Create(name.c_str(), kFlags);
  if (!created.ok()) {
    why = absl::StrCat("memfd_create: ", std::strerror(created.error));
    return UniqueFd();
  }
  UniqueFd fd(static_cast<int>(created.value));
  const MemfdResult sized = calls.Truncate(fd.get(), bytes);
  if (!sized.ok()) {
    why = absl::StrCat("ftruncate of a memfd to ", bytes,
                       " bytes: ", std::strerror(sized.error));
    return UniqueFd();
  }
  return fd;
}

void SealPublished(MemfdCalls& calls, int fd) {
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;
  if (!calls.AddSeals(fd, kSeals | kSealFutureWrite | F_SEAL_SEAL).ok()) {
    calls.AddSeals(fd, kSeals | F_SEAL_SEAL);
  }
}

}  // namespace firsttouch
