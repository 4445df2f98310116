// Names of the kinds of supply, backing, resolving and tracking.
// service/supply.h and service/options.h say which of them there are to choose
// from, and what they cost.

#ifndef FIRSTTOUCH_SERVICE_SUPPLY_KINDS_H_
#define FIRSTTOUCH_SERVICE_SUPPLY_KINDS_H_

#include <cstdint>

namespace firsttouch {

// The source of a pool's memory; see service/supply.h.
enum class Supply : uint8_t {
  kUserfaultfd,
  kMappingsDrop,
  kMappingsScan,
};
inline constexpr Supply kSupplies[] = {
    Supply::kUserfaultfd, Supply::kMappingsDrop, Supply::kMappingsScan};

// Whether the kernel's mappings supply the memory, without userfaultfd.
constexpr bool IsMappings(Supply supply) {
  return supply != Supply::kUserfaultfd;
}

// How a page gets its contents.
enum class Backing : uint8_t {
  // Image pages are a private mapping of the image's memfd: a first read maps
  // the shared page, write-protected; a first write makes a private copy. Clean
  // pages cost nothing per slot. Two mappings per bound slot.
  kShared,
  // Image pages are copied at first touch, one fault-around size at a time. No
  // mapping per slot: for pools near vm.max_map_count, and images that differ
  // per slot.
  kCopied,
};

// Where a fault is resolved.
enum class Resolve : uint8_t {
  // In the thread that took it, in a SIGBUS handler, without a switch to
  // another thread. A system call that is given a missing or protected page
  // gets EFAULT: see Memory::MakeReady.
  kInThread,
  // In handler threads that read fault events. Where userfaultfd may serve the
  // kernel's own accesses, system calls work on any page.
  kHandlerThread,
};

// How the pages that a guest changes are found out.
enum class Tracking : uint8_t {
  // By the signal (or the event) of the first write to a clean page: costs
  // nothing where no such write happens.
  kSignal,
  // The kernel lifts the protection itself (UFFD_FEATURE_WP_ASYNC, 6.7), and a
  // PAGEMAP_SCAN at release finds the changed pages: for guests that write to
  // other pages in each cycle.
  kAsync,
  // Not at all. A profiling lease, the first lease of an unknown image, runs on
  // plain copy-on-write, and a PAGEMAP_SCAN at its release finds the pages that
  // it wrote.
  kProfiling,
};

// The kind's name in tools and texts: "userfaultfd", "mappings-drop",
// "mappings-scan"; "shared", "copied"; "in-thread", "handler-thread"; "signal",
// "async", "profiling". Static strings; any thread.
const char* SupplyName(Supply supply);
const char* BackingName(Backing backing);
const char* ResolveName(Resolve resolve);
const char* TrackingName(Tracking tracking);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SUPPLY_KINDS_H_
