#include "firsttouch/bench/cycle_measure.h"

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/timing.h"
#include "firsttouch/examples/system_calls.h"
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
  Lists(const CycleChoice& choice, uint32_t seed) {
    std::vector<uint32_t> all(choice.touched_bytes / kPageBytes);
    std::iota(all.begin(), all.end(), 0);
    std::mt19937 same(0);
    std::shuffle(all.begin(), all.end(), same);
    per_list_ = choice.k;
    const uint32_t fixed = choice.pages == "same"    ? choice.k
                           : choice.pages == "mixed" ? kMixedSame
                                                     : 0;
    lists_ = choice.pages == "same" ? 1 : kChurningLists;
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
  uint32_t per_list_ = 0;
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
    if (same_) {
      RequestOrDie(guest, SameFound(rows_), SameUpdated(rows_));
    } else {
      // Steps without a pattern that a page could follow.
      ++guest_;
      RequestOrDie(guest, guest_ * 7919 % rows_ + 1,
                   guest_ * 104'729 % rows_ + 1);
    }
    const uint64_t done = NowTicks();
    { const SqliteGuest gone = std::move(guest); }
    return acquired - begin + (NowTicks() - done);
  }

  bool FindsClean() override {
    const SqliteGuest guest =
        OrDie(database_.Instantiate(source_.get(), &wasi_));
    const Image& image = *database_.memories().front().image;
    const auto* const memory =
        reinterpret_cast<const std::byte*>(guest.memory().data);
    for (uint64_t page = 0; page < image.pages().value(); ++page) {
      if (memcmp(memory + page * kPageBytes, image.PageBytes(PageIndex(page)),
                 kPageBytes) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  const SqliteTemplate& database_;
  const std::unique_ptr<wasm2c::MemorySource> source_;
  const bool same_;
  const uint64_t rows_;
  uint64_t guest_ = 0;
  Wasi wasi_;
};

// What a measurement is about: rows that are like this one, but for the
// strategy and the threads; a layout for so many slots; and the guests of a
// thread.
struct Subject {
  CycleRow row;
  std::function<LayoutOptions(uint32_t)> layout;
  std::function<std::unique_ptr<Guests>(CycleStrategy&, uint32_t thread)>
      guests;
};

CycleRow RowOf(CycleRow::Table table, const CycleChoice& choice) {
  CycleRow row;
  row.set_table(table);
  row.set_pages(choice.pages);
  row.set_touched_bytes(choice.touched_bytes);
  row.set_changed_pages(choice.k);
  row.set_threads(1);
  return row;
}

Subject PagesOf(CycleRow::Table table, const CycleChoice& choice) {
  return {.row = RowOf(table, choice),
          .layout = CycleLayout,
          .guests = [choice, image = PatternImage(kCycleImageBytes)](
                        CycleStrategy& strategy, uint32_t thread) {
            return std::make_unique<PageGuests>(strategy.NewSlot(), image,
                                                Lists(choice, thread + 1));
          }};
}

// One strategy with a number of threads, with all that was measured of it.
struct Contender {
  const CycleStrategyFactory* factory = nullptr;
  uint32_t threads = 0;
  std::unique_ptr<CycleStrategy> strategy;
  std::vector<std::unique_ptr<Guests>> guests;  // of each thread
  std::vector<CycleRow> rounds;
};

// Notes, once, that a strategy is not possible here.
void NoteSkipped(const std::string& strategy, const absl::Status& why,
                 CycleReport& report) {
  for (const SkippedStrategy& skipped : report.skipped()) {
    if (skipped.way() == strategy) return;
  }
  SkippedStrategy& skipped = *report.add_skipped();
  skipped.set_way(strategy);
  const absl::string_view reason = why.message();
  skipped.set_reason(reason.data(), reason.size());
}

// What the cycles of a strategy ask of the kernel, in a child of its own, after
// as many as warm it up; into `row`. To call while this process has one thread.
// Notes in the report what counted.
void CountCalls(const CycleSettings& settings, const Subject& subject,
                const CycleStrategyFactory& factory, CycleRow& row,
                CycleReport& report) {
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
  row.set_system_calls(static_cast<double>(calls->total) / cycles);
  row.set_signals(static_cast<double>(calls->signals) / cycles);
}

// The cycles of one thread in one round, with the time of each.
void RunRound(const CycleSettings& settings, Guests& guests,
              std::vector<uint64_t>& ticks, std::vector<uint64_t>& recycle) {
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

// One round of one contender; shared by its threads, which it counts in.
class Round {
 public:
  // The row that the numbers of the round go to, next to what it has.
  Round(const CycleSettings& settings, Contender& contender, CycleRow row)
      : settings_(settings),
        contender_(contender),
        row_(std::move(row)),
        ticks_(contender.threads),
        recycle_(contender.threads) {
    for (auto* of_threads : {&ticks_, &recycle_}) {
      for (std::vector<uint64_t>& of_thread : *of_threads) {
        // There before anything is counted.
        of_thread.resize(settings.cycles);
        of_thread.clear();
      }
    }
    shootdowns_ = TlbShootdowns();
    faults_ = MinorFaults();
  }

  void Run(uint32_t thread) {
    // Those that wake up first wait for the others without sleeping.
    ready_.fetch_add(1, std::memory_order_relaxed);
    while (ready_.load(std::memory_order_relaxed) != contender_.threads) {
      std::this_thread::yield();
    }
    RunRound(settings_, *contender_.guests[thread], ticks_[thread],
             recycle_[thread]);
  }

  void End() {
    const uint64_t faults = MinorFaults();
    const std::optional<uint64_t> shootdowns = TlbShootdowns();
    double cycles = 0;
    double per_second = 0;
    for (const std::vector<uint64_t>& of_thread : ticks_) {
      cycles += static_cast<double>(of_thread.size());
      // A cycle of nothing may take no time that can be measured.
      per_second += 1e9 / std::max(MeanCycleNs(of_thread), 0.1);
    }
    const RoundTimes times = TimesOfRound(ticks_);
    row_.set_median_ns(times.median_ns);
    row_.set_mean_ns(times.mean_ns);
    row_.set_p99_ns(times.p99_ns);
    row_.set_cycles_per_second(per_second);
    if (!recycle_[0].empty()) {
      const RoundTimes recycle = TimesOfRound(recycle_);
      row_.set_handover_median_ns(recycle.median_ns);
      row_.set_handover_mean_ns(recycle.mean_ns);
      row_.set_handover_p99_ns(recycle.p99_ns);
    }
    row_.set_page_faults(static_cast<double>(faults - faults_) / cycles);
    if (shootdowns.has_value() && shootdowns_.has_value()) {
      row_.set_tlb_shootdowns(static_cast<double>(*shootdowns - *shootdowns_) /
                              cycles);
    }
    contender_.rounds.push_back(std::move(row_));
  }

 private:
  const CycleSettings& settings_;
  Contender& contender_;
  CycleRow row_;
  std::vector<std::vector<uint64_t>> ticks_;
  std::vector<std::vector<uint64_t>> recycle_;
  std::optional<uint64_t> shootdowns_;
  uint64_t faults_ = 0;
  std::atomic<uint32_t> ready_{0};
};

// Warms the contenders up and runs their rounds, in turn. A thread stays the
// same for as long as that takes: what a pool keeps for it is found by it in
// the next round. The calling thread is the first of them.
void RunRounds(const CycleSettings& settings, const Subject& subject,
               std::vector<Contender>& contenders) {
  uint32_t threads = 1;
  for (const Contender& contender : contenders) {
    threads = std::max(threads, contender.threads);
  }
  std::barrier together(threads);
  std::optional<Round> round;
  const auto work = [&](uint32_t thread) {
    for (Contender& contender : contenders) {
      const bool works = thread < contender.threads;
      for (int i = 0; works && i < settings.warmup; ++i) {
        contender.guests[thread]->Serve();
      }
      together.arrive_and_wait();
    }
    for (int i = 0; i < settings.rounds; ++i) {
      for (Contender& contender : contenders) {
        if (thread == 0) round.emplace(settings, contender, subject.row);
        together.arrive_and_wait();
        if (thread < contender.threads) round->Run(thread);
        together.arrive_and_wait();
        if (thread == 0) round->End();
      }
    }
  };
  std::vector<std::thread> others;
  for (uint32_t thread = 1; thread < threads; ++thread) {
    others.emplace_back(work, thread);
  }
  work(0);
  for (std::thread& other : others) other.join();
}

// How the cycles a second of all threads grow with their number, in each round:
// beside one thread's, and that beside what it is for the limit.
void SetScaling(std::vector<Contender>& contenders) {
  const auto find = [&](auto is) -> Contender* {
    const auto found = std::find_if(contenders.begin(), contenders.end(), is);
    return found == contenders.end() ? nullptr : &*found;
  };
  for (Contender& contender : contenders) {
    const Contender* const alone = find([&](const Contender& other) {
      return other.factory == contender.factory && other.threads == 1;
    });
    for (size_t i = 0; alone != nullptr && i < contender.rounds.size(); ++i) {
      contender.rounds[i].set_scaling(contender.rounds[i].cycles_per_second() /
                                      alone->rounds[i].cycles_per_second());
    }
  }
  for (Contender& contender : contenders) {
    const Contender* const limit = find([&](const Contender& other) {
      return other.factory->traits.is_limit &&
             other.threads == contender.threads &&
             other.rounds.front().has_scaling();
    });
    for (size_t i = 0; limit != nullptr && i < contender.rounds.size(); ++i) {
      contender.rounds[i].set_scaling_of_limit(contender.rounds[i].scaling() /
                                               limit->rounds[i].scaling());
    }
  }
}

// All strategies with each number of threads; adds their rows.
void Measure(const CycleSettings& settings, const Subject& subject,
             const std::vector<uint32_t>& threads, CycleReport& report) {
  const bool count = subject.row.table() != CycleRow::THREADS;
  std::vector<CycleRow> counts;
  for (const CycleStrategyFactory& factory : settings.strategies) {
    CycleRow& row = counts.emplace_back(subject.row);
    // Before anything of a strategy is there.
    if (count) CountCalls(settings, subject, factory, row, report);
  }
  std::vector<Contender> contenders;
  for (const CycleStrategyFactory& factory : settings.strategies) {
    for (uint32_t slots : threads) {
      auto strategy = factory.make(subject.layout(slots));
      if (!strategy.ok()) {
        NoteSkipped(factory.name, strategy.status(), report);
        continue;
      }
      Contender& contender = contenders.emplace_back();
      contender.factory = &factory;
      contender.threads = slots;
      contender.strategy = *std::move(strategy);
      for (uint32_t thread = 0; thread < slots; ++thread) {
        contender.guests.push_back(subject.guests(*contender.strategy, thread));
      }
    }
  }
  RunRounds(settings, subject, contenders);
  if (!count) SetScaling(contenders);
  for (uint32_t slots : threads) {
    for (Contender& contender : contenders) {
      if (contender.threads != slots) continue;
      CycleRow& row = *report.add_rows();
      row = MedianRow(contender.rounds);
      row.MergeFrom(counts[contender.factory - settings.strategies.data()]);
      row.set_way(contender.factory->name);
      row.set_threads(slots);
      const std::optional<uint64_t> idle =
          contender.strategy->PrivateBytesOfAll();
      if (idle.has_value()) {
        row.set_private_kib_per_idle_slot(static_cast<double>(*idle >> 10) /
                                          slots);
      }
      if (!contender.guests[0]->FindsClean()) {
        Die(absl::StrCat("\"", row.way(),
                         "\" passed on bytes that a guest wrote"));
      }
    }
  }
}

constexpr uint32_t kFirstSlots = 12;

// A round of first cycles by one strategy, in slots of their own.
CycleRow FirstCycles(CycleStrategy& strategy, const std::string& name,
                     const CycleChoice& choice, CycleRow row, bool image_known,
                     uint32_t& seed) {
  // An image that ran in an earlier round would not be new, not even for a pool
  // that is new.
  const auto new_image = [&] { return PatternImage(kCycleImageBytes, ++seed); };
  std::vector<ImageRef> images(kFirstSlots, new_image());
  if (!image_known) std::generate(images.begin(), images.end(), new_image);
  const ImageRef other_image = image_known ? images[0] : new_image();
  // Warms up the program and, with a known image, what is learned of it; then
  // holds the slot, so that nobody gets it again.
  PageGuests other(strategy.NewSlot(), other_image, Lists(choice, 1));
  for (int i = 0; i < 20; ++i) other.Serve();
  other.slot().Acquire(other_image);

  Lists lists(choice, 1);
  const PageList list = lists.Next();
  std::vector<std::unique_ptr<CycleSlot>> slots(kFirstSlots);
  for (auto& slot : slots) slot = strategy.NewSlot();
  std::vector<uint64_t> ticks(kFirstSlots);
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
  if (!PageGuests(std::move(slots[0]), images[0], lists).FindsClean()) {
    Die(absl::StrCat("\"", name, "\" passed on bytes that a guest wrote"));
  }
  const RoundTimes times = TimesOfRound({std::move(ticks)});
  row.set_way(name);
  row.set_median_ns(times.median_ns);
  row.set_mean_ns(times.mean_ns);
  row.set_p99_ns(times.p99_ns);
  return row;
}

// What `body` returns in a child of its own, so that nothing that was freed
// before is used again; nullopt when it returns that, or fails.
std::optional<double> InChild(absl::FunctionRef<std::optional<double>()> body) {
  int ends[2];
  if (pipe(ends) != 0) return std::nullopt;
  const pid_t child = fork();
  if (child < 0) Die("fork failed");
  if (child == 0) {
    const std::optional<double> value = body();
    const bool told = value.has_value() &&
                      write(ends[1], &*value, sizeof *value) == sizeof *value;
    _exit(told ? 0 : 1);
  }
  close(ends[1]);
  double value = 0;
  const bool got = read(ends[0], &value, sizeof value) == sizeof value;
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return got ? std::optional<double>(value) : std::nullopt;
}

// Private bytes of a process beyond what it had, with so many slots all of
// which were used and are idle.
std::optional<double> BytesWithIdleSlots(const CycleStrategyFactory& factory,
                                         const CycleChoice& choice,
                                         const ImageRef& image,
                                         uint32_t slots_count) {
  constexpr int kGuests = 30;
  malloc_trim(0);
  const std::optional<uint64_t> before = PrivateBytesOfProcess();
  auto strategy = factory.make(CycleLayout(slots_count));
  if (!strategy.ok() || !before.has_value()) return std::nullopt;
  std::vector<std::unique_ptr<CycleSlot>> slots(slots_count);
  for (auto& slot : slots) slot = (*strategy)->NewSlot();
  Lists lists(choice, 1);
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

}  // namespace

void MeasureSteady(const CycleSettings& settings, const CycleChoice& choice,
                   CycleReport& report) {
  Measure(settings, PagesOf(CycleRow::STEADY, choice), {1}, report);
}

void MeasureThreads(const CycleSettings& settings, const CycleChoice& choice,
                    const std::vector<uint32_t>& threads, CycleReport& report) {
  // A round of threads ends by time: otherwise the short cycles would be over
  // before the second thread begins.
  constexpr int kThreadCycles = 100'000;
  CycleSettings by_time = settings;
  by_time.cycles = std::max(settings.cycles, kThreadCycles);
  Measure(by_time, PagesOf(CycleRow::THREADS, choice), threads, report);
}

void MeasureSqlite(const CycleSettings& settings, const std::string& pages,
                   uint32_t rows, CycleReport& report) {
  CycleSettings of_sqlite = settings;
  std::erase_if(of_sqlite.strategies,
                [](const auto& factory) { return !factory.traits.for_sqlite; });
  const auto layout = [](uint32_t slots) {
    return wasm2c::LayoutForGuests(slots, kSqliteMemoryBytes);
  };
  // Set up by plain means, so that no strategy has seen it before.
  std::shared_ptr<const SqliteTemplate> database;
  for (const CycleStrategyFactory& factory : AllCycleStrategies()) {
    if (factory.name != kCopyOnWriteName) continue;
    const auto strategy = OrDie(factory.make(layout(1)));
    database =
        OrDie(examples::SetUpDatabase(strategy->NewSource().get(), rows));
  }
  const Subject subject = {
      .row = RowOf(CycleRow::SQLITE,
                   {pages, database->memories().front().size_bytes, 0}),
      .layout = layout,
      .guests = [&](CycleStrategy& strategy, uint32_t) {
        return std::make_unique<SqliteGuests>(*database, strategy.NewSource(),
                                              pages == "same", rows);
      }};
  Measure(of_sqlite, subject, {1}, report);
}

void MeasureFirst(const CycleSettings& settings, const CycleChoice& choice,
                  bool image_known, CycleReport& report) {
  const CycleRow row = RowOf(
      image_known ? CycleRow::FIRST_KNOWN_IMAGE : CycleRow::FIRST_NEW_IMAGE,
      choice);
  std::vector<std::vector<CycleRow>> rounds(settings.strategies.size());
  uint32_t seed = 1;
  for (int round = 0; round < settings.rounds; ++round) {
    for (size_t i = 0; i < rounds.size(); ++i) {
      const CycleStrategyFactory& factory = settings.strategies[i];
      if (factory.traits.is_limit) continue;
      // One slot more than are measured.
      const auto strategy = factory.make(CycleLayout(kFirstSlots + 1));
      if (!strategy.ok()) {
        NoteSkipped(factory.name, strategy.status(), report);
        continue;
      }
      rounds[i].push_back(FirstCycles(**strategy, factory.name, choice, row,
                                      image_known, seed));
    }
  }
  for (const std::vector<CycleRow>& of_strategy : rounds) {
    if (!of_strategy.empty()) *report.add_rows() = MedianRow(of_strategy);
  }
}

void MeasureIdle(const CycleSettings& settings, const CycleChoice& choice,
                 CycleReport& report) {
  // What is there once for all slots cancels out.
  constexpr uint32_t kFew = 8;
  constexpr uint32_t kMany = kFew + 64;
  const ImageRef image = PatternImage(kCycleImageBytes);
  for (const CycleStrategyFactory& factory : settings.strategies) {
    if (factory.traits.is_limit) continue;
    if (const auto strategy = factory.make(CycleLayout(1)); !strategy.ok()) {
      NoteSkipped(factory.name, strategy.status(), report);
      continue;
    }
    const auto bytes = [&](uint32_t slots) {
      return InChild(
          [&] { return BytesWithIdleSlots(factory, choice, image, slots); });
    };
    const std::optional<double> few = bytes(kFew);
    const std::optional<double> many = bytes(kMany);
    if (!few.has_value() || !many.has_value()) continue;
    CycleRow& row = *report.add_rows();
    row = RowOf(CycleRow::IDLE, choice);
    row.set_way(factory.name);
    row.set_private_kib_per_idle_slot((*many - *few) / (kMany - kFew) / 1024);
  }
}

void RequestOrDie(SqliteGuest& guest, uint64_t found, uint64_t updated) {
  constexpr uint64_t kOwner = 4711;
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
