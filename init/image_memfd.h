// How a memfd of an image is made, and what is said when it cannot be. Internal
// to this folder.
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_IMAGE_MEMFD_H_
#define FIRSTTOUCH_INIT_IMAGE_MEMFD_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/memfd.h"

namespace firsttouch {

// `call` failed for this image: the errno, and what to do about it.
absl::Status ImageCallFailed(const std::string& image_name,
                             const std::string& call, int error);

// A memfd of `bytes` bytes that carries the image's name and may be sealed.
// The caller closes it. `size_bytes` is for the text of an error.
absl::StatusOr<int> CreateImageMemfd(MemfdCalls& calls,
                                     const std::string& image_name,
                                     uint64_t size_bytes, uint64_t bytes);

// Seals the finished memfd of an image for ever: it cannot be written to any
// more. The error is ImageCallFailed's. EBUSY from the kernel means that
// somebody holds a page of it, perhaps the kernel for a moment (a page on its
// way to another place, or in a list of another processor); then this tries
// again, kSealTries times in all. The kernel itself waits up to 150 ms each
// time, but not for a writable mapping.
absl::Status SealImageMemfd(MemfdCalls& calls, const std::string& image_name,
                            int memfd);
inline constexpr int kSealTries = 10;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_MEMFD_H_
