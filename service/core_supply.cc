// The parts of Core that depend on what supplies the memory: choosing it, and
// what a pool of mappings does otherwise than one with a userfaultfd.

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/service/core.h"
#include "firsttouch/service/mapping_ops.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

absl::Status Core::OpenSupply() {
  absl::StatusOr<SupplyWish> wish =
      WishedSupply(options_.supply, std::getenv(kSupplyVariable));
  if (!wish.ok()) return wish.status();
  supply_ = wish->supply.value_or(Supply::kUserfaultfd);
  supply_reason_ = wish->supply.has_value() ? wish->reason
                                            : "kernel and permissions allow it";
  if (supply_ == Supply::kUserfaultfd) {
    absl::Status opened = OpenUffd();
    // Who asks for a backing that the kernel lacks can have the other one, and
    // is told so.
    const bool other_backing_helps =
        absl::IsFailedPrecondition(opened) && options_.backing.has_value();
    if (opened.ok() || wish->supply.has_value() ||
        !RefusesUserfaultfd(opened) || other_backing_helps) {
      return opened;
    }
    anchor_.reset();
    uffd_.reset();
    supply_ = Supply::kMappingsScan;
    supply_reason_ = absl::StrCat("userfaultfd is refused: ", opened.message());
  }
  const bool may_choose = !wish->supply.has_value();
  if (absl::Status status = OpenScan(may_choose); !status.ok()) return status;

  serves_kernel_faults_ = true;
  absl::Status limits = CheckLimits(
      layout_, {.fixed_maps = 5, .maps_per_slot = 4}, ReadLimitFacts());
  if (limits.ok()) return limits;
  return absl::Status(limits.code(), absl::StrCat(limits.message(), " [supply ",
                                                  SupplyName(supply_), ": ",
                                                  supply_reason_, "]"));
}

absl::Status Core::OpenScan(bool may_choose) {
  absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel_);
  absl::Status status = pagemap.status();
  if (status.ok()) status = CheckPrivatePagesAreFound(kernel_, pagemap->fd());
  if (status.ok()) {
    pagemap_.emplace(*std::move(pagemap));
    return absl::OkStatus();
  }
  // A full table of descriptors is no reason to be slow from here on.
  if (absl::IsResourceExhausted(status)) return status;
  if (supply_ == Supply::kMappingsDrop) return absl::OkStatus();
  if (may_choose) {
    supply_ = Supply::kMappingsDrop;
    absl::StrAppend(&supply_reason_,
                    "\nmappings-scan is not possible: ", status.message());
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("supply mappings-scan, ", supply_reason_,
                   ", needs PAGEMAP_SCAN (Linux 6.7): ", status.message(),
                   "; use mappings-drop, or leave supply unset"));
}

absl::Status Core::OpenMapped(SlotState& slot, uint64_t size_bytes) {
  return mappings_->Open(slot, PagesRoundedUp(size_bytes).value());
}

MemoryPages Core::CountMappedPages(const SlotState& slot) const {
  static constexpr std::byte kZeroPage[kPageBytes] = {};
  MemoryPages count;
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_acquire);
  for (const MappingOps::Run& run :
       mappings_->Resident(slot, PagesRoundedUp(size_bytes).value())) {
    count.touched += run.pages;
    if (!run.is_private) continue;
    count.writable += run.pages;
    for (uint64_t page = run.first_page; page < run.first_page + run.pages;
         ++page) {
      const std::byte* before = page < slot.image_pages
                                    ? slot.image->PageBytes(PageIndex(page))
                                    : kZeroPage;
      const auto* now =
          reinterpret_cast<const std::byte*>(slot.base + page * kPageBytes);
      count.changed += DiffersFrom(now, before);
    }
  }
  return count;
}

std::string Core::DescribeSupply() const {
  std::string text = absl::StrCat("supply: ", SupplyName(supply_), " (",
                                  supply_reason_, ")\n");
  if (!IsMappings(supply_)) return text;
  absl::StrAppend(
      &text,
      "memory: private mappings of the image, PROT_NONE outside the size\n"
      "faults: resolved by the kernel, also those of system calls\n"
      "changed pages: ",
      supply_ == Supply::kMappingsScan
          ? "found by one PAGEMAP_SCAN at release, and copied back"
          : "dropped at release, by MADV_DONTNEED",
      "\nslots: ", std::string(SlotStrategyName(options_.strategy)), "\n");
  return text;
}

}  // namespace firsttouch
