// A file descriptor with one owner.

#ifndef FIRSTTOUCH_UFFD_UNIQUE_FD_H_
#define FIRSTTOUCH_UFFD_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace firsttouch {

// Closes its descriptor when destroyed. Not thread-safe; the destructor is
// async-signal-safe but may change errno.
class UniqueFd {
 public:
  UniqueFd() = default;
  // Takes over `fd`; a negative number means "none".
  explicit UniqueFd(int fd) : fd_(fd < 0 ? -1 : fd) {}
  ~UniqueFd() { reset(); }

  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }

  // The descriptor, or -1.
  int get() const { return fd_; }

  // Gives the descriptor up to the caller, which closes it; -1 where there is
  // none.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

  // Closes the descriptor and takes over `fd` (negative: none). An error of
  // close(2) is not reported: the descriptor is gone all the same.
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd < 0 ? -1 : fd;
  }

  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_UNIQUE_FD_H_
