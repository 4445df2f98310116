// Memories of guests from a firsttouch service.
//
//   absl::StatusOr<std::unique_ptr<Service>> service = Service::Create(
//       {.name = "guests", .layout = LayoutForGuests(64, 16 << 20)});
//   absl::StatusOr<std::unique_ptr<PoolMemorySource>> source =
//       PoolMemorySource::Create(service->get());

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_POOL_MEMORY_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_POOL_MEMORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/service.h"

namespace firsttouch::wasm2c {

// A layout in which no guest can reach anything but its own memory: behind each
// memory there is guard enough for kReachBytes. One instance with one memory
// takes a little more than 8 GiB of address space; 47 bits hold some 16,000.
//
// `max_memory_bytes` is rounded up to WebAssembly pages.
LayoutOptions LayoutForGuests(uint32_t instances, uint64_t max_memory_bytes,
                              uint32_t memories_per_instance = 1);

// Thread-safe. Out-of-bounds touches of its memories end the run of the guest
// that touched, as WASM_RT_TRAP_OOB with the offset; a touch while no guest
// runs goes to the service's own trap callback.
class PoolMemorySource : public MemorySource {
 public:
  // `service` must outlive the source and its memories.
  //
  // InvalidArgument where the pool's guards do not cover what generated code
  // can reach (see LayoutForGuests), or where its memories are larger than
  // kMaxGuestMemoryBytes.
  static absl::StatusOr<std::unique_ptr<PoolMemorySource>> Create(
      Service* service);

  // A guest may have fewer memories than the pool has per instance, and not
  // more: InvalidArgument. Otherwise the errors of Service::Acquire.
  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override;

 private:
  explicit PoolMemorySource(Service* service) : service_(service) {}

  Service* service_;
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_POOL_MEMORY_H_
