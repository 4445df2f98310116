// A full fence between two threads of which one passes often and the other
// hardly ever, at the expense of the second: for it the fence is a system call
// that interrupts every processor on which a thread of this process runs, and
// for the first it is nothing that the processor would see.
//
//   thread that passes often            thread that hardly ever comes
//     mine.store(1, relaxed);             theirs.store(1, relaxed);
//     fence.Light();                      fence.Heavy();
//     if (theirs.load(relaxed)) ...       if (mine.load(relaxed)) ...
//
// At least one of them sees the other's store, as with a sequentially
// consistent fence in both. Two threads that both pass by Light() have nothing
// of each other.
//
// Where the kernel has no membarrier(2) for this (before 4.14, or a seccomp
// filter), both sides are ordinary fences.
//
// Threads: any. Light() is async-signal-safe.

#ifndef FIRSTTOUCH_UFFD_ASYMMETRIC_FENCE_H_
#define FIRSTTOUCH_UFFD_ASYMMETRIC_FENCE_H_

#include <atomic>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

class AsymmetricFence {
 public:
  // Registers this process with the kernel; costs little the second time, and
  // up to some ms the first time in a process with threads.
  explicit AsymmetricFence(Kernel& kernel);

  // Whether Light() costs nothing.
  bool asymmetric() const { return asymmetric_; }

  void Light() const {
    if (asymmetric_) [[likely]] {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
  }

  // Some us, more with more processors.
  void Heavy() const;

 private:
  Kernel& kernel_;
  const bool asymmetric_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_ASYMMETRIC_FENCE_H_
