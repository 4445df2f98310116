// Runs a job in a thread of its own each time that it is asked for.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SAVER_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SAVER_H_

#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::firsttouchd {

// Threads: any.
class Saver {
 public:
  // Errors: ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Saver>> Start(
      std::function<void()> job);
  // Does what was asked for first.
  ~Saver();

  // Requests that come while the job waits for its turn are one.
  void Request();

 private:
  explicit Saver(std::function<void()> job) : job_(std::move(job)) {}
  void Run();

  const std::function<void()> job_;
  std::thread thread_;
  Mutex mutex_;
  CondVar changed_;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SAVER_H_
