// PAGEMAP_SCAN: which pages of a range are written, present, swapped, ...
// Kernel 6.7.
//
//   PageRegion regions[256];
//   ScanRequest request = ScanRequest::Written(start, end);
//   ScanResult scan = ScanPages(kernel, pagemap.fd(), request, regions, 256,
//                               [&](const PageRegion& region) { ... });
//
// PAGES THAT WERE NEVER TOUCHED. "Written" means: has no write-protect mark. A
// page that was never touched has none either, so that a scan for written pages
// alone reports whole page tables of untouched pages as changed (6.7 to 6.18
// here; a kernel that has page tables for the range reports them, one that has
// none does not). ScanRequest::Written therefore also requires that pages are
// PRESENT or SWAPPED. Neither alone is enough: a changed page that was swapped
// out is WRITTEN|SWAPPED and not PRESENT, and leaving it out would give its
// bytes to the next guest.
//
// Whether pages can be marked at all depends on the registration: with a
// userfaultfd with WP_ASYNC, or by UFFDIO_WRITEPROTECT. In memory that is not
// protected, every page that is there counts as "written".
//
// FORK. A descriptor of /proc/self/pagemap shows the process that opened it: a
// child that inherits it scans its parent. Open one in each process.

#ifndef FIRSTTOUCH_UFFD_PAGEMAP_H_
#define FIRSTTOUCH_UFFD_PAGEMAP_H_

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// A descriptor of this process's /proc/self/pagemap on which PAGEMAP_SCAN
// works.
class Pagemap {
 public:
  // Errors: Unimplemented where the kernel has no PAGEMAP_SCAN (before 6.7;
  // says so), else the error of open(2) (/proc not mounted, descriptor table
  // full).
  static absl::StatusOr<Pagemap> Open(Kernel& kernel);

  Pagemap(Pagemap&& other) noexcept;
  Pagemap& operator=(Pagemap&& other) noexcept;
  ~Pagemap();

  int fd() const { return fd_; }

 private:
  Pagemap(Kernel& kernel, int fd) : kernel_(&kernel), fd_(fd) {}

  Kernel* kernel_;
  int fd_;
};

// The pages to look for in [start, end). A page is reported when it has all
// categories of `all_of`, none of `none_of`, and one of `any_of` unless that is
// 0 (kPageIs... bits; the three must not overlap).
struct ScanRequest {
  uintptr_t start = 0;  // page aligned
  uintptr_t end = 0;    // exclusive, page aligned
  uint64_t all_of = 0;
  uint64_t any_of = 0;
  uint64_t none_of = 0;
  // The categories that PageRegion::categories reports. Neighbouring pages that
  // agree in these are one region, so ask for no more than is needed.
  uint64_t report = 0;
  // kPmScan... bits. With kPmScanWpMatching the reported pages are
  // write-protected again in the same step; a callback that stops the scan then
  // loses the regions behind it that the same call of the kernel has found.
  uint64_t flags = 0;

  // Changed pages that are present or swapped out.
  static ScanRequest Written(uintptr_t start, uintptr_t end) {
    return {.start = start,
            .end = end,
            .all_of = kPageIsWritten,
            .any_of = kPageIsPresent | kPageIsSwapped,
            .report = kPageIsWritten};
  }
  // Everything without a mark: changed pages, and addresses without a page
  // unless they were marked (by a scan that protects, on WP_ASYNC, in page
  // tables that exist). Takes half the time of Written(): for exactly this
  // request the kernel looks only at the mark.
  static ScanRequest Unmarked(uintptr_t start, uintptr_t end) {
    return {.start = start,
            .end = end,
            .all_of = kPageIsWritten,
            .report = kPageIsWritten};
  }
  // Finds changed pages like Written(), and protects them again (needs
  // WP_ASYNC).
  static ScanRequest WrittenAndProtect(uintptr_t start, uintptr_t end) {
    ScanRequest request = Written(start, end);
    request.flags = kPmScanWpMatching | kPmScanCheckWpAsync;
    return request;
  }
  // Finds everything without a mark like Unmarked(), and marks it: pages, and
  // addresses without a page (needs WP_ASYNC).
  static ScanRequest UnmarkedAndProtect(uintptr_t start, uintptr_t end) {
    ScanRequest request = Unmarked(start, end);
    request.flags = kPmScanWpMatching | kPmScanCheckWpAsync;
    return request;
  }
  // Pages that are present or swapped out.
  static ScanRequest Resident(uintptr_t start, uintptr_t end) {
    return {.start = start,
            .end = end,
            .any_of = kPageIsPresent | kPageIsSwapped,
            .report = kPageIsPresent | kPageIsSwapped};
  }
  // Pages of a private file mapping that are no longer the file's: changed by
  // copy-on-write, tracked or not.
  static ScanRequest PrivateCopies(uintptr_t start, uintptr_t end) {
    return {.start = start,
            .end = end,
            .any_of = kPageIsPresent | kPageIsSwapped,
            .none_of = kPageIsFile,
            .report = kPageIsPresent | kPageIsSwapped};
  }
};

// How a scan ended.
struct ScanResult {
  // Everything below this address has been scanned; request.end when complete.
  uintptr_t scanned_to = 0;
  uint64_t regions = 0;  // handed to the callback
  uint64_t pages = 0;    // in these
  uint64_t calls = 0;    // of the kernel: one, and one per full buffer
  int error = 0;         // 0, or the errno that ended it

  bool ok() const { return error == 0; }
};

// Scans the whole of request's range through `buffer` of `capacity` regions (at
// least 1; with kPmScanWpMatching 0 is allowed, to protect and report nothing),
// continues from walk_end each time the buffer is full, and passes each region
// to `callback`, in order of address; if it returns false, the scan ends
// without an error. A region that a buffer boundary splits arrives in parts.
//
// Async-signal-safe if `callback` is: no lock, no allocation. Errors: ENOTTY
// (kernel before 6.7), EPERM (kPmScanCheckWpAsync, and a page that is not in a
// range registered for WP on a userfaultfd with WP_ASYNC), EINVAL (alignment,
// unknown bits, capacity 0), EFAULT.
ScanResult ScanPages(Kernel& kernel, int pagemap_fd, const ScanRequest& request,
                     PageRegion* buffer, size_t capacity,
                     absl::FunctionRef<bool(const PageRegion&)> callback);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_PAGEMAP_H_
