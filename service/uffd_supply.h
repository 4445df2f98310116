// Memory by userfaultfd: this library places each page, and is told of each
// change. uffd_bind.h, uffd_restore.h and what they use work on a slot, and so
// does the fault path (fault_pool.h); this class has what a pool needs for
// that, and the order of the steps.

#ifndef FIRSTTOUCH_SERVICE_UFFD_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_UFFD_SUPPLY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/handler_threads.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/descriptor_pin.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {

// One class because it is one implementation of MemorySupply, which has most of
// its methods; what they do to a slot is in uffd_bind.h, uffd_drop.h,
// uffd_ready.h, uffd_restore.h and uffd_tracking.h.
class UffdSupply final : public MemorySupply {
 public:
  // Opens the supply for the `reason` that Describe() gives, and chooses the
  // backing. Errors: InvalidArgument for an invalid number of handler threads;
  // those of Uffd::Open; FailedPrecondition for a backing that this kernel
  // lacks; ResourceExhausted where vm.max_map_count leaves no room for the
  // slots, or no descriptor is left.
  static absl::StatusOr<std::unique_ptr<UffdSupply>> Open(
      const SuppliedPool& pool, const UserfaultfdOptions& options,
      std::string reason);
  ~UffdSupply() override;

  // MemorySupply; see there.
  // ----------------------------------------------------
  absl::Status Attach(const Reservation& reservation) override;
  absl::Status Start() override;
  void Stop() override;
  SupplyTraits traits() const override;
  std::string Describe() const override;

  absl::Status Bind(SlotState& slot, const ImageRef& image,
                    uint64_t size_pages) override;
  void Prefill(SlotState& slot, uint64_t size_pages,
               uint64_t most_pages) override;
  absl::Status Unbind(SlotState& slot) override;
  void StopFills(SlotState& slot) override;
  absl::Status Restore(SlotState& slot, uint64_t size_bytes,
                       uint64_t most_private_pages) override;
  uint64_t KeptPages(SlotState& slot) override;
  PageSpan KeptSpan(const SlotState& slot) const override;
  absl::Status NoteDropped(SlotState& slot, const PageSpan& span,
                           int error) override;
  void AddColdPages(SlotState& slot, DropBatch& batch) override;
  absl::Status NoteDemoted(SlotState& slot,
                           const DropBatch::Result& dropped) override;
  // True where the kernel may have merged equal pages of this process, and
  // dropped their write-protection, unasked (uffd/mapping_properties.h).
  bool DistrustsPages() override;

  void NoteGrown(SlotState& slot, uint64_t before, uint64_t after) override;
  absl::Status SetWritable(SlotState& slot, bool writable) override;
  absl::Status ForEachChangedPage(
      SlotState& slot, uint64_t end_page,
      absl::FunctionRef<void(uint64_t page)> visit) override;
  absl::Status MakeReady(SlotState& slot, uint64_t offset_bytes, uint64_t bytes,
                         Access access) override;
  MemoryPages CountPages(SlotState& slot) override;

 private:
  UffdSupply(const SuppliedPool& pool, const UserfaultfdOptions& options,
             std::string reason)
      : pool_(pool), options_(options), reason_(std::move(reason)) {}

  // Null where faults are resolved in the threads that take them.
  const InHandlerThreads* handler_threads() const {
    return std::get_if<InHandlerThreads>(&options_.faults);
  }
  Resolve resolve() const {
    return handler_threads() == nullptr ? Resolve::kInThread
                                        : Resolve::kHandlerThread;
  }

  absl::Status OpenUffd();
  void OpenAsyncUffd();
  absl::Status ChooseBacking();
  absl::Status MapZeroSource();
  absl::Status OpenPagemap();
  // What this machine takes; measured where that was not done before.
  PageCosts Costs() const;
  const SuppliedPool pool_;
  const UserfaultfdOptions options_;
  const std::string reason_;
  std::string backing_reason_;
  // The reason why there is no pagemap_.
  std::string no_scan_reason_;
  bool serves_kernel_faults_ = false;
  std::optional<Uffd> uffd_;
  // For Tracking::kAsync.
  std::optional<Uffd> async_uffd_;
  // Second references to the two; see uffd/descriptor_pin.h.
  DescriptorPin pin_;
  DescriptorPin async_pin_;
  std::optional<Pagemap> pagemap_;
  uintptr_t reservation_base_ = 0;
  uint64_t reservation_bytes_ = 0;
  std::optional<TrackingPolicies> policies_;
  std::optional<UffdContext> context_;
  // Null without handler_threads().
  std::unique_ptr<HandlerThreads> threads_;
  // Whether the kernel merged pages of this process at the last look.
  std::atomic<bool> process_merges_{false};
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_SUPPLY_H_
