// Memory for the SQLite guest (examples/tenants.h) in the ways of bench:cycle.

#ifndef FIRSTTOUCH_BENCH_SQLITE_WAYS_H_
#define FIRSTTOUCH_BENCH_SQLITE_WAYS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"

namespace firsttouch::bench {

// A source of one memory at a time, for one thread. Guests must stay in their
// bounds: not all ways have guards.
class SqliteWay {
 public:
  virtual ~SqliteWay() = default;
  virtual wasm2c::MemorySource* source() = 0;
  // What the memory keeps for itself while nobody has it.
  virtual std::optional<uint64_t> PrivateBytesOfAll() = 0;
};

struct SqliteWayFactory {
  std::string name;  // as in cycle_ways.h
  // An error says why this machine cannot.
  absl::StatusOr<std::unique_ptr<SqliteWay>> (*make)();
};

const std::vector<SqliteWayFactory>& AllSqliteWays();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SQLITE_WAYS_H_
