#include "firsttouch/service/uffd_mapping.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The registration there is unknown: makes sure that no touch succeeds. The
// slot is never used again.
void MakeInaccessible(const UffdContext& context, const SlotState& slot,
                      uint64_t first_page, uint64_t pages) {
  context.fault_pool.kernel->Mprotect(AddressOf(slot, first_page),
                                      pages * kPageBytes, PROT_NONE);
}

}  // namespace

absl::Status CallFailed(const UffdContext& context, const SlotState& slot,
                        int error, const char* call, uint64_t first_page,
                        uint64_t pages) {
  // The range is reserved already, so that such a call can only lack a mapping.
  return PagesCallFailed(
      context.fault_pool, slot, error, call, first_page, pages,
      {.mappings = " (a slot with an image needs two mappings)"});
}

absl::Status Register(const UffdContext& context, SlotState& slot, int uffd,
                      uint64_t mode, uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult registered = context.fault_pool.kernel->Register(
      uffd, AddressOf(slot, first_page), pages * kPageBytes, mode, nullptr);
  if (registered.ok()) return absl::OkStatus();
  MakeInaccessible(context, slot, first_page, pages);
  return CallFailed(context, slot, registered.error, "UFFDIO_REGISTER",
                    first_page, pages);
}

absl::Status Unregister(const UffdContext& context, SlotState& slot, int uffd,
                        uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult done = context.fault_pool.kernel->Unregister(
      uffd, AddressOf(slot, first_page), pages * kPageBytes);
  if (done.ok()) return absl::OkStatus();
  MakeInaccessible(context, slot, first_page, pages);
  return CallFailed(context, slot, done.error, "UFFDIO_UNREGISTER", first_page,
                    pages);
}

absl::Status RegisterForSignals(const UffdContext& context, SlotState& slot,
                                uint64_t first_page, uint64_t end_page) {
  const uint64_t border = std::clamp(
      slot.image_mapped ? slot.image_pages : uint64_t{0}, first_page, end_page);
  constexpr uint64_t kMode = kUffdRegisterMissing | kUffdRegisterWp;
  absl::Status status =
      Register(context, slot, context.fault_pool.uffd,
               kMode | kUffdRegisterMinor, first_page, border - first_page);
  if (status.ok()) {
    status = Register(context, slot, context.fault_pool.uffd, kMode, border,
                      end_page - border);
  }
  return status;
}

absl::Status MapAnew(const UffdContext& context, SlotState& slot,
                     uint64_t first_page, uint64_t pages, int fd,
                     bool profiling) {
  if (pages == 0) return absl::OkStatus();
  Kernel& kernel = *context.fault_pool.kernel;
  const uintptr_t start = AddressOf(slot, first_page);
  const size_t bytes = pages * kPageBytes;
  Count(slot.counters.kernel_calls);
  int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  if (fd < 0) flags |= MAP_ANONYMOUS;
  if (context.no_huge_pages_by_mmap) flags |= MAP_STACK;
  // Inaccessible, so that nothing populates it: see mapping_properties.h. Where
  // the next lease is a profiling one, pages may be there, since the kernel
  // supplies them anyway; all of them are dropped at its end.
  constexpr int kOpen = PROT_READ | PROT_WRITE;
  const CallResult mapped =
      kernel.Mmap(start, bytes, profiling ? kOpen : PROT_NONE, flags, fd,
                  fd < 0 ? 0 : first_page * kPageBytes);
  if (!mapped.ok()) {
    if (!StaysReserved(kernel, start, bytes)) slot.place_lost = true;
    return CallFailed(context, slot, mapped.error, "mmap", first_page, pages);
  }
  if (!profiling) {
    uint64_t mode = kUffdRegisterMissing | kUffdRegisterWp;
    if (fd >= 0) mode |= kUffdRegisterMinor;
    if (absl::Status status = Register(context, slot, context.fault_pool.uffd,
                                       mode, first_page, pages);
        !status.ok()) {
      return status;
    }
  }
  const MappingResult set = SetMappingProperties(
      kernel, start, bytes,
      {.include_in_core_dump = context.include_in_core_dump,
       .no_huge_pages_by_mmap = context.no_huge_pages_by_mmap,
       .process_merges = context.process_merges == nullptr
                             ? std::nullopt
                             : std::optional<bool>(context.process_merges->load(
                                   std::memory_order_relaxed)),
       .may_be_populated = profiling});
  Count(slot.counters.kernel_calls, set.calls + 1);
  if (!set.ok()) {
    return CallFailed(context, slot, set.error, set.call, first_page, pages);
  }
  if (profiling) return absl::OkStatus();
  const CallResult opened = kernel.Mprotect(start, bytes, kOpen);
  if (!opened.ok()) {
    return CallFailed(context, slot, opened.error, "mprotect", first_page,
                      pages);
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
