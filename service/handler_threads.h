// Threads that read fault events and resolve them.

#ifndef FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_
#define FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// They run from Start() to destruction. They are named "ft:POOL" in
// /proc/PID/task/*/comm (cut to the kernel's 15 characters), and signal-masked
// (signal_masked_thread.h): they take none of the host's signals.
// Thread-compatible.
class HandlerThreads {
 public:
  // `fault_pool` must outlive the threads. Errors: ResourceExhausted when a
  // thread or a descriptor cannot be had; no thread is left behind then.
  static absl::StatusOr<std::unique_ptr<HandlerThreads>> Start(
      FaultPool& fault_pool, const std::string& name, uint32_t count);

  HandlerThreads(const HandlerThreads&) = delete;
  HandlerThreads& operator=(const HandlerThreads&) = delete;
  // Ends the threads and waits for them. (Closing the userfaultfd would not
  // wake a reader: an eventfd in its poll set does.)
  ~HandlerThreads();

  // Returns once each event that was read from the userfaultfd before the call
  // has noted its slot's `lease`. A release then changes SlotState::lease and
  // waits for fills_in_flight; from then on no event of a guest that has left
  // the memory is acted upon. Does not wait for fills, nor for a PageSource,
  // but for at most one read(2) of each thread.
  void WaitForReads() const;

 private:
  // A thread's state as others see it. `turn` is odd while the thread may have
  // read events whose slots' `lease` it has not noted.
  struct alignas(64) Reader {
    std::atomic<uint64_t> turn{0};
  };

  HandlerThreads(FaultPool& fault_pool, UniqueFd stop, uint32_t count)
      : fault_pool_(fault_pool),
        stop_(std::move(stop)),
        readers_(std::make_unique<Reader[]>(count)),
        reader_count_(count) {}

  void Run(Reader& self);

  FaultPool& fault_pool_;
  UniqueFd stop_;
  const std::unique_ptr<Reader[]> readers_;
  const uint32_t reader_count_;
  std::vector<std::thread> threads_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_HANDLER_THREADS_H_
