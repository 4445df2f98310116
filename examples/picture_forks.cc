#include "firsttouch/examples/picture_forks.h"

#include <sys/mman.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::examples {
namespace {

// What the child leaves, in front of the pixels.
struct Answer {
  uint32_t width;
  uint32_t height;
  uint32_t error_bytes;
  char error[240];
};

constexpr size_t kSharedBytes = sizeof(Answer) + kMaxPictureBytes;

// Memory of this process and its children.
class SharedMemory {
 public:
  SharedMemory()
      : at_(mmap(nullptr, kSharedBytes, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~SharedMemory() {
    if (at_ != MAP_FAILED) munmap(at_, kSharedBytes);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  bool ok() const { return at_ != MAP_FAILED; }
  Answer& answer() const { return *static_cast<Answer*>(at_); }
  std::byte* pixels() const {
    return static_cast<std::byte*>(at_) + sizeof(Answer);
  }

 private:
  void* const at_;
};

[[noreturn]] void AnswerAndExit(PictureFile file, const SharedMemory& shared) {
  Answer& answer = shared.answer();
  const absl::Status status = DecodeHere(file, [&](const PictureView& picture) {
    answer.width = picture.width;
    answer.height = picture.height;
    if (CheckPictureSize(picture.width, picture.height).ok()) {
      memcpy(shared.pixels(), picture.rgba.data(), picture.rgba.size());
    }
  });
  const std::string_view error(status.message().data(),
                               status.message().size());
  const size_t bytes = std::min(error.size(), sizeof answer.error);
  memcpy(answer.error, error.data(), bytes);
  answer.error_bytes = static_cast<uint32_t>(bytes);
  // Nothing of the parent's is destroyed or flushed.
  _exit(status.ok() ? 0 : 1);
}

}  // namespace

absl::Status DecodeInFork(PictureFile file, UsePicture use) {
  const SharedMemory shared;
  if (!shared.ok()) return absl::ErrnoToStatus(errno, "mmap");
  const pid_t child = fork();
  if (child < 0) return absl::ErrnoToStatus(errno, "fork");
  if (child == 0) AnswerAndExit(file, shared);
  int ended = 0;
  while (waitpid(child, &ended, 0) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "waitpid");
  }
  if (WIFSIGNALED(ended)) {
    return absl::AbortedError(
        absl::StrCat("its process was ended by signal ", WTERMSIG(ended)));
  }
  // What a child says that a file may have taken over.
  Answer answer;
  memcpy(&answer, &shared.answer(), sizeof answer);
  if (WEXITSTATUS(ended) != 0) {
    return absl::InvalidArgumentError(absl::string_view(
        answer.error,
        std::min<size_t>(answer.error_bytes, sizeof answer.error)));
  }
  if (absl::Status fits = CheckPictureSize(answer.width, answer.height);
      !fits.ok()) {
    return fits;
  }
  use({.width = answer.width,
       .height = answer.height,
       .rgba = std::span(shared.pixels(),
                         size_t{answer.width} * answer.height * 4)});
  return absl::OkStatus();
}

}  // namespace firsttouch::examples
