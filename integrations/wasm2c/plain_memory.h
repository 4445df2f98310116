// Memories of guests by the kernel's own means, without userfaultfd: what
// runtimes do that have no fault service. To compare with, and to run the same
// guests where userfaultfd is refused.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_PLAIN_MEMORY_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_PLAIN_MEMORY_H_

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::wasm2c {

// How a memory gets its contents, and gets rid of them.
enum class PlainMethod {
  // A private mapping of the image: the kernel copies a page at its first
  // write. It stays mapped from one lease to the next; MADV_DONTNEED drops
  // what was written.
  kPrivateMapping,
  // The whole image is copied into anonymous memory for each lease.
  kEagerCopy,
};

struct PlainOptions {
  uint32_t slots = 0;
  uint64_t max_memory_bytes = 0;
  PlainMethod method = PlainMethod::kPrivateMapping;
};

// One reservation without access rights, in which mprotect opens what a memory
// may touch. Everything else is SIGSEGV, which a handler (installed in front of
// what was there while any source exists) turns into WASM_RT_TRAP_OOB.
//
// Thread-safe. Gives out the free slot that was given back last.
class PlainMemorySource : public MemorySource {
 public:
  // InvalidArgument for options that are zero or too large; ResourceExhausted
  // where the kernel does not give the address space, or when kMaxSources
  // exist.
  static absl::StatusOr<std::unique_ptr<PlainMemorySource>> Create(
      const PlainOptions& options);
  // All memories must be gone.
  ~PlainMemorySource() override;

  static constexpr size_t kMaxSources = 8;

  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override;

  // The reservation.
  uintptr_t base() const { return base_; }
  uint64_t bytes() const { return options_.slots * kStrideBytes; }

  // System calls made for memories so far.
  uint64_t kernel_calls() const {
    return kernel_calls_.load(std::memory_order_relaxed);
  }

  // From one slot to the next: kReachBytes, up to a multiple of 64 KiB.
  static constexpr uint64_t kStrideBytes =
      (kReachBytes + kWasmPageBytes - 1) / kWasmPageBytes * kWasmPageBytes;

 private:
  friend class PlainMemory;

  // What a slot has open and what it shows. Belongs to the slot's lease.
  struct Slot {
    ImageRef image;             // mapped (or copied last) here
    uint64_t mapped_bytes = 0;  // of the image, from offset 0
    // Open from offset 0; read by the signal handler.
    std::atomic<uint64_t> size_bytes{0};
  };

  explicit PlainMemorySource(const PlainOptions& options);
  absl::Status Reserve();

  // Makes a slot show what `request` says. It holds no one's bytes before.
  absl::Status Prepare(uint32_t index, const MemoryRequest& request);
  // Drops what was written since.
  absl::Status Clean(uint32_t index, const MemoryRequest& request);
  absl::Status SetSize(uint32_t slot, uint64_t new_size_bytes);
  void GiveBack(uint32_t slot);
  // A file with the image's bytes and no holes; -1 and a status on failure.
  absl::StatusOr<int> FileOf(const ImageRef& image);

  static void OnSignal(int signal, siginfo_t* info, void* context);

  std::byte* SlotBase(uint32_t slot) const {
    return reinterpret_cast<std::byte*>(base_ + slot * kStrideBytes);
  }
  void CountCall() { kernel_calls_.fetch_add(1, std::memory_order_relaxed); }

  const PlainOptions options_;
  uintptr_t base_ = 0;
  std::vector<Slot> slots_;
  std::atomic<uint64_t> kernel_calls_{0};
  Mutex mutex_;
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, UniqueFd> files_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_PLAIN_MEMORY_H_
