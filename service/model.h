// Random sequences of operations of hosts and guests, compared with a model
// that is a plain byte array per memory. For tests only.
//
// After every step that starts a lease or resets a memory, all of its bytes and
// its bound are compared with the model. A failing sequence is shortened as
// long as it still fails, and printed as code that can be pasted into a test.

#ifndef FIRSTTOUCH_SERVICE_MODEL_H_
#define FIRSTTOUCH_SERVICE_MODEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"

namespace firsttouch {

// Whether this machine can make a pool in this way.
absl::Status ModelAllows(Way way);

// Prepares the kernel of each pool once the pool is made; may be null.
using PrepareKernel = void (*)(FakeKernel& kernel);

// Runs `sequences` sequences. Returns the first one after which a memory
// differs from the model, or nullopt. The same seed makes the same sequences.
std::optional<std::string> FindDifference(Way way, uint64_t sequences,
                                          uint64_t seed,
                                          PrepareKernel prepare = nullptr);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MODEL_H_
