#include "firsttouch/service/uffd_supply.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/in_bounds_faults.h"
#include "firsttouch/service/measure_costs.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr uint32_t kMaxHandlerThreads = 64;

// The features without which neither backing works, for each way of resolving.
uint64_t RequiredFeatures(Resolve resolve) {
  const uint64_t both = kUffdFeaturePagefaultFlagWp;
  return resolve == Resolve::kInThread ? both | kUffdFeatureSigbus : both;
}

// For private mappings of a memfd, which are registered for missing, minor and
// write-protect faults.
constexpr uint64_t kSharedFeatures = kUffdFeatureMissingShmem |
                                     kUffdFeatureMinorShmem |
                                     kUffdFeatureWpHugetlbfsShmem;

}  // namespace

absl::StatusOr<std::unique_ptr<UffdSupply>> UffdSupply::Open(
    const SuppliedPool& pool, const UserfaultfdOptions& options,
    std::string reason) {
  const auto* const threads = std::get_if<InHandlerThreads>(&options.faults);
  if (threads != nullptr &&
      (threads->threads == 0 || threads->threads > kMaxHandlerThreads)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "InHandlerThreads::threads ", threads->threads, " is not in 1 to ",
        kMaxHandlerThreads, ": with none, nobody would resolve a fault"));
  }
  std::unique_ptr<UffdSupply> supply(
      new UffdSupply(pool, options, std::move(reason)));
  if (absl::Status status = supply->OpenUffd(); !status.ok()) return status;
  return supply;
}

UffdSupply::~UffdSupply() {
  if (!pool_.fault_pool.InOwnerProcess()) {
    // A forked child has no such threads. It has the descriptors, and they are
    // closed.
    static_cast<void>(threads_.release());
    return;
  }
  if (pool_.fault_pool.zero_source != 0) {
    pool_.kernel.Munmap(pool_.fault_pool.zero_source,
                        kZeroSourcePages * kPageBytes);
  }
}

absl::Status UffdSupply::OpenUffd() {
  const InHandlerThreads* const threads = handler_threads();
  const bool in_thread = threads == nullptr;
  UffdOptions wanted;
  wanted.required_features = RequiredFeatures(resolve());
  wanted.wished_features = kSharedFeatures;
  if (options_.backing == Backing::kShared) {
    wanted.required_features |= kSharedFeatures;
  }
  if (!in_thread) {
    wanted.wished_features |= kUffdFeatureExactAddress;
    // A guest that can trap at will must not be able to fill the kernel's log.
    if (!MayLogPoisonedPages()) wanted.wished_features |= kUffdFeaturePoison;
  }
  wanted.kernel_faults = !in_thread && threads->kernel_faults.value_or(true);
  absl::StatusOr<Uffd> uffd = Uffd::Open(pool_.kernel, wanted);
  if (!uffd.ok() && wanted.kernel_faults && !threads->kernel_faults) {
    // This is wished for, not required.
    wanted.kernel_faults = false;
    uffd = Uffd::Open(pool_.kernel, wanted);
  }
  if (!uffd.ok()) return uffd.status();
  uffd_.emplace(*std::move(uffd));
  serves_kernel_faults_ = !in_thread && uffd_->kernel_faults();
  absl::StatusOr<DescriptorPin> pin = DescriptorPin::Make(uffd_->fd());
  if (!pin.ok()) return pin.status();
  pin_ = *std::move(pin);
  return ChooseBacking();
}

absl::Status UffdSupply::ChooseBacking() {
  // WP_UNPOPULATED itself is not used; it came with the kernel that can also
  // map and write-protect a page in one UFFDIO_CONTINUE, which has no feature
  // bit of its own.
  const bool continue_wp =
      (uffd_->available_features() & kUffdFeatureWpUnpopulated) != 0;
  const uint64_t missing = kSharedFeatures & ~uffd_->features();
  if (options_.backing == Backing::kShared && !continue_wp) {
    return absl::FailedPreconditionError(
        "backing kShared needs UFFDIO_CONTINUE with write-protection (kernel "
        "6.4), which this kernel lacks: use kCopied, or leave backing unset");
  }
  const LimitFacts facts = ReadLimitFacts();
  const LimitUse shared_use{.fixed_maps = 5, .maps_per_slot = 2};
  if (options_.backing.has_value()) {
    pool_.fault_pool.backing = *options_.backing;
    backing_reason_ = "asked for";
  } else if (missing != 0 || !continue_wp) {
    pool_.fault_pool.backing = Backing::kCopied;
    backing_reason_ = "this kernel lacks what kShared needs (6.4)";
  } else if (!CheckLimits(pool_.layout, shared_use, facts).ok()) {
    pool_.fault_pool.backing = Backing::kCopied;
    backing_reason_ = absl::StrCat("vm.max_map_count ", facts.max_map_count,
                                   " leaves no two mappings for "
                                   "each of ",
                                   pool_.layout.slots(), " slots");
  } else {
    pool_.fault_pool.backing = Backing::kShared;
    backing_reason_ = "the kernel has all it needs";
  }
  const LimitUse use = pool_.fault_pool.backing == Backing::kShared
                           ? shared_use
                           : LimitUse{.fixed_maps = 5, .maps_per_slot = 0};
  if (absl::Status status = CheckLimits(pool_.layout, use, facts);
      !status.ok()) {
    return status;
  }
  const LimitUse async_use{.fixed_maps = 5, .maps_per_slot = 4};
  if (pool_.fault_pool.backing == Backing::kShared &&
      CheckLimits(pool_.layout, async_use, facts).ok()) {
    OpenAsyncUffd();
  }
  pool_.fault_pool.uffd = uffd_->fd();
  pool_.fault_pool.poison = (uffd_->features() & kUffdFeaturePoison) != 0;
  return absl::OkStatus();
}

void UffdSupply::OpenAsyncUffd() {
  UffdOptions wanted;
  wanted.required_features = kUffdFeaturePagefaultFlagWp | kUffdFeatureWpAsync |
                             kUffdFeatureWpHugetlbfsShmem;
  absl::StatusOr<Uffd> uffd = Uffd::Open(pool_.kernel, wanted);
  // This is optional, and does not exist before 6.7.
  if (!uffd.ok()) return;
  absl::StatusOr<DescriptorPin> pin = DescriptorPin::Make(uffd->fd());
  if (!pin.ok()) return;
  async_uffd_.emplace(*std::move(uffd));
  async_pin_ = *std::move(pin);
}

absl::Status UffdSupply::MapZeroSource() {
  const CallResult zeroes = pool_.kernel.Mmap(
      0, kZeroSourcePages * kPageBytes, PROT_READ,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);
  if (!zeroes.ok()) {
    return absl::ErrnoToStatus(
        zeroes.error,
        absl::StrCat("mmap of ", kZeroSourcePages * kPageBytes, " bytes"));
  }
  pool_.fault_pool.zero_source = static_cast<uintptr_t>(zeroes.value);
  return absl::OkStatus();
}

absl::Status UffdSupply::OpenPagemap() {
  // Does not exist before 6.7, or without /proc: pages that may have changed
  // are dropped then.
  absl::StatusOr<Pagemap> pagemap = Pagemap::Open(pool_.kernel);
  if (pagemap.ok()) {
    pagemap_.emplace(*std::move(pagemap));
  } else if (absl::IsResourceExhausted(pagemap.status())) {
    return pagemap.status();
  } else {
    const absl::string_view why = pagemap.status().message();
    no_scan_reason_.assign(why.data(), why.size());
  }
  return absl::OkStatus();
}

PageCosts UffdSupply::Costs() const {
  // A fake kernel's speed says nothing.
  if (&pool_.kernel != &RealKernel()) return {};
  // Once in a process: the machine stays the same.
  static const PageCosts costs = CostsOf(MeasurePageTimes(
      pool_.kernel, uffd_->fd(),
      reservation_base_ + pool_.layout.first_memory_offset_bytes(),
      PagesRoundedUp(pool_.layout.memory_bytes()).value(),
      pool_.fault_pool.zero_source));
  return costs;
}

absl::Status UffdSupply::Attach(const Reservation& reservation) {
  reservation_base_ = reservation.base();
  reservation_bytes_ = reservation.bytes();
  uint64_t ioctls = kUffdIoctlCopy | kUffdIoctlZeroPage | kUffdIoctlWake |
                    kUffdIoctlWriteProtect;
  absl::Status status =
      uffd_->Register(reservation_base_, reservation_bytes_,
                      kUffdRegisterMissing | kUffdRegisterWp, ioctls);
  if (status.ok()) status = reservation.Open(pool_.layout);
  if (status.ok()) status = MapZeroSource();
  if (status.ok()) status = OpenPagemap();
  if (!status.ok()) return status;
  process_merges_.store(ProcessMergesPages(), std::memory_order_relaxed);

  FaultPool& fault_pool = pool_.fault_pool;
  fault_pool.resolve = resolve();
  fault_pool.resolve_signal = &ResolveSignalByFilling;
  const bool async_works = async_uffd_.has_value() && pagemap_.has_value();
  if (options_.tracking == Tracking::kAsync && !async_works) {
    return absl::FailedPreconditionError(absl::StrCat(
        "tracking kAsync needs userfaultfd's WP_ASYNC and PAGEMAP_SCAN (kernel "
        "6.7), backing kShared, and four mappings a slot below "
        "vm.max_map_count; not all of it is there for pool \"",
        pool_.options.name, "\"",
        no_scan_reason_.empty() ? "" : absl::StrCat(" (", no_scan_reason_, ")"),
        ": leave tracking unset"));
  }
  policies_.emplace(options_.tracking, async_works);
  context_.emplace(UffdContext{
      .fault_pool = fault_pool,
      .policies = &*policies_,
      .pagemap_fd = pagemap_.has_value() ? pagemap_->fd() : -1,
      .async_uffd = async_works ? async_uffd_->fd() : -1,
      .profile_unknown_images = fault_pool.backing == Backing::kShared &&
                                pagemap_.has_value() &&
                                !options_.tracking.has_value(),
      .stride_bytes = pool_.layout.slot_stride_bytes(),
      .include_in_core_dump = pool_.options.include_in_core_dump,
      .window_cycles = std::max(1u, pool_.options.retained_cycles / 2),
      .retained_bytes_per_us = pool_.options.retained_bytes_per_us,
      .costs = Costs(),
      .times_restores = &pool_.kernel == &RealKernel(),
      .no_huge_pages_by_mmap = NoHugePagesByMmap(uffd_->available_features()),
      .process_merges = &process_merges_});
  return absl::OkStatus();
}

absl::Status UffdSupply::Start() {
  if (handler_threads() == nullptr) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<HandlerThreads>> threads =
      HandlerThreads::Start(pool_.fault_pool, pool_.options.name,
                            handler_threads()->threads);
  if (!threads.ok()) return threads.status();
  threads_ = *std::move(threads);
  return absl::OkStatus();
}

void UffdSupply::Stop() { threads_.reset(); }

SupplyTraits UffdSupply::traits() const {
  const bool in_thread = handler_threads() == nullptr;
  return {
      .kind = Supply::kUserfaultfd,
      .backing = BackingName(pool_.fault_pool.backing),
      .resolve = ResolveName(resolve()),
      .handler_threads = in_thread ? 0 : handler_threads()->threads,
      .serves_kernel_faults = serves_kernel_faults_,
      // Handler threads may still be filling when a release begins.
      .steady_cycles = in_thread ? context_->window_cycles : 0,
  };
}

std::string UffdSupply::Describe() const {
  std::string text =
      absl::StrCat("supply: ", SupplyName(Supply::kUserfaultfd), " (", reason_,
                   ")\nbacking: ", BackingName(pool_.fault_pool.backing), " (",
                   backing_reason_, "), fault-around ",
                   pool_.layout.options().fault_around_bytes, " bytes\n");
  absl::StrAppend(
      &text, "faults: resolved ", ResolveName(resolve()),
      handler_threads() != nullptr
          ? absl::StrCat(" by ", handler_threads()->threads, " threads")
          : "",
      serves_kernel_faults_ ? ", also those of system calls"
                            : ", system calls need MakeReady",
      "\n");
  absl::StrAppend(&text, "userfaultfd: opened by ", UffdHowName(uffd_->how()),
                  ", features ", UffdFeatureNames(uffd_->features()), "\n");
  absl::StrAppend(
      &text, "untracked pages: ",
      pagemap_.has_value()
          ? std::string("found by PAGEMAP_SCAN")
          : absl::StrCat("dropped at release (", no_scan_reason_, ")"),
      "\nfirst writes: ",
      options_.tracking.has_value()
          ? absl::StrCat("tracked by ", TrackingName(*options_.tracking),
                         " (asked for)")
      : async_uffd_.has_value() && pagemap_.has_value()
          ? std::string("tracked by signal or asynchronously, by image")
      : !pagemap_.has_value()
          ? std::string("tracked by signal (what the kernel tracks is found by "
                        "PAGEMAP_SCAN)")
          : std::string("tracked by signal (no WP_ASYNC before 6.7, or no "
                        "shared backing, or no room for four mappings a slot)"),
      "\n");
  const uint64_t worth = pool_.options.retained_bytes_per_us;
  absl::StrAppend(&text, "retained pages: ",
                  worth == 0 ? std::string("memory is free")
                             : absl::StrCat("at most ", worth,
                                            " bytes for each us that they "
                                            "shorten a cycle"),
                  " (retained_bytes_per_us)\n");
  return text;
}

}  // namespace firsttouch
