// The kernel's userfaultfd, PAGEMAP_SCAN and madvise ABI up to Linux 6.15, in
// one place, each with the kernel version that brought it.
//
// Debian 12's headers end at 6.1. What a binary can do must depend on the
// kernel it runs on and never on the headers it was built with, so every
// constant has a name of our own (kUffd...), including those the headers do
// have; structures that 6.1 has (uffd_msg, uffdio_api, uffdio_copy, ...) are
// the headers', later ones are ours (UffdioPoison, PmScanArg, PageRegion).
// Nothing here clashes with newer headers, and abi_test compares with whatever
// the headers do define.

#ifndef FIRSTTOUCH_UFFD_ABI_H_
#define FIRSTTOUCH_UFFD_ABI_H_

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace firsttouch {

// ---- Opening ---------------------------------------------------------------

// The only API number (4.3).
inline constexpr uint64_t kUffdApi = 0xAA;

// Flag of userfaultfd(2) and of kUffdIocNew: faults that the kernel takes while
// working for a system call are not delivered (the call gets EFAULT). Needs no
// privilege. 5.11; before it the syscall answers EINVAL.
inline constexpr int kUffdUserModeOnly = 1;

// ioctl on /dev/userfaultfd whose argument is the flags and whose result is a
// new userfaultfd. 6.1.
inline constexpr unsigned long kUffdIocNew = _IO(0xAA, 0x00);
inline constexpr char kUffdDevicePath[] = "/dev/userfaultfd";

// ---- Features (uffdio_api.features) ----------------------------------------

inline constexpr uint64_t kUffdFeaturePagefaultFlagWp = uint64_t{1}
                                                        << 0;          // 5.7
inline constexpr uint64_t kUffdFeatureEventFork = uint64_t{1} << 1;    // 4.11
inline constexpr uint64_t kUffdFeatureEventRemap = uint64_t{1} << 2;   // 4.11
inline constexpr uint64_t kUffdFeatureEventRemove = uint64_t{1} << 3;  // 4.11
inline constexpr uint64_t kUffdFeatureMissingHugetlbfs = uint64_t{1}
                                                         << 4;          // 4.11
inline constexpr uint64_t kUffdFeatureMissingShmem = uint64_t{1} << 5;  // 4.11
inline constexpr uint64_t kUffdFeatureEventUnmap = uint64_t{1} << 6;    // 4.11
// No events: the thread that faults gets SIGBUS (code BUS_ADRERR). 4.14.
inline constexpr uint64_t kUffdFeatureSigbus = uint64_t{1} << 7;
inline constexpr uint64_t kUffdFeatureThreadId = uint64_t{1} << 8;  // 4.14
inline constexpr uint64_t kUffdFeatureMinorHugetlbfs = uint64_t{1}
                                                       << 9;  // 5.13
// Minor faults on memfds and tmpfs, also in private mappings of them. 5.14.
inline constexpr uint64_t kUffdFeatureMinorShmem = uint64_t{1} << 10;
inline constexpr uint64_t kUffdFeatureExactAddress = uint64_t{1} << 11;  // 5.18
inline constexpr uint64_t kUffdFeatureWpHugetlbfsShmem = uint64_t{1}
                                                         << 12;  // 5.19
// Write-protecting also marks pages of anonymous memory that are missing. 6.4.
inline constexpr uint64_t kUffdFeatureWpUnpopulated = uint64_t{1} << 13;
inline constexpr uint64_t kUffdFeaturePoison = uint64_t{1} << 14;  // 6.6
// Write faults are resolved by the kernel, which notes the page for
// PAGEMAP_SCAN. 6.7.
inline constexpr uint64_t kUffdFeatureWpAsync = uint64_t{1} << 15;
inline constexpr uint64_t kUffdFeatureMove = uint64_t{1} << 16;  // 6.8

// A feature and its well-known name.
struct UffdFeatureInfo {
  uint64_t bit;
  const char* name;     // "SIGBUS"
  const char* version;  // "4.14": the first kernel that has it
};

// Every feature above in the order of its bit.
inline constexpr UffdFeatureInfo kUffdFeatures[] = {
    {kUffdFeaturePagefaultFlagWp, "PAGEFAULT_FLAG_WP", "5.7"},
    {kUffdFeatureEventFork, "EVENT_FORK", "4.11"},
    {kUffdFeatureEventRemap, "EVENT_REMAP", "4.11"},
    {kUffdFeatureEventRemove, "EVENT_REMOVE", "4.11"},
    {kUffdFeatureMissingHugetlbfs, "MISSING_HUGETLBFS", "4.11"},
    {kUffdFeatureMissingShmem, "MISSING_SHMEM", "4.11"},
    {kUffdFeatureEventUnmap, "EVENT_UNMAP", "4.11"},
    {kUffdFeatureSigbus, "SIGBUS", "4.14"},
    {kUffdFeatureThreadId, "THREAD_ID", "4.14"},
    {kUffdFeatureMinorHugetlbfs, "MINOR_HUGETLBFS", "5.13"},
    {kUffdFeatureMinorShmem, "MINOR_SHMEM", "5.14"},
    {kUffdFeatureExactAddress, "EXACT_ADDRESS", "5.18"},
    {kUffdFeatureWpHugetlbfsShmem, "WP_HUGETLBFS_SHMEM", "5.19"},
    {kUffdFeatureWpUnpopulated, "WP_UNPOPULATED", "6.4"},
    {kUffdFeaturePoison, "POISON", "6.6"},
    {kUffdFeatureWpAsync, "WP_ASYNC", "6.7"},
    {kUffdFeatureMove, "MOVE", "6.8"},
};

// ---- Registering -----------------------------------------------------------

inline constexpr uint64_t kUffdRegisterMissing = uint64_t{1} << 0;  // 4.3
inline constexpr uint64_t kUffdRegisterWp = uint64_t{1} << 1;       // 5.7
inline constexpr uint64_t kUffdRegisterMinor = uint64_t{1} << 2;  // 5.13, 5.14

// ---- ioctls ----------------------------------------------------------------

// Bits of uffdio_api.ioctls.
inline constexpr uint64_t kUffdIoctlRegister = uint64_t{1} << 0x00;
inline constexpr uint64_t kUffdIoctlUnregister = uint64_t{1} << 0x01;
inline constexpr uint64_t kUffdIoctlApi = uint64_t{1} << 0x3F;

// Bits of uffdio_register.ioctls: what may be done with the range.
inline constexpr uint64_t kUffdIoctlWake = uint64_t{1} << 0x02;          // 4.3
inline constexpr uint64_t kUffdIoctlCopy = uint64_t{1} << 0x03;          // 4.3
inline constexpr uint64_t kUffdIoctlZeroPage = uint64_t{1} << 0x04;      // 4.3
inline constexpr uint64_t kUffdIoctlMove = uint64_t{1} << 0x05;          // 6.8
inline constexpr uint64_t kUffdIoctlWriteProtect = uint64_t{1} << 0x06;  // 5.7
inline constexpr uint64_t kUffdIoctlContinue = uint64_t{1} << 0x07;      // 5.13
inline constexpr uint64_t kUffdIoctlPoison = uint64_t{1} << 0x08;        // 6.6

// An ioctl on a registered range and its well-known name.
struct UffdIoctlInfo {
  uint64_t bit;
  const char* name;     // "COPY"
  const char* version;  // "4.3": the first kernel that has it
};

inline constexpr UffdIoctlInfo kUffdRangeIoctls[] = {
    {kUffdIoctlWake, "WAKE", "4.3"},
    {kUffdIoctlCopy, "COPY", "4.3"},
    {kUffdIoctlZeroPage, "ZEROPAGE", "4.3"},
    {kUffdIoctlMove, "MOVE", "6.8"},
    {kUffdIoctlWriteProtect, "WRITEPROTECT", "5.7"},
    {kUffdIoctlContinue, "CONTINUE", "5.13"},
    {kUffdIoctlPoison, "POISON", "6.6"},
};

// Modes of the fill calls.
inline constexpr uint64_t kUffdCopyDontWake = uint64_t{1} << 0;
inline constexpr uint64_t kUffdCopyWp = uint64_t{1} << 1;  // 5.7
inline constexpr uint64_t kUffdZeroPageDontWake = uint64_t{1} << 0;
inline constexpr uint64_t kUffdContinueDontWake = uint64_t{1} << 0;
inline constexpr uint64_t kUffdContinueWp = uint64_t{1} << 1;  // 6.4
inline constexpr uint64_t kUffdPoisonDontWake = uint64_t{1} << 0;
// Without kUffdWriteProtectWp the call removes the protection.
inline constexpr uint64_t kUffdWriteProtectWp = uint64_t{1} << 0;
inline constexpr uint64_t kUffdWriteProtectDontWake = uint64_t{1} << 1;

// struct uffdio_poison. 6.6.
struct UffdioPoison {
  uffdio_range range;
  uint64_t mode;
  int64_t updated;  // out: bytes done, or a negative errno
};
static_assert(sizeof(UffdioPoison) == 32);

inline constexpr unsigned long kUffdioApi = _IOWR(0xAA, 0x3F, uffdio_api);
inline constexpr unsigned long kUffdioRegister =
    _IOWR(0xAA, 0x00, uffdio_register);
inline constexpr unsigned long kUffdioUnregister =
    _IOR(0xAA, 0x01, uffdio_range);
inline constexpr unsigned long kUffdioWake = _IOR(0xAA, 0x02, uffdio_range);
inline constexpr unsigned long kUffdioCopy = _IOWR(0xAA, 0x03, uffdio_copy);
inline constexpr unsigned long kUffdioZeroPage =
    _IOWR(0xAA, 0x04, uffdio_zeropage);
inline constexpr unsigned long kUffdioWriteProtect =
    _IOWR(0xAA, 0x06, uffdio_writeprotect);
inline constexpr unsigned long kUffdioContinue =
    _IOWR(0xAA, 0x07, uffdio_continue);
inline constexpr unsigned long kUffdioPoison = _IOWR(0xAA, 0x08, UffdioPoison);

// ---- Events (uffd_msg) -----------------------------------------------------

inline constexpr uint8_t kUffdEventPagefault = 0x12;  // 4.3
inline constexpr uint8_t kUffdEventFork = 0x13;       // 4.11
inline constexpr uint8_t kUffdEventRemap = 0x14;      // 4.11
inline constexpr uint8_t kUffdEventRemove = 0x15;     // 4.11
inline constexpr uint8_t kUffdEventUnmap = 0x16;      // 4.11

inline constexpr uint64_t kUffdPagefaultWrite = uint64_t{1} << 0;  // 4.3
inline constexpr uint64_t kUffdPagefaultWp = uint64_t{1} << 1;     // 5.7
inline constexpr uint64_t kUffdPagefaultMinor = uint64_t{1} << 2;  // 5.13

// ---- PAGEMAP_SCAN (6.7) ----------------------------------------------------

// struct page_region: neighbouring pages of the same categories.
struct PageRegion {
  uint64_t start;  // address
  uint64_t end;    // address, exclusive
  uint64_t categories;
};
static_assert(sizeof(PageRegion) == 24);

// struct pm_scan_arg.
struct PmScanArg {
  uint64_t size = sizeof(PmScanArg);
  uint64_t flags = 0;                // kPmScan...
  uint64_t start = 0;                // address, page aligned
  uint64_t end = 0;                  // address, exclusive
  uint64_t walk_end = 0;             // out: where the walk stopped
  uint64_t vec = 0;                  // address of the PageRegion array
  uint64_t vec_len = 0;              // its length in regions
  uint64_t max_pages = 0;            // 0: no limit
  uint64_t category_inverted = 0;    // these bits are asked for as zeroes
  uint64_t category_mask = 0;        // all of these
  uint64_t category_anyof_mask = 0;  // at least one of these
  uint64_t return_mask = 0;          // what the regions report
};
static_assert(sizeof(PmScanArg) == 96);

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);

// Write-protects the pages that match, in the same step.
inline constexpr uint64_t kPmScanWpMatching = uint64_t{1} << 0;
// Fails with EPERM when a page is not in a range registered for WP_ASYNC.
inline constexpr uint64_t kPmScanCheckWpAsync = uint64_t{1} << 1;

inline constexpr uint64_t kPageIsWpAllowed = uint64_t{1} << 0;
// The page has no write-protect mark. A page that was never touched has none
// either: never ask for this alone (pagemap.h).
inline constexpr uint64_t kPageIsWritten = uint64_t{1} << 1;
inline constexpr uint64_t kPageIsFile = uint64_t{1} << 2;
inline constexpr uint64_t kPageIsPresent = uint64_t{1} << 3;
inline constexpr uint64_t kPageIsSwapped = uint64_t{1} << 4;
inline constexpr uint64_t kPageIsPfnZero = uint64_t{1} << 5;
inline constexpr uint64_t kPageIsHuge = uint64_t{1} << 6;
inline constexpr uint64_t kPageIsSoftDirty = uint64_t{1} << 7;  // 6.7
inline constexpr uint64_t kPageIsGuard = uint64_t{1} << 8;      // 6.15

// ---- Memory advice and process descriptors ---------------------------------

// For process_madvise(2), which drops many ranges of the own process with one
// call: 6.13.
inline constexpr int kMadvDontNeed = 4;
// MADV_DONTNEED of locked memory: 5.18.
inline constexpr int kMadvDontNeedLocked = 24;
inline constexpr int kMadvPopulateRead = 22;   // 5.14
inline constexpr int kMadvPopulateWrite = 23;  // 5.14
// Guard pages without a mapping of their own; a touch is SIGSEGV. 6.13.
inline constexpr int kMadvGuardInstall = 102;
inline constexpr int kMadvGuardRemove = 103;
// Means the calling process where a pidfd is expected. 6.15; EBADF before.
inline constexpr int kPidfdSelfProcess = -10001;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_ABI_H_
