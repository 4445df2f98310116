// What it costs to restore, to track and to give back a page, in nanoseconds.
//
// The defaults were measured on one kind of machine (bench/README.md), with the
// pages where cycles leave them: seldom in a near cache.

#ifndef FIRSTTOUCH_SERVICE_PAGE_COSTS_H_
#define FIRSTTOUCH_SERVICE_PAGE_COSTS_H_

namespace firsttouch {

struct PageCosts {
  // A first write to a clean page that is resolved in the thread: the signal
  // and its system call.
  double signal_ns = 7000;
  // A first write for which the kernel lifts an asynchronous protection.
  double kernel_fault_ns = 1200;
  // A first write to a page that was given back, under kAsync: the kernel
  // copies the page, and lifts the protection.
  double kernel_copy_ns = 4500;
  // Comparing and restoring a page of 4 KiB: one that is compared with an
  // image's page, and one that began as zeroes.
  double restore_ns = 120;
  double restore_zero_ns = 75;
  // Like restore_ns, for the first time since the page was protected, when
  // neither it nor the image's page is in any near cache.
  double first_restore_ns = 250;
  // PAGEMAP_SCAN: the call, and each page that it walks over (those that have a
  // page table).
  double scan_ns = 1500;
  double scan_page_ns = 3;
  // The additional time of a scan that has to look at more than the marks.
  double exact_scan_ns = 500;
  // PAGEMAP_SCAN that protects: the call with a flush of the TLB (more where
  // other threads run), and each page that was dirty.
  double protect_ns = 1200;
  double protect_page_ns = 65;
  // process_madvise(2) that gives pages back: the call with its TLB shootdown,
  // and each page.
  double drop_ns = 4000;
  double drop_page_ns = 250;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PAGE_COSTS_H_
