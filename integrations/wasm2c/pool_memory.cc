#include "firsttouch/integrations/wasm2c/pool_memory.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::wasm2c {
namespace {

constexpr uint64_t RoundUp(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Ends the run of the guest that touched. In signal context.
TrapAction OnTrap(const TrapInfo& trap) {
  TrapOutOfBounds({.offset_bytes = trap.offset_bytes,
                   .size_bytes = trap.size_bytes,
                   .write = trap.access == Access::kWrite,
                   .instance = trap.instance,
                   .memory = trap.memory,
                   .program_counter = trap.program_counter,
                   .error = trap.error});
  return TrapAction::kUnhandled;  // no guest runs on this thread
}

class PoolMemory : public GuestMemory {
 public:
  explicit PoolMemory(Memory memory) : memory_(std::move(memory)) {}

  std::byte* base() const override { return memory_.base(); }
  uint64_t size_bytes() const override { return memory_.size_bytes(); }
  absl::Status Grow(uint64_t new_size_bytes) override {
    return memory_.Grow(new_size_bytes);
  }
  absl::Status Reset() override { return memory_.Reset(); }
  absl::Status MakeReady(uint64_t offset_bytes, uint64_t bytes,
                         Access access) override {
    return memory_.MakeReady(offset_bytes, bytes, access);
  }
  absl::StatusOr<ImageRef> Snapshot(std::string_view name) override {
    return memory_.Snapshot(std::string(name));
  }

 private:
  Memory memory_;
};

}  // namespace

LayoutOptions LayoutForGuests(uint32_t instances, uint64_t max_memory_bytes,
                              uint32_t memories_per_instance) {
  const uint64_t rounded = RoundUp(max_memory_bytes, kWasmPageBytes);
  LayoutOptions options = {.instances = instances,
                           .memories_per_instance = memories_per_instance,
                           .max_memory_bytes = rounded};
  // A maximum beyond what a guest can reach is refused by PoolMemorySource. The
  // last page in front of the next memory belongs to neither.
  if (rounded < kReachBytes) {
    options.guard_after_bytes = kReachBytes - rounded + options.page_bytes;
  }
  return options;
}

absl::StatusOr<std::unique_ptr<PoolMemorySource>> PoolMemorySource::Create(
    Service* service) {
  const LayoutOptions& layout = service->layout().options();
  if (layout.max_memory_bytes > kMaxGuestMemoryBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_memory_bytes ", layout.max_memory_bytes, " of pool '",
        service->options().name, "' exceeds ", kMaxGuestMemoryBytes,
        " bytes, the most that a wasm2c memory can have"));
  }
  const uint64_t unowned = service->layout().unowned_guard_bytes();
  if (layout.max_memory_bytes + layout.guard_after_bytes - unowned <
      kReachBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_memory_bytes ", layout.max_memory_bytes, " and guard_after_bytes ",
        layout.guard_after_bytes, " of pool '", service->options().name,
        "', without the last ", unowned,
        " that the next memory can reach, too, cover less than the ",
        kReachBytes,
        " bytes that generated code can reach; use LayoutForGuests"));
  }
  return std::unique_ptr<PoolMemorySource>(new PoolMemorySource(service));
}

absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>>
PoolMemorySource::Acquire(std::span<const MemoryRequest> requests) {
  std::vector<std::unique_ptr<GuestMemory>> result;
  result.reserve(requests.size());
  const auto options = [](const MemoryRequest& request) {
    return MemoryOptions{.image = request.image,
                         .size_bytes = request.size_bytes,
                         .trap_callback = &OnTrap};
  };
  if (requests.size() == 1 &&
      service_->layout().options().memories_per_instance == 1) {
    absl::StatusOr<Memory> memory = service_->Acquire(options(requests[0]));
    if (!memory.ok()) return memory.status();
    result.push_back(std::make_unique<PoolMemory>(*std::move(memory)));
    return result;
  }
  const uint32_t per_instance =
      service_->layout().options().memories_per_instance;
  if (requests.size() > per_instance) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the guest has ", requests.size(), " memories, and pool '",
        service_->options().name, "' has memories_per_instance ", per_instance,
        ": make the pool with LayoutForGuests(instances, max_memory_bytes, ",
        requests.size(), ")"));
  }
  // Memories of the instance that the guest has no use for stay empty, and are
  // released at once; the instance is in use as long as one of them is.
  std::vector<MemoryOptions> all;
  all.reserve(per_instance);
  for (const MemoryRequest& request : requests) all.push_back(options(request));
  all.resize(per_instance);
  absl::StatusOr<std::vector<Memory>> memories = service_->AcquireInstance(all);
  if (!memories.ok()) return memories.status();
  for (size_t i = 0; i < requests.size(); ++i) {
    result.push_back(std::make_unique<PoolMemory>(std::move((*memories)[i])));
  }
  return result;
}

}  // namespace firsttouch::wasm2c
