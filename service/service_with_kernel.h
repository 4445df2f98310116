// Service::Create() with the kernel and the supply passed in, for tests.

#ifndef FIRSTTOUCH_SERVICE_SERVICE_WITH_KERNEL_H_
#define FIRSTTOUCH_SERVICE_SERVICE_WITH_KERNEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/service.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

class ServiceMaker {
 public:
  // `kernel` must outlive the service and its memories.
  static absl::StatusOr<std::unique_ptr<Service>> Create(
      ServiceOptions options, Kernel& kernel, SupplyOpener open_supply);
};

// The same with the supply that is used outside of tests.
absl::StatusOr<std::unique_ptr<Service>> CreateService(ServiceOptions options,
                                                       Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SERVICE_WITH_KERNEL_H_
