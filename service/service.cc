#include "firsttouch/service/service.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/service/core.h"
#include "firsttouch/service/open_supply.h"

namespace firsttouch {

absl::StatusOr<std::unique_ptr<Service>> Service::Create(ServiceOptions options,
                                                         Kernel& kernel) {
  absl::StatusOr<std::unique_ptr<Core>> core =
      Core::Create(std::move(options), kernel, &OpenSupply);
  if (!core.ok()) return core.status();
  return std::unique_ptr<Service>(new Service(core->release()));
}

Service::~Service() { Core::Orphan(std::unique_ptr<Core>(core_)); }

absl::StatusOr<Memory> Service::Acquire(const MemoryOptions& options) {
  return core_->AcquireOne(options);
}

absl::StatusOr<std::vector<Memory>> Service::AcquireInstance(
    std::span<const MemoryOptions> options) {
  return core_->AcquireInstance(options);
}

absl::StatusOr<uint64_t> Service::Trim() { return core_->Trim(); }

ServiceStats Service::Stats() const { return core_->Stats(); }

std::string Service::Describe() const { return core_->Describe(); }

const ServiceOptions& Service::options() const { return core_->options(); }

Supply Service::supply() const { return core_->supply(); }

Backing Service::backing() const { return core_->fault_core().backing; }

bool Service::serves_kernel_faults() const {
  return core_->serves_kernel_faults();
}

const PoolLayout& Service::layout() const { return core_->layout(); }

uintptr_t Service::base() const { return core_->fault_core().entry.base; }

uint32_t Service::pool_id() const { return core_->fault_core().entry.pool_id; }

}  // namespace firsttouch
