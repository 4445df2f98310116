// Memory for the SQLite guest (examples/tenants.h) for the strategies of
// bench:cycle.

#ifndef FIRSTTOUCH_BENCH_SQLITE_STRATEGIES_H_
#define FIRSTTOUCH_BENCH_SQLITE_STRATEGIES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"

namespace firsttouch::bench {

// A source of one memory at a time, for one thread. Guests must stay in their
// bounds: not all strategies have guards.
class SqliteStrategy {
 public:
  virtual ~SqliteStrategy() = default;
  virtual wasm2c::MemorySource* source() = 0;
  // What the memory keeps for itself while nobody has it.
  virtual std::optional<uint64_t> PrivateBytesOfAll() = 0;
};

struct SqliteStrategyFactory {
  std::string name;  // as in cycle_strategies.h
  // An error says why this machine cannot.
  absl::StatusOr<std::unique_ptr<SqliteStrategy>> (*make)();
};

const std::vector<SqliteStrategyFactory>& AllSqliteStrategies();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SQLITE_STRATEGIES_H_
