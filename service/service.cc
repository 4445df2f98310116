#include "firsttouch/service/service.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/service/leases.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/open_supply.h"
#include "firsttouch/service/pool_end.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/service_with_kernel.h"
#include "firsttouch/service/steady_path.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

absl::StatusOr<std::unique_ptr<Service>> ServiceMaker::Create(
    ServiceOptions options, Kernel& kernel, SupplyOpener open_supply) {
  absl::StatusOr<std::unique_ptr<ServicePool>> pool =
      ServicePool::Create(std::move(options), kernel, open_supply);
  if (!pool.ok()) return pool.status();
  return std::unique_ptr<Service>(new Service(pool->release()));
}

absl::StatusOr<std::unique_ptr<Service>> CreateService(ServiceOptions options,
                                                       Kernel& kernel) {
  return ServiceMaker::Create(std::move(options), kernel, &OpenSupply);
}

absl::StatusOr<std::unique_ptr<Service>> Service::Create(
    ServiceOptions options) {
  return CreateService(std::move(options), RealKernel());
}

ServicePool& PoolOf(Service& service) { return *service.pool_; }

Service::~Service() { Orphan(std::unique_ptr<ServicePool>(pool_)); }

absl::StatusOr<Memory> Service::Acquire(const MemoryOptions& options) {
  return AcquireOne(*pool_, options);
}

absl::StatusOr<std::vector<Memory>> Service::AcquireInstance(
    std::span<const MemoryOptions> options) {
  return firsttouch::AcquireInstance(*pool_, options);
}

absl::StatusOr<uint64_t> Service::Trim() { return TrimPool(*pool_); }

ServiceStats Service::Stats() const { return pool_->Stats(); }

std::string Service::Describe() const { return pool_->Describe(); }

const ServiceOptions& Service::options() const { return pool_->options; }

Supply Service::supply() const { return pool_->supply->traits().kind; }

Backing Service::backing() const { return pool_->fault_pool.backing; }

bool Service::serves_kernel_faults() const {
  return pool_->supply->traits().serves_kernel_faults;
}

const PoolLayout& Service::layout() const { return pool_->layout; }

uintptr_t Service::base() const { return pool_->fault_pool.entry.base; }

uint32_t Service::pool_id() const { return pool_->fault_pool.entry.pool_id; }

}  // namespace firsttouch
