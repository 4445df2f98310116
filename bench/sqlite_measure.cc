#include "firsttouch/bench/sqlite_measure.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/cycle_samples.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/quantiles.h"
#include "firsttouch/bench/sqlite_request.h"
#include "firsttouch/bench/sqlite_strategies.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

using examples::SqliteGuest;
using examples::SqliteTemplate;
using wasm2c::Wasi;

// One tenant after the other by one strategy.
class Tenants {
 public:
  Tenants(const SqliteTemplate& database,
          std::unique_ptr<SqliteStrategy> strategy, bool same, uint32_t rows)
      : database_(database),
        strategy_(std::move(strategy)),
        same_(same),
        rows_(rows) {}

  // Notes in `recycle_ticks`, if there is one, what acquire and release took.
  void Serve(std::vector<uint64_t>* recycle_ticks) {
    const uint64_t begin = NowTicks();
    wasi_.Reset();
    SqliteGuest guest =
        OrDie(database_.Instantiate(strategy_->source(), &wasi_));
    const uint64_t acquired = NowTicks();
    Request(guest);
    const uint64_t done = NowTicks();
    { const SqliteGuest gone = std::move(guest); }
    if (recycle_ticks != nullptr) {
      recycle_ticks->push_back(acquired - begin + (NowTicks() - done));
    }
  }

  // Ends the program if the next tenant would not find the snapshot.
  void CheckClean(const std::string& name) {
    const SqliteGuest guest =
        OrDie(database_.Instantiate(strategy_->source(), &wasi_));
    const Image& image = *database_.memories().front().image;
    const auto* const memory =
        reinterpret_cast<const std::byte*>(guest.memory().data);
    for (uint64_t page = 0; page < image.pages().value(); ++page) {
      if (memcmp(memory + page * kPageBytes, image.PageBytes(PageIndex(page)),
                 kPageBytes) != 0) {
        Die(absl::StrCat("\"", name, "\" passed on bytes that SQLite wrote"));
      }
    }
  }

  SqliteStrategy& strategy() { return *strategy_; }

 private:
  void Request(SqliteGuest& guest) {
    uint64_t found = rows_ / 8 + 1;
    uint64_t updated = 7 % rows_ + 1;
    if (!same_) {
      // Steps without a pattern that a page could follow.
      ++tenant_;
      found = tenant_ * 7919 % rows_ + 1;
      updated = tenant_ * 104'729 % rows_ + 1;
    }
    RequestOrDie(guest, found, updated);
  }

  const SqliteTemplate& database_;
  const std::unique_ptr<SqliteStrategy> strategy_;
  const bool same_;
  const uint64_t rows_;
  uint64_t tenant_ = 0;
  Wasi wasi_;
};

struct Contender {
  const SqliteStrategyFactory* factory = nullptr;
  std::optional<CallCounts> counts;
  std::unique_ptr<Tenants> tenants;
  RoundSamples whole;
  RoundSamples recycle;
  std::vector<double> faults;
  std::vector<double> shootdowns;
};

void MeasureRound(const CycleSettings& settings, Contender& contender) {
  std::vector<uint64_t> ticks;
  std::vector<uint64_t> recycle_ticks;
  for (std::vector<uint64_t>* vector : {&ticks, &recycle_ticks}) {
    // There before anything is counted.
    vector->resize(settings.cycles);
    vector->clear();
  }
  const std::optional<uint64_t> shootdowns = TlbShootdowns();
  const uint64_t faults = MinorFaults();
  RunRound(
      settings, [&] { contender.tenants->Serve(&recycle_ticks); }, ticks);
  const uint64_t faults_after = MinorFaults();
  const std::optional<uint64_t> shootdowns_after = TlbShootdowns();
  const auto cycles = static_cast<double>(ticks.size());
  contender.faults.push_back(static_cast<double>(faults_after - faults) /
                             cycles);
  if (shootdowns.has_value() && shootdowns_after.has_value()) {
    contender.shootdowns.push_back(
        static_cast<double>(*shootdowns_after - *shootdowns) / cycles);
  }
  contender.whole.Add({std::move(ticks)});
  contender.recycle.Add({std::move(recycle_ticks)});
}

}  // namespace

void MeasureSqlite(const CycleSettings& settings, const std::string& pages,
                   std::string_view only, uint32_t rows, CycleReport& report) {
  const bool same = pages == "same";
  // Set up by plain means, so that no strategy has seen it before.
  std::shared_ptr<const SqliteTemplate> database;
  for (const SqliteStrategyFactory& factory : AllSqliteStrategies()) {
    if (factory.name != kCopyOnWriteName) continue;
    const auto strategy = OrDie(factory.make());
    database = OrDie(examples::SetUpDatabase(strategy->source(), rows));
  }

  std::vector<Contender> contenders;
  for (const SqliteStrategyFactory& factory : AllSqliteStrategies()) {
    if (factory.name.find(only) == std::string::npos) continue;
    if (const auto strategy = factory.make(); !strategy.ok()) {
      NoteSkipped(factory.name, strategy.status(), report);
      continue;
    }
    Contender contender;
    contender.factory = &factory;
    contender.counts = CountOfCycles(
        settings,
        [&]() -> std::function<void()> {
          const auto tenants = std::make_shared<Tenants>(
              *database, OrDie(factory.make()), same, rows);
          return [tenants] { tenants->Serve(nullptr); };
        },
        report);
    contenders.push_back(std::move(contender));
  }
  for (Contender& contender : contenders) {
    contender.tenants = std::make_unique<Tenants>(
        *database, OrDie(contender.factory->make()), same, rows);
    for (int i = 0; i < settings.warmup; ++i) {
      contender.tenants->Serve(nullptr);
    }
  }
  for (int round = 0; round < settings.rounds; ++round) {
    for (Contender& contender : contenders) MeasureRound(settings, contender);
  }
  for (Contender& contender : contenders) {
    CycleRow& row = *report.add_rows();
    row.set_table(CycleRow::SQLITE);
    row.set_pages(pages);
    row.set_touched_bytes(database->memories().front().size_bytes);
    row.set_way(contender.factory->name);
    row.set_threads(1);
    FillTimes(contender.whole, row);
    FillCounts(settings, contender.counts, row);
    const RoundSamples& recycle = contender.recycle;
    row.set_handover_median_ns(Median(recycle.median_ns));
    row.set_handover_mean_ns(Median(recycle.mean_ns));
    row.set_handover_p99_ns(Median(recycle.p99_ns));
    row.mutable_round_handover_median_ns()->Assign(recycle.median_ns.begin(),
                                                   recycle.median_ns.end());
    row.mutable_round_handover_mean_ns()->Assign(recycle.mean_ns.begin(),
                                                 recycle.mean_ns.end());
    row.set_page_faults(Median(contender.faults));
    if (!contender.shootdowns.empty()) {
      row.set_tlb_shootdowns(Median(contender.shootdowns));
    }
    const std::optional<uint64_t> idle =
        contender.tenants->strategy().PrivateBytesOfAll();
    if (idle.has_value()) {
      row.set_private_kib_per_idle_slot(static_cast<double>(*idle >> 10));
    }
    contender.tenants->CheckClean(contender.factory->name);
  }
}

}  // namespace firsttouch::bench
