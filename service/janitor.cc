#include "firsttouch/service/janitor.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

absl::StatusOr<std::unique_ptr<Janitor>> Janitor::Start(
    const std::string& name, std::function<bool()> work, absl::Duration rest) {
  std::unique_ptr<Janitor> janitor(new Janitor(std::move(work), rest));
  // A thread inherits the mask: the host's signals are none of its business.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::error_code error;
  try {
    janitor->thread_ = std::thread([raw = janitor.get()] { raw->Run(); });
  } catch (const std::system_error& refused) {
    error = refused.code();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no thread to keep resident_budget_bytes of pool \"", name,
        "\": ", error.message(), "; raise the limit of threads (ulimit -u)"));
  }
  constexpr size_t kMostNameBytes = 15;
  pthread_setname_np(
      janitor->thread_.native_handle(),
      absl::StrCat("ft-trim:", name).substr(0, kMostNameBytes).c_str());
  return janitor;
}

Janitor::~Janitor() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    ending_ = true;
    changed_.Signal();
  }
  thread_.join();
}

void Janitor::Wake() {
  if (awake_.load(std::memory_order_seq_cst)) return;
  if (awake_.exchange(true, std::memory_order_seq_cst)) return;
  MutexLock lock(&mutex_);
  wanted_ = true;
  changed_.Signal();
}

void Janitor::Run() {
  bool again = false;
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!wanted_ && !again && !ending_) changed_.Wait(&mutex_);
      if (ending_) return;
      wanted_ = false;
    }
    // What comes from here on may be missed by this round.
    awake_.exchange(false, std::memory_order_seq_cst);
    again = work_();
    const absl::Time rested = absl::Now() + rest_;
    MutexLock lock(&mutex_);
    while (!ending_ && !changed_.WaitWithDeadline(&mutex_, rested)) {
    }
  }
}

}  // namespace firsttouch
