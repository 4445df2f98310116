// Handing a memory to the next guest, clean, in every way there is, behind one
// interface. A way is one contender of bench/report.py. To add one (another
// policy of firsttouch, another baseline), give it a word in ways.cc and a name
// in report_rows.py.

#ifndef FIRSTTOUCH_BENCH_PEERS_WAYS_H_
#define FIRSTTOUCH_BENCH_PEERS_WAYS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/init/image.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"

namespace firsttouch::bench {

// The pages that a guest writes to.
using PageList = std::span<const uint32_t>;

// One memory at a time, for one thread.
class CycleSlot {
 public:
  virtual ~CycleSlot() = default;
  // A memory that starts as the image says, zeroes behind it.
  virtual std::byte* Acquire(const ImageRef& image) = 0;
  // The guest has gone; it wrote to these pages and to no others, of the first
  // `bytes` of the memory. (All but the memcpy limit have to find that out.)
  // nullopt: nobody knows which.
  virtual void Release(std::optional<PageList> changed, uint64_t bytes) = 0;
  // The leased memory grows: what is new may be touched.
  virtual void Grow(uint64_t /*from*/, uint64_t /*to*/) {}
  // After Release(): a touch of what it has grown by is a trap again, in a slot
  // that does not see to that by itself.
  virtual void Close(uint64_t /*from*/, uint64_t /*to*/) {}
};

// What all threads of a measurement share.
struct Way {
  // One memory at a time, for one thread, of a wasm2c guest that stays in its
  // bounds: not all ways have guards.
  std::unique_ptr<wasm2c::MemorySource> NewSource() const;

  // This library's; null for the kernel's own ways.
  std::unique_ptr<Service> pool;
  uint64_t max_memory_bytes;
  std::function<std::unique_ptr<CycleSlot>()> new_slot;
};

// The way of that word, for memories of this layout that have so many bytes at
// first. Errors: NotFound for a word that is none; others say why this machine
// cannot.
absl::StatusOr<Way> OpenWay(const std::string& word,
                            const LayoutOptions& layout, uint64_t size_bytes);

// What makes a pool in that way; nullopt if it is none of this library's.
std::optional<ServiceOptions> PoolOptionsOf(const std::string& word);

// Memories of at most `max_bytes` for guests of wasm2c that stay in their
// bounds, one at a time, in a slot that is told the size in whole pages when a
// guest is gone.
std::unique_ptr<wasm2c::MemorySource> SourceOf(std::unique_ptr<CycleSlot> slot,
                                               uint64_t max_bytes);

// What a guest asks of SQLite in every benchmark, of a table of so many rows: a
// query, an insert and an update. All that have number 0 ask for the same rows,
// each of the others for its own. Ends the program on a wrong answer.
void RequestOrDie(examples::SqliteGuest& guest, uint64_t rows, uint64_t number);

// The most that SQLite's memory may have.
inline constexpr uint64_t kSqliteMemoryBytes = 64 << 20;

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_WAYS_H_
