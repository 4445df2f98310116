#include "firsttouch/uffd/uffd.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

using How = Uffd::How;

constexpr How kUserFaultWays[] = {How::kSyscallUserModeOnly,
                                  How::kDeviceUserModeOnly, How::kSyscall};
constexpr How kKernelFaultWays[] = {How::kDevice, How::kSyscall};

template <typename Info, size_t n>
std::string Names(uint64_t bits, const Info (&infos)[n]) {
  if (bits == 0) return "none";
  std::vector<std::string> names;
  for (const Info& info : infos) {
    if ((bits & info.bit) == 0) continue;
    names.push_back(info.name);
    bits &= ~info.bit;
  }
  for (int bit = 0; bit < 64; ++bit) {
    if ((bits >> bit) & 1) names.push_back(absl::StrCat("bit ", bit));
  }
  return absl::StrJoin(names, "|");
}

// "MOVE (Linux 6.8), POISON (Linux 6.6)".
template <typename Info, size_t n>
std::string NamesWithVersions(uint64_t bits, const Info (&infos)[n]) {
  std::vector<std::string> names;
  for (const Info& info : infos) {
    if ((bits & info.bit) == 0) continue;
    names.push_back(absl::StrCat(info.name, " (Linux ", info.version, ")"));
    bits &= ~info.bit;
  }
  for (int bit = 0; bit < 64; ++bit) {
    if ((bits >> bit) & 1) {
      names.push_back(absl::StrCat("bit ", bit, " (unknown to this library)"));
    }
  }
  return absl::StrJoin(names, ", ");
}

absl::Status DescriptorsExhausted(int error) {
  std::string text =
      absl::StrCat("a userfaultfd cannot be opened: ", ErrnoText(error));
  if (error == EMFILE) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    absl::StrAppend(
        &text, "; this process has used up RLIMIT_NOFILE, which is ",
        limit.rlim_cur, ": close descriptors or raise it (ulimit -n)");
  } else {
    absl::StrAppend(&text,
                    "; the system has used up fs.file-max: close descriptors "
                    "or raise it (sysctl fs.file-max)");
  }
  return absl::ResourceExhaustedError(text);
}

// absl::ErrnoToStatus would repeat the error's text.
absl::Status Failed(int error, const std::string& text) {
  return absl::Status(absl::ErrnoToStatusCode(error), text);
}

struct Attempt {
  How how;
  int error;
};

absl::Status NoWayWorks(std::span<const Attempt> attempts,
                        const UffdOptions& options) {
  std::string text = absl::StrCat(
      "no way to open a userfaultfd ",
      options.kernel_faults ? "that also delivers faults of the kernel " : "",
      "works on Linux ", KernelRelease(), ":");
  bool refused = false;
  for (const Attempt& attempt : attempts) {
    refused |= attempt.error == EPERM || attempt.error == EACCES;
    absl::StrAppend(&text, "\n  ", UffdHowName(attempt.how), ": ",
                    ErrnoText(attempt.error));
    const std::string remedy = UffdOpenRemedy(attempt.how, attempt.error);
    if (!remedy.empty()) absl::StrAppend(&text, "; ", remedy);
  }
  return refused ? absl::PermissionDeniedError(text)
                 : absl::UnimplementedError(text);
}

std::string RangeText(uintptr_t start, size_t bytes) {
  return absl::StrFormat("[0x%x, 0x%x) (%d bytes)", start, start + bytes,
                         bytes);
}

// Why the kernel refuses this mapping in this mode, in words; empty where the
// mapping gives no reason.
std::string MappingObjection(const Mapping& mapping, uint64_t mode,
                             uint64_t features) {
  const std::string name = mapping.Describe();
  switch (mapping.kind()) {
    case Mapping::Kind::kFile:
      if (mode == kUffdRegisterWp && (features & kUffdFeatureWpAsync) != 0) {
        return "";
      }
      return absl::StrCat(
          name,
          ": a file mapping cannot be registered (but for WP alone with the "
          "feature WP_ASYNC, Linux 6.7); use anonymous memory, or a mapping of "
          "a memfd");
    case Mapping::Kind::kSpecial:
      return absl::StrCat(name,
                          ": a mapping of the kernel's own cannot be "
                          "registered");
    case Mapping::Kind::kAnonymous:
      if ((mode & kUffdRegisterMinor) != 0) {
        return absl::StrCat(
            name,
            ": private anonymous memory has no minor faults; MINOR needs a "
            "mapping of a memfd, of tmpfs or of hugetlbfs");
      }
      return "";
    case Mapping::Kind::kHugetlb:
      return absl::StrCat(name,
                          ": a range in hugetlbfs must be aligned to its huge "
                          "pages; MINOR needs the feature MINOR_HUGETLBFS "
                          "(Linux 5.13), WP the feature WP_HUGETLBFS_SHMEM "
                          "(Linux 5.19)");
    case Mapping::Kind::kShmem:
      if ((mode & kUffdRegisterMinor) != 0 &&
          (features & kUffdFeatureMinorShmem) == 0) {
        return absl::StrCat(name,
                            ": MINOR on shared memory needs the feature "
                            "MINOR_SHMEM (Linux 5.14), which is not in force");
      }
      if ((mode & kUffdRegisterWp) != 0 &&
          (features & kUffdFeatureWpHugetlbfsShmem) == 0) {
        return absl::StrCat(
            name,
            ": WP on shared memory needs the feature WP_HUGETLBFS_SHMEM (Linux "
            "5.19), which is not in force");
      }
      return "";
  }
  return "";
}

absl::Status RegisterError(uintptr_t start, size_t bytes, uint64_t mode,
                           uint64_t features, int error) {
  const std::string what =
      absl::StrCat("UFFDIO_REGISTER of ", RangeText(start, bytes), " for ",
                   UffdRegisterModeNames(mode), ": ", ErrnoText(error));
  switch (error) {
    case EINVAL: {
      const std::vector<Mapping> mappings = MappingsOf(start, start + bytes);
      uintptr_t next = start;
      for (const Mapping& mapping : mappings) {
        if (mapping.start > next) break;
        const std::string objection = MappingObjection(mapping, mode, features);
        if (!objection.empty()) {
          return absl::InvalidArgumentError(
              absl::StrCat(what, ": ", objection));
        }
        next = mapping.end;
      }
      if (next < start + bytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            what, absl::StrFormat(": nothing is mapped at 0x%x", next)));
      }
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": the kernel does not know this mode, or not on ",
                       mappings.front().Describe()));
    }
    case EBUSY:
      return absl::AlreadyExistsError(absl::StrCat(
          what,
          ": the range, or a part of it, is registered with another "
          "userfaultfd; a range belongs to one at a time"));
    case ENOMEM:
      return absl::ResourceExhaustedError(absl::StrCat(
          what, ": this process has ", CountMappings(),
          " mappings and vm.max_map_count is ",
          ReadNumber("/proc/sys/vm/max_map_count").value_or(0),
          "; a registration that covers a part of a mapping needs one or two "
          "more: use fewer and larger pools, or raise it (sysctl -w "
          "vm.max_map_count=...)"));
    case EPERM:
      return absl::PermissionDeniedError(absl::StrCat(
          what,
          ": a shared mapping that can never become writable cannot be "
          "registered; open its file for writing, or map it MAP_PRIVATE"));
    default:
      return Failed(error, what);
  }
}

absl::Status CheckRange(const char* call, uintptr_t start, size_t bytes) {
  if (!IsPageAligned(start)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: start 0x%x is not a multiple of the page size %d",
                        call, start, kPageBytes));
  }
  if (bytes == 0 || !IsPageAligned(bytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: length %d bytes is not a positive multiple of the "
                        "page size %d",
                        call, bytes, kPageBytes));
  }
  if (bytes > std::numeric_limits<uintptr_t>::max() - start) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: start 0x%x + %d bytes exceeds the address space",
                        call, start, bytes));
  }
  return absl::OkStatus();
}

}  // namespace

const char* UffdHowName(How how) {
  switch (how) {
    case How::kSyscallUserModeOnly:
      return "userfaultfd(2) with USER_MODE_ONLY";
    case How::kDeviceUserModeOnly:
      return "/dev/userfaultfd with USER_MODE_ONLY";
    case How::kDevice:
      return "/dev/userfaultfd";
    case How::kSyscall:
      return "userfaultfd(2)";
  }
  return "unknown";
}

CallResult OpenUffd(Kernel& kernel, How how, bool nonblocking) {
  const int flags = nonblocking ? O_NONBLOCK : 0;
  switch (how) {
    case How::kSyscallUserModeOnly:
      return kernel.OpenUserfaultfdSyscall(flags | kUffdUserModeOnly);
    case How::kDeviceUserModeOnly:
      return kernel.OpenUserfaultfdDevice(flags | kUffdUserModeOnly);
    case How::kDevice:
      return kernel.OpenUserfaultfdDevice(flags);
    case How::kSyscall:
      return kernel.OpenUserfaultfdSyscall(flags);
  }
  return {0, EINVAL};
}

std::string UffdOpenRemedy(How how, int error) {
  const bool device = how == How::kDevice || how == How::kDeviceUserModeOnly;
  if (device) {
    switch (error) {
      case ENOENT:
        return "Linux 6.1 brings the device; into a container it comes with "
               "docker run --device /dev/userfaultfd";
      case EACCES:
        return "give this user the device: chmod 0666 /dev/userfaultfd, or for "
               "good a udev rule KERNEL==\"userfaultfd\", MODE=\"0666\"; where "
               "the mode allows it, a security module refuses it (SELinux: "
               "ausearch -m AVC)";
      case EPERM:
        return "the container's device rules refuse it: docker run --device "
               "/dev/userfaultfd";
      default:
        return "";
    }
  }
  switch (error) {
    case EPERM:
      if (how == How::kSyscallUserModeOnly) {
        return "a seccomp filter refuses the call, as Docker's default profile "
               "does: docker run --security-opt seccomp=PROFILE with a profile "
               "that allows userfaultfd, or --device /dev/userfaultfd";
      }
      return "needs CAP_SYS_PTRACE or sysctl -w "
             "vm.unprivileged_userfaultfd=1, and no seccomp filter that "
             "refuses "
             "the call";
    case EACCES:
      return "a security module refuses it: with SELinux, allow this domain "
             "the class anon_inode for [userfaultfd] (ausearch -m AVC shows "
             "the denial)";
    case ENOSYS:
      return "the kernel was built without CONFIG_USERFAULTFD, or a seccomp "
             "filter hides the call";
    case EINVAL:
      return how == How::kSyscallUserModeOnly ? "Linux 5.11 brings this flag"
                                              : "";
    default:
      return "";
  }
}

std::string UffdFeatureNames(uint64_t bits) {
  return Names(bits, kUffdFeatures);
}

std::string UffdIoctlNames(uint64_t bits) {
  return Names(bits, kUffdRangeIoctls);
}

std::string UffdRegisterModeNames(uint64_t mode) {
  static constexpr UffdFeatureInfo kModes[] = {
      {kUffdRegisterMissing, "MISSING", "4.3"},
      {kUffdRegisterWp, "WP", "5.7"},
      {kUffdRegisterMinor, "MINOR", "5.13"},
  };
  return Names(mode, kModes);
}

std::string ErrnoText(int error) {
  const char* name = strerrorname_np(error);
  const char* description = strerrordesc_np(error);
  return absl::StrCat(name == nullptr ? "unknown error" : name, ": ",
                      description == nullptr ? "unknown error" : description,
                      " (errno ", error, ")");
}

std::string KernelRelease() {
  utsname name{};
  if (uname(&name) != 0) return "unknown";
  return name.release;
}

absl::StatusOr<Uffd> Uffd::Open(Kernel& kernel, const UffdOptions& options) {
  const std::span<const How> ways = options.kernel_faults
                                        ? std::span<const How>(kKernelFaultWays)
                                        : std::span<const How>(kUserFaultWays);
  std::vector<Attempt> attempts;
  for (const How how : ways) {
    const CallResult probe = OpenUffd(kernel, how, options.nonblocking);
    if (probe.error == EMFILE || probe.error == ENFILE) {
      return DescriptorsExhausted(probe.error);
    }
    if (!probe.ok()) {
      attempts.push_back({how, probe.error});
      continue;
    }
    // Finds out what the kernel has. A descriptor allows only one handshake,
    // and a handshake that fails does not say which feature was the reason.
    uffdio_api offered{};
    const int probe_fd = static_cast<int>(probe.value);
    const CallResult asked = kernel.Api(probe_fd, 0, &offered);
    kernel.Close(probe_fd);
    if (!asked.ok()) {
      return Failed(asked.error, absl::StrCat("UFFDIO_API without features on ",
                                              UffdHowName(how), ": ",
                                              ErrnoText(asked.error)));
    }
    const uint64_t missing = options.required_features & ~offered.features;
    if (missing != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "Linux ", KernelRelease(), " lacks required userfaultfd features: ",
          NamesWithVersions(missing, kUffdFeatures), "; it has ",
          UffdFeatureNames(offered.features)));
    }
    const uint64_t features = options.required_features |
                              (options.wished_features & offered.features);
    const CallResult opened = OpenUffd(kernel, how, options.nonblocking);
    if (opened.error == EMFILE || opened.error == ENFILE) {
      return DescriptorsExhausted(opened.error);
    }
    if (!opened.ok()) {
      attempts.push_back({how, opened.error});
      continue;
    }
    Uffd uffd(kernel, static_cast<int>(opened.value), how, features,
              offered.features);
    uffdio_api reply{};
    const CallResult agreed = kernel.Api(uffd.fd(), features, &reply);
    if (!agreed.ok()) {
      return Failed(agreed.error,
                    absl::StrCat("UFFDIO_API with ", UffdFeatureNames(features),
                                 ": ", ErrnoText(agreed.error),
                                 agreed.error == EPERM
                                     ? "; EVENT_FORK needs CAP_SYS_PTRACE"
                                     : ""));
    }
    return uffd;
  }
  return NoWayWorks(attempts, options);
}

Uffd::Uffd(Uffd&& other) noexcept
    : kernel_(other.kernel_),
      fd_(std::exchange(other.fd_, -1)),
      how_(other.how_),
      features_(other.features_),
      available_features_(other.available_features_) {}

Uffd& Uffd::operator=(Uffd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) kernel_->Close(fd_);
    kernel_ = other.kernel_;
    fd_ = std::exchange(other.fd_, -1);
    how_ = other.how_;
    features_ = other.features_;
    available_features_ = other.available_features_;
  }
  return *this;
}

Uffd::~Uffd() {
  if (fd_ >= 0) kernel_->Close(fd_);
}

absl::Status Uffd::Register(uintptr_t start, size_t bytes, uint64_t mode,
                            uint64_t required_ioctls) const {
  absl::Status range = CheckRange("UFFDIO_REGISTER", start, bytes);
  if (!range.ok()) return range;
  uint64_t ioctls = 0;
  const CallResult registered =
      kernel_->Register(fd_, start, bytes, mode, &ioctls);
  if (!registered.ok()) {
    return RegisterError(start, bytes, mode, features_, registered.error);
  }
  const uint64_t missing = required_ioctls & ~ioctls;
  if (missing != 0) {
    kernel_->Unregister(fd_, start, bytes);
    return absl::FailedPreconditionError(absl::StrCat(
        "UFFDIO_REGISTER of ", RangeText(start, bytes), " for ",
        UffdRegisterModeNames(mode), ": Linux ", KernelRelease(),
        " does not offer on it: ", NamesWithVersions(missing, kUffdRangeIoctls),
        "; it offers ", UffdIoctlNames(ioctls)));
  }
  return absl::OkStatus();
}

absl::Status Uffd::Unregister(uintptr_t start, size_t bytes) const {
  absl::Status range = CheckRange("UFFDIO_UNREGISTER", start, bytes);
  if (!range.ok()) return range;
  const CallResult result = kernel_->Unregister(fd_, start, bytes);
  if (result.ok()) return absl::OkStatus();
  return Failed(result.error,
                absl::StrCat("UFFDIO_UNREGISTER of ", RangeText(start, bytes),
                             ": ", ErrnoText(result.error)));
}

}  // namespace firsttouch
