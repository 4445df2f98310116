#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {
namespace {

// Takes the number that `text` begins with.
std::optional<uint64_t> TakeNumber(std::string_view& text, int base) {
  uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

std::string_view TakeLine(std::string_view& text) {
  const size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

struct AddressRange {
  uint64_t start = 0;
  uint64_t end = 0;
};

// "7f00-7f10 rw-p ...": how a mapping begins in maps and smaps. Takes it.
std::optional<AddressRange> TakeRange(std::string_view& line) {
  const std::optional<uint64_t> start = TakeNumber(line, 16);
  if (!start.has_value() || line.empty() || line[0] != '-') {
    return std::nullopt;
  }
  line.remove_prefix(1);
  const std::optional<uint64_t> end = TakeNumber(line, 16);
  if (!end.has_value() || line.empty() || line[0] != ' ') return std::nullopt;
  return AddressRange{*start, *end};
}

}  // namespace

absl::StatusOr<std::string> ReadProcFile(int proc, const char* name) {
  const auto failed = [&]() -> absl::Status {
    const int error = errno;
    if (error == ESRCH || error == ENOENT) {
      return absl::UnavailableError("the process has ended");
    }
    return absl::ErrnoToStatus(error, absl::StrCat("/proc/PID/", name));
  };
  const UniqueFd fd(openat(proc, name, O_RDONLY | O_CLOEXEC));
  if (!fd) return failed();
  std::string text;
  // As much as the kernel gives at once.
  constexpr size_t kChunk = 1 << 16;
  const std::unique_ptr<char[]> chunk(new char[kChunk]);
  while (true) {
    const ssize_t got = read(fd.get(), chunk.get(), kChunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed();
    if (got == 0) return text;
    text.append(chunk.get(), static_cast<size_t>(got));
  }
}

std::string StatusValue(std::string_view status, std::string_view name) {
  const std::string start = absl::StrCat("\n", std::string(name), ":");
  size_t at = status.find(start);
  if (at == std::string_view::npos) return "";
  status.remove_prefix(at + start.size());
  status = status.substr(0, status.find('\n'));
  status.remove_prefix(
      std::min(status.find_first_not_of(" \t"), status.size()));
  return std::string(status);
}

std::optional<uint64_t> NumberAt(const std::string& text, int index) {
  const std::vector<std::string> words =
      absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  const int count = static_cast<int>(words.size());
  if (index < 0) index += count;
  uint64_t value = 0;
  if (index < 0 || index >= count ||
      !absl::SimpleAtoi(words[static_cast<size_t>(index)], &value)) {
    return std::nullopt;
  }
  return value;
}

absl::Status ForEachResidentRun(
    int proc, uint64_t start, uint64_t end,
    absl::FunctionRef<void(const ResidentRun&)> visit) {
  const UniqueFd fd(openat(proc, "pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    if (error == ESRCH || error == ENOENT) {
      return absl::UnavailableError("the process has ended");
    }
    return absl::ErrnoToStatus(error, "/proc/PID/pagemap");
  }
  ScanRequest request;
  request.start = start;
  request.end = end;
  request.all_of = kPageIsPresent;
  request.none_of = kPageIsPfnZero;
  request.report = kPageIsFile;
  constexpr size_t kRegions = 512;
  const std::unique_ptr<PageRegion[]> regions(new PageRegion[kRegions]);
  const ScanResult scan =
      ScanPages(RealKernel(), fd.get(), request, regions.get(), kRegions,
                [&](const PageRegion& region) {
                  visit({region.start, region.end,
                         (region.categories & kPageIsFile) == 0});
                  return true;
                });
  if (scan.ok()) return absl::OkStatus();
  if (scan.error == ENOTTY) {
    return absl::UnimplementedError(
        "what is resident of each slot needs PAGEMAP_SCAN (Linux 6.7)");
  }
  if (scan.error == ESRCH) {
    return absl::UnavailableError("the process has ended");
  }
  return absl::ErrnoToStatus(scan.error, "PAGEMAP_SCAN of /proc/PID/pagemap");
}

void AddSmaps(std::string_view smaps, std::vector<SmapsRange>& ranges) {
  SmapsRange* range = nullptr;
  while (!smaps.empty()) {
    std::string_view line = TakeLine(smaps);
    if (line.empty()) continue;
    // Values begin with a capital letter, addresses do not.
    if (line[0] < 'A' || line[0] > 'Z') {
      range = nullptr;
      const std::optional<AddressRange> mapping = TakeRange(line);
      if (!mapping.has_value()) continue;
      const auto after = std::upper_bound(
          ranges.begin(), ranges.end(), mapping->start,
          [](uint64_t at, const SmapsRange& one) { return at < one.start; });
      if (after == ranges.begin()) continue;
      SmapsRange& before = *(after - 1);
      if (mapping->start >= before.end) continue;
      range = &before;
      range->sums.set_mappings(range->sums.mappings() + 1);
      continue;
    }
    if (range == nullptr) continue;
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view name = line.substr(0, colon);
    line.remove_prefix(colon + 1);
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    const std::optional<uint64_t> kilobytes = TakeNumber(line, 10);
    if (!kilobytes.has_value()) continue;
    const uint64_t bytes = *kilobytes * 1024;
    Mappings& sums = range->sums;
    if (name == "Rss") {
      sums.set_rss_bytes(sums.rss_bytes() + bytes);
    } else if (name == "Pss") {
      sums.set_pss_bytes(sums.pss_bytes() + bytes);
    } else if (name == "Anonymous") {
      sums.set_anonymous_bytes(sums.anonymous_bytes() + bytes);
    } else if (name == "Swap") {
      sums.set_swap_bytes(sums.swap_bytes() + bytes);
    }
  }
}

std::optional<std::string> MappingNameAt(std::string_view maps,
                                         uint64_t address) {
  while (!maps.empty()) {
    std::string_view line = TakeLine(maps);
    const std::optional<AddressRange> mapping = TakeRange(line);
    if (!mapping.has_value() || address < mapping->start ||
        address >= mapping->end) {
      continue;
    }
    // Behind the range: permissions, offset, device, inode, spaces, path.
    for (int field = 0; field < 4; ++field) {
      line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
      line.remove_prefix(std::min(line.find(' '), line.size()));
    }
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    return line.empty() ? "anonymous memory" : Printable(line);
  }
  return std::nullopt;
}

}  // namespace firsttouch::pooldump
