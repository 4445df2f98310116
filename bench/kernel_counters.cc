#include "firsttouch/bench/kernel_counters.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

#include "firsttouch/control/block.h"

namespace firsttouch::bench {

uint64_t MinorFaults() {
  rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0
             ? static_cast<uint64_t>(usage.ru_minflt)
             : 0;
}

std::optional<uint64_t> TlbShootdowns() {
  std::ifstream interrupts("/proc/interrupts");
  std::string line;
  while (std::getline(interrupts, line)) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name != "TLB:") continue;
    uint64_t sum = 0;
    uint64_t of_core = 0;
    while (words >> of_core) sum += of_core;
    return sum;
  }
  return std::nullopt;
}

std::optional<uint64_t> PrivateBytes(const std::byte* base, uint64_t bytes) {
  std::ifstream smaps("/proc/self/smaps");
  if (!smaps) return std::nullopt;
  const auto first = reinterpret_cast<uintptr_t>(base);
  const uintptr_t last = first + bytes;
  bool inside = false;
  uint64_t sum = 0;
  std::string line;
  while (std::getline(smaps, line)) {
    uintptr_t start = 0;
    uintptr_t end = 0;
    uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) ==
        2) {
      inside = start < last && end > first;
    } else if (inside &&
               (std::sscanf(line.c_str(), "Anonymous: %" SCNu64, &kib) == 1 ||
                std::sscanf(line.c_str(), "Swap: %" SCNu64, &kib) == 1)) {
      sum += kib << 10;
    }
  }
  return sum;
}

namespace {

// What the control blocks of this process's pools take: memory of a file to the
// kernel, and of this process alone all the same.
uint64_t ControlBlockBytes() {
  uint64_t sum = 0;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const std::string file = std::filesystem::read_symlink(entry, error);
    struct stat status = {};
    if (file.find(kControlMemfdPrefix) != std::string::npos &&
        stat(entry.path().c_str(), &status) == 0) {
      sum += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  }
  return sum;
}

}  // namespace

std::optional<uint64_t> PrivateBytesOfProcess() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  std::optional<uint64_t> sum;
  std::string line;
  while (std::getline(rollup, line)) {
    uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "Anonymous: %" SCNu64, &kib) == 1 ||
        std::sscanf(line.c_str(), "Swap: %" SCNu64, &kib) == 1) {
      sum = sum.value_or(0) + (kib << 10);
    }
  }
  if (sum.has_value()) *sum += ControlBlockBytes();
  return sum;
}

}  // namespace firsttouch::bench
