// ScanPages: async-signal-safe, no lock, no allocation. Pagemap::Open is not.

#include "firsttouch/uffd/pagemap.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

absl::StatusOr<Pagemap> Pagemap::Open(Kernel& kernel) {
  const CallResult opened = kernel.OpenPagemap();
  if (!opened.ok()) {
    return absl::Status(
        absl::ErrnoToStatusCode(opened.error),
        absl::StrCat(
            "/proc/self/pagemap cannot be opened: ", ErrnoText(opened.error),
            opened.error == ENOENT ? "; is /proc mounted?"
            : opened.error == EACCES || opened.error == EPERM
                ? "; /proc/self is not this process's own after "
                  "prctl(PR_SET_DUMPABLE, 0) or a change of user: set "
                  "PR_SET_DUMPABLE to 1 before the pool is made, and allow the "
                  "file where a security module refuses it"
            : opened.error == EMFILE ? "; raise RLIMIT_NOFILE (ulimit -n)"
                                     : ""));
  }
  Pagemap pagemap(kernel, static_cast<int>(opened.value));
  // A scan of an empty range finds out whether the call exists.
  PmScanArg nothing;
  const CallResult scanned = kernel.PagemapScan(pagemap.fd(), &nothing);
  if (scanned.error == ENOTTY) {
    return absl::UnimplementedError(
        absl::StrCat("this kernel has no PAGEMAP_SCAN (Linux 6.7): ",
                     ErrnoText(scanned.error)));
  }
  return pagemap;
}

Pagemap::Pagemap(Pagemap&& other) noexcept
    : kernel_(other.kernel_), fd_(std::exchange(other.fd_, -1)) {}

Pagemap& Pagemap::operator=(Pagemap&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) kernel_->Close(fd_);
    kernel_ = other.kernel_;
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Pagemap::~Pagemap() {
  if (fd_ >= 0) kernel_->Close(fd_);
}

namespace {

// The most regions that the kernel collects at a time (a page table's worth).
// Where it is given room for more, a walk that ends in a later round leaves
// walk_end where the round before ended (6.7 to 6.18 here), and going on from
// there reports the last ones twice.
constexpr size_t kMaxRegionsOfCall = 512;

}  // namespace

ScanResult ScanPages(Kernel& kernel, int pagemap_fd, const ScanRequest& request,
                     PageRegion* buffer, size_t capacity,
                     absl::FunctionRef<bool(const PageRegion&)> callback) {
  ScanResult result;
  result.scanned_to = request.start;
  const bool reports = (request.flags & kPmScanWpMatching) == 0;
  if ((capacity == 0 && reports) || request.end < request.start) {
    result.error = EINVAL;
    return result;
  }
  PmScanArg arg;
  arg.flags = request.flags;
  arg.end = request.end;
  arg.vec = reinterpret_cast<uintptr_t>(buffer);
  arg.vec_len = std::min(capacity, kMaxRegionsOfCall);
  // A bit that is requested inverted is also in the "all" mask; the region
  // reports the page's own state, uninverted.
  arg.category_mask = request.all_of | request.none_of;
  arg.category_inverted = request.none_of;
  arg.category_anyof_mask = request.any_of;
  arg.return_mask = request.report;

  while (result.scanned_to < request.end) {
    arg.start = result.scanned_to;
    arg.walk_end = 0;
    const CallResult scanned = kernel.PagemapScan(pagemap_fd, &arg);
    ++result.calls;
    if (scanned.error == EINTR) continue;
    if (!scanned.ok()) {
      result.error = scanned.error;
      return result;
    }
    for (int64_t i = 0; i < scanned.value; ++i) {
      const PageRegion& region = buffer[i];
      ++result.regions;
      result.pages += (region.end - region.start) >> kPageShift;
      if (!callback(region)) {
        result.scanned_to = region.end;
        return result;
      }
    }
    // The walk stops at the end, or where the vector was full.
    if (arg.walk_end <= result.scanned_to || arg.walk_end > request.end) {
      result.error = EIO;  // no kernel answers so; and a loop must end
      return result;
    }
    result.scanned_to = arg.walk_end;
  }
  return result;
}

}  // namespace firsttouch
