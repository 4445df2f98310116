#include "firsttouch/examples/supply.h"

#include <sys/resource.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/service/service.h"

namespace firsttouch::examples {
namespace {

uint64_t KernelPageFaults() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_minflt + usage.ru_majflt);
}

class ServiceSupply : public Supply {
 public:
  ServiceSupply(std::unique_ptr<Service> service,
                std::unique_ptr<wasm2c::PoolMemorySource> source)
      : service_(std::move(service)), source_(std::move(source)) {}

  wasm2c::MemorySource* source() override { return source_.get(); }

  SupplyCounts Counts() const override {
    const ServiceStats stats = service_->Stats();
    return {.minor_faults = stats.minor_faults,
            .missing_read_faults = stats.missing_read_faults,
            .missing_write_faults = stats.missing_write_faults,
            .write_protect_faults = stats.write_protect_faults,
            .kernel_page_faults = KernelPageFaults(),
            .kernel_calls = stats.kernel_calls};
  }

  uintptr_t base() const override { return service_->base(); }
  uint64_t bytes() const override {
    return service_->layout().reservation_bytes();
  }

 private:
  std::unique_ptr<Service> service_;
  std::unique_ptr<wasm2c::PoolMemorySource> source_;
};

class PlainSupply : public Supply {
 public:
  explicit PlainSupply(std::unique_ptr<wasm2c::PlainMemorySource> source)
      : source_(std::move(source)) {}

  wasm2c::MemorySource* source() override { return source_.get(); }
  SupplyCounts Counts() const override {
    return {.kernel_page_faults = KernelPageFaults(),
            .kernel_calls = source_->kernel_calls()};
  }
  uintptr_t base() const override { return source_->base(); }
  uint64_t bytes() const override { return source_->bytes(); }

 private:
  std::unique_ptr<wasm2c::PlainMemorySource> source_;
};

}  // namespace

std::vector<Way> AllWays() {
  return {Way::kSharedInThread,      Way::kCopiedInThread,
          Way::kSharedHandlerThread, Way::kCopiedHandlerThread,
          Way::kPrivateMapping,      Way::kEagerCopy};
}

std::string_view FullName(Way way) {
  switch (way) {
    case Way::kSharedInThread:
      return "shared/in-thread";
    case Way::kCopiedInThread:
      return "copied/in-thread";
    case Way::kSharedHandlerThread:
      return "shared/handler-thread";
    case Way::kCopiedHandlerThread:
      return "copied/handler-thread";
    case Way::kPrivateMapping:
      return "kernel/private-mapping";
    case Way::kEagerCopy:
      return "kernel/eager-copy";
  }
  return "";
}

absl::StatusOr<std::unique_ptr<Supply>> Supply::Create(
    Way way, uint32_t slots, uint64_t max_memory_bytes) {
  if (way == Way::kPrivateMapping || way == Way::kEagerCopy) {
    absl::StatusOr<std::unique_ptr<wasm2c::PlainMemorySource>> source =
        wasm2c::PlainMemorySource::Create(
            {.slots = slots,
             .max_memory_bytes = max_memory_bytes,
             .method = way == Way::kEagerCopy
                           ? wasm2c::PlainMethod::kEagerCopy
                           : wasm2c::PlainMethod::kPrivateMapping});
    if (!source.ok()) return source.status();
    return std::make_unique<PlainSupply>(*std::move(source));
  }
  ServiceOptions options;
  options.name = "tenants";
  options.layout = wasm2c::LayoutForGuests(slots, max_memory_bytes);
  // By default a pool falls back to mappings where userfaultfd is refused.
  UserfaultfdOptions userfaultfd;
  userfaultfd.backing =
      way == Way::kSharedInThread || way == Way::kSharedHandlerThread
          ? Backing::kShared
          : Backing::kCopied;
  if (way == Way::kSharedHandlerThread || way == Way::kCopiedHandlerThread) {
    userfaultfd.faults = InHandlerThreads{};
  }
  options.supply = userfaultfd;
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  if (!service.ok()) return service.status();
  absl::StatusOr<std::unique_ptr<wasm2c::PoolMemorySource>> source =
      wasm2c::PoolMemorySource::Create(service->get());
  if (!source.ok()) return source.status();
  return std::make_unique<ServiceSupply>(*std::move(service),
                                         *std::move(source));
}

absl::StatusOr<uint64_t> Supply::AnonymousBytes() const {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool ours = false;
  uint64_t total = 0;
  while (std::getline(smaps, line)) {
    uint64_t first = 0, last = 0, kib = 0;
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &first, &last) == 2) {
      ours = first >= base() && last <= base() + bytes();
    } else if (ours &&
               sscanf(line.c_str(), "Anonymous: %" SCNu64 " kB", &kib) == 1) {
      total += kib * 1024;
    }
  }
  if (smaps.bad())
    return absl::UnavailableError("cannot read /proc/self/smaps");
  return total;
}

}  // namespace firsttouch::examples
