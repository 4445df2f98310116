#include "firsttouch/init/image_memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/memfd.h"

namespace firsttouch {
namespace {

// Linux 6.3; not in Debian 12's headers.
constexpr unsigned kMfdNoexecSeal = 0x0008;

// memfd_create's limit: a file name of 255 bytes less its own "memfd:".
constexpr size_t kMaxMemfdNameBytes = 249;

// What to do about an errno of one of the calls below.
const char* Remedy(int error) {
  switch (error) {
    case EMFILE:
      return "close descriptors or raise RLIMIT_NOFILE (ulimit -n)";
    case ENFILE:
      return "close files in other processes or raise fs.file-max";
    case ENOMEM:
      return "free memory, or raise RLIMIT_AS (ulimit -v), vm.max_map_count or "
             "the memory limit of the container";
    case ENOSPC:
    case EDQUOT:
      return "free shared memory or raise the memory limit of the container";
    case EPERM:
    case ENOSYS:
    case EACCES:
      return "allow memfd_create and F_ADD_SEALS in the seccomp or security "
             "policy (Linux 3.17 or later)";
    case EBUSY:
      return "a page of it stays pinned, or it is mapped for writing: nobody "
             "but this library may have its descriptor by then";
    case EFAULT:
      return "the source bytes must stay mapped and readable during the call";
    default:
      return "this is not expected of Linux 3.17 or later";
  }
}

}  // namespace

absl::Status ImageCallFailed(const std::string& image_name,
                             const std::string& call, int error) {
  return absl::ErrnoToStatus(
      error, absl::StrCat("image '", image_name, "': ", call,
                          " failed with errno ", error, "; ", Remedy(error)));
}

absl::StatusOr<int> CreateImageMemfd(MemfdCalls& calls,
                                     const std::string& image_name,
                                     uint64_t size_bytes, uint64_t bytes) {
  const MemfdResult limit = calls.FileSizeLimit();
  if (limit.ok() && bytes > static_cast<uint64_t>(limit.value)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("image '", image_name, "': size_bytes ", size_bytes,
                     " exceeds RLIMIT_FSIZE ", limit.value,
                     ", which holds for a memfd too; raise it (ulimit -f)"));
  }
  const std::string memfd_name =
      absl::StrCat("firsttouch:", image_name).substr(0, kMaxMemfdNameBytes);
  constexpr unsigned kFlags = MFD_ALLOW_SEALING | MFD_CLOEXEC;
  MemfdResult created =
      calls.Create(memfd_name.c_str(), kFlags | kMfdNoexecSeal);
  if (created.error == EINVAL) {
    created = calls.Create(memfd_name.c_str(), kFlags);
  }
  if (!created.ok())
    return ImageCallFailed(image_name, "memfd_create", created.error);
  const int memfd = static_cast<int>(created.value);
  const MemfdResult sized = calls.Truncate(memfd, bytes);
  if (!sized.ok()) {
    calls.Close(memfd);
    return ImageCallFailed(image_name,
                           absl::StrCat("ftruncate to ", bytes, " bytes"),
                           sized.error);
  }
  return memfd;
}

absl::Status SealImageMemfd(MemfdCalls& calls, const std::string& image_name,
                            int memfd) {
  constexpr int kSeals =
      F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  MemfdResult sealed;
  for (int i = 0; i < kSealTries; ++i) {
    sealed = calls.AddSeals(memfd, kSeals);
    if (sealed.error != EBUSY) break;
  }
  if (sealed.ok()) return absl::OkStatus();
  return ImageCallFailed(image_name, "fcntl(F_ADD_SEALS)", sealed.error);
}

}  // namespace firsttouch
