#include "firsttouch/bench/cycle_measure.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/thread_pool.h"
#include "firsttouch/examples/system_calls.h"
#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

using examples::SqliteGuest;
using examples::SqliteTemplate;
using wasm2c::Wasi;

// The lists of changed pages of one thread, made before anything is measured.
class Lists {
 public:
  // What stays the same is the same for every seed: guests of one image.
  Lists(const CycleRow& like, uint32_t seed) : per_list_(like.changed_pages()) {
    std::vector<uint32_t> all(like.touched_bytes() / kPageBytes);
    std::iota(all.begin(), all.end(), 0);
    std::mt19937 same(0);
    std::shuffle(all.begin(), all.end(), same);
    const uint32_t fixed = like.pages() == "same"    ? per_list_
                           : like.pages() == "mixed" ? kMixedSame
                                                     : 0;
    lists_ = like.pages() == "same" ? 1 : kChurningLists;
    std::mt19937 random(seed);
    for (uint32_t list = 0; list < lists_; ++list) {
      if (lists_ > 1) std::shuffle(all.begin() + fixed, all.end(), random);
      flat_.insert(flat_.end(), all.begin(), all.begin() + per_list_);
    }
  }

  PageList Next() {
    const PageList list(flat_.data() + next_ * per_list_, per_list_);
    next_ = next_ + 1 == lists_ ? 0 : next_ + 1;
    return list;
  }

 private:
  static constexpr uint32_t kChurningLists = 499;
  uint32_t per_list_;
  uint32_t lists_ = 0;
  uint32_t next_ = 0;
  std::vector<uint32_t> flat_;
};

void Change(volatile std::byte* base, PageList list) {
  constexpr uint32_t kOffset = 8;
  for (uint32_t page : list) base[page * kPageBytes + kOffset] = std::byte{1};
}

// The guests of one thread, one after the other.
class Guests {
 public:
  virtual ~Guests() = default;
  // One cycle. Returns the ticks of its acquire and release, or 0 where these
  // are not told apart.
  virtual uint64_t Serve() = 0;
  // Whether the next guest would find the image and zeroes.
  virtual bool FindsClean() = 0;
};

class PageGuests : public Guests {
 public:
  PageGuests(std::unique_ptr<CycleSlot> slot, ImageRef image, Lists lists)
      : slot_(std::move(slot)),
        image_(std::move(image)),
        lists_(std::move(lists)) {}

  uint64_t Serve() override {
    const PageList list = lists_.Next();
    Change(slot_->Acquire(image_), list);
    slot_->Release(list, kCycleMemoryBytes);
    return 0;
  }

  bool FindsClean() override {
    const std::byte* const memory = slot_->Acquire(image_);
    bool clean = memcmp(memory, image_->data(), kCycleImageBytes) == 0;
    for (uint64_t i = kCycleImageBytes; i < kCycleMemoryBytes; ++i) {
      clean &= memory[i] == std::byte{0};
    }
    slot_->Release(PageList(), kCycleMemoryBytes);
    return clean;
  }

  CycleSlot& slot() { return *slot_; }

 private:
  const std::unique_ptr<CycleSlot> slot_;
  const ImageRef image_;
  Lists lists_;
};

class SqliteGuests : public Guests {
 public:
  SqliteGuests(const SqliteTemplate& database,
               std::unique_ptr<wasm2c::MemorySource> source, bool same,
               uint32_t rows)
      : database_(database),
        source_(std::move(source)),
        same_(same),
        rows_(rows) {}

  uint64_t Serve() override {
    const uint64_t begin = NowTicks();
    wasi_.Reset();
    SqliteGuest guest = OrDie(database_.Instantiate(source_.get(), &wasi_));
    const uint64_t acquired = NowTicks();
    RequestOrDie(guest, rows_, same_ ? 0 : ++guest_);
    const uint64_t done = NowTicks();
    { const SqliteGuest gone = std::move(guest); }
    return acquired - begin + (NowTicks() - done);
  }

  bool FindsClean() override {
    return OrDie(examples::CompareSlots(database_, source_.get(), /*slots=*/1))
               .differing_bytes == 0;
  }

 private:
  const SqliteTemplate& database_;
  const std::unique_ptr<wasm2c::MemorySource> source_;
  const bool same_;
  const uint64_t rows_;
  uint64_t guest_ = 0;
  Wasi wasi_;
};

// A layout for so many slots, and the guests of a thread.
struct Subject {
  std::function<LayoutOptions(uint32_t)> layout;
  std::function<std::unique_ptr<Guests>(CycleStrategy&, uint32_t thread)>
      guests;
};

// One strategy with a number of threads.
struct Contender {
  const CycleStrategyFactory* factory = nullptr;
  std::unique_ptr<CycleStrategy> strategy;
  std::vector<std::unique_ptr<Guests>> guests;  // of each thread
  CycleRow row;                                 // what is known without rounds
};

// The strategy, or null and a note in the report, made once, that it is not
// possible here.
std::unique_ptr<CycleStrategy> MakeOrNote(const CycleStrategyFactory& factory,
                                          const LayoutOptions& layout,
                                          CycleReport& report) {
  auto strategy = factory.make(layout);
  if (strategy.ok()) return *std::move(strategy);
  for (const SkippedStrategy& skipped : report.skipped()) {
    if (skipped.way() == factory.name) return nullptr;
  }
  SkippedStrategy& skipped = *report.add_skipped();
  skipped.set_way(factory.name);
  const absl::string_view reason = strategy.status().message();
  skipped.set_reason(reason.data(), reason.size());
  return nullptr;
}

// What the cycles of a strategy ask of the kernel, in a child of its own, after
// as many as warm it up; into its row. To call while this process has one
// thread. Notes in the report what counted.
void CountCalls(const CycleSettings& settings, const Subject& subject,
                Contender& contender, CycleReport& report) {
  const CycleStrategyFactory& factory = *contender.factory;
  if (settings.counted == 0) {
    report.set_counted_by("nothing (--counted=0)");
    return;
  }
  // Here, since the child cannot say so.
  if (!factory.make(subject.layout(1)).ok()) return;
  const absl::StatusOr<examples::SystemCalls> calls =
      examples::CountSystemCallsOf([&] {
        const auto strategy = OrDie(factory.make(subject.layout(1)));
        const auto guests = subject.guests(*strategy, 0);
        for (int i = 0; i < settings.warmup; ++i) guests->Serve();
        examples::WaitUntilOtherThreadsSleep();
        examples::BeginCountedPart();
        for (int i = 0; i < settings.counted; ++i) guests->Serve();
        examples::EndCountedPart();
      });
  if (!calls.ok() || calls->exit_status != 0 || calls->parts != 1) {
    report.set_counted_by(absl::StrCat(
        "nothing: ", calls.ok() ? "a counted program ended before its time"
                                : calls.status().ToString()));
    return;
  }
  report.set_counted_by("ptrace");
  const double cycles = settings.counted;
  contender.row.set_system_calls(static_cast<double>(calls->total) / cycles);
  contender.row.set_signals(static_cast<double>(calls->signals) / cycles);
}

// The cycles of one thread in one round, with the time of each.
void RunRound(const CycleSettings& settings, Guests& guests, Ticks& ticks,
              Ticks& recycle) {
  constexpr int kLeast = 5;
  const auto budget = static_cast<uint64_t>(settings.round_ns * TicksPerNs());
  const uint64_t start = NowTicks();
  uint64_t last = start;
  for (int i = 1; i <= settings.cycles; ++i) {
    const uint64_t recycle_ticks = guests.Serve();
    const uint64_t now = NowTicks();
    ticks.push_back(now - last);
    last = now;
    if (recycle_ticks != 0) recycle.push_back(recycle_ticks);
    if (now - start > budget && i >= kLeast) break;
  }
}

void SetTimes(const RoundTimes& times, CycleRow& row) {
  row.set_median_ns(times.median_ns);
  row.set_mean_ns(times.mean_ns);
  row.set_p99_ns(times.p99_ns);
}

// One round of one contender.
CycleRow RoundOf(const CycleSettings& settings, Contender& contender,
                 ThreadPool& thread_pool) {
  // There before anything is counted.
  std::vector<Ticks> ticks(contender.row.threads(), Ticks(settings.cycles));
  std::vector<Ticks> recycle = ticks;
  for (Ticks& of_thread : ticks) of_thread.clear();
  for (Ticks& of_thread : recycle) of_thread.clear();
  const std::optional<uint64_t> shootdowns_before = TlbShootdowns();
  const uint64_t faults_before = MinorFaults();
  thread_pool.Run(contender.row.threads(), [&](uint32_t thread) {
    RunRound(settings, *contender.guests[thread], ticks[thread],
             recycle[thread]);
  });
  const uint64_t faults = MinorFaults() - faults_before;
  const std::optional<uint64_t> shootdowns = TlbShootdowns();
  CycleRow row = contender.row;
  const RoundTimes times = TimesOfRound(ticks);
  SetTimes(times, row);
  row.set_cycles_per_second(times.cycles_per_second);
  if (!recycle[0].empty()) {
    const RoundTimes handover = TimesOfRound(recycle);
    row.set_handover_median_ns(handover.median_ns);
    row.set_handover_mean_ns(handover.mean_ns);
    row.set_handover_p99_ns(handover.p99_ns);
  }
  row.set_page_faults(static_cast<double>(faults) / times.cycles);
  if (shootdowns.has_value() && shootdowns_before.has_value()) {
    row.set_tlb_shootdowns(
        static_cast<double>(*shootdowns - *shootdowns_before) / times.cycles);
  }
  return row;
}

// How the cycles a second of all threads grow with their number, in each round:
// beside one thread's, and that beside what it is for the limit.
void SetScaling(std::vector<std::vector<CycleRow>>& samples) {
  const auto for_pairs = [&](auto set) {
    for (std::vector<CycleRow>& rows : samples) {
      for (const std::vector<CycleRow>& others : samples) {
        for (size_t i = 0; i < rows.size(); ++i) set(rows[i], others[i]);
      }
    }
  };
  for_pairs([](CycleRow& row, const CycleRow& one) {
    if (row.way() != one.way() || one.threads() != 1) return;
    row.set_scaling(row.cycles_per_second() / one.cycles_per_second());
  });
  for_pairs([](CycleRow& row, const CycleRow& limit) {
    if (limit.way() == kLimitName && limit.threads() == row.threads() &&
        limit.has_scaling()) {
      row.set_scaling_of_limit(row.scaling() / limit.scaling());
    }
  });
}

// Ends the program unless the next guest would find the image.
void CheckClean(Guests& guests, const std::string& strategy) {
  if (guests.FindsClean()) return;
  Die(absl::StrCat("\"", strategy, "\" passed on bytes that a guest wrote"));
}

// All strategies with each number of threads; adds their rows.
void Measure(const CycleSettings& settings, const CycleRow& like,
             const Subject& subject, CycleReport& report) {
  const bool count = like.table() != CycleRow::THREADS;
  const std::vector<uint32_t> threads =
      count ? std::vector<uint32_t>{1} : settings.threads;
  std::vector<Contender> contenders;
  for (uint32_t slots : threads) {
    for (const CycleStrategyFactory& factory : settings.strategies) {
      Contender& contender = contenders.emplace_back();
      contender.factory = &factory;
      contender.row = like;
      contender.row.set_way(factory.name);
      contender.row.set_threads(slots);
      // Before anything of a strategy is there.
      if (count) CountCalls(settings, subject, contender, report);
    }
  }
  for (Contender& contender : contenders) {
    const uint32_t slots = contender.row.threads();
    contender.strategy =
        MakeOrNote(*contender.factory, subject.layout(slots), report);
    for (uint32_t i = 0; contender.strategy != nullptr && i < slots; ++i) {
      contender.guests.push_back(subject.guests(*contender.strategy, i));
    }
  }
  std::erase_if(contenders, [](const auto& c) { return !c.strategy; });
  ThreadPool thread_pool(*std::max_element(threads.begin(), threads.end()));
  for (Contender& contender : contenders) {
    thread_pool.Run(contender.row.threads(), [&](uint32_t thread) {
      for (int i = 0; i < settings.warmup; ++i) {
        contender.guests[thread]->Serve();
      }
    });
  }
  auto samples = TakeTurns<CycleRow>(
      settings.rounds, contenders.size(),
      [&](size_t i) { return RoundOf(settings, contenders[i], thread_pool); });
  if (!count) SetScaling(samples);
  const int rows_before = report.rows_size();
  AddMedians(samples, report.mutable_rows());
  for (size_t i = 0; i < contenders.size(); ++i) {
    CycleRow& row = *report.mutable_rows(rows_before + static_cast<int>(i));
    const std::optional<uint64_t> idle =
        contenders[i].strategy->PrivateBytesOfAll();
    if (idle.has_value()) {
      row.set_private_kib_per_idle_slot(static_cast<double>(*idle >> 10) /
                                        contenders[i].row.threads());
    }
    CheckClean(*contenders[i].guests[0], row.way());
  }
}

constexpr uint32_t kFirstSlots = 12;

// A round of first cycles by one strategy, in slots of their own.
CycleRow FirstCycles(CycleStrategy& strategy, CycleRow row, uint32_t& seed) {
  const bool image_known = row.table() == CycleRow::FIRST_KNOWN_IMAGE;
  // An image that ran in an earlier round would not be new, not even for a pool
  // that is new.
  const auto new_image = [&] { return PatternImage(kCycleImageBytes, ++seed); };
  std::vector<ImageRef> images(kFirstSlots, new_image());
  if (!image_known) std::generate(images.begin(), images.end(), new_image);
  const ImageRef other_image = image_known ? images[0] : new_image();
  // Warms up the program and, with a known image, what is learned of it; then
  // holds the slot, so that nobody gets it again.
  PageGuests other(strategy.NewSlot(), other_image, Lists(row, 1));
  for (int i = 0; i < 20; ++i) other.Serve();
  other.slot().Acquire(other_image);

  Lists lists(row, 1);
  const PageList list = lists.Next();
  std::vector<std::unique_ptr<CycleSlot>> slots(kFirstSlots);
  for (auto& slot : slots) slot = strategy.NewSlot();
  Ticks ticks(kFirstSlots);
  for (uint32_t s = 0; s < kFirstSlots; ++s) {
    const uint64_t start = NowTicks();
    Change(slots[s]->Acquire(images[s]), list);
    ticks[s] = NowTicks() - start;
  }
  for (uint32_t s = 0; s < kFirstSlots; ++s) {
    const uint64_t start = NowTicks();
    slots[s]->Release(list, kCycleMemoryBytes);
    ticks[s] += NowTicks() - start;
  }
  other.slot().Release(PageList(), kCycleMemoryBytes);
  PageGuests next(std::move(slots[0]), images[0], lists);
  CheckClean(next, row.way());
  SetTimes(TimesOfRound({std::move(ticks)}), row);
  return row;
}

// The first cycle of slots that nobody had before.
void MeasureFirst(const CycleSettings& settings, const CycleRow& like,
                  CycleReport& report) {
  uint32_t seed = 1;
  const auto sample = [&](size_t i) -> std::optional<CycleRow> {
    const CycleStrategyFactory& factory = settings.strategies[i];
    if (factory.traits.is_limit) return std::nullopt;
    // One slot more than are measured.
    const auto strategy =
        MakeOrNote(factory, CycleLayout(kFirstSlots + 1), report);
    if (strategy == nullptr) return std::nullopt;
    CycleRow row = like;
    row.set_way(factory.name);
    return FirstCycles(*strategy, row, seed);
  };
  AddMedians(
      TakeTurns<CycleRow>(settings.rounds, settings.strategies.size(), sample),
      report.mutable_rows());
}

// Private bytes of a process beyond what it had, with so many slots all of
// which were used and are idle.
std::optional<double> BytesWithIdleSlots(const CycleStrategyFactory& factory,
                                         const CycleRow& like,
                                         const ImageRef& image,
                                         uint32_t slots_count) {
  constexpr int kGuests = 30;
  malloc_trim(0);
  const std::optional<uint64_t> before = PrivateBytesOfProcess();
  auto strategy = factory.make(CycleLayout(slots_count));
  if (!strategy.ok() || !before.has_value()) return std::nullopt;
  std::vector<std::unique_ptr<CycleSlot>> slots(slots_count);
  for (auto& slot : slots) slot = (*strategy)->NewSlot();
  Lists lists(like, 1);
  for (int i = 0; i < kGuests; ++i) {
    const PageList list = lists.Next();
    // All at once: no slot is left out.
    for (const auto& slot : slots) Change(slot->Acquire(image), list);
    for (const auto& slot : slots) slot->Release(list, kCycleMemoryBytes);
  }
  const std::optional<uint64_t> after = PrivateBytesOfProcess();
  if (!after.has_value()) return std::nullopt;
  return static_cast<double>(*after) - static_cast<double>(*before);
}

// What an idle slot keeps for itself, all included. Makes no rounds.
void MeasureIdle(const CycleSettings& settings, const CycleRow& like,
                 CycleReport& report) {
  // What is there once for all slots cancels out.
  constexpr uint32_t kFew = 8;
  constexpr uint32_t kMany = kFew + 64;
  using Bytes = std::optional<double>;
  const ImageRef image = PatternImage(kCycleImageBytes);
  void* const shared = mmap(nullptr, sizeof(Bytes), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) Die("mmap failed");
  auto* const bytes = static_cast<Bytes*>(shared);
  for (const CycleStrategyFactory& factory : settings.strategies) {
    if (factory.traits.is_limit) continue;
    if (MakeOrNote(factory, CycleLayout(1), report) == nullptr) continue;
    // In a child of its own, so that nothing that was freed before is used
    // again.
    const auto in_child = [&](uint32_t slots) {
      new (bytes) Bytes();
      const pid_t child = fork();
      if (child < 0) Die("fork failed");
      if (child == 0) {
        *bytes = BytesWithIdleSlots(factory, like, image, slots);
        _exit(0);
      }
      waitpid(child, nullptr, 0);
      return *bytes;
    };
    const Bytes few = in_child(kFew);
    const Bytes many = in_child(kMany);
    if (!few.has_value() || !many.has_value()) continue;
    CycleRow& row = *report.add_rows();
    row = like;
    row.set_way(factory.name);
    row.set_private_kib_per_idle_slot((*many - *few) / (kMany - kFew) / 1024);
  }
  munmap(shared, sizeof(Bytes));
}

// SQLite as the guest: each cycle is an instance of one snapshot, a query, an
// insert and an update, and the release of its memory.
void MeasureSqlite(CycleSettings settings, CycleRow like, CycleReport& report) {
  constexpr uint32_t kRows = 20'000;
  std::erase_if(settings.strategies,
                [](const auto& factory) { return !factory.traits.for_sqlite; });
  const auto layout = [](uint32_t slots) {
    return wasm2c::LayoutForGuests(slots, kSqliteMemoryBytes);
  };
  // Set up by plain means, so that no strategy has seen it before.
  const auto plain = OrDie(wasm2c::PlainMemorySource::Create(
      {.slots = 1, .max_memory_bytes = kSqliteMemoryBytes}));
  const auto database = OrDie(examples::SetUpDatabase(plain.get(), kRows));
  like.set_touched_bytes(database->memories().front().size_bytes);
  const auto guests = [&](CycleStrategy& strategy, uint32_t) {
    return std::make_unique<SqliteGuests>(*database, strategy.NewSource(),
                                          like.pages() == "same", kRows);
  };
  Measure(settings, like, {layout, guests}, report);
}

// One thread, everything warm; or several, each with a slot of its own.
void MeasurePages(CycleSettings settings, const CycleRow& like,
                  CycleReport& report) {
  // A round of threads ends by time: otherwise the short cycles would be over
  // before the second thread begins.
  constexpr int kThreadCycles = 100'000;
  if (like.table() == CycleRow::THREADS) {
    settings.cycles = std::max(settings.cycles, kThreadCycles);
  }
  const auto guests = [&, image = PatternImage(kCycleImageBytes)](
                          CycleStrategy& strategy, uint32_t thread) {
    return std::make_unique<PageGuests>(strategy.NewSlot(), image,
                                        Lists(like, thread + 1));
  };
  Measure(settings, like, {CycleLayout, guests}, report);
}

}  // namespace

void MeasureRows(const CycleSettings& settings, const CycleRow& like,
                 CycleReport& report) {
  const CycleRow::Table table = like.table();
  if (table == CycleRow::IDLE) return MeasureIdle(settings, like, report);
  if (table == CycleRow::SQLITE) return MeasureSqlite(settings, like, report);
  if (table == CycleRow::STEADY || table == CycleRow::THREADS) {
    return MeasurePages(settings, like, report);
  }
  MeasureFirst(settings, like, report);
}

void RequestOrDie(SqliteGuest& guest, uint64_t rows, uint64_t number) {
  constexpr uint64_t kOwner = 4711;
  // Steps without a pattern that a page could follow.
  const uint64_t found = (number == 0 ? rows / 8 : number * 7919 % rows) + 1;
  const uint64_t updated = (number == 0 ? 7 : number * 104'729) % rows + 1;
  const auto got = guest.Run([=](Z_sqlite_guest_instance_t* instance) {
    if (Z_sqlite_guestZ_find(instance, found) != found) return 1;
    if (Z_sqlite_guestZ_insert(instance, kOwner, 1) != 0) return 2;
    if (Z_sqlite_guestZ_update(instance, updated, kOwner) != 0) return 3;
    return 0;
  });
  if (!got.ok()) Die(got.status().ToString());
  if (*got != 0) Die(absl::StrCat("SQLite's answer ", *got, " is wrong"));
}

}  // namespace firsttouch::bench
