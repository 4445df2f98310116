// The memory sources that tests of guests run on: each way of a service that
// this machine allows, and each plain method.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_TEST_SOURCES_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_TEST_SOURCES_H_

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/service/service.h"

namespace firsttouch::wasm2c {

// One way to supply memory.
struct SourceKind {
  std::string name;  // fit for a test's name
  bool plain_mapping = false;
  bool eager_copy = false;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
  Supply supply = Supply::kUserfaultfd;
};

// For test output.
inline void PrintTo(const SourceKind& kind, std::ostream* out) {
  *out << kind.name;
}

// All of them.
std::vector<SourceKind> AllSourceKinds();

// A source with what it stands on.
struct TestSource {
  std::unique_ptr<Service> service;  // null for the plain kinds
  std::unique_ptr<MemorySource> source;
};

// Fails with the service's or kernel's error where this machine does not allow
// the kind.
absl::StatusOr<TestSource> MakeTestSource(const SourceKind& kind,
                                          uint32_t instances,
                                          uint64_t max_memory_bytes,
                                          uint32_t memories_per_instance = 1);

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_TEST_SOURCES_H_
