// The least virtual machine that there can be: one processor, some memory, and
// a program (guest.S) that fills pages and says what it finds in them. For
// tests of memory that a server fills: KVM touches it for the guest.
//
//   TinyVm::WriteProgram(memory);
//   absl::StatusOr<std::unique_ptr<TinyVm>> vm = TinyVm::Create(memory);
//   absl::StatusOr<TinyVm::Answer> answer =
//       (*vm)->Order(TinyVm::kFill, /*first=*/512, /*pages=*/8, /*seed=*/1);
//   absl::StatusOr<TinyVm::Processor> paused = (*vm)->Pause();
//
// The memory and what Pause() gives are a snapshot: another TinyVm goes on from
// there.
//
// Threads: thread-compatible.

#ifndef FIRSTTOUCH_TESTS_KVM_TINY_VM_H_
#define FIRSTTOUCH_TESTS_KVM_TINY_VM_H_

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

class TinyVm {
 public:
  // Pages below this one are the program's.
  static constexpr uint64_t kFirstFreePage = 256;

  // A processor that is between two instructions.
  struct Processor {
    kvm_regs regs;
    kvm_sregs sregs;
  };

  // What the guest has found, in pages.
  struct Answer {
    uint64_t as_pattern = 0;
    uint64_t zero = 0;
    uint64_t other = 0;
    friend bool operator==(const Answer&, const Answer&) = default;
  };
  enum What : uint32_t { kFill = 1, kLook = 2 };

  // Makes the memory of a machine that was never switched on. At most 1 GiB,
  // a multiple of 2 MiB, zero so far.
  static void WriteProgram(std::span<std::byte> memory);

  // A machine that is switched on, or goes on from `processor`. The memory must
  // outlive it. Unavailable, with the reason: there is no KVM here.
  static absl::StatusOr<std::unique_ptr<TinyVm>> Create(
      std::span<std::byte> memory, const Processor* processor = nullptr);
  ~TinyVm();
  TinyVm(const TinyVm&) = delete;
  TinyVm& operator=(const TinyVm&) = delete;

  // Has the guest do something with its pages, and waits until it has. Each
  // seed is a pattern. Errors, Internal: the guest did something else.
  absl::StatusOr<Answer> Order(What what, uint64_t first, uint64_t pages,
                               uint32_t seed);

  // Waits for the end of the instruction that the processor is in.
  absl::StatusOr<Processor> Pause();

 private:
  TinyVm() = default;
  absl::Status Prepare(std::span<std::byte> memory, const Processor* processor);
  absl::StatusOr<Processor> SwitchedOn();
  // Runs until the guest reads from a port (then `value` is what it reads), or
  // writes to one (then `value` is what it has written).
  absl::Status RunToPort(uint16_t port, uint32_t& value);

  UniqueFd kvm_;
  UniqueFd machine_;
  UniqueFd processor_;
  kvm_run* run_ = nullptr;
  size_t run_bytes_ = 0;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TESTS_KVM_TINY_VM_H_
