#include "firsttouch/service/background_reclaim.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/signal_masked_thread.h"

namespace firsttouch {

absl::StatusOr<std::unique_ptr<BackgroundReclaim>> BackgroundReclaim::Start(
    const std::string& name, std::function<bool()> work, absl::Duration rest) {
  std::unique_ptr<BackgroundReclaim> reclaim(
      new BackgroundReclaim(std::move(work), rest));
  absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
      absl::StrCat("ft-trim:", name), [raw = reclaim.get()] { raw->Run(); });
  if (!thread.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no thread to keep resident_budget_bytes of pool \"", name, "\": ",
        thread.status().message(), "; raise the limit of threads (ulimit -u)"));
  }
  reclaim->thread_ = *std::move(thread);
  return reclaim;
}

BackgroundReclaim::~BackgroundReclaim() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    ending_ = true;
    changed_.Signal();
  }
  thread_.join();
}

void BackgroundReclaim::Wake() {
  if (awake_.load(std::memory_order_seq_cst)) return;
  if (awake_.exchange(true, std::memory_order_seq_cst)) return;
  MutexLock lock(&mutex_);
  wanted_ = true;
  changed_.Signal();
}

void BackgroundReclaim::Run() {
  bool again = false;
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!wanted_ && !again && !ending_) changed_.Wait(&mutex_);
      if (ending_) return;
      wanted_ = false;
    }
    // This round may miss what comes from here on.
    awake_.exchange(false, std::memory_order_seq_cst);
    again = work_();
    const absl::Time rested = absl::Now() + rest_;
    MutexLock lock(&mutex_);
    while (!ending_ && !changed_.WaitWithDeadline(&mutex_, rested)) {
    }
  }
}

}  // namespace firsttouch
