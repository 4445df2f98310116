// What the kernel holds for a pool: how many mappings, with which properties,
// and what of it a core dump shows.

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/tests/hostile/core_secret.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

// A mapping of /proc/self/smaps.
struct Mapping {
  uintptr_t start = 0;
  uintptr_t end = 0;
  bool accessible = false;
  std::set<std::string> flags;
};

std::vector<Mapping> MappingsIn(uintptr_t start, uintptr_t end) {
  std::vector<Mapping> result;
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  Mapping current;
  while (std::getline(smaps, line)) {
    unsigned long low = 0, high = 0;
    char rights[5];
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &low, &high, rights) == 3) {
      current.start = low;
      current.end = high;
      current.accessible = rights[0] == 'r' && rights[1] == 'w';
    } else if (line.rfind("VmFlags:", 0) == 0 && current.start < end &&
               current.end > start) {
      std::istringstream words(line.substr(8));
      current.flags = {std::istream_iterator<std::string>(words), {}};
      result.push_back(current);
    }
  }
  return result;
}

// What must hold of every mapping of a pool, whatever has been done to it: not
// inherited, not dumped, no huge pages; registered for missing pages and
// accessible, or without userfaultfd accessible in bounds at most. In bounds of
// a memory that somebody holds the kernel may resolve missing pages alone.
void CheckProperties(const Service& service, const char* when,
                     const std::vector<Memory>& held = {}) {
  const uintptr_t start = service.base();
  const uintptr_t end = start + service.layout().reservation_bytes();
  uintptr_t at = start;
  const bool mapped = IsMappings(service.supply());
  std::vector<const char*> wanted = {"dc", "dd", "nh"};
  if (!mapped) wanted.insert(wanted.end(), {"rd", "wr", "um"});
  const auto in_bounds = [&](const Mapping& mapping) {
    return std::any_of(held.begin(), held.end(), [&](const Memory& memory) {
      // NOLINTNEXTLINE: as /proc has it.
      const auto base = reinterpret_cast<uintptr_t>(memory.base());
      return mapping.start >= base &&
             mapping.end <= base + RoundUpToPage(memory.size_bytes());
    });
  };
  uint64_t accessible_bytes = 0;
  for (const Mapping& mapping : MappingsIn(start, end)) {
    if (mapping.start > at) {
      Fail(__FILE__, __LINE__, absl::StrCat(when, ": a gap in the pool"));
    }
    at = mapping.end;
    if (mapping.accessible) accessible_bytes += mapping.end - mapping.start;
    for (const char* flag : wanted) {
      if (mapping.flags.count(flag) == 0 &&
          !(std::string_view(flag) == "um" && in_bounds(mapping))) {
        Fail(__FILE__, __LINE__,
             absl::StrCat(when, ": a mapping of ", mapping.end - mapping.start,
                          " bytes at offset ", mapping.start - start, " lacks ",
                          flag));
      }
    }
  }
  HOSTILE_CHECK(at >= end);
  if (mapped) {
    HOSTILE_CHECK(accessible_bytes <=
                  service.layout().slots() * service.layout().memory_bytes());
  }
}

}  // namespace

void ManyLeases(const Setting& setting) {
  constexpr uint32_t kSlots = 200;
  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = kSlots;
  options.strategy = SlotStrategy::kRandom;
  std::unique_ptr<Service> service = MakeService(options);
  const ImageRef image = MakeImage(4, 1);
  std::mt19937 random(7);
  const auto below = [&](uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random);
  };
  const auto lease = [&] {
    Memory memory =
        Acquire(*service, {.image = image, .size_bytes = 4 * kPageBytes});
    HOSTILE_CHECK(Peek(memory.base()) == PatternByte(1, 0));
    const uint64_t grown = 4 * kPageBytes + below(60 * kPageBytes + 1);
    HOSTILE_CHECK_OK(memory.Grow(grown));
    Poke(memory.base() + below(grown), std::byte{1});
    return memory;
  };
  const auto pool_mappings = [&] {
    const uintptr_t start = service->base();
    return MappingsIn(start, start + service->layout().reservation_bytes())
        .size();
  };
  HOSTILE_CHECK_EQ(pool_mappings(), 1u);
  std::deque<Memory> held;
  // Every slot once, so that each has been bound.
  for (uint32_t i = 0; i < kSlots; ++i) held.push_back(lease());
  const size_t bound = pool_mappings();
  const int all = CountMappings();
  if (setting.by_mappings()) {
    // An image's mapping, what lies behind it, and what is out of bounds: two
    // mappings where the kernel does not merge them.
    HOSTILE_CHECK(bound <= 1 + 4 * kSlots);
  } else if (setting.backing == Backing::kShared) {
    // An image's mapping and what lies behind it.
    HOSTILE_CHECK(bound <= 1 + 2 * kSlots);
  } else {
    HOSTILE_CHECK_EQ(bound, 1u);
  }
  // A memory that has its maximum, or no byte behind its image, has one less.
  const auto as_many = [&] {
    return setting.by_mappings()
               ? pool_mappings() <= 1 + 4 * kSlots
               : CountMappings() == all && pool_mappings() == bound;
  };
  for (int i = 0; i < 10'000; ++i) {
    // Lets a random one go; all slots are in use again after it.
    std::swap(held[below(held.size())], held.front());
    HOSTILE_CHECK_OK(held.front().Release());
    held.pop_front();
    held.push_back(lease());
    if (i % 1000 == 0) HOSTILE_CHECK(as_many());
  }
  HOSTILE_CHECK(as_many());
  held.clear();
  HOSTILE_CHECK(as_many());
}

// The kernel need not keep a memory in one mapping: here the host gives parts
// of it advice of no consequence, elsewhere names or locks keep neighbours
// apart. No fill may depend on that.
void SplitMappings(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  const ImageRef image = MakeImage(24, 1);
  for (int round = 0; round < 4; ++round) {
    Memory memory = Acquire(*service, {.image = image,
                                       .size_bytes = 60 * kPageBytes,
                                       .trap_callback = CatchTrap});
    std::byte* const base = memory.base();
    if (round == 0) {
      for (const uint64_t page : {2, 9, 20, 29, 42, 51}) {
        HOSTILE_CHECK_EQ(
            madvise(base + page * kPageBytes, kPageBytes, MADV_SEQUENTIAL), 0);
      }
    }
    for (uint64_t page = 0; page < 60; ++page) {
      std::byte* const at = base + page * kPageBytes;
      const std::byte first = page < 24 ? PatternByte(1, page) : std::byte{0};
      // Read first, write first, in turn; upwards in some rounds.
      if ((page / 3 + round) % 2 == 0) HOSTILE_CHECK(Peek(at) == first);
      Poke(at, std::byte{7});
      HOSTILE_CHECK(Peek(at + 1) == first);
    }
    HOSTILE_CHECK(Traps([&] { Peek(base + 60 * kPageBytes); }));
    HOSTILE_CHECK_OK(memory.Grow(64 * kPageBytes));
    Poke(base + 64 * kPageBytes - 1, std::byte{7});
    if (round == 1) {
      HOSTILE_CHECK_OK(memory.Reset());
      HOSTILE_CHECK_OK(memory.MakeReady(0, 60 * kPageBytes, Access::kRead));
      for (uint64_t page = 0; page < 60; ++page) {
        HOSTILE_CHECK(Peek(base + page * kPageBytes) ==
                      (page < 24 ? PatternByte(1, page) : std::byte{0}));
      }
    }
    HOSTILE_CHECK_OK(memory.Release());
  }
  HOSTILE_CHECK_EQ(service->Stats().slots_quarantined, 0u);
}

// Slots side by side that change between images and none. Where an image was,
// the kernel joins the new mapping with one neighbour or the other, as it
// likes, and no fill may depend on which.
void RebindsNeighbours(const Setting& setting) {
  constexpr uint32_t kSlots = 3;
  const std::vector<ImageRef> images = {nullptr, MakeImage(5, 1),
                                        MakeImage(21, 2)};
  const auto enter = [&](Service& service, size_t index) {
    return Acquire(service,
                   {.image = images[index], .size_bytes = 64 * kPageBytes});
  };
  // Each change from one image to another, in each slot, in a fresh pool.
  for (const size_t from : {0, 1, 2}) {
    for (const size_t to : {0, 1, 2}) {
      for (uint32_t changing = 0; changing < kSlots; ++changing) {
        ServiceOptions options = PoolOptions(setting);
        options.layout.instances = kSlots;
        std::unique_ptr<Service> service = MakeService(options);
        std::vector<Memory> held;
        // Tenants that leave most pages alone, and enter before any writes.
        for (uint32_t slot = 0; slot < kSlots; ++slot) {
          held.push_back(enter(*service, slot == changing ? from : 1));
        }
        for (Memory& memory : held) {
          Poke(memory.base() + 3 * kPageBytes, std::byte{7});
          Poke(memory.base() + 40 * kPageBytes, std::byte{7});
        }
        std::byte* const base = held[changing].base();
        HOSTILE_CHECK_OK(held[changing].Release());
        held[changing] = enter(*service, to);
        HOSTILE_CHECK(held[changing].base() == base);
        const uint64_t image_pages =
            images[to] == nullptr ? 0 : images[to]->pages().value();
        for (uint64_t page = 0; page < 64; ++page) {
          const std::byte wanted = page < image_pages
                                       ? PatternByte(static_cast<int>(to), page)
                                       : std::byte{0};
          HOSTILE_CHECK(Peek(base + page * kPageBytes) == wanted);
        }
        held.clear();
        HOSTILE_CHECK_EQ(service->Stats().slots_quarantined, 0u);
      }
    }
  }
}

void MixedCycles(const Setting& setting) {
  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = 2;
  options.layout.memories_per_instance = 2;
  std::unique_ptr<Service> service = MakeService(options);
  CheckProperties(*service, "before the first lease");
  const std::vector<ImageRef> images = {nullptr, MakeImage(3, 1),
                                        MakeImage(40, 2), MakeImage(64, 3)};
  std::mt19937 random(11);
  const auto below = [&](uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random);
  };
  for (int cycle = 0; cycle < 100; ++cycle) {
    std::vector<MemoryOptions> wanted;
    for (int i = 0; i < 2; ++i) {
      const ImageRef& image = images[below(images.size())];
      const uint64_t least = image == nullptr ? 0 : image->size_bytes();
      wanted.push_back(
          {.image = image,
           .size_bytes = least + below(64 * kPageBytes - least + 1)});
    }
    absl::StatusOr<std::vector<Memory>> instance =
        service->AcquireInstance(wanted);
    HOSTILE_CHECK_OK(instance.status());
    for (Memory& memory : *instance) {
      // Few pages, many pages, none.
      const uint64_t size = memory.size_bytes();
      const uint64_t writes = below(3) == 0 ? 0 : below(2) ? 3 : 200;
      for (uint64_t i = 0; i < writes && size != 0; ++i) {
        Poke(memory.base() + below(size), std::byte{1});
      }
      if (below(2) == 0) {
        HOSTILE_CHECK_OK(memory.Grow(64 * kPageBytes));
        Poke(memory.base() + 64 * kPageBytes - 1, std::byte{1});
      }
      if (below(3) == 0) HOSTILE_CHECK_OK(memory.Reset());
    }
    const std::string when = absl::StrCat("cycle ", cycle);
    CheckProperties(*service, when.c_str(), *instance);
    for (Memory& memory : *instance) HOSTILE_CHECK_OK(memory.Release());
    CheckProperties(*service, when.c_str());
  }
}

// Leaves a core file in the current directory; the judge looks at it.
void AbortsWithBigPool(const Setting& setting) {
  std::ifstream pattern_file("/proc/sys/kernel/core_pattern");
  std::string pattern;
  std::getline(pattern_file, pattern);
  if (pattern.empty() || pattern[0] == '|' ||
      pattern.find('/') != std::string::npos) {
    Skip(absl::StrCat("core files in the current directory (core_pattern is ",
                      pattern, ")"));
  }
  struct rlimit limit = {};
  HOSTILE_CHECK_EQ(getrlimit(RLIMIT_CORE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  HOSTILE_CHECK_EQ(setrlimit(RLIMIT_CORE, &limit), 0);
  if (limit.rlim_max != RLIM_INFINITY) Skip("an unlimited RLIMIT_CORE");

  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = 170;
  options.layout.max_memory_bytes = uint64_t{4} << 30;
  options.layout.guard_after_bytes = uint64_t{2} << 30;
  std::unique_ptr<Service> service = MakeService(options);
  HOSTILE_CHECK(service->layout().reservation_bytes() >=
                (uint64_t{1020} << 30));
  Memory memory = Acquire(
      *service, {.image = MakeImage(8, 1), .size_bytes = uint64_t{1} << 30});
  std::string secret = CoreSecret();
  for (uint64_t page = 0; page < 256; ++page) {
    std::copy(secret.begin(), secret.end(),
              reinterpret_cast<char*>(memory.base()) + page * kPageBytes);
  }
  explicit_bzero(secret.data(), secret.size());
  abort();
}

}  // namespace firsttouch::hostile
