// A userfaultfd, opened with the least privilege that works and with the
// features asked for.
//
//   absl::StatusOr<Uffd> uffd = Uffd::Open(
//       RealKernel(), {.required_features = kUffdFeatureSigbus,
//                      .wished_features = kUffdFeatureMove});
//   if (!uffd.ok()) return uffd.status();      // says what was tried, and why
//   RETURN_IF_ERROR(uffd->Register(base, bytes, kUffdRegisterMissing,
//                                  kUffdIoctlCopy | kUffdIoctlZeroPage));
//   kernel.Copy(uffd->fd(), ...);              // the raw layer, kernel.h
//
// THE DESCRIPTOR IS THE GUARD. When the last descriptor of a userfaultfd is
// closed, every missing page of its ranges silently reads as zero. Unmap the
// memory first, or keep the Uffd for as long as the memory can be touched.
//
// This is the Status layer: it allocates, and is not for signal handlers.
// Thread-compatible: const methods and Register/Unregister may be called from
// several threads at once, moving and destroying may not.

#ifndef FIRSTTOUCH_UFFD_UFFD_H_
#define FIRSTTOUCH_UFFD_UFFD_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

struct UffdOptions {
  // Open fails where the kernel lacks one of these, naming each with the
  // version that brings it. kUffdFeature... bits.
  uint64_t required_features = 0;
  // Requested where the kernel has them; see Uffd::features().
  uint64_t wished_features = 0;
  // Whether faults that the kernel takes while it works for a system call
  // (read(2) into a missing page) must be delivered too, for a handler thread
  // to resolve. Needs /dev/userfaultfd, CAP_SYS_PTRACE or
  // vm.unprivileged_userfaultfd=1. False: a user-mode-only descriptor is
  // enough, which needs no privilege; such a system call gets EFAULT.
  bool kernel_faults = false;
  // Reads do not block.
  bool nonblocking = true;
};

class Uffd {
 public:
  // The way the descriptor was opened.
  enum class How {
    kSyscallUserModeOnly,
    kDeviceUserModeOnly,
    kDevice,
    kSyscall,
  };

  // Opens a descriptor and makes the handshake. Ways are tried in this order,
  // the least privilege first:
  //
  //   kernel_faults false: syscall USER_MODE_ONLY (no privilege; 5.11), device
  //     USER_MODE_ONLY (where a seccomp filter refuses the syscall; 6.1), plain
  //     syscall (kernels before 5.11).
  //   kernel_faults true: device (needs its mode only), plain syscall.
  //
  // A separate descriptor is asked for the features first, so that an error can
  // name one that this kernel lacks. Errors: PermissionDenied or Unimplemented
  // where no way works (lists each try, its errno and the remedy),
  // ResourceExhausted where the table of descriptors is full (names
  // RLIMIT_NOFILE), FailedPrecondition where the kernel lacks a required
  // feature.
  static absl::StatusOr<Uffd> Open(Kernel& kernel, const UffdOptions& options);

  Uffd(Uffd&& other) noexcept;
  Uffd& operator=(Uffd&& other) noexcept;
  // Closes the descriptor; see the head of this file.
  ~Uffd();

  int fd() const { return fd_; }
  // The features in force: the required ones, and the wished ones that this
  // kernel has.
  uint64_t features() const { return features_; }
  // All features that this kernel offers, including bits unknown here.
  uint64_t available_features() const { return available_features_; }
  How how() const { return how_; }
  // Whether faults of the kernel are delivered.
  bool kernel_faults() const {
    return how_ == How::kDevice || how_ == How::kSyscall;
  }
  Kernel& kernel() const { return *kernel_; }

  // Registers [start, start + bytes) (page aligned) for `mode`
  // (kUffdRegister...), and checks that the kernel offers `required_ioctls`
  // (kUffdIoctl...) on it; if not, the range is unregistered again. Unknown
  // bits are ignored. Errors name the mapping as /proc/self/maps has it and the
  // rule it breaks: InvalidArgument (the kind of mapping cannot have this mode;
  // range not mapped or not aligned), AlreadyExists (registered with another
  // userfaultfd), ResourceExhausted (too many mappings: says how many and
  // vm.max_map_count), FailedPrecondition (an ioctl is missing).
  absl::Status Register(uintptr_t start, size_t bytes, uint64_t mode,
                        uint64_t required_ioctls) const;

  // Ends the registration: missing pages read as zero from then on.
  absl::Status Unregister(uintptr_t start, size_t bytes) const;

 private:
  Uffd(Kernel& kernel, int fd, How how, uint64_t features, uint64_t available)
      : kernel_(&kernel),
        fd_(fd),
        how_(how),
        features_(features),
        available_features_(available) {}

  Kernel* kernel_;
  int fd_;
  How how_;
  uint64_t features_;
  uint64_t available_features_;
};

// "userfaultfd(2) with USER_MODE_ONLY", "/dev/userfaultfd", ...
const char* UffdHowName(Uffd::How how);

// Opens a descriptor in this one way, without a handshake. Value: the
// descriptor.
CallResult OpenUffd(Kernel& kernel, Uffd::How how, bool nonblocking);

// What to change so that `how` works, given the `error` of a try; empty where
// nothing is known.
std::string UffdOpenRemedy(Uffd::How how, int error);

// Names of the known features in `bits`, "SIGBUS|MOVE"; unknown bits as "bit
// 40"; "none" for 0. The same for ioctls on a range and registration modes.
std::string UffdFeatureNames(uint64_t bits);
std::string UffdIoctlNames(uint64_t bits);
std::string UffdRegisterModeNames(uint64_t mode);

// "EAGAIN: Resource temporarily unavailable (errno 11)".
std::string ErrnoText(int error);

// The running kernel, "6.1.0-18-amd64", as uname(2) has it.
std::string KernelRelease();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_UFFD_H_
