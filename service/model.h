// Random sequences of what hosts and guests do, against a model that is a plain
// byte array per memory. For tests only.
//
// After every step that shows a memory to somebody new (acquire, reset), all of
// its bytes and its bound are compared with the model. A failing sequence is
// made shorter as long as it still fails, and printed as code that can be
// pasted into a test.

#ifndef FIRSTTOUCH_SERVICE_MODEL_H_
#define FIRSTTOUCH_SERVICE_MODEL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"

namespace firsttouch {

// Whether a pool can be made in this way here.
absl::Status ModelAllows(Way way);

// What is done to the kernel of each pool once that is made; may be null.
using PrepareKernel = void (*)(FakeKernel& kernel);

// The first of `sequences` sequences after which a memory is not what the model
// is, or nullopt. The same seed makes the same ones.
std::optional<std::string> FindDifference(Way way, uint64_t sequences,
                                          uint64_t seed,
                                          PrepareKernel prepare = nullptr);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MODEL_H_
