// Mutex, MutexLock, CondVar: absl's, visible to ThreadSanitizer.
//
// A system's abseil library is not compiled with ThreadSanitizer, so that
// everything that its Lock() orders looks like a race. These wrappers forward
// to absl and, in a -fsanitize=thread build only, tell the tool about each
// acquisition. In every other build they are absl's classes, at no cost.
// Clang's thread-safety annotations (ABSL_GUARDED_BY and so on, from
// absl/base/thread_annotations.h) work with them as with absl's.
//
//   class Counter {
//     void Add() {
//       MutexLock lock(&mutex_);
//       ++value_;
//     }
//     Mutex mutex_;
//     int value_ ABSL_GUARDED_BY(mutex_) = 0;
//   };
//
// NOT for the fault path: a fault handler takes no lock, since the thread it
// interrupted may hold it.

#ifndef FIRSTTOUCH_UFFD_MUTEX_H_
#define FIRSTTOUCH_UFFD_MUTEX_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#if defined(__SANITIZE_THREAD__)
#define FIRSTTOUCH_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIRSTTOUCH_THREAD_SANITIZER 1
#endif
#endif

#ifdef FIRSTTOUCH_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace firsttouch {

// A mutual-exclusion lock; not recursive. May be used from any thread, never
// from a signal handler.
class ABSL_LOCKABLE Mutex {
 public:
#ifdef FIRSTTOUCH_THREAD_SANITIZER
  Mutex() { __tsan_mutex_create(&tag_, __tsan_mutex_not_static); }
  ~Mutex() { __tsan_mutex_destroy(&tag_, __tsan_mutex_not_static); }
#else
  Mutex() = default;
  ~Mutex() = default;
#endif
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Waits until no other thread holds the lock, then holds it.
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    BeforeLock(0);
    mutex_.Lock();
    AfterLock(0);
  }

  // Releases the lock; the calling thread must hold it.
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    BeforeUnlock();
    mutex_.Unlock();
    AfterUnlock();
  }

  // Takes the lock and returns true if it is free.
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    BeforeLock(kTry);
    const bool locked = mutex_.TryLock();
    AfterLock(locked ? kTry : kTryFailed);
    return locked;
  }

  // Tells the annotations that the caller holds the lock; debug builds of absl
  // check it.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() { mutex_.AssertHeld(); }

 private:
  friend class CondVar;

#ifdef FIRSTTOUCH_THREAD_SANITIZER
  static constexpr unsigned kTry = 1 << 4;        // __tsan_mutex_try_lock
  static constexpr unsigned kTryFailed = 3 << 4;  // ... and _failed
  void BeforeLock(unsigned flags) { __tsan_mutex_pre_lock(&tag_, flags); }
  void AfterLock(unsigned flags) { __tsan_mutex_post_lock(&tag_, flags, 0); }
  void BeforeUnlock() { __tsan_mutex_pre_unlock(&tag_, 0); }
  void AfterUnlock() { __tsan_mutex_post_unlock(&tag_, 0); }

  // absl's inline constructor announces the address of its mutex; this one's
  // must differ.
  char tag_ = 0;
#else
  static constexpr unsigned kTry = 0;
  static constexpr unsigned kTryFailed = 0;
  void BeforeLock(unsigned) {}
  void AfterLock(unsigned) {}
  void BeforeUnlock() {}
  void AfterUnlock() {}
#endif

  absl::Mutex mutex_;
};

// Holds a Mutex from construction to destruction.
class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

// A condition variable. A wait may return without a signal: wait in a loop that
// checks the condition.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  // Releases `mutex`, waits for a signal, and takes `mutex` again.
  void Wait(Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    mutex->BeforeUnlock();
    mutex->AfterUnlock();
    condition_.Wait(&mutex->mutex_);
    mutex->BeforeLock(0);
    mutex->AfterLock(0);
  }

  // Like Wait, but no longer than `deadline`; true when the deadline passed
  // (check the condition all the same).
  bool WaitWithDeadline(Mutex* mutex, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    mutex->BeforeUnlock();
    mutex->AfterUnlock();
    const bool expired = condition_.WaitWithDeadline(&mutex->mutex_, deadline);
    mutex->BeforeLock(0);
    mutex->AfterLock(0);
    return expired;
  }

  // Wakes one waiter, if there is one.
  void Signal() { condition_.Signal(); }

  // Wakes every waiter.
  void SignalAll() { condition_.SignalAll(); }

 private:
  absl::CondVar condition_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_MUTEX_H_
