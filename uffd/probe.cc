#include "firsttouch/uffd/probe.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

using How = Uffd::How;

constexpr How kWays[] = {How::kSyscallUserModeOnly, How::kDeviceUserModeOnly,
                         How::kDevice, How::kSyscall};
constexpr size_t kScratchBytes = 4 * kPageBytes;
constexpr int kCapSysPtrace = 19;

// A line "Name:\tvalue" of /proc/self/status.
std::optional<std::string> StatusField(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (!absl::StartsWith(line, name + ":")) continue;
    line.erase(0, name.size() + 1);
    const size_t start = line.find_first_not_of(" \t");
    return start == std::string::npos ? "" : line.substr(start);
  }
  return std::nullopt;
}

void ProbeUser(UffdFacts& facts) {
  facts.uid = geteuid();
  uint64_t capabilities = 0;
  if (absl::SimpleHexAtoi(StatusField("CapEff").value_or("0"), &capabilities)) {
    facts.cap_sys_ptrace = ((capabilities >> kCapSysPtrace) & 1) != 0;
  }
  int mode = 0;
  if (absl::SimpleAtoi(StatusField("Seccomp").value_or("0"), &mode)) {
    facts.seccomp_mode = mode;
  }
}

void ProbeContainer(UffdFacts& facts) {
  const auto hint = [&facts](const std::string& text) {
    facts.container_hints.push_back(text);
  };
  if (access("/.dockerenv", F_OK) == 0) hint("Docker (/.dockerenv)");
  if (access("/run/.containerenv", F_OK) == 0) {
    hint("Podman (/run/.containerenv)");
  }
  if (const char* name = std::getenv("container"); name != nullptr) {
    hint(absl::StrCat("container=", name));
  }
  if (access("/run/systemd/container", F_OK) == 0) {
    hint(absl::StrCat("systemd: ",
                      ReadFirstLine("/run/systemd/container").value_or("")));
  }
  // The first user namespace maps every id to itself.
  const std::string ids = ReadFirstLine("/proc/self/uid_map").value_or("");
  const std::vector<std::string> fields =
      absl::StrSplit(ids, ' ', absl::SkipEmpty());
  if (!fields.empty() && fields.back() != "4294967295") {
    hint("a user namespace (capabilities are not those of the host)");
  }
  if (facts.seccomp_mode == 2) hint("a seccomp filter");
  if (absl::StrContains(facts.kernel_release, "icrosoft")) hint("WSL");
}

void ProbeWays(Kernel& kernel, UffdFacts& facts) {
  for (const How how : kWays) {
    OpenFact fact{.how = how};
    const CallResult opened = OpenUffd(kernel, how, true);
    fact.error = opened.error;
    if (opened.ok()) {
      facts.can_open = true;
      facts.kernel_faults |= how == How::kDevice || how == How::kSyscall;
      uffdio_api reply{};
      const int fd = static_cast<int>(opened.value);
      if (kernel.Api(fd, 0, &reply).ok()) facts.features |= reply.features;
      kernel.Close(fd);
    } else {
      fact.remedy = UffdOpenRemedy(how, opened.error);
    }
    facts.ways.push_back(std::move(fact));
  }
}

// Registers new mappings of one kind in each mode.
void ProbeMapping(Kernel& kernel, UffdFacts& facts, const char* kind, int prot,
                  int flags, int fd) {
  MappingFact fact{.kind = kind};
  const absl::StatusOr<Uffd> uffd = Uffd::Open(
      kernel,
      {.wished_features = kUffdFeatureMinorShmem | kUffdFeatureMissingShmem |
                          kUffdFeatureWpHugetlbfsShmem |
                          kUffdFeaturePagefaultFlagWp | kUffdFeatureMove |
                          kUffdFeaturePoison | kUffdFeatureWpUnpopulated});
  const CallResult mapped = kernel.Mmap(0, kScratchBytes, prot, flags, fd, 0);
  if (uffd.ok() && mapped.ok()) {
    const uintptr_t at = static_cast<uintptr_t>(mapped.value);
    for (const uint64_t mode :
         {kUffdRegisterMissing, kUffdRegisterWp, kUffdRegisterMinor}) {
      uint64_t ioctls = 0;
      if (!kernel.Register(uffd->fd(), at, kScratchBytes, mode, &ioctls).ok()) {
        continue;
      }
      fact.modes |= mode;
      fact.ioctls |= ioctls;
      kernel.Unregister(uffd->fd(), at, kScratchBytes);
    }
  }
  if (mapped.ok()) {
    kernel.Munmap(static_cast<uintptr_t>(mapped.value), kScratchBytes);
  }
  facts.mappings.push_back(std::move(fact));
}

void ProbeMappings(Kernel& kernel, UffdFacts& facts) {
  constexpr int kReadWrite = PROT_READ | PROT_WRITE;
  ProbeMapping(kernel, facts, "private anonymous memory", kReadWrite,
               MAP_PRIVATE | MAP_ANONYMOUS, -1);
  ProbeMapping(kernel, facts, "shared anonymous memory", kReadWrite,
               MAP_SHARED | MAP_ANONYMOUS, -1);
  UniqueFd memory(memfd_create("firsttouch-probe", MFD_CLOEXEC));
  if (memory && ftruncate(memory.get(), kScratchBytes) == 0) {
    ProbeMapping(kernel, facts, "private mapping of a memfd", kReadWrite,
                 MAP_PRIVATE, memory.get());
    ProbeMapping(kernel, facts, "shared mapping of a memfd", kReadWrite,
                 MAP_SHARED, memory.get());
  }
  // The file of a program in shared memory (a container whose root is a tmpfs)
  // says nothing about other files.
  UniqueFd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  struct statfs system = {};
  if (file && fstatfs(file.get(), &system) == 0 &&
      system.f_type != TMPFS_MAGIC) {
    ProbeMapping(kernel, facts, "private mapping of another file", kReadWrite,
                 MAP_PRIVATE, file.get());
  }
}

void ProbeCalls(Kernel& kernel, UffdFacts& facts) {
  const CallResult pagemap = kernel.OpenPagemap();
  if (pagemap.ok()) {
    PmScanArg nothing;
    facts.pagemap_scan_error =
        kernel.PagemapScan(static_cast<int>(pagemap.value), &nothing).error;
    kernel.Close(static_cast<int>(pagemap.value));
  } else {
    facts.pagemap_scan_error = pagemap.error;
  }
  const CallResult mapped =
      kernel.Mmap(0, kScratchBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!mapped.ok()) {
    facts.process_madvise_error = mapped.error;
    facts.guard_install_error = mapped.error;
    return;
  }
  const uintptr_t at = static_cast<uintptr_t>(mapped.value);
  const iovec range{reinterpret_cast<void*>(at), kScratchBytes};
  facts.process_madvise_error =
      kernel.ProcessMadvise(&range, 1, kMadvDontNeed).error;
  facts.guard_install_error =
      kernel.Madvise(at, kPageBytes, kMadvGuardInstall).error;
  kernel.Munmap(at, kScratchBytes);
}

// The chosen value of "always [madvise] never", which stands in brackets.
std::string ChosenOf(const std::string& path) {
  std::string line = ReadFirstLine(path).value_or("");
  const size_t open = line.find('[');
  const size_t close = line.find(']');
  if (open == std::string::npos || close == std::string::npos) return line;
  return line.substr(open + 1, close - open - 1);
}

int AddressBits(Kernel& kernel) {
#ifdef __SANITIZE_THREAD__
  // The sanitizer ends the process at a mapping outside its own idea of the
  // address space.
  static_cast<void>(kernel);
  return 47;
#endif
  for (int bits = 56; bits > 32; --bits) {
    // Tries a page in the upper half of the space. An address that is taken
    // exists, too.
    const uintptr_t at = uintptr_t{1} << (bits - 1);
    const CallResult mapped = kernel.Mmap(
        at, kPageBytes, PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
        0);
    if (mapped.ok()) {
      kernel.Munmap(static_cast<uintptr_t>(mapped.value), kPageBytes);
      if (static_cast<uintptr_t>(mapped.value) == at) return bits;
    } else if (mapped.error == EEXIST) {
      return bits;
    }
  }
  return 0;
}

void ProbeLimits(Kernel& kernel, UffdFacts& facts) {
  facts.unprivileged_userfaultfd =
      ReadNumber("/proc/sys/vm/unprivileged_userfaultfd");
  facts.overcommit_memory = ReadNumber("/proc/sys/vm/overcommit_memory");
  facts.max_map_count = ReadNumber("/proc/sys/vm/max_map_count");
  facts.mapping_count = CountMappings();
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    facts.address_space_limit_bytes = limit.rlim_cur;
  }
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    facts.descriptor_limit = limit.rlim_cur;
  }
  facts.address_bits = AddressBits(kernel);
  const std::string base = "/sys/kernel/mm/transparent_hugepage/";
  facts.huge_pages = ChosenOf(base + "enabled");
  facts.shared_huge_pages = ChosenOf(base + "shmem_enabled");
}

void Advise(UffdFacts& facts) {
  const auto advise = [&facts](const std::string& text) {
    facts.advice.push_back(text);
  };
  if (!facts.can_open) {
    for (const OpenFact& way : facts.ways) {
      if (!way.remedy.empty()) {
        advise(absl::StrCat("userfaultfd, by ", UffdHowName(way.how), ": ",
                            way.remedy, "."));
      }
    }
  } else if (!facts.kernel_faults) {
    std::string text =
        "system calls on memory that is not there yet get EFAULT, in "
        "handler-thread mode too";
    for (const OpenFact& way : facts.ways) {
      if ((way.how == How::kDevice || way.how == How::kSyscall) &&
          !way.remedy.empty()) {
        absl::StrAppend(&text, "; by ", UffdHowName(way.how), ": ", way.remedy);
      }
    }
    advise(text + ".");
  }
  std::vector<std::string> lacking;
  for (const UffdFeatureInfo& feature : kUffdFeatures) {
    if (facts.can_open && (facts.features & feature.bit) == 0) {
      lacking.push_back(
          absl::StrCat(feature.name, " (Linux ", feature.version, ")"));
    }
  }
  if (!lacking.empty()) {
    advise(absl::StrCat("a newer kernel has the features ",
                        absl::StrJoin(lacking, ", "), "."));
  }
  if (facts.pagemap_scan_error == ENOTTY) {
    advise("PAGEMAP_SCAN comes with Linux 6.7.");
  } else if (facts.pagemap_scan_error != 0) {
    advise(absl::StrCat("PAGEMAP_SCAN needs /proc/self/pagemap: ",
                        ErrnoText(facts.pagemap_scan_error), "."));
  }
  if (facts.process_madvise_error == EINVAL) {
    advise(
        "dropping many ranges with one process_madvise(2) comes with Linux "
        "6.13.");
  }
  if (facts.guard_install_error == EINVAL) {
    advise("guard pages without mappings of their own come with Linux 6.13.");
  }
  if (facts.overcommit_memory == 2) {
    advise(
        "vm.overcommit_memory is 2, which counts reservations as memory: big "
        "pools are refused; sysctl -w vm.overcommit_memory=0 allows them.");
  }
  if (facts.address_space_limit_bytes.has_value()) {
    advise(absl::StrCat("RLIMIT_AS is ", *facts.address_space_limit_bytes,
                        " bytes, and a pool's reservation counts in full: "
                        "ulimit -v unlimited, or smaller guards."));
  }
  if (facts.address_bits != 0 && facts.address_bits < 47) {
    advise(absl::StrCat("user space has ", facts.address_bits,
                        " address bits where 47 are usual: use smaller "
                        "memories, guards or pools."));
  }
  if (facts.huge_pages == "always") {
    advise(
        "transparent huge pages are \"always\": pools opt out of them; other "
        "memory of the process may grow.");
  }
}

}  // namespace

UffdFacts Probe(Kernel& kernel) {
  UffdFacts facts;
  facts.kernel_release = KernelRelease();
  utsname name{};
  if (uname(&name) == 0) facts.machine = name.machine;
  ProbeUser(facts);
  ProbeContainer(facts);
  ProbeWays(kernel, facts);
  ProbeMappings(kernel, facts);
  ProbeCalls(kernel, facts);
  ProbeLimits(kernel, facts);
  Advise(facts);
  return facts;
}

}  // namespace firsttouch
