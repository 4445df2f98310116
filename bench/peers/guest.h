// What a contender written in C++ reads, works and says: the protocol of
// README.md, and the guest of guest.wat.

#ifndef FIRSTTOUCH_BENCH_PEERS_GUEST_H_
#define FIRSTTOUCH_BENCH_PEERS_GUEST_H_

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    verb = parts.first;
    // Of a map these are keys and values in turns.
    words_ = absl::StrSplit(parts.second, absl::ByAnyChar(" ="));
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

  std::string verb;

 private:
  std::map<std::string, std::string> words_;
};

// One line of JSON.
class Answer {
 public:
  template <typename T>
  void Number(const std::string& name, T value) {
    parts_.push_back(
        absl::StrFormat("\"%s\":%.4f", name, static_cast<double>(value)));
  }
  void Text(const std::string& name, const std::string& value) {
    parts_.push_back(absl::StrCat("\"", name, "\":\"", value, "\""));
  }
  // In ns, without the clock's share. report.py takes a median and a mean of
  // it.
  void Readings(const std::string& name, const Ticks& ticks) {
    std::vector<std::string> all;
    for (const uint64_t one : ticks) {
      const double own = static_cast<double>(one) - EmptyLoopTicks();
      all.push_back(absl::StrFormat("%.1f", own / TicksPerNs()));
    }
    parts_.push_back(
        absl::StrCat("\"", name, "\":[", absl::StrJoin(all, ","), "]"));
  }
  // One reading for so many cycles together.
  void Cycles(const Ticks& ticks, uint64_t together = 1) {
    Readings("ns", ticks);
    Number("cycles", ticks.size() * together);
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

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_GUEST_H_
