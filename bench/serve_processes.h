// Processes that are measured together: how they come and go, wait for each
// other, and tell each other numbers. Whatever fails ends the program.

#ifndef FIRSTTOUCH_BENCH_SERVE_PROCESSES_H_
#define FIRSTTOUCH_BENCH_SERVE_PROCESSES_H_

#include <sys/mman.h>
#include <sys/types.h>

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::bench {

// Zeroes at first, and the same memory in all processes that are forked later.
template <typename T>
class SharedArray {
 public:
  explicit SharedArray(size_t count)
      : bytes_(count * sizeof(T)),
        base_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    if (base_ == MAP_FAILED) Die("mmap of shared memory failed");
  }
  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;
  ~SharedArray() { munmap(base_, bytes_); }

  std::span<T> all() { return {static_cast<T*>(base_), bytes_ / sizeof(T)}; }
  T& operator[](size_t index) { return all()[index]; }

 private:
  const size_t bytes_;
  void* const base_;
};

// A process that runs `body`, and ends with this object.
class Process {
 public:
  explicit Process(absl::FunctionRef<void()> body);
  Process(Process&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Process& operator=(Process&&) = delete;
  ~Process();

  pid_t pid() const { return pid_; }
  bool has_ended() const;

 private:
  pid_t pid_ = -1;
};

// Bytes that processes send this one.
class Channel {
 public:
  Channel();

  // In another process: some bytes, or any one.
  void Tell(const void* what, size_t bytes) const;
  void Tell() const { Tell("", 1); }
  // In another process: waits until this one has asked.
  void WaitUntilAsked() const;

  void Ask() const;
  // Ends the program if one of `processes` ends meanwhile.
  void Hear(void* what, size_t bytes,
            const std::vector<Process>& processes) const;

 private:
  UniqueFd ours_;
  UniqueFd theirs_;
};

// A door that opens once, for all processes at the same time.
class Gate {
 public:
  Gate();
  // In another process, before anything else: its copy keeps the gate closed.
  void Leave() { write_.reset(); }
  void Wait() const;
  void Open() { write_.reset(); }

 private:
  UniqueFd read_;
  UniqueFd write_;
};

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SERVE_PROCESSES_H_
