#include "firsttouch/examples/tenants.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::examples {
namespace {

using wasm2c::Nothing;
using wasm2c::Outcome;
using wasm2c::Wasi;
using wasm2c::WasiOptions;
using Clock = std::chrono::steady_clock;

// The number of errors whose text is kept; all are counted.
constexpr size_t kMaxErrors = 10;

// One tenant in this many goes out of bounds.
constexpr uint32_t kBadEvery = 20;

// The same for every tenant and every run: nothing that a tenant sees depends
// on time or chance.
const std::shared_ptr<const WasiOptions>& TenantWasi() {
  static const auto& options = *new std::shared_ptr<const WasiOptions>(
      std::make_shared<const WasiOptions>(
          WasiOptions{.random_seed = 1, .fixed_clock_ns = 0}));
  return options;
}

// Numbers that are determined by the seed and the tenant.
class Numbers {
 public:
  Numbers(uint64_t seed, uint32_t tenant)
      : state_(seed * 0x9e3779b97f4a7c15 + tenant) {
    Next();
  }
  // A number in [first, last].
  uint64_t Between(uint64_t first, uint64_t last) {
    return first + Next() % (last - first + 1);
  }

 private:
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

// The requests of one tenant.
struct Tenant {
  Tenant(const TenantOptions& options, uint32_t number)
      : number(number), bad(number % kBadEvery == kBadEvery / 2) {
    Numbers numbers(options.seed, number);
    // Differs from every other tenant's.
    owner = numbers.Between(1, 1'000'000) * 10'000'000 + number;
    found = numbers.Between(1, options.rows);
    first = numbers.Between(1, options.rows);
    last = numbers.Between(first, std::min<uint64_t>(first + 99, options.rows));
    updated = numbers.Between(1, options.rows);
    inserted = numbers.Between(1, 20);
    inserted_later = numbers.Between(1, 20);
    beyond = numbers.Between(0, 1 << 20) * 4;
    bad_write = numbers.Between(0, 1) == 1;
  }

  uint32_t number;
  bool bad;  // goes out of bounds
  uint64_t owner;
  uint64_t found, first, last, updated;
  uint64_t inserted, inserted_later;
  // How far past the end a bad tenant touches.
  uint64_t beyond;
  bool bad_write;
};

constexpr int kSteps = 4;

// One tenant at work in its slot.
class Session {
 public:
  Session(const TenantOptions& options, const Tenant& tenant,
          SqliteGuest* guest, TenantResults* results)
      : options_(options), tenant_(tenant), guest_(guest), results_(results) {}

  // Does step `step` of kSteps. Returns false when the tenant ends early.
  bool Step(int step) {
    switch (step) {
      case 0:
        // No other tenant has been here before.
        Foreign();
        Expect("changed", &Z_sqlite_guestZ_changed, 0);
        Expect("last", &Z_sqlite_guestZ_last, options_.rows);
        Expect("find", &Z_sqlite_guestZ_find, tenant_.found, tenant_.found);
        break;
      case 1:
        Expect("insert", &Z_sqlite_guestZ_insert, 0, tenant_.owner,
               tenant_.inserted);
        Expect("mine", &Z_sqlite_guestZ_mine, tenant_.inserted, tenant_.owner);
        Expect("sum", &Z_sqlite_guestZ_sum,
               (tenant_.first + tenant_.last) *
                   (tenant_.last - tenant_.first + 1) / 2,
               tenant_.first, tenant_.last);
        break;
      case 2:
        Expect("update", &Z_sqlite_guestZ_update, 0, tenant_.updated,
               tenant_.owner);
        Expect("changed_by", &Z_sqlite_guestZ_changed_by, tenant_.owner,
               tenant_.updated);
        // The row's old text is gone.
        Expect("find", &Z_sqlite_guestZ_find, 0, tenant_.updated);
        if (tenant_.bad) {
          GoOutOfBounds();
          return false;
        }
        break;
      case 3:
        Expect("insert", &Z_sqlite_guestZ_insert, 0, tenant_.owner,
               tenant_.inserted_later);
        Expect("mine", &Z_sqlite_guestZ_mine,
               tenant_.inserted + tenant_.inserted_later, tenant_.owner);
        Expect("changed", &Z_sqlite_guestZ_changed, 1);
        // No other tenant has been here meanwhile.
        Foreign();
        break;
    }
    return true;
  }

 private:
  // Calls a function of the guest and compares its answer.
  template <typename... Parameters, typename... Arguments>
  void Expect(const char* what,
              u64 (*exported)(Z_sqlite_guest_instance_t*, Parameters...),
              uint64_t wanted, Arguments... arguments) {
    const Outcome<u64> got = guest_->Call(exported, arguments...);
    ++results_->answers;
    if (got.ok() && *got == wanted) return;
    ++results_->wrong_answers;
    Error(absl::StrCat(what, ": wanted ", wanted, ", got ",
                       got.ok() ? absl::StrCat(static_cast<int64_t>(*got))
                                : got.status().ToString()));
  }

  // Checks that no row belongs to another tenant.
  void Foreign() {
    const Outcome<u64> got =
        guest_->Call(&Z_sqlite_guestZ_foreign, tenant_.owner);
    ++results_->answers;
    if (got.ok() && *got == 0) return;
    ++results_->wrong_answers;
    if (got.ok()) results_->foreign_rows += *got;
    Error(absl::StrCat("foreign rows: ",
                       got.ok() ? absl::StrCat(static_cast<int64_t>(*got))
                                : got.status().ToString()));
  }

  // Touches memory out of bounds, and must get a trap that names the offset.
  void GoOutOfBounds() {
    const auto address =
        static_cast<u32>(guest_->memory().size + tenant_.beyond);
    wasm2c::Trap trap;
    if (tenant_.bad_write) {
      trap = guest_->Call(&Z_sqlite_guestZ_poke, address, 1u).trap();
    } else {
      trap = guest_->Call(&Z_sqlite_guestZ_peek, address).trap();
    }
    ++results_->answers;
    if (trap.code == WASM_RT_TRAP_OOB && trap.has_touch &&
        trap.touch.offset_bytes == address &&
        trap.touch.write == tenant_.bad_write &&
        trap.touch.size_bytes == guest_->memory().size) {
      ++results_->trapped;
      return;
    }
    ++results_->wrong_answers;
    Error(absl::StrCat("out of bounds at ", address, ": got ", trap.Message()));
  }

  void Error(const std::string& text) {
    if (results_->errors.size() < kMaxErrors) {
      results_->errors.push_back(
          absl::StrCat("tenant ", tenant_.number, ": ", text));
    }
  }

  const TenantOptions& options_;
  const Tenant& tenant_;
  SqliteGuest* guest_;
  TenantResults* results_;
};

// One slot of a thread's share.
struct Place {
  std::unique_ptr<Wasi> wasi = std::make_unique<Wasi>(TenantWasi());
  std::optional<SqliteGuest> guest;
  std::optional<Tenant> tenant;
  int step = 0;
};

// The state that the threads of a run share.
struct Shared {
  const SqliteTemplate& database;
  wasm2c::MemorySource* source;
  const TenantOptions& options;
  std::atomic<uint32_t> next{0};
  std::atomic<uint32_t> left{0};
  std::atomic<bool> failed{false};
};

// Serves tenants in `places` slots until there are none left.
absl::Status Serve(Shared& shared, uint32_t places_count,
                   TenantResults* results) {
  std::vector<Place> places(places_count);
  uint32_t live = 0;

  // Gives a place to the next tenant, if there is one. The last tenant's memory
  // is released first.
  const auto hand_over = [&](Place& place) -> absl::Status {
    const uint32_t number = shared.next.fetch_add(1, std::memory_order_relaxed);
    const bool was_used = place.guest.has_value();
    const Clock::time_point start = Clock::now();
    place.guest.reset();
    if (number >= shared.options.tenants) return absl::OkStatus();
    place.wasi->Reset();
    absl::StatusOr<SqliteGuest> guest =
        shared.database.Instantiate(shared.source, place.wasi.get());
    if (!guest.ok()) return guest.status();
    place.guest.emplace(*std::move(guest));
    if (was_used) {
      results->recycle_ns.push_back(
          std::chrono::duration<double, std::nano>(Clock::now() - start)
              .count());
    }
    place.tenant.emplace(shared.options, number);
    place.step = 0;
    ++live;
    return absl::OkStatus();
  };

  for (Place& place : places) {
    if (absl::Status status = hand_over(place); !status.ok()) return status;
  }
  while (live > 0 && !shared.failed.load(std::memory_order_relaxed)) {
    for (Place& place : places) {
      if (!place.guest.has_value()) continue;
      Session session(shared.options, *place.tenant, &*place.guest, results);
      if (session.Step(place.step) && ++place.step < kSteps) continue;
      ++results->tenants;
      --live;
      shared.left.fetch_add(1, std::memory_order_relaxed);
      if (absl::Status status = hand_over(place); !status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const SqliteTemplate>> SetUpDatabase(
    wasm2c::MemorySource* source, uint32_t rows) {
  Wasi wasi(TenantWasi());
  absl::StatusOr<SqliteGuest> guest = SqliteGuest::Create(source, &wasi);
  if (!guest.ok()) return guest.status();
  const Outcome<Nothing> initialized =
      guest->Call(&Z_sqlite_guestZ__initialize);
  if (!initialized.ok()) return initialized.status();
  const Outcome<u64> done = guest->Call(&Z_sqlite_guestZ_setup, uint64_t{rows});
  if (!done.ok()) return done.status();
  if (*done != 0) {
    return absl::InternalError(
        absl::StrCat("SQLite could not set up the database: result code ",
                     -1000 - static_cast<int64_t>(*done)));
  }
  return guest->Snapshot("database");
}

absl::StatusOr<std::shared_ptr<const SqliteTemplate>> FreshInstance(
    wasm2c::MemorySource* source) {
  Wasi wasi(TenantWasi());
  absl::StatusOr<SqliteGuest> guest = SqliteGuest::Create(source, &wasi);
  if (!guest.ok()) return guest.status();
  return guest->Snapshot("instantiated");
}

absl::Status SaveDatabase(const SqliteTemplate& database,
                          wasm2c::MemorySource* source,
                          const std::string& path) {
  absl::StatusOr<std::shared_ptr<const SqliteTemplate>> fresh =
      FreshInstance(source);
  if (!fresh.ok()) return fresh.status();
  if (!(*fresh)->EqualsApartFromMemories(database)) {
    return absl::FailedPreconditionError(
        "the set-up has changed globals or tables, which an image of the "
        "memory does not keep");
  }
  WriteImageFileOptions options;
  options.provenance.tool = "sqlite_tenants";
  options.provenance.source = "sqlite_guest, memory 0, after its set-up";
  return WriteImageFile(*database.memories().front().image, path, options)
      .status();
}

absl::StatusOr<OpenedDatabase> OpenDatabase(wasm2c::MemorySource* source,
                                            const std::string& path) {
  absl::StatusOr<ImageRef> image = OpenImageFile(path);
  if (!image.ok()) return image.status();
  absl::StatusOr<std::shared_ptr<const SqliteTemplate>> fresh =
      FreshInstance(source);
  if (!fresh.ok()) return fresh.status();
  const wasm2c::MemoryRequest memories[] = {
      {.image = *image, .size_bytes = (*image)->size_bytes()}};
  absl::StatusOr<std::shared_ptr<const SqliteTemplate>> database =
      (*fresh)->WithMemories(memories);
  if (!database.ok()) return database.status();
  Wasi wasi(TenantWasi());
  absl::StatusOr<SqliteGuest> guest = (*database)->Instantiate(source, &wasi);
  if (!guest.ok()) return guest.status();
  const Outcome<u64> rows = guest->Call(&Z_sqlite_guestZ_last);
  if (!rows.ok() || *rows == 0 || *rows > 1'000'000) {
    return absl::FailedPreconditionError(absl::StrCat(
        "image file '", path,
        "': is not the memory of this build's SQLite "
        "guest: ",
        rows.ok() ? absl::StrCat("it says that there are ", *rows, " rows")
                  : absl::StrCat(rows.status().message())));
  }
  return OpenedDatabase{*std::move(database), static_cast<uint32_t>(*rows)};
}

absl::StatusOr<TenantResults> ServeTenants(
    const SqliteTemplate& database, wasm2c::MemorySource* source,
    const TenantOptions& options, absl::FunctionRef<void(uint32_t)> done) {
  Shared shared = {.database = database, .source = source, .options = options};
  std::vector<TenantResults> results(options.threads);
  std::vector<absl::Status> statuses(options.threads);
  absl::Notification ended;
  std::atomic<uint32_t> running{options.threads};

  const Clock::time_point start = Clock::now();
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < options.threads; ++i) {
    const uint32_t places = options.slots / options.threads +
                            (i < options.slots % options.threads ? 1 : 0);
    results[i].recycle_ns.reserve(options.tenants);
    threads.emplace_back([&, i, places] {
      statuses[i] = Serve(shared, places, &results[i]);
      if (!statuses[i].ok()) shared.failed.store(true);
      if (running.fetch_sub(1) == 1) ended.Notify();
    });
  }
  while (!ended.WaitForNotificationWithTimeout(absl::Milliseconds(100))) {
    done(shared.left.load(std::memory_order_relaxed));
  }
  const Clock::time_point end = Clock::now();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }

  TenantResults total;
  total.seconds = std::chrono::duration<double>(end - start).count();
  for (TenantResults& part : results) {
    total.tenants += part.tenants;
    total.trapped += part.trapped;
    total.answers += part.answers;
    total.wrong_answers += part.wrong_answers;
    total.foreign_rows += part.foreign_rows;
    total.errors.insert(total.errors.end(), part.errors.begin(),
                        part.errors.end());
    total.recycle_ns.insert(total.recycle_ns.end(), part.recycle_ns.begin(),
                            part.recycle_ns.end());
  }
  return total;
}

absl::StatusOr<std::vector<Occupant>> FillSlots(const SqliteTemplate& database,
                                                wasm2c::MemorySource* source,
                                                const TenantOptions& options) {
  std::vector<Occupant> occupants;
  occupants.reserve(options.slots);
  TenantResults results;
  for (uint32_t slot = 0; slot < options.slots; ++slot) {
    auto wasi = std::make_unique<Wasi>(TenantWasi());
    absl::StatusOr<SqliteGuest> guest =
        database.Instantiate(source, wasi.get());
    if (!guest.ok()) return guest.status();
    occupants.push_back({.wasi = std::move(wasi), .guest = *std::move(guest)});
    Tenant tenant(options, options.tenants + slot);
    tenant.bad = false;
    Session session(options, tenant, &occupants.back().guest, &results);
    for (int step = 0; step < kSteps; ++step) session.Step(step);
  }
  if (!results.errors.empty()) {
    return absl::InternalError(results.errors.front());
  }
  return occupants;
}

absl::StatusOr<CleanCheck> CompareSlots(const SqliteTemplate& database,
                                        wasm2c::MemorySource* source,
                                        uint32_t slots) {
  Wasi wasi(TenantWasi());
  std::vector<SqliteGuest> guests;  // all at once, so that none is left out
  CleanCheck check;
  const wasm2c::MemoryRequest& wanted = database.memories().front();
  for (uint32_t slot = 0; slot < slots; ++slot) {
    absl::StatusOr<SqliteGuest> guest = database.Instantiate(source, &wasi);
    if (!guest.ok()) return guest.status();
    const uint8_t* memory = guest->memory().data;
    for (uint64_t at = 0; at < wanted.size_bytes; at += kPageBytes) {
      const auto* page = reinterpret_cast<const uint8_t*>(
          wanted.image->PageBytes(PageContaining(at)));
      for (uint64_t i = 0; i < kPageBytes; ++i) {
        check.differing_bytes += memory[at + i] != page[i] ? 1 : 0;
      }
    }
    check.compared_bytes += wanted.size_bytes;
    guests.push_back(*std::move(guest));
  }
  return check;
}

}  // namespace firsttouch::examples
