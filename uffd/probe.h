// What this machine, kernel and user allow, found out by asking the kernel.
//
//   const UffdFacts facts = Probe(RealKernel());
//   if ((facts.features & kUffdFeatureMinorShmem) == 0) ...
//   for (const std::string& line : facts.advice) std::puts(line.c_str());
//
// Probe only asks questions that have an answer at once (open, handshake,
// register, read a sysctl) and touches no page. Whether a feature works as it
// should is another matter: self_test.h tries each.
//
// Allocates; not for signal handlers. May be called from any thread.

#ifndef FIRSTTOUCH_UFFD_PROBE_H_
#define FIRSTTOUCH_UFFD_PROBE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {

// One way to open a userfaultfd.
struct OpenFact {
  Uffd::How how;
  int error = 0;       // 0: works
  std::string remedy;  // what to change, where something can be
};

// What can be registered on one kind of mapping. The known kinds and rules:
//   private anonymous      MISSING, WP (5.7)
//   shared anonymous       MISSING, WP (5.19), MINOR (5.14)
//   memfd, private/shared  MISSING, WP (5.19), MINOR (5.14)
//   any other file         nothing; WP alone with WP_ASYNC (6.7). Tried on the
//                          running program; not in the list where that one lies
//                          in a tmpfs.
struct MappingFact {
  std::string kind;     // "private mapping of a memfd"
  uint64_t modes = 0;   // kUffdRegister... that work, each alone
  uint64_t ioctls = 0;  // kUffdIoctl... with all of these
};

struct UffdFacts {
  std::string kernel_release;  // "6.1.0-18-amd64"
  std::string machine;         // "x86_64"
  unsigned uid = 0;
  bool cap_sys_ptrace = false;               // effective
  int seccomp_mode = 0;                      // 0 none, 1 strict, 2 filter
  std::vector<std::string> container_hints;  // empty: none found

  std::vector<OpenFact> ways;  // every Uffd::How, in the order they are tried
  bool can_open = false;
  // Whether faults of the kernel are delivered, so that a handler thread can
  // serve system calls on missing pages.
  bool kernel_faults = false;
  uint64_t features = 0;  // of the kernel; unknown bits included
  std::vector<MappingFact> mappings;

  // The following are 0, or the errno of the call.
  int pagemap_scan_error = 0;     // PAGEMAP_SCAN, 6.7
  int process_madvise_error = 0;  // MADV_DONTNEED on the own process, 6.13
  int guard_install_error = 0;    // MADV_GUARD_INSTALL, 6.13

  // Values of sysctls; nullopt where the file does not exist.
  std::optional<int64_t> unprivileged_userfaultfd;
  std::optional<int64_t> overcommit_memory;
  std::optional<int64_t> max_map_count;
  uint64_t mapping_count = 0;  // of this process
  // Limits; nullopt where unlimited.
  std::optional<uint64_t> address_space_limit_bytes;  // RLIMIT_AS
  std::optional<uint64_t> descriptor_limit;           // RLIMIT_NOFILE
  int address_bits = 0;           // of user space: 47 on most machines
  std::string huge_pages;         // "madvise"; empty: no such file
  std::string shared_huge_pages;  // the same for shared memory

  // What to change to get more, the most useful first; one sentence each.
  std::vector<std::string> advice;
};

UffdFacts Probe(Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_PROBE_H_
