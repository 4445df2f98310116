// What the functions that work on a slot of a pool with a userfaultfd
// (uffd_bind.h, uffd_restore.h and what they use) need, over a kernel that does
// nothing (scripted_slot.h). For tests only.

#ifndef FIRSTTOUCH_SERVICE_SCRIPTED_UFFD_SLOT_H_
#define FIRSTTOUCH_SERVICE_SCRIPTED_UFFD_SLOT_H_

#include <optional>

#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// With all that a kernel can have. No lease is a profiling one.
class ScriptedUffdSlotTest : public ScriptedSlotTest {
 protected:
  ScriptedUffdSlotTest() {
    context_.policies = &policies_;
    // Maps nothing, and says that it did.
    kernel_.Fail(Op::kMmap, FakeKernel::kEvery, CallResult{1, 0});
    kernel_.SetPagemap({});
  }

  // Has the kernel track pages below `pages` asynchronously.
  void TrackAsync(uint64_t pages) {
    slot_.tracking = Tracking::kAsync;
    slot_.kernel_pages = pages;
  }

  TrackingPolicies policies_{std::nullopt, /*async_works=*/true};
  UffdContext context_{.fault_pool = fault_pool_,
                       .pagemap_fd = kPagemapFd,
                       .async_uffd = kAsyncUffd,
                       .stride_bytes = kStridePages * kPageBytes};
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SCRIPTED_UFFD_SLOT_H_
