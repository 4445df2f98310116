// A thread that tidies up when it is told to.

#ifndef FIRSTTOUCH_SERVICE_JANITOR_H_
#define FIRSTTOUCH_SERVICE_JANITOR_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

class Janitor {
 public:
  // Starts the thread, which calls `work` once after each Wake(), or once for
  // several that come while it works. Named "ft-trim:" and `name`, cut to what
  // the kernel takes; all signals blocked. Errors: ResourceExhausted where no
  // thread can be had.
  static absl::StatusOr<std::unique_ptr<Janitor>> Start(
      const std::string& name, std::function<void()> work);

  // Waits until `work`, if it runs, has returned, and ends the thread.
  ~Janitor();

  Janitor(const Janitor&) = delete;
  Janitor& operator=(const Janitor&) = delete;

  // Any thread; not in a signal handler. Cheap while the janitor is awake.
  void Wake();

 private:
  explicit Janitor(std::function<void()> work) : work_(std::move(work)) {}

  void Run();

  const std::function<void()> work_;
  std::atomic<bool> awake_{false};
  Mutex mutex_;
  CondVar changed_;
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_JANITOR_H_
