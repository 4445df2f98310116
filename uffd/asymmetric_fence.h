// A full fence between a thread that passes often and a thread that passes
// rarely, at the cost of the second: for the second the fence is a system call
// that interrupts every processor on which a thread of this process runs; for
// the first it restrains only the compiler.
//
//   thread that passes often            thread that hardly ever comes
//     mine.store(1, relaxed);             theirs.store(1, relaxed);
//     fence.Light();                      fence.Heavy();
//     if (theirs.load(relaxed)) ...       if (mine.load(relaxed)) ...
//
// At least one of them sees the other's store, as with a sequentially
// consistent fence in both. Between two threads that both pass by Light() there
// is no ordering.
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
  // Registers this process with the kernel; cheap the second time, and up to
  // some ms the first time in a process with threads.
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

  // Takes some us, and longer with more processors.
  void Heavy() const;

 private:
  Kernel& kernel_;
  const bool asymmetric_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_ASYMMETRIC_FENCE_H_
