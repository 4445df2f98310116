// Touches outside a memory's bounds without a trap callback: the process must
// die by the signal, and say where.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>

#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

constexpr uint64_t kSize = 3 * kPageBytes;

// Not reached when all is well.
void Survived(const char* what, std::byte byte) {
  std::printf("survived: %s gave %d\n", what, static_cast<int>(byte));
}

struct Tenant {
  explicit Tenant(const Setting& setting, uint64_t size_bytes = kSize)
      : service(MakeService(PoolOptions(setting))),
        memory(Acquire(*service,
                       {.image = size_bytes == 0 ? nullptr : MakeImage(2, 1),
                        .size_bytes = size_bytes})) {
    // Everything up to the end is there.
    for (uint64_t at = 0; at < size_bytes; at += kPageBytes) {
      Poke(memory.base() + at, std::byte{7});
    }
  }
  std::unique_ptr<Service> service;
  Memory memory;
};

}  // namespace

void ReadPastEnd(const Setting& setting) {
  Tenant tenant(setting);
  Survived("a read past the end", Peek(tenant.memory.base() + kSize));
}

void WritePastEnd(const Setting& setting) {
  Tenant tenant(setting);
  HOSTILE_CHECK_OK(tenant.memory.Grow(kSize + kPageBytes));
  std::byte* const end = tenant.memory.base() + kSize + kPageBytes;
  Poke(end - 1, std::byte{7});
  Poke(end + 17, std::byte{7});
  Survived("a write past the end", Peek(end + 17));
}

void ReadIntoGuard(const Setting& setting) {
  Tenant tenant(setting);
  Survived("a read in the guard",
           Peek(tenant.memory.base() + 64 * kPageBytes + 123456));
}

void ReadBeforeStart(const Setting& setting) {
  Tenant tenant(setting);
  Survived("a read before the start", Peek(tenant.memory.base() - 1));
}

// Eight bytes below the second of two memories, both of them held.
void ReadBelowANeighbour(const Setting& setting) {
  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = 2;
  std::unique_ptr<Service> service = MakeService(options);
  Memory first = Acquire(*service, {.size_bytes = kSize});
  Memory second = Acquire(*service, {.size_bytes = kSize});
  std::byte* const higher = std::max(first.base(), second.base());
  Survived("a read below a memory", Peek(higher - 8));
}

void JumpPastEnd(const Setting& setting) {
  Tenant tenant(setting);
  reinterpret_cast<void (*)()>(tenant.memory.base() + kSize + 16)();
  Survived("a jump past the end", std::byte{0});
}

void ReadAfterRelease(const Setting& setting) {
  Tenant tenant(setting);
  std::byte* const base = tenant.memory.base();
  HOSTILE_CHECK_OK(tenant.memory.Release());
  // Mappings stay accessible up to the last lease's initial size, and what it
  // grew into does not.
  const uint64_t initial_pages = setting.by_mappings() ? 4 : 64;
  Memory next =
      Acquire(*tenant.service, {.size_bytes = initial_pages * kPageBytes});
  HOSTILE_CHECK_OK(next.Grow(64 * kPageBytes));
  HOSTILE_CHECK(next.base() == base);
  HOSTILE_CHECK_OK(next.Release());
  Survived("a read after release", Peek(base + 40 * kPageBytes));
}

void ReadSizeZero(const Setting& setting) {
  Tenant tenant(setting, 0);
  Survived("a read of a memory of no bytes", Peek(tenant.memory.base()));
}

}  // namespace firsttouch::hostile
