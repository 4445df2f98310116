// SQLite tenants: the work of each, the answers that it must get, and many of
// them on a few slots.

#ifndef FIRSTTOUCH_EXAMPLES_TENANTS_H_
#define FIRSTTOUCH_EXAMPLES_TENANTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/sqlite_guest.firsttouch.h"
#include "firsttouch/examples/supply.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/wasi.h"

namespace firsttouch::examples {

using SqliteGuest = wasm2c::Guest<Z_sqlite_guest_instance_t>;
using SqliteTemplate = wasm2c::GuestTemplate<Z_sqlite_guest_instance_t>;

struct TenantOptions {
  uint32_t tenants = 0;
  uint32_t slots = 0;
  // At most one per slot.
  uint32_t threads = 0;
  uint64_t seed = 0;
  // Rows of the table that every tenant finds.
  uint32_t rows = 0;
};

// A database of `rows` rows, set up in a slot of `source` and snapshotted.
absl::StatusOr<std::shared_ptr<const SqliteTemplate>> SetUpDatabase(
    wasm2c::MemorySource* source, uint32_t rows);

// The module before any call.
absl::StatusOr<std::shared_ptr<const SqliteTemplate>> FreshInstance(
    wasm2c::MemorySource* source);

// Saves the database's memory as an image file, with what its tenants have
// taught it about the pages they touch. `source` is used only during the call.
// The other parts of an instance, globals and tables, are not in the file: a
// newly instantiated module must have the same (otherwise FailedPrecondition).
absl::Status SaveDatabase(const SqliteTemplate& database,
                          wasm2c::MemorySource* source,
                          const std::string& path);

// A database from such a file, and its number of rows. No part of the set-up
// runs. Errors: those of OpenImageFile; FailedPrecondition for a memory that is
// not SQLite's.
struct OpenedDatabase {
  std::shared_ptr<const SqliteTemplate> database;
  uint32_t rows = 0;
};
absl::StatusOr<OpenedDatabase> OpenDatabase(wasm2c::MemorySource* source,
                                            const std::string& path);

// The results of a run.
struct TenantResults {
  uint32_t tenants = 0;
  // Tenants that went out of bounds, as intended, and got a trap that named the
  // offset.
  uint32_t trapped = 0;
  uint64_t answers = 0;
  uint64_t wrong_answers = 0;
  uint64_t foreign_rows = 0;
  // The first few errors.
  std::vector<std::string> errors;
  double seconds = 0;
  // The time of each recycling of a slot, from one tenant to the next, in ns.
  std::vector<double> recycle_ns;
};

// Serves all tenants. At any time there are as many as there are slots, each in
// the middle of its work; a thread goes round its share of the slots and lets
// each tenant do one step. `done` is called now and then, with the number of
// tenants that have left, on the calling thread.
absl::StatusOr<TenantResults> ServeTenants(
    const SqliteTemplate& database, wasm2c::MemorySource* source,
    const TenantOptions& options, absl::FunctionRef<void(uint32_t)> done);

// A tenant in its slot.
struct Occupant {
  std::unique_ptr<wasm2c::Wasi> wasi;
  SqliteGuest guest;  // uses wasi
};

// One tenant in each slot, all done with their work.
absl::StatusOr<std::vector<Occupant>> FillSlots(const SqliteTemplate& database,
                                                wasm2c::MemorySource* source,
                                                const TenantOptions& options);

// Compares every byte of every slot with the template, with no tenant in
// between.
struct CleanCheck {
  uint64_t compared_bytes = 0;
  uint64_t differing_bytes = 0;
};
absl::StatusOr<CleanCheck> CompareSlots(const SqliteTemplate& database,
                                        wasm2c::MemorySource* source,
                                        uint32_t slots);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_TENANTS_H_
