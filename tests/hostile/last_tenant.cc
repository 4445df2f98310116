// Looks for the last tenant's bytes: one slot, handed from tenant to tenant,
// each of which fills all it can reach with a secret.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

constexpr uint64_t kMaxBytes = 64 * kPageBytes;
constexpr std::byte kSecret{0xa5};

class Slot {
 public:
  explicit Slot(const Setting& setting)
      : service_(MakeService(PoolOptions(setting))) {
    images_.push_back(nullptr);
    images_.push_back(MakeImage(5, 1));
    images_.push_back(MakeImage(33, 2));
    images_.push_back(MakeImage(0, 3));
  }

  Memory Enter(const ImageRef& image, uint64_t size_bytes) {
    Memory memory = Acquire(
        *service_,
        {.image = image, .size_bytes = size_bytes, .trap_callback = CatchTrap});
    if (base_ == nullptr) base_ = memory.base();
    HOSTILE_CHECK(memory.base() == base_);
    HOSTILE_CHECK_EQ(memory.size_bytes(), size_bytes);
    return memory;
  }

  // All bytes of the pages that `memory` can reach are the image's or zero, the
  // rest of the last page too; a page further on is a trap.
  void LookAround(const Memory& memory, const ImageRef& image) {
    const uint64_t end = RoundUpToPage(memory.size_bytes());
    for (uint64_t at = 0; at < end; at += kPageBytes) {
      static constexpr std::byte kZeroes[kPageBytes] = {};
      const std::byte* expected = kZeroes;
      if (image != nullptr) expected = image->PageBytes(PageContaining(at));
      if (std::memcmp(memory.base() + at, expected, kPageBytes) != 0) {
        Fail(__FILE__, __LINE__,
             absl::StrCat("page ", at / kPageBytes, " of ", end / kPageBytes,
                          " begins with ", static_cast<int>(memory.base()[at]),
                          ", not ", static_cast<int>(expected[0])));
      }
    }
    ExpectTrapAt(memory, end);
    ExpectTrapAt(memory, kMaxBytes - 1);
  }

  // Overwrites all that can be reached.
  void Fill(const Memory& memory) {
    std::memset(memory.base(), static_cast<int>(kSecret),
                RoundUpToPage(memory.size_bytes()));
  }

  void ExpectTrapAt(const Memory& memory, uint64_t offset) {
    if (offset < RoundUpToPage(memory.size_bytes())) return;
    TrapInfo trap;
    HOSTILE_CHECK(Traps([&] { Peek(memory.base() + offset); }, &trap));
    HOSTILE_CHECK_EQ(trap.offset_bytes, static_cast<int64_t>(offset));
    HOSTILE_CHECK_EQ(trap.size_bytes, memory.size_bytes());
    HOSTILE_CHECK(trap.leased);
  }

  const std::vector<ImageRef>& images() const { return images_; }
  const Service& service() const { return *service_; }

 private:
  std::unique_ptr<Service> service_;
  std::vector<ImageRef> images_;
  std::byte* base_ = nullptr;
};

// Grow, write, release, acquire, grow: zeroes.
void GrownPages(Slot& slot) {
  Memory first = slot.Enter(nullptr, kPageBytes);
  HOSTILE_CHECK_OK(first.Grow(kMaxBytes));
  slot.Fill(first);
  HOSTILE_CHECK_OK(first.Release());

  Memory second = slot.Enter(nullptr, kPageBytes);
  slot.LookAround(second, nullptr);
  HOSTILE_CHECK_OK(second.Grow(2 * kPageBytes));
  slot.LookAround(second, nullptr);
  HOSTILE_CHECK_OK(second.Grow(kMaxBytes));
  slot.LookAround(second, nullptr);
  slot.Fill(second);

  // The same by Reset, in one tenancy.
  HOSTILE_CHECK_OK(second.Reset());
  HOSTILE_CHECK_EQ(second.size_bytes(), kPageBytes);
  slot.LookAround(second, nullptr);
  HOSTILE_CHECK_OK(second.Grow(kMaxBytes));
  slot.LookAround(second, nullptr);
}

// Sizes that end inside a page: what the last tenant left behind its end is not
// there for the next.
void TailOfTheLastPage(Slot& slot) {
  Memory first = slot.Enter(nullptr, 5000);
  HOSTILE_CHECK_OK(first.Grow(5003));
  HOSTILE_CHECK_EQ(first.size_bytes(), 5003u);
  slot.LookAround(first, nullptr);
  slot.Fill(first);
  HOSTILE_CHECK(Peek(first.base() + 8191) == kSecret);
  HOSTILE_CHECK_OK(first.Release());

  Memory second = slot.Enter(nullptr, 5003);
  slot.LookAround(second, nullptr);
}

// Everything else, at random.
void AnyOrder(Slot& slot, uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random);
  };
  for (int tenant = 0; tenant < 150; ++tenant) {
    const ImageRef& image = slot.images()[below(slot.images().size())];
    const uint64_t least = image == nullptr ? 0 : image->size_bytes();
    uint64_t size = least + below(kMaxBytes - least + 1);
    if (below(2) == 0) size = std::max(least, RoundDownToPage(size));
    Memory memory = slot.Enter(image, size);
    switch (below(3)) {
      case 0:  // A tenant who looks at once.
        slot.LookAround(memory, image);
        break;
      case 1:  // One who writes here and there first, without looking.
        for (int i = 0; i < 10 && size != 0; ++i) {
          Poke(memory.base() + below(size), kSecret);
        }
        break;
      default:
        break;
    }
    if (below(2) == 0) {
      HOSTILE_CHECK_OK(memory.Grow(size + below(kMaxBytes - size + 1)));
    }
    if (below(4) != 0) slot.Fill(memory);
    // Some end by a trap in the middle of things.
    if (below(2) == 0) {
      slot.ExpectTrapAt(memory, RoundUpToPage(memory.size_bytes()));
    }
    if (below(3) == 0) {
      HOSTILE_CHECK_OK(memory.Reset());
      HOSTILE_CHECK_EQ(memory.size_bytes(), size);
      slot.LookAround(memory, image);
      if (below(2) == 0) slot.Fill(memory);
    }
    if (below(4) == 0) {
      std::thread([&] { HOSTILE_CHECK_OK(memory.Release()); }).join();
    } else {
      HOSTILE_CHECK_OK(memory.Release());
    }
  }
}

}  // namespace

void LastTenant(const Setting& setting) {
  Slot slot(setting);
  GrownPages(slot);
  TailOfTheLastPage(slot);
  for (uint32_t seed = 1; seed <= 4; ++seed) AnyOrder(slot, seed);
  HOSTILE_CHECK_EQ(slot.service().Stats().slots_quarantined, 0u);
}

}  // namespace firsttouch::hostile
