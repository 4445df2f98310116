#include "firsttouch/pool/reservation.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// <linux/mman.h>, <linux/prctl.h>: 4.17 and 5.17.
constexpr int kMapFixedNoreplace = 0x100000;
constexpr int kPrSetVma = 0x53564d41;
constexpr unsigned long kPrSetVmaAnonName = 0;

// The longest name that PR_SET_VMA_ANON_NAME takes, without the final zero.
constexpr size_t kMaxNameBytes = 79;

// The number of aligned places to try one by one where there is no room for
// more than the reservation itself.
constexpr int kPlacesToTry = 1024;

std::string ErrnoText(int error) {
  return absl::StrCat(std::strerror(error), " (errno ", error, ")");
}

std::string Range(uintptr_t start, uint64_t bytes) {
  return absl::StrFormat("[%#x, %#x)", start, start + bytes);
}

std::string MappingName(std::string_view name) {
  std::string full = "firsttouch:" + std::string(name);
  for (char& c : full) {
    if (c < 0x20 || c > 0x7e ||
        std::string_view("[]\\$`").find(c) != std::string_view::npos) {
      c = '_';
    }
  }
  if (full.size() > kMaxNameBytes) full.resize(kMaxNameBytes);
  return full;
}

// Maps more than is needed and unmaps both ends.
CallResult MapAndTrim(Kernel& kernel, uint64_t bytes, uint64_t alignment) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  uint64_t with_slack;
  if (__builtin_add_overflow(bytes, alignment - page, &with_slack)) {
    return {.error = ENOMEM};
  }
  const CallResult all = kernel.Mmap(0, with_slack, PROT_NONE, kFlags, -1, 0);
  if (!all.ok()) return all;
  const uintptr_t start = static_cast<uintptr_t>(all.value);
  const uintptr_t base = (start + alignment - 1) & ~(alignment - 1);
  const uint64_t head = base - start;
  const uint64_t tail = with_slack - head - bytes;
  CallResult trimmed;
  if (head != 0) trimmed = kernel.Munmap(start, head);
  if (trimmed.ok() && tail != 0) trimmed = kernel.Munmap(base + bytes, tail);
  if (!trimmed.ok()) {
    // Unmapping a range that is gone already does no harm.
    kernel.Munmap(start, with_slack);
    return {.error = trimmed.error};
  }
  return {.value = static_cast<int64_t>(base)};
}

// Maps exactly what is needed, at successive aligned places, beginning where
// the kernel itself would have put it.
CallResult MapWhereAligned(Kernel& kernel, uint64_t bytes, uint64_t alignment) {
  const CallResult hint = kernel.Mmap(0, bytes, PROT_NONE, kFlags, -1, 0);
  if (!hint.ok()) return hint;
  if (static_cast<uint64_t>(hint.value) % alignment == 0) return hint;
  kernel.Munmap(static_cast<uintptr_t>(hint.value), bytes);
  uintptr_t place = static_cast<uintptr_t>(hint.value) & ~(alignment - 1);
  for (int i = 0; i < kPlacesToTry && place != 0; ++i, place -= alignment) {
    const CallResult mapped = kernel.Mmap(place, bytes, PROT_NONE,
                                          kFlags | kMapFixedNoreplace, -1, 0);
    if (!mapped.ok()) {
      if (mapped.error == EEXIST) continue;  // something is in the way
      return mapped;
    }
    if (static_cast<uintptr_t>(mapped.value) == place) return mapped;
    // A kernel before 4.17 took the address for a hint.
    kernel.Munmap(static_cast<uintptr_t>(mapped.value), bytes);
  }
  return {.error = ENOMEM};
}

CallResult MapAligned(Kernel& kernel, uint64_t bytes, uint64_t alignment) {
  const CallResult mapped = MapAndTrim(kernel, bytes, alignment);
  if (mapped.ok() || mapped.error != ENOMEM) return mapped;
  return MapWhereAligned(kernel, bytes, alignment);
}

}  // namespace

void NameReservedRange(uintptr_t start, uint64_t bytes, std::string_view name) {
  // An older kernel does without the name.
  prctl(kPrSetVma, kPrSetVmaAnonName, start, bytes, MappingName(name).c_str());
}

bool StaysReserved(Kernel& kernel, uintptr_t start, uint64_t bytes) {
  // MADV_WILLNEED is the one advice that changes nothing and still finds a
  // hole.
  if (kernel.Madvise(start, kPageBytes, MADV_WILLNEED).error != ENOMEM) {
    return true;
  }
  const CallResult mapped = kernel.Mmap(
      start, bytes, PROT_NONE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (!mapped.ok()) return false;
  const auto place = static_cast<uintptr_t>(mapped.value);
  if (place == start) return true;
  // A kernel before 4.17 takes the address for a hint.
  kernel.Munmap(place, bytes);
  return false;
}

absl::Status ExplainRefusedReservation(const PoolLayout& layout,
                                       uint64_t alignment_bytes,
                                       const LimitFacts& facts, int error) {
  const std::string refused =
      absl::StrCat("mmap of ", layout.reservation_bytes(), " bytes for ",
                   layout.slots(), " slots: ", ErrnoText(error));
  const absl::Status limits =
      CheckLimits(layout, {.alignment_bytes = alignment_bytes}, facts);
  if (!limits.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        std::string(limits.message().data(), limits.message().size()), " [",
        refused, "]"));
  }
  auto number = [](uint64_t value) {
    return value == kUnlimited ? std::string("unlimited") : absl::StrCat(value);
  };
  return absl::ResourceExhaustedError(absl::StrCat(
      refused, "; no limit that we know of explains it: address space ",
      facts.address_space_bits, " bits with a gap of ",
      number(facts.largest_gap_bytes), " bytes, RLIMIT_AS ",
      number(facts.rlimit_as_bytes), " with ", facts.mapped_bytes,
      " mapped, vm.max_map_count ", number(facts.max_map_count), " with ",
      facts.maps, " in use, vm.overcommit_memory ",
      static_cast<int>(facts.overcommit),
      "; lower instances, max_memory_bytes or guard_after_bytes, and look for "
      "a limit of the container (RLIMIT_AS, RLIMIT_DATA, a security module)"));
}

absl::StatusOr<Reservation> Reservation::Create(
    Kernel& kernel, const PoolLayout& layout,
    const ReservationOptions& options) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (layout.options().page_bytes != page) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_bytes ", layout.options().page_bytes,
                     " is not this machine's page size ", page));
  }
  const uint64_t alignment = options.alignment_bytes;
  if (!std::has_single_bit(alignment) || alignment < page) {
    return absl::InvalidArgumentError(absl::StrCat(
        "alignment_bytes ", alignment,
        " is not a power of two from the page size ", page, " on"));
  }
  const uint64_t bytes = layout.reservation_bytes();
  // Inaccessible, so that nothing populates it: see mapping_properties.h.
  const CallResult mapped = MapAligned(kernel, bytes, alignment);
  if (!mapped.ok()) {
    if (mapped.error == ENOMEM) {
      return ExplainRefusedReservation(layout, alignment, ReadLimitFacts(),
                                       mapped.error);
    }
    absl::Status refused = absl::ErrnoToStatus(
        mapped.error, absl::StrCat("mmap of ", bytes, " bytes for ",
                                   layout.slots(), " slots"));
    if (mapped.error != EAGAIN) return refused;
    rlimit limit = {};
    getrlimit(RLIMIT_MEMLOCK, &limit);
    return absl::Status(
        refused.code(),
        absl::StrCat(refused.message(),
                     "; under mlockall(MCL_FUTURE) every new mapping counts "
                     "against RLIMIT_MEMLOCK (ulimit -l), which is ",
                     limit.rlim_cur,
                     " bytes: raise it, give the process CAP_IPC_LOCK, or make "
                     "the pool before mlockall"));
  }
  // From here on, every way out unmaps.
  Reservation reservation(&kernel, static_cast<uintptr_t>(mapped.value), bytes);
  reservation.inherited_ = options.inherit_on_fork;

  const MappingResult set = SetMappingProperties(
      kernel, reservation.base_, bytes,
      {.include_in_core_dump = options.include_in_core_dump,
       .inherit_on_fork = options.inherit_on_fork,
       .huge_pages = options.huge_pages});
  if (!set.ok() && options.huge_pages && set.error == EINVAL &&
      set.call == std::string_view("MADV_HUGEPAGE")) {
    return absl::FailedPreconditionError(
        "huge_pages is set, but madvise(MADV_HUGEPAGE) gives EINVAL: this "
        "kernel has no transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE); "
        "clear huge_pages");
  }
  if (!set.ok()) {
    return absl::ErrnoToStatus(
        set.error,
        absl::StrCat(set.call == std::string_view("munlock")
                         ? "munlock"
                         : absl::StrCat("madvise(", set.call, ")"),
                     " of the reservation ", Range(reservation.base_, bytes)));
  }
  NameReservedRange(reservation.base_, bytes, options.name);
  if (!options.inaccessible) {
    if (absl::Status status = reservation.Open(layout); !status.ok()) {
      return status;
    }
  }
  return reservation;
}

absl::Status Reservation::Open(const PoolLayout& layout) const {
  const CallResult opened =
      kernel_->Mprotect(base_, bytes_, PROT_READ | PROT_WRITE);
  if (opened.ok()) return absl::OkStatus();
  if (opened.error == ENOMEM) {
    // Accessible memory counts against more limits than inaccessible memory.
    if (const std::string data = DataLimitText(bytes_); !data.empty()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "mprotect of ", bytes_, " bytes for ", layout.slots(),
          " slots: ", ErrnoText(opened.error), data,
          " (ulimit -d unlimited), or lower instances, max_memory_bytes or "
          "guard_after_bytes, or take supply mappings-drop or mappings-scan, "
          "where a memory counts with its size"));
    }
    return ExplainRefusedReservation(layout, /*alignment_bytes=*/1,
                                     ReadLimitFacts(), opened.error);
  }
  return absl::ErrnoToStatus(
      opened.error,
      absl::StrCat("mprotect of the reservation ", Range(base_, bytes_)));
}

absl::Status Reservation::CheckEmpty() const {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (const uint64_t offset :
       {uint64_t{0}, bytes_ / 2 & ~(page - 1), bytes_ - page}) {
    unsigned char resident = 0;
    auto* const address = reinterpret_cast<void*>(base_ + offset);
    // A kernel or filter that does not answer gives no reason to refuse the
    // pool.
    if (mincore(address, page, &resident) != 0 || (resident & 1) == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "a page at offset ", offset, " of the reservation ",
        Range(base_, bytes_),
        " is there although nobody touched it, so that no touch of it would "
        "fault and bounds would not hold: something populates the mappings of "
        "this process (mlockall(MCL_FUTURE), a library in front of mmap(2) "
        "that adds MAP_POPULATE); make the pool before that begins"));
  }
  return absl::OkStatus();
}

Reservation::Reservation(Reservation&& other) noexcept
    : kernel_(std::exchange(other.kernel_, nullptr)),
      base_(std::exchange(other.base_, 0)),
      bytes_(std::exchange(other.bytes_, 0)),
      made_by_(other.made_by_),
      inherited_(other.inherited_) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Unmap();
    kernel_ = std::exchange(other.kernel_, nullptr);
    base_ = std::exchange(other.base_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
    made_by_ = other.made_by_;
    inherited_ = other.inherited_;
  }
  return *this;
}

Reservation::~Reservation() { Unmap(); }

void Reservation::Unmap() {
  if (bytes_ != 0 && IsMappedHere()) kernel_->Munmap(base_, bytes_);
}

}  // namespace firsttouch
