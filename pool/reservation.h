// The address range of a pool: one mapping for all of its slots and guards.
// Acquiring, growing and recycling slots never changes the number of mappings
// of the reservation itself.
//
//   absl::StatusOr<Reservation> reservation = Reservation::Create(
//       RealKernel(), layout, {.name = "tenants"});
//   std::byte* memory = reinterpret_cast<std::byte*>(
//       reservation->base() + layout.memory_offset_bytes(SlotIndex(7)));
//
// The mapping is private, anonymous, readable and writable (unless the options
// ask otherwise), without a swap reservation (MAP_NORESERVE), and empty,
// whatever the process has asked for its mappings as a whole
// (mapping_properties.h). By itself it does not stop an access outside a
// memory: until the pages are registered with a userfaultfd, touching any
// address gives a zero page. To stop such accesses, ask for an inaccessible
// reservation, register the whole range and Open() it before handing out any of
// it; and unmap (destroy this) before closing the userfaultfd.
//
// Thread safety: const calls from any thread; Create and the destructor are
// ordinary calls. Not for signal handlers, except base(), bytes() and
// Contains().
#ifndef FIRSTTOUCH_POOL_RESERVATION_H_
#define FIRSTTOUCH_POOL_RESERVATION_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {

// A pool's reservation begins at a multiple of this: the locator finds a pool
// by the address's 4 GiB chunk.
inline constexpr uint64_t kPoolAlignmentBytes = uint64_t{1} << 32;

struct ReservationOptions {
  // Shown as [anon:firsttouch:NAME] in /proc/PID/maps where the kernel can
  // (CONFIG_ANON_VMA_NAME, 5.17), and silently left out where it cannot.
  // Characters that the kernel refuses ([ ] \ $ ` and non-printable) become
  // '_', and the whole is cut at 79 characters.
  std::string name;
  // False: MADV_DONTDUMP, so that a crash does not walk terabytes.
  bool include_in_core_dump = false;
  // False: MADV_DONTFORK, so that a child has no mapping there and dies on
  // touch. True is for hosts that can deal with it: a child has no userfaultfd,
  // so that missing pages read as zero in it and guards are writable.
  bool inherit_on_fork = false;
  // The base is a multiple of this; a power of two, at least a page. Memories
  // that the locator is to find need kPoolAlignmentBytes.
  uint64_t alignment_bytes = kPoolAlignmentBytes;
  // True: PROT_NONE, for a pool that is registered before it is made
  // accessible, or whose memories are made accessible by mprotect(2) one by
  // one.
  bool inaccessible = false;
  // False: MADV_NOHUGEPAGE, so that one touch never makes 2 MiB resident (and
  // never a page above a memory's size). True: MADV_HUGEPAGE.
  bool huge_pages = false;
};

class Reservation {
 public:
  // Maps layout.reservation_bytes() at a multiple of options.alignment_bytes.
  // Errors:
  //   ResourceExhausted: no room. Names the bytes asked, the number of slots,
  //     the limit that refused (address space, RLIMIT_AS, vm.max_map_count,
  //     overcommit) and the largest pool that fits.
  //   InvalidArgument: layout.options().page_bytes is not this machine's page,
  //     or options.alignment_bytes is not a power of two from the page on.
  //   FailedPrecondition: huge_pages on a kernel without transparent huge
  //   pages.
  //   Unavailable: under mlockall(MCL_FUTURE), more than RLIMIT_MEMLOCK.
  //   Others: the errno of a refused call, with the call and the range.
  // Nothing is left mapped after an error. `kernel` must outlive the result.
  static absl::StatusOr<Reservation> Create(Kernel& kernel,
                                            const PoolLayout& layout,
                                            const ReservationOptions& options);

  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  // Unmaps everything. Does nothing in a child of fork(2) that has not
  // inherited the mapping (ReservationOptions::inherit_on_fork): what lies
  // there by then is not the reservation's.
  ~Reservation();

  // Makes all of an inaccessible reservation readable and writable. `layout` is
  // the one that it was made for. Errors: those of Create, with mprotect(2).
  absl::Status Open(const PoolLayout& layout) const;

  // Checks that no page of the reservation is present, by samples.
  // FailedPrecondition where one is: bounds that are missing pages would not
  // hold.
  absl::Status CheckEmpty() const;

  // First address; a multiple of options.alignment_bytes. 0 after a move.
  uintptr_t base() const noexcept { return base_; }
  uint64_t bytes() const noexcept { return bytes_; }
  // Whether the calling process has the mapping: it made or inherited it.
  // Async-signal-safe.
  bool IsMappedHere() const noexcept { return inherited_ || made_by_.IsHere(); }
  bool Contains(uintptr_t address) const noexcept {
    return address - base_ < bytes_;
  }

 private:
  Reservation(Kernel* kernel, uintptr_t base, uint64_t bytes)
      : kernel_(kernel), base_(base), bytes_(bytes) {}

  void Unmap();

  Kernel* kernel_ = nullptr;
  uintptr_t base_ = 0;
  uint64_t bytes_ = 0;
  ProcessMark made_by_ = ProcessMark::Here();
  bool inherited_ = false;  // By children of fork(2).
};

// Gives [start, start + bytes), anonymous memory of a reservation that was
// mapped anew, the reservation's name again (ReservationOptions::name). Not
// only for readers: neighbours with different names stay two mappings.
void NameReservedRange(uintptr_t start, uint64_t bytes, std::string_view name);

// Whether the range still belongs to the reservation after an mmap(2) with
// MAP_FIXED over [start, start + bytes) has failed. Some failures come after
// the kernel has unmapped the old pages (before 6.13, where
// vm.overcommit_memory is 2 and there is no room for the new mapping); this
// call then reserves the range again, inaccessible. False: that was not
// possible, and nothing may ever be mapped there again, since another thread of
// the process may have got the addresses.
bool StaysReserved(Kernel& kernel, uintptr_t start, uint64_t bytes);

// Explains why the kernel refused to map a layout's reservation, as Create
// reports it: ResourceExhausted with the limit that the facts show to be
// exceeded, or, if they show none, with the bytes asked and all the facts.
// `error` is mmap's errno. Pure.
absl::Status ExplainRefusedReservation(const PoolLayout& layout,
                                       uint64_t alignment_bytes,
                                       const LimitFacts& facts, int error);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_RESERVATION_H_
