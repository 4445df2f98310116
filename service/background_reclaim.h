// The thread that reclaims memory in the background, when it is woken.

#ifndef FIRSTTOUCH_SERVICE_BACKGROUND_RECLAIM_H_
#define FIRSTTOUCH_SERVICE_BACKGROUND_RECLAIM_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

class BackgroundReclaim {
 public:
  static constexpr absl::Duration kRest = absl::Milliseconds(20);

  // Starts the thread. It calls `work` once after a Wake(), and once for all
  // Wake() calls that come while it works or rests; it calls `work` again
  // without a Wake() after `work` has returned true. The thread rests for
  // `rest` after each round, so that frequent wake-ups cost their callers
  // little. It is named "ft-trim:" and `name`, cut to the kernel's limit, and
  // signal-masked (signal_masked_thread.h). Errors: ResourceExhausted where no
  // thread can be had.
  static absl::StatusOr<std::unique_ptr<BackgroundReclaim>> Start(
      const std::string& name, std::function<bool()> work,
      absl::Duration rest = kRest);

  // Waits until `work`, if it runs, has returned, and ends the thread.
  ~BackgroundReclaim();

  BackgroundReclaim(const BackgroundReclaim&) = delete;
  BackgroundReclaim& operator=(const BackgroundReclaim&) = delete;

  // Any thread; not in a signal handler. Costs one load where a round is
  // pending already. The pending round sees what the caller did before the
  // call, as far as both use sequentially consistent operations.
  void Wake();

 private:
  BackgroundReclaim(std::function<bool()> work, absl::Duration rest)
      : work_(std::move(work)), rest_(rest) {}

  void Run();

  const std::function<bool()> work_;
  const absl::Duration rest_;
  // Whether a round is pending.
  std::atomic<bool> awake_{false};
  Mutex mutex_;
  CondVar changed_;
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_BACKGROUND_RECLAIM_H_
