// Distinguishes the process that made something from the children that fork(2)
// makes of it. A child inherits the object, but not what it stands for: a
// MADV_DONTFORK mapping and a thread do not exist in the child, and a
// userfaultfd still acts on the parent's memory. In the place of such a mapping
// the child may have anything by now, for example a stack of its own, and
// another thread may have reused the record of a missing thread. So an object
// that owns one of these keeps a mark, and in any other process it neither uses
// nor frees what it owns:
//
//   const ProcessMark made_by_ = ProcessMark::Here();
//   ~Owner() { if (made_by_.IsHere()) kernel_.Munmap(base_, bytes_); }
//
// Do not compare getpid(2) instead: a child in a PID namespace of its own may
// have the number of its parent, and so may a later child of a dead parent.
//
// Kernel: MADV_WIPEONFORK (4.14). Where it is refused, pthread_atfork(3) tells
// the child; a child made by a bare clone(2) is not told then.
#ifndef FIRSTTOUCH_UFFD_PROCESS_MARK_H_
#define FIRSTTOUCH_UFFD_PROCESS_MARK_H_

#include <atomic>
#include <cstdint>

namespace firsttouch {

class ProcessMark {
 public:
  // The mark of no process.
  constexpr ProcessMark() = default;

  // The mark of the calling process. Any thread; not in a signal handler, where
  // the first call of a process may allocate. Never fails.
  static ProcessMark Here();

  // Whether this is the mark of the calling process. A child that shares its
  // parent's memory (vfork(2), CLONE_VM) is the same process in this sense. Any
  // thread; async-signal-safe: two loads, no system call.
  bool IsHere() const noexcept {
    return word_->load(std::memory_order_relaxed) == mark_;
  }

 private:
  constexpr ProcessMark(const std::atomic<uint64_t>* word, uint64_t mark)
      : word_(word), mark_(mark) {}

  static constexpr std::atomic<uint64_t> kNoProcess{0};

  // The word of the running process: zero in a child until the child makes a
  // mark of its own, which differs from those of all its ancestors.
  const std::atomic<uint64_t>* word_ = &kNoProcess;
  uint64_t mark_ = 1;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_PROCESS_MARK_H_
