#include "firsttouch/bench/cycle_measure.h"

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/quantiles.h"
#include "firsttouch/bench/thread_pool.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint32_t kFirstCycleSlots = 12;
constexpr uint32_t kPageTouchOffset = 8;
// A round of threads ends by time: otherwise the short cycles would be over
// before the second thread begins.
constexpr int kThreadCycles = 100'000;

// The lists of changed pages of one thread, made before anything is measured.
class Lists {
 public:
  // What stays the same is the same for every seed: tenants of one image.
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
  for (uint32_t page : list) {
    base[page * kPageBytes + kPageTouchOffset] = std::byte{1};
  }
}

void OneCycle(CycleSlot& slot, const ImageRef& image, PageList list) {
  Change(slot.Acquire(image), list);
  slot.Release(list);
}

// Ends the program if the next tenant would not find the image and zeroes.
void CheckClean(CycleSlot& slot, const ImageRef& image,
                const std::string& strategy) {
  const std::byte* const memory = slot.Acquire(image);
  bool clean = memcmp(memory, image->data(), kCycleImageBytes) == 0;
  for (uint64_t i = kCycleImageBytes; i < kCycleMemoryBytes; ++i) {
    clean &= memory[i] == std::byte{0};
  }
  slot.Release({});
  if (!clean) {
    Die(absl::StrCat("\"", strategy, "\" passed on bytes that a tenant wrote"));
  }
}

CycleRow& AddRow(CycleReport& report, CycleRow::Table table,
                 const CycleChoice& choice, const std::string& strategy,
                 uint32_t threads) {
  CycleRow& row = *report.add_rows();
  row.set_table(table);
  row.set_pages(choice.pages);
  row.set_touched_bytes(choice.touched_bytes);
  row.set_changed_pages(choice.k);
  row.set_way(strategy);
  row.set_threads(threads);
  return row;
}

// One strategy with a number of threads, with all that was measured of it.
struct Contender {
  const CycleStrategyFactory* factory = nullptr;
  uint32_t threads = 0;
  std::unique_ptr<CycleStrategy> strategy;
  std::vector<std::unique_ptr<CycleSlot>> slots;
  std::vector<Lists> lists;

  RoundSamples times;
  std::vector<double> faults;  // per cycle, of each round
  std::vector<double> shootdowns;
  std::vector<double> cycles_per_second;
  std::optional<CallCounts> counts;
};

std::vector<Contender> MakeContenders(const CycleSettings& settings,
                                      const CycleChoice& choice,
                                      uint32_t threads, CycleReport& report) {
  std::vector<Contender> contenders;
  for (const CycleStrategyFactory& factory : settings.strategies) {
    absl::StatusOr<std::unique_ptr<CycleStrategy>> strategy =
        factory.make(threads);
    if (!strategy.ok()) {
      NoteSkipped(factory.name, strategy.status(), report);
      continue;
    }
    Contender contender;
    contender.factory = &factory;
    contender.threads = threads;
    contender.strategy = *std::move(strategy);
    for (uint32_t t = 0; t < threads; ++t) {
      contender.slots.push_back(contender.strategy->NewSlot());
      contender.lists.emplace_back(choice, t + 1);
    }
    contenders.push_back(std::move(contender));
  }
  return contenders;
}

void WarmUp(Contender& contender, uint32_t thread, const ImageRef& image,
            const CycleSettings& settings) {
  for (int i = 0; i < settings.warmup; ++i) {
    OneCycle(*contender.slots[thread], image, contender.lists[thread].Next());
  }
}

// One round. `on_threads` runs its argument for each thread.
void MeasureRound(
    const CycleSettings& settings, const ImageRef& image, Contender& contender,
    absl::FunctionRef<void(absl::FunctionRef<void(uint32_t)>)> on_threads) {
  std::vector<std::vector<uint64_t>> ticks(contender.threads);
  for (std::vector<uint64_t>& of_thread : ticks) {
    // There before anything is counted.
    of_thread.resize(settings.cycles);
    of_thread.clear();
  }
  const std::optional<uint64_t> shootdowns = TlbShootdowns();
  const uint64_t faults = MinorFaults();
  on_threads([&](uint32_t t) {
    CycleSlot& slot = *contender.slots[t];
    Lists& lists = contender.lists[t];
    RunRound(
        settings, [&] { OneCycle(slot, image, lists.Next()); }, ticks[t]);
  });
  const uint64_t faults_after = MinorFaults();
  const std::optional<uint64_t> shootdowns_after = TlbShootdowns();

  double total = 0;
  double per_second = 0;
  for (const std::vector<uint64_t>& of_thread : ticks) {
    total += static_cast<double>(of_thread.size());
    // A cycle of nothing may take no time that can be measured.
    per_second += 1e9 / std::max(MeanCycleNs(of_thread), 0.1);
  }
  contender.times.Add(ticks);
  contender.cycles_per_second.push_back(per_second);
  contender.faults.push_back(static_cast<double>(faults_after - faults) /
                             total);
  if (shootdowns.has_value() && shootdowns_after.has_value()) {
    contender.shootdowns.push_back(
        static_cast<double>(*shootdowns_after - *shootdowns) / total);
  }
}

CycleRow& AddMeasured(const CycleSettings& settings, const CycleChoice& choice,
                      CycleRow::Table table, const ImageRef& image,
                      Contender& contender, CycleReport& report) {
  CycleRow& row =
      AddRow(report, table, choice, contender.factory->name, contender.threads);
  FillTimes(contender.times, row);
  FillCounts(settings, contender.counts, row);
  row.set_cycles_per_second(Median(contender.cycles_per_second));
  row.set_page_faults(Median(contender.faults));
  if (!contender.shootdowns.empty()) {
    row.set_tlb_shootdowns(Median(contender.shootdowns));
  }
  const std::optional<uint64_t> idle = contender.strategy->PrivateBytesOfAll();
  if (idle.has_value()) {
    row.set_private_kib_per_idle_slot(static_cast<double>(*idle >> 10) /
                                      contender.threads);
  }
  CheckClean(*contender.slots[0], image, contender.factory->name);
  return row;
}

// Element by element.
std::vector<double> Divide(const std::vector<double>& numerators,
                           const std::vector<double>& denominators) {
  std::vector<double> result;
  for (size_t i = 0; i < numerators.size(); ++i) {
    result.push_back(numerators[i] / denominators[i]);
  }
  return result;
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
  constexpr int kTenants = 30;
  malloc_trim(0);
  const std::optional<uint64_t> before = PrivateBytesOfProcess();
  auto strategy = factory.make(slots_count);
  if (!strategy.ok() || !before.has_value()) return std::nullopt;
  std::vector<std::unique_ptr<CycleSlot>> slots;
  for (uint32_t i = 0; i < slots_count; ++i)
    slots.push_back((*strategy)->NewSlot());
  Lists lists(choice, 1);
  for (int i = 0; i < kTenants; ++i) {
    const PageList list = lists.Next();
    // All at once: no slot is left out.
    for (const auto& slot : slots) Change(slot->Acquire(image), list);
    for (const auto& slot : slots) slot->Release(list);
  }
  const std::optional<uint64_t> after = PrivateBytesOfProcess();
  if (!after.has_value()) return std::nullopt;
  return static_cast<double>(*after) - static_cast<double>(*before);
}

}  // namespace

void RunRound(const CycleSettings& settings, absl::FunctionRef<void()> cycle,
              std::vector<uint64_t>& ticks) {
  constexpr int kLeast = 5;
  const auto budget = static_cast<uint64_t>(settings.round_ns * TicksPerNs());
  const uint64_t start = NowTicks();
  uint64_t last = start;
  for (int i = 1; i <= settings.cycles; ++i) {
    cycle();
    const uint64_t now = NowTicks();
    ticks.push_back(now - last);
    last = now;
    if (now - start > budget && i >= kLeast) break;
  }
}

std::optional<CallCounts> CountOfCycles(
    const CycleSettings& settings,
    absl::FunctionRef<std::function<void()>()> prepare, CycleReport& report) {
  if (settings.counted == 0) {
    report.set_counted_by("nothing (--counted=0)");
    return std::nullopt;
  }
  // Here, since the child cannot say so.
  if (prepare() == nullptr) return std::nullopt;
  const absl::StatusOr<CallCounts> counts =
      CountCalls([&](absl::FunctionRef<void()> mark) {
        const std::function<void()> cycle = prepare();
        for (int i = 0; i < settings.warmup; ++i) cycle();
        WaitUntilOtherThreadsSleep();
        mark();
        for (int i = 0; i < settings.counted; ++i) cycle();
        mark();
      });
  if (!counts.ok()) {
    report.set_counted_by(
        absl::StrCat("nothing: ", counts.status().ToString()));
    return std::nullopt;
  }
  report.set_counted_by("ptrace");
  return *counts;
}

void FillTimes(const RoundSamples& samples, CycleRow& row) {
  row.set_median_ns(Median(samples.median_ns));
  row.set_mean_ns(Median(samples.mean_ns));
  row.set_p99_ns(Median(samples.p99_ns));
  row.mutable_round_median_ns()->Assign(samples.median_ns.begin(),
                                        samples.median_ns.end());
  row.mutable_round_mean_ns()->Assign(samples.mean_ns.begin(),
                                      samples.mean_ns.end());
}

void FillCounts(const CycleSettings& settings,
                const std::optional<CallCounts>& counts, CycleRow& row) {
  if (!counts.has_value()) return;
  const double cycles = settings.counted;
  row.set_system_calls(static_cast<double>(counts->system_calls) / cycles);
  row.set_signals(static_cast<double>(counts->signals) / cycles);
}

void NoteSkipped(const std::string& strategy, const absl::Status& why,
                 CycleReport& report) {
  for (const SkippedWay& skipped : report.skipped()) {
    if (skipped.way() == strategy) return;
  }
  SkippedWay& skipped = *report.add_skipped();
  skipped.set_way(strategy);
  const absl::string_view reason = why.message();
  skipped.set_reason(reason.data(), reason.size());
}

void MeasureSteady(const CycleSettings& settings, const CycleChoice& choice,
                   CycleReport& report) {
  const ImageRef image = PatternImage(kCycleImageBytes);
  // While this process has one thread, and before anything of a strategy is
  // there.
  std::vector<std::optional<CallCounts>> counts;
  for (const CycleStrategyFactory& factory : settings.strategies) {
    counts.push_back(CountOfCycles(
        settings,
        [&]() -> std::function<void()> {
          auto made = factory.make(1);
          if (!made.ok()) return nullptr;
          const std::shared_ptr<CycleStrategy> strategy = *std::move(made);
          const std::shared_ptr<CycleSlot> slot = strategy->NewSlot();
          return [=, &image, lists = Lists(choice, 1)]() mutable {
            OneCycle(*slot, image, lists.Next());
            static_cast<void>(strategy);  // slot uses it
          };
        },
        report));
  }
  std::vector<Contender> contenders =
      MakeContenders(settings, choice, 1, report);
  for (Contender& contender : contenders) {
    contender.counts = counts[contender.factory - settings.strategies.data()];
    WarmUp(contender, 0, image, settings);
  }
  for (int round = 0; round < settings.rounds; ++round) {
    for (Contender& contender : contenders) {
      MeasureRound(settings, image, contender,
                   [](absl::FunctionRef<void(uint32_t)> body) { body(0); });
    }
  }
  for (Contender& contender : contenders) {
    AddMeasured(settings, choice, CycleRow::STEADY, image, contender, report);
  }
}

void MeasureThreads(const CycleSettings& settings, const CycleChoice& choice,
                    const std::vector<uint32_t>& threads, CycleReport& report) {
  CycleSettings by_time = settings;
  by_time.cycles = std::max(settings.cycles, kThreadCycles);
  const ImageRef image = PatternImage(kCycleImageBytes);
  // For each number of threads, all strategies.
  std::vector<std::vector<Contender>> groups;
  for (uint32_t count : threads) {
    groups.push_back(MakeContenders(settings, choice, count, report));
  }
  {
    ThreadPool pool(*std::max_element(threads.begin(), threads.end()));
    for (std::vector<Contender>& group : groups) {
      for (Contender& contender : group) {
        pool.Run(contender.threads,
                 [&](uint32_t t) { WarmUp(contender, t, image, settings); });
      }
    }
    for (int round = 0; round < settings.rounds; ++round) {
      for (size_t strategy = 0; strategy < groups[0].size(); ++strategy) {
        for (std::vector<Contender>& group : groups) {
          Contender& contender = group[strategy];
          MeasureRound(by_time, image, contender,
                       [&](absl::FunctionRef<void(uint32_t)> body) {
                         pool.Run(contender.threads, body);
                       });
        }
      }
    }
  }
  // Each strategy's scaling, by rounds.
  const std::vector<Contender>* alone = nullptr;
  for (const std::vector<Contender>& group : groups) {
    if (!group.empty() && group[0].threads == 1) alone = &group;
  }
  for (std::vector<Contender>& group : groups) {
    std::vector<std::vector<double>> scaling;
    const std::vector<double>* limit = nullptr;
    for (size_t strategy = 0; alone != nullptr && strategy < group.size();
         ++strategy) {
      scaling.push_back(Divide(group[strategy].cycles_per_second,
                               (*alone)[strategy].cycles_per_second));
    }
    for (size_t strategy = 0; strategy < scaling.size(); ++strategy) {
      if (group[strategy].factory->is_limit) limit = &scaling[strategy];
    }
    for (size_t strategy = 0; strategy < group.size(); ++strategy) {
      CycleRow& row = AddMeasured(settings, choice, CycleRow::THREADS, image,
                                  group[strategy], report);
      if (alone == nullptr) continue;
      row.set_scaling(Median(scaling[strategy]));
      if (limit != nullptr) {
        row.set_scaling_of_limit(Median(Divide(scaling[strategy], *limit)));
      }
    }
  }
}

void MeasureFirst(const CycleSettings& settings, const CycleChoice& choice,
                  bool image_known, CycleReport& report) {
  std::vector<RoundSamples> samples(settings.strategies.size());
  uint32_t seed = 1;
  for (int round = 0; round < settings.rounds; ++round) {
    for (size_t w = 0; w < settings.strategies.size(); ++w) {
      const CycleStrategyFactory& factory = settings.strategies[w];
      if (factory.is_limit) continue;
      const auto strategy = factory.make(kFirstCycleSlots + 1);
      if (!strategy.ok()) {
        NoteSkipped(factory.name, strategy.status(), report);
        continue;
      }
      // An image that ran in an earlier round would not be new, not even for a
      // pool that is new.
      std::vector<ImageRef> images(kFirstCycleSlots,
                                   PatternImage(kCycleImageBytes, ++seed));
      if (!image_known) {
        for (ImageRef& image : images) {
          image = PatternImage(kCycleImageBytes, ++seed);
        }
      }
      Lists lists(choice, 1);
      const PageList list = lists.Next();
      // Warms up the program and, with a known image, what is learned of it;
      // then holds the slot, so that nobody gets it again.
      const std::unique_ptr<CycleSlot> other = (*strategy)->NewSlot();
      const ImageRef other_image =
          image_known ? images[0] : PatternImage(kCycleImageBytes, ++seed);
      for (int i = 0; i < 20; ++i) OneCycle(*other, other_image, list);
      other->Acquire(other_image);

      std::vector<std::unique_ptr<CycleSlot>> slots;
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        slots.push_back((*strategy)->NewSlot());
      }
      std::vector<uint64_t> ticks(kFirstCycleSlots);
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        const uint64_t start = NowTicks();
        Change(slots[s]->Acquire(images[s]), list);
        ticks[s] = NowTicks() - start;
      }
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        const uint64_t start = NowTicks();
        slots[s]->Release(list);
        ticks[s] += NowTicks() - start;
      }
      other->Release({});
      CheckClean(*slots[0], images[0], factory.name);
      samples[w].Add({std::move(ticks)});
    }
  }
  for (size_t w = 0; w < settings.strategies.size(); ++w) {
    if (samples[w].median_ns.empty()) continue;
    FillTimes(samples[w], AddRow(report,
                                 image_known ? CycleRow::FIRST_KNOWN_IMAGE
                                             : CycleRow::FIRST_NEW_IMAGE,
                                 choice, settings.strategies[w].name, 1));
  }
}

void MeasureIdle(const CycleSettings& settings, const CycleChoice& choice,
                 CycleReport& report) {
  // What is there once for all slots cancels out.
  constexpr uint32_t kFew = 8;
  constexpr uint32_t kMany = kFew + 64;
  const ImageRef image = PatternImage(kCycleImageBytes);
  for (const CycleStrategyFactory& factory : settings.strategies) {
    if (factory.is_limit) continue;
    if (const auto strategy = factory.make(1); !strategy.ok()) {
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
    AddRow(report, CycleRow::IDLE, choice, factory.name, 1)
        .set_private_kib_per_idle_slot((*many - *few) / (kMany - kFew) / 1024);
  }
}

}  // namespace firsttouch::bench
