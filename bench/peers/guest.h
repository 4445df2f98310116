// What a contender written in C++ reads, works and says: the protocol of
// README.md, and the guest of guest.wat.

#ifndef FIRSTTOUCH_BENCH_PEERS_GUEST_H_
#define FIRSTTOUCH_BENCH_PEERS_GUEST_H_

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {

// A line of words, of which all but the first are NAME=VALUE.
class Request {
 public:
  explicit Request(const std::string& line) {
    for (const auto word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      const std::pair<std::string, std::string> pair =
          absl::StrSplit(word, absl::MaxSplits('=', 1));
      if (verb.empty()) {
        verb = pair.first;
      } else {
        words_.insert(pair);
      }
    }
  }
  std::string Text(const std::string& name) const {
    const auto found = words_.find(name);
    return found == words_.end() ? "" : found->second;
  }
  uint64_t Number(const std::string& name, uint64_t otherwise) const {
    const std::string text = Text(name);
    if (text.empty()) return otherwise;
    uint64_t number = 0;
    if (!absl::SimpleAtoi(text, &number)) {
      Die(absl::StrCat(name, "=", text, " is no number"));
    }
    return number;
  }
  // What a round may take; UINT64_MAX if it ends by its cycles.
  uint64_t BudgetTicks() const {
    const uint64_t ms = Number("ms", 0);
    if (ms == 0) return UINT64_MAX;
    return static_cast<uint64_t>(static_cast<double>(ms) * 1e6 * TicksPerNs());
  }

  std::string verb;

 private:
  std::map<std::string, std::string> words_;
};

// One line of JSON.
class Answer {
 public:
  void Number(const std::string& name, double value) {
    parts_.push_back(absl::StrFormat("\"%s\":%.4f", name, value));
  }
  void Text(const std::string& name, const std::string& value) {
    parts_.push_back(absl::StrCat("\"", name, "\":\"", value, "\""));
  }
  // Of each thread.
  void Times(const std::vector<Ticks>& ticks) {
    const RoundTimes times = TimesOfRound(ticks);
    Number("median_ns", times.median_ns);
    Number("mean_ns", times.mean_ns);
    Number("p99_ns", times.p99_ns);
  }
  void Sum(uint64_t sum) { Text("sum", absl::StrFormat("%016x", sum)); }
  void Print() const {
    std::cout << "{" << absl::StrJoin(parts_, ",") << "}\n" << std::flush;
  }

 private:
  std::vector<std::string> parts_;
};

// The guest of guest.wat, and peer.rs's images.

inline constexpr uint64_t kImageBytes = 1 << 20;

// Of a memory, as the modules have them.
inline uint64_t MemoryBytes(const Request& request) {
  return request.Number("memory_kib", 2 << 10) << 10;
}

// For so many of them, as far apart as Wasmtime's, or as the request says.
inline LayoutOptions LayoutOf(const Request& request, uint64_t slots) {
  const uint64_t most = request.Number("max_kib", MemoryBytes(request) >> 10)
                        << 10;
  return {.instances = static_cast<uint32_t>(slots),
          .max_memory_bytes = most,
          .guard_after_bytes =
              (request.Number("stride_kib", 6 << 20) << 10) - most};
}

inline uint64_t Mix(uint64_t number) {
  uint64_t z = (number + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

inline ImageRef ImageOf(uint64_t number, uint64_t bytes) {
  return OrDie(ImageFromCallback(
      {.name = absl::StrCat("peer-", number), .size_bytes = bytes},
      [number](PageIndex page, std::span<std::byte, kPageBytes> contents) {
        const uint64_t first = page.value() * kPageBytes / 8;
        for (uint64_t i = 0; i < kPageBytes / 8; ++i) {
          const uint64_t word =
              ((first + i + number * 0x10001) * 0x9e3779b97f4a7c15) | 1;
          memcpy(contents.data() + 8 * i, &word, sizeof word);
        }
        return absl::OkStatus();
      }));
}

// Of so many images, the first most often (Zipf's law).
class Zipf {
 public:
  explicit Zipf(uint64_t images) {
    double sum = 0;
    for (uint64_t rank = 1; rank <= images; ++rank) {
      sums_.push_back(sum += 1.0 / static_cast<double>(rank));
    }
  }
  size_t Pick(uint64_t number) const {
    const double at = static_cast<double>(Mix(number) >> 11) /
                      static_cast<double>(uint64_t{1} << 53) * sums_.back();
    return std::min<size_t>(
        std::upper_bound(sums_.begin(), sums_.end(), at) - sums_.begin(),
        sums_.size() - 1);
  }

 private:
  std::vector<double> sums_;
};

inline uint64_t Load(const std::byte* at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

inline void Store(std::byte* at, uint64_t word) {
  *reinterpret_cast<volatile uint64_t*>(at) = word;
}

struct Cycle {
  explicit Cycle(const Request& request)
      : k(request.Number("k", 0)),
        same(request.Text("pages") == "others"  ? 0
             : request.Text("pages") == "mixed" ? 28
                                                : k),
        pages(request.Number("of_kib", request.Number("image_kib", 1024)) / 4),
        whole(request.Number("whole", 0) != 0),
        list(k) {}

  // One cycle's work; `list` has the pages that it has changed.
  uint64_t Run(std::byte* base, uint64_t cycle) {
    const uint64_t start = same == k ? 0 : Mix(cycle) % (pages - same);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < k; ++i) {
      const uint64_t step =
          i < same ? i : same + (i - same + start) % (pages - same);
      const uint64_t page = step * 37 % pages;
      list[i] = static_cast<uint32_t>(page);
      std::byte* const at = base + page * kPageBytes + 8;
      if (whole) {
        memset(at - 8, static_cast<int>(cycle & 0xff), kPageBytes);
      } else {
        Store(at + cycle % 500 * 8, cycle);
      }
      sum = std::rotl(sum, 1) ^ Load(at + (cycle + 499) % 500 * 8);
    }
    return sum;
  }

  uint64_t k;
  uint64_t same;
  uint64_t pages;
  bool whole;
  std::vector<uint32_t> list;
};

// Part of `base`, as touch of guest.wat.
inline uint64_t Touch(const Request& request, std::byte* base) {
  const uint64_t step = request.Number("step", 1) * kPageBytes;
  const bool write = request.Number("write", 0) != 0;
  std::byte* at = base + request.Number("first", 0) * kPageBytes;
  uint64_t sum = 0;
  for (uint64_t left = request.Number("count", 256); left > 0; --left) {
    if (write) Store(at, 1);
    sum = std::rotl(sum, 1) ^ Load(at + 8);
    at += step;
  }
  return sum;
}

// Page faults so far, of this process, those that another thread has served
// among them, and of its children that have ended.
inline uint64_t Faults() {
  rusage own = {};
  rusage children = {};
  getrusage(RUSAGE_SELF, &own);
  getrusage(RUSAGE_CHILDREN, &children);
  return static_cast<uint64_t>(own.ru_minflt + own.ru_majflt +
                               children.ru_minflt);
}

// Private and proportional memory, page tables (KiB) and mappings of this
// process.
inline std::array<double, 4> Footprint() {
  std::array<double, 4> found = {};
  for (const char* file : {"/proc/self/smaps_rollup", "/proc/self/status"}) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
      uint64_t kib = 0;
      const char* const text = line.c_str();
      if (std::sscanf(text, "Private_Clean: %lu", &kib) == 1 ||
          std::sscanf(text, "Private_Dirty: %lu", &kib) == 1) {
        found[0] += static_cast<double>(kib);
      } else if (std::sscanf(text, "Pss: %lu", &kib) == 1) {
        found[1] = static_cast<double>(kib);
      } else if (std::sscanf(text, "VmPTE: %lu", &kib) == 1) {
        found[2] = static_cast<double>(kib);
      }
    }
  }
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) ++found[3];
  return found;
}

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_GUEST_H_
