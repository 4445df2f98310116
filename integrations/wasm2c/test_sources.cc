#include "firsttouch/integrations/wasm2c/test_sources.h"

#include <utility>

#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/service/supply_choice.h"

namespace firsttouch::wasm2c {

std::vector<SourceKind> AllSourceKinds() {
  return {
      {.name = "SharedInThread"},
      {.name = "CopiedInThread", .backing = Backing::kCopied},
      {.name = "SharedHandlerThread", .resolve = Resolve::kHandlerThread},
      {.name = "CopiedHandlerThread",
       .backing = Backing::kCopied,
       .resolve = Resolve::kHandlerThread},
      {.name = "MappingsDrop", .supply = Supply::kMappingsDrop},
      {.name = "MappingsScan", .supply = Supply::kMappingsScan},
      {.name = "PrivateMapping", .plain_mapping = true},
      {.name = "EagerCopy", .eager_copy = true},
  };
}

absl::StatusOr<TestSource> MakeTestSource(const SourceKind& kind,
                                          uint32_t instances,
                                          uint64_t max_memory_bytes,
                                          uint32_t memories_per_instance) {
  TestSource result;
  if (kind.plain_mapping || kind.eager_copy) {
    absl::StatusOr<std::unique_ptr<PlainMemorySource>> source =
        PlainMemorySource::Create(
            {.slots = instances * memories_per_instance,
             .max_memory_bytes = max_memory_bytes,
             .method = kind.eager_copy ? PlainMethod::kEagerCopy
                                       : PlainMethod::kPrivateMapping});
    if (!source.ok()) return source.status();
    result.source = *std::move(source);
    return result;
  }
  ServiceOptions options;
  options.name = "test";
  options.layout =
      LayoutForGuests(instances, max_memory_bytes, memories_per_instance);
  options.supply = ChoiceOf(kind.supply, kind.backing, kind.resolve);
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  if (!service.ok()) return service.status();
  result.service = *std::move(service);
  absl::StatusOr<std::unique_ptr<PoolMemorySource>> source =
      PoolMemorySource::Create(result.service.get());
  if (!source.ok()) return source.status();
  result.source = *std::move(source);
  return result;
}

}  // namespace firsttouch::wasm2c
