// Threads that read fault events and resolve them.

#ifndef FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_
#define FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/fault_core.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Running from Start() to destruction. Named "ft:POOL" in /proc/PID/task/*/comm
// (cut to the kernel's 15 characters), with every signal blocked: no handler of
// the host runs on them. Thread-compatible.
class HandlerThreads {
 public:
  // `core` must outlive the threads. Errors: ResourceExhausted when a thread or
  // a descriptor cannot be had; no thread is left behind then.
  static absl::StatusOr<std::unique_ptr<HandlerThreads>> Start(
      FaultCore& core, const std::string& name, uint32_t count);

  HandlerThreads(const HandlerThreads&) = delete;
  HandlerThreads& operator=(const HandlerThreads&) = delete;
  // Ends the threads and waits for them. (Closing the userfaultfd would not
  // wake a reader: an eventfd in its poll set does.)
  ~HandlerThreads();

 private:
  HandlerThreads(FaultCore& core, UniqueFd stop)
      : core_(core), stop_(std::move(stop)) {}

  void Run();

  FaultCore& core_;
  UniqueFd stop_;
  std::vector<std::thread> threads_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_
