#include "firsttouch/pool/limits.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/size_text.h"

namespace firsttouch {
namespace {

uint64_t SaturatingSubtract(uint64_t a, uint64_t b) {
  return a > b ? a - b : 0;
}

uint64_t SaturatingMultiply(uint64_t a, uint64_t b) {
  uint64_t product;
  return __builtin_mul_overflow(a, b, &product) ? kUnlimited : product;
}

uint64_t AddressSpaceBytes(const LimitFacts& facts) {
  return facts.address_space_bits >= 64
             ? kUnlimited
             : uint64_t{1} << facts.address_space_bits;
}

// How much of a limit is left, in its own unit.
uint64_t Available(Limit limit, const LimitUse& use, const LimitFacts& facts) {
  switch (limit) {
    case Limit::kAddressSpace: {
      const uint64_t free =
          SaturatingSubtract(AddressSpaceBytes(facts), facts.mapped_bytes);
      if (facts.largest_gap_bytes == kUnlimited) return free;
      return std::min(free, SaturatingSubtract(facts.largest_gap_bytes,
                                               use.alignment_bytes));
    }
    case Limit::kRlimitAs:
      if (facts.rlimit_as_bytes == kUnlimited) return kUnlimited;
      return SaturatingSubtract(facts.rlimit_as_bytes, facts.mapped_bytes);
    case Limit::kMapCount:
      if (facts.max_map_count == kUnlimited) return kUnlimited;
      return SaturatingSubtract(facts.max_map_count, facts.maps);
    case Limit::kOvercommit:
      if (facts.overcommit != Overcommit::kNever ||
          facts.commit_limit_bytes == kUnlimited) {
        return kUnlimited;
      }
      return SaturatingSubtract(facts.commit_limit_bytes,
                                facts.committed_bytes);
  }
  return kUnlimited;
}

// Reads a file of /proc through a buffer on the stack: at the limit of mappings
// a larger allocation fails. Calls `take` for each piece that read(2) gives.
template <typename Take>
void ReadPieces(const char* path, Take take) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  char buffer[16384];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    take(std::string_view(buffer, static_cast<size_t>(got)));
  }
  close(fd);
}

// All of a small file of /proc; empty if it cannot be read.
std::string ReadAll(const char* path) {
  std::string text;
  ReadPieces(path, [&](std::string_view piece) { text.append(piece); });
  return text;
}

std::optional<uint64_t> ReadNumber(const char* path) {
  uint64_t value;
  if (!absl::SimpleAtoi(ReadAll(path), &value)) return std::nullopt;
  return value;
}

// "CommitLimit:    123 kB" -> 123 * 1024.
std::optional<uint64_t> MeminfoBytes(std::string_view meminfo,
                                     std::string_view key) {
  const size_t at = meminfo.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = meminfo.substr(at + key.size());
  const size_t first = rest.find_first_of("0123456789");
  if (first == std::string_view::npos) return std::nullopt;
  rest.remove_prefix(first);
  rest = rest.substr(0, rest.find_first_not_of("0123456789"));
  uint64_t kib;
  if (!absl::SimpleAtoi(std::string(rest), &kib)) return std::nullopt;
  return kib * 1024;
}

// Counts mappings and finds the longest gap between them, from the text of
// /proc/self/maps in pieces.
class MapsReader {
 public:
  explicit MapsReader(uint64_t end_of_space) : end_of_space_(end_of_space) {}

  void Take(std::string_view piece) {
    while (!piece.empty()) {
      const size_t line_end = piece.find('\n');
      const std::string_view part = piece.substr(0, line_end);
      const size_t copied = std::min(part.size(), sizeof(head_) - length_);
      part.copy(head_ + length_, copied);
      length_ += copied;
      if (line_end == std::string_view::npos) return;
      TakeLine(std::string_view(head_, length_));
      length_ = 0;
      piece.remove_prefix(line_end + 1);
    }
  }

  uint64_t count() const { return count_; }
  uint64_t gap() const {
    return std::max(gap_, SaturatingSubtract(end_of_space_, previous_end_));
  }

 private:
  // "7f0a1c000000-7f0a1c021000 rw-p ...".
  void TakeLine(std::string_view line) {
    uint64_t start;
    uint64_t end;
    const char* const last = line.data() + line.size();
    const auto first = std::from_chars(line.data(), last, start, 16);
    if (first.ec != std::errc() || first.ptr == last || *first.ptr != '-') {
      return;
    }
    const auto second = std::from_chars(first.ptr + 1, last, end, 16);
    if (second.ec != std::errc() || second.ptr == last || *second.ptr != ' ' ||
        start >= end_of_space_) {
      return;
    }
    ++count_;
    if (start > previous_end_) gap_ = std::max(gap_, start - previous_end_);
    previous_end_ = end;
  }

  const uint64_t end_of_space_;
  // The beginning of the present line, which includes its addresses.
  char head_[64];
  size_t length_ = 0;
  uint64_t previous_end_ = 65536;  // vm.mmap_min_addr
  uint64_t gap_ = 0;
  uint64_t count_ = 0;
};

void ReadMaps(LimitFacts& facts) {
  MapsReader reader(AddressSpaceBytes(facts));
  ReadPieces("/proc/self/maps",
             [&](std::string_view piece) { reader.Take(piece); });
  if (reader.count() == 0) return;
  facts.maps = reader.count();
  facts.largest_gap_bytes = reader.gap();
}

}  // namespace

std::string_view LimitName(Limit limit) {
  switch (limit) {
    case Limit::kAddressSpace:
      return "address space";
    case Limit::kRlimitAs:
      return "RLIMIT_AS";
    case Limit::kMapCount:
      return "vm.max_map_count";
    case Limit::kOvercommit:
      return "overcommit";
  }
  return "unknown";
}

LimitVerdict JudgeLimits(const PoolLayout& layout, const LimitUse& use,
                         const LimitFacts& facts) {
  const LayoutOptions& options = layout.options();
  const uint64_t instance_bytes = SaturatingMultiply(
      layout.slot_stride_bytes(), options.memories_per_instance);
  const uint64_t instance_maps =
      SaturatingMultiply(use.maps_per_slot, options.memories_per_instance);
  uint64_t largest =
      std::numeric_limits<uint32_t>::max() / options.memories_per_instance;

  LimitVerdict verdict;
  uint64_t tightest = kUnlimited;
  for (Limit limit : {Limit::kAddressSpace, Limit::kRlimitAs, Limit::kMapCount,
                      Limit::kOvercommit}) {
    const bool counts_maps = limit == Limit::kMapCount;
    const uint64_t fixed =
        counts_maps ? use.fixed_maps : options.guard_before_bytes;
    const uint64_t each = counts_maps ? instance_maps : instance_bytes;
    uint64_t asked = layout.reservation_bytes();
    if (counts_maps) {
      asked = SaturatingMultiply(use.maps_per_slot, layout.slots());
      if (__builtin_add_overflow(asked, fixed, &asked)) asked = kUnlimited;
    }
    const uint64_t available = Available(limit, use, facts);
    uint64_t fits;
    if (available < fixed) {
      fits = 0;
    } else if (each == 0 || available == kUnlimited) {
      fits = kUnlimited;
    } else {
      fits = (available - fixed) / each;
    }
    largest = std::min(largest, fits);
    if (asked > available && fits < tightest) {
      tightest = fits;
      verdict.exceeded = limit;
      verdict.asked = asked;
      verdict.available = available;
    }
  }
  verdict.largest_instances = static_cast<uint32_t>(largest);
  return verdict;
}

absl::Status CheckLimits(const PoolLayout& layout, const LimitUse& use,
                         const LimitFacts& facts) {
  const LimitVerdict verdict = JudgeLimits(layout, use, facts);
  if (!verdict.exceeded.has_value()) return absl::OkStatus();

  const LayoutOptions& options = layout.options();
  const std::string slots = absl::StrCat(
      layout.slots(), " slots (instances ", options.instances,
      " * memories_per_instance ", options.memories_per_instance, ")");
  const std::string fits =
      verdict.largest_instances == 0
          ? std::string("not even 1 instance fits")
          : absl::StrCat("the largest pool that fits has instances = ",
                         verdict.largest_instances);
  constexpr const char* kSmaller =
      "lower instances, max_memory_bytes or guard_after_bytes";
  std::string text;
  switch (*verdict.exceeded) {
    case Limit::kAddressSpace:
      text =
          absl::StrCat(slots, " need ", BytesText(verdict.asked),
                       " of address space, but of ", facts.address_space_bits,
                       " bits (", BytesText(AddressSpaceBytes(facts)),
                       ") only ", BytesText(verdict.available),
                       " are free in one piece; ", fits, "; ", kSmaller);
      break;
    case Limit::kRlimitAs:
      text = absl::StrCat(slots, " need ", BytesText(verdict.asked),
                          " of address space, but RLIMIT_AS (ulimit -v) is ",
                          BytesText(facts.rlimit_as_bytes), ", of which ",
                          BytesText(verdict.available), " are free; ", fits,
                          "; raise the limit (ulimit -v unlimited), or ",
                          kSmaller);
      break;
    case Limit::kMapCount:
      text = absl::StrCat(
          slots, " need up to ", verdict.asked, " mappings (",
          use.maps_per_slot, " a slot), but vm.max_map_count is ",
          facts.max_map_count, ", of which ", verdict.available, " are free; ",
          fits,
          "; raise it (sysctl vm.max_map_count), lower instances, or take a "
          "backing that needs no mapping for each slot");
      break;
    case Limit::kOvercommit:
      text = absl::StrCat(
          slots, " need ", BytesText(verdict.asked),
          " of address space, all of which counts as committed under "
          "vm.overcommit_memory = 2; of the commit limit of ",
          BytesText(facts.commit_limit_bytes), " only ",
          BytesText(verdict.available), " are free; ", fits,
          "; set vm.overcommit_memory to 0 or 1, raise vm.overcommit_ratio, "
          "or ",
          kSmaller);
      break;
  }
  return absl::ResourceExhaustedError(text);
}

absl::Status CheckBookKeeping(const PoolLayout& layout,
                              uint64_t bytes_per_instance,
                              const LimitFacts& facts) {
  struct Room {
    uint64_t bytes;
    const char* where;
  };
  const LimitUse use;
  const Room rooms[] = {
      {facts.available_memory_bytes, "of memory and swap are available"},
      {Available(Limit::kRlimitAs, use, facts),
       "are left below RLIMIT_AS (ulimit -v)"},
      {Available(Limit::kOvercommit, use, facts),
       "are left of the commit limit (vm.overcommit_memory = 2)"}};
  const Room& room = *std::min_element(
      std::begin(rooms), std::end(rooms),
      [](const Room& a, const Room& b) { return a.bytes < b.bytes; });
  const uint64_t asked =
      SaturatingMultiply(bytes_per_instance, layout.options().instances);
  if (asked <= room.bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the book-keeping of instances ", layout.options().instances, " needs ",
      BytesText(asked), ", but only ", BytesText(room.bytes), " ", room.where,
      "; lower instances to at most ", room.bytes / bytes_per_instance));
}

LimitFacts ReadLimitFacts() {
  LimitFacts facts = ReadMemoryFacts();
  ReadMaps(facts);
  return facts;
}

LimitFacts ReadMemoryFacts() {
  LimitFacts facts;
  rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    facts.rlimit_as_bytes = limit.rlim_cur;
  }
  const std::string statm = ReadAll("/proc/self/statm");
  uint64_t pages;
  if (absl::SimpleAtoi(statm.substr(0, statm.find(' ')), &pages)) {
    facts.mapped_bytes = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  }
  facts.max_map_count =
      ReadNumber("/proc/sys/vm/max_map_count").value_or(kUnlimited);
  switch (ReadNumber("/proc/sys/vm/overcommit_memory").value_or(0)) {
    case 1:
      facts.overcommit = Overcommit::kAlways;
      break;
    case 2:
      facts.overcommit = Overcommit::kNever;
      break;
    default:
      facts.overcommit = Overcommit::kHeuristic;
      break;
  }
  const std::string meminfo = ReadAll("/proc/meminfo");
  facts.commit_limit_bytes =
      MeminfoBytes(meminfo, "CommitLimit:").value_or(kUnlimited);
  facts.committed_bytes = MeminfoBytes(meminfo, "Committed_AS:").value_or(0);
  if (const auto available = MeminfoBytes(meminfo, "MemAvailable:")) {
    facts.available_memory_bytes =
        *available + MeminfoBytes(meminfo, "SwapFree:").value_or(0);
  }
  return facts;
}

}  // namespace firsttouch
