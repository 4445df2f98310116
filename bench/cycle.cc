// A tenant's whole cycle: acquire, change k pages, release; for firsttouch and
// for the ways that there are without it, in turn in one process.
//
//   bazel run -c opt //bench:cycle
//   bazel run -c opt //bench:cycle -- --format=json
//   bazel run -c opt //bench:cycle -- --pages=mixed --tables=steady
//
// Time is measured in rounds in which the ways take turns. System calls and
// signals are counted in a run of their own (see count_calls.h), page faults
// and TLB shootdowns by the kernel while time is measured. After each
// measurement the next tenant's memory is compared with the image: a way that
// is fast and wrong ends the program.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/count_calls.h"
#include "firsttouch/bench/cycle_ways.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/machine.h"
#include "firsttouch/bench/quantiles.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/scene.h"
#include "firsttouch/uffd/units.h"

ABSL_FLAG(std::string, format, "text", "text or json");
ABSL_FLAG(std::vector<std::string>, tables,
          std::vector<std::string>({"steady", "first", "threads"}),
          "which tables to make: steady, first, threads");
ABSL_FLAG(std::vector<std::string>, pages,
          std::vector<std::string>({"same", "drifting", "mixed"}),
          "which pages a cycle changes: the same ones each time, others each "
          "time, or mixed (28 the same and 4 others)");
ABSL_FLAG(std::vector<std::string>, k,
          std::vector<std::string>({"0", "1", "4", "16", "64", "256"}),
          "pages changed per cycle (mixed always changes 32)");
ABSL_FLAG(std::vector<std::string>, touched,
          std::vector<std::string>({"image", "memory"}),
          "of what the changed pages are taken: image (1 MiB), memory (4 MiB)");
ABSL_FLAG(std::vector<std::string>, threads,
          std::vector<std::string>({"1", "2", "4"}),
          "numbers of threads for the table threads");
ABSL_FLAG(std::string, ways, "", "only ways whose name contains this");
ABSL_FLAG(int32_t, rounds, 11, "rounds in which the ways take turns");
ABSL_FLAG(int32_t, cycles, 300, "cycles of each way in a round, at most");
ABSL_FLAG(int32_t, round_ms, 10,
          "a round of a way ends after this time even with fewer cycles");
ABSL_FLAG(int32_t, warmup, 400,
          "cycles before the first that counts: until what a way learns is "
          "settled");
ABSL_FLAG(int32_t, counted, 100,
          "cycles in which system calls and signals are counted; 0: do not");

namespace firsttouch::bench {
namespace {

constexpr uint32_t kMixedSame = 28;
constexpr uint32_t kMixedDrifting = 4;
constexpr uint32_t kFirstCycleSlots = 12;
constexpr uint32_t kPageTouchOffset = 8;

struct Settings {
  int rounds = 0;
  int cycles = 0;
  int warmup = 0;
  int counted = 0;
  double round_ns = 0;
  std::vector<CycleWayFactory> ways;
};

// What one measurement changes.
struct Choice {
  std::string pages;
  uint64_t touched_bytes = 0;
  uint32_t k = 0;
};

// The lists of changed pages of one thread, made before anything is measured.
class Lists {
 public:
  // What stays the same is the same for every seed: tenants of one image.
  Lists(const Choice& choice, uint32_t seed) {
    std::vector<uint32_t> all(choice.touched_bytes / kPageBytes);
    std::iota(all.begin(), all.end(), 0);
    std::mt19937 same(0);
    std::shuffle(all.begin(), all.end(), same);
    per_list_ = choice.k;
    const uint32_t fixed = choice.pages == "same"    ? choice.k
                           : choice.pages == "mixed" ? kMixedSame
                                                     : 0;
    lists_ = choice.pages == "same" ? 1 : kDriftingLists;
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
  static constexpr uint32_t kDriftingLists = 499;
  uint32_t per_list_ = 0;
  uint32_t lists_ = 0;
  uint32_t next_ = 0;
  std::vector<uint32_t> flat_;
};

void OneCycle(CycleSlot& slot, const ImageRef& image, PageList list) {
  volatile std::byte* const base = slot.Acquire(image);
  for (uint32_t page : list) {
    base[page * kPageBytes + kPageTouchOffset] = std::byte{1};
  }
  slot.Release(list);
}

// What the clock and the loop around a cycle take by themselves.
double EmptyLoopTicks() {
  static const double ticks = [] {
    constexpr int kReadings = 1000;
    std::vector<double> batches;
    for (int batch = 0; batch < 100; ++batch) {
      const uint64_t start = NowTicks();
      for (int i = 1; i < kReadings; ++i) NowTicks();
      batches.push_back(static_cast<double>(NowTicks() - start) / kReadings);
    }
    return Median(std::move(batches));
  }();
  return ticks;
}

// The clock of some machines moves in steps of 10 ns. Samples that follow each
// other without a gap add up exactly, so short ones are taken some at a time.
double MedianCycleTicks(const std::vector<uint64_t>& ticks) {
  const auto one = static_cast<double>(Median(ticks));
  constexpr size_t kTogether = 20;
  if (TicksToNs(static_cast<uint64_t>(one)) > 2000 ||
      ticks.size() < 2 * kTogether) {
    return std::max(one - EmptyLoopTicks(), 0.0);
  }
  std::vector<double> groups;
  for (size_t i = 0; i + kTogether <= ticks.size(); i += kTogether) {
    const uint64_t sum = std::accumulate(
        ticks.begin() + static_cast<ptrdiff_t>(i),
        ticks.begin() + static_cast<ptrdiff_t>(i + kTogether), uint64_t{0});
    groups.push_back(static_cast<double>(sum) / kTogether);
  }
  return std::max(Median(std::move(groups)) - EmptyLoopTicks(), 0.0);
}

// Runs cycles and appends the time of each; returns how many.
int RunCycles(CycleSlot& slot, const ImageRef& image, Lists& lists,
              const Settings& settings, std::vector<uint64_t>& ticks) {
  const auto budget = static_cast<uint64_t>(settings.round_ns * TicksPerNs());
  const size_t before = ticks.size();
  const uint64_t start = NowTicks();
  uint64_t last = start;
  for (int i = 0; i < settings.cycles; ++i) {
    OneCycle(slot, image, lists.Next());
    const uint64_t now = NowTicks();
    ticks.push_back(now - last);
    last = now;
    if (now - start > budget && i >= 4) break;
  }
  return static_cast<int>(ticks.size() - before);
}

// Ends the program if the next tenant would not find the image and zeroes.
void CheckClean(CycleSlot& slot, const ImageRef& image,
                const std::string& way) {
  const std::byte* const memory = slot.Acquire(image);
  bool clean = memcmp(memory, image->data(), kCycleImageBytes) == 0;
  for (uint64_t i = kCycleImageBytes; i < kCycleMemoryBytes; ++i) {
    clean &= memory[i] == std::byte{0};
  }
  slot.Release({});
  if (!clean) {
    Die(absl::StrCat("\"", way, "\" handed on bytes that a tenant wrote"));
  }
}

// One way during a measurement, with all that was measured of it.
struct Contender {
  const CycleWayFactory* factory = nullptr;
  std::unique_ptr<CycleWay> way;
  std::vector<std::unique_ptr<CycleSlot>> slots;
  std::vector<Lists> lists;

  std::vector<double> median_ticks;  // of each round
  std::vector<double> faults;        // per cycle, of each round
  std::vector<double> shootdowns;
  std::vector<double> cycles_per_second;
  std::vector<uint64_t> all_ticks;
  std::optional<CallCounts> counts;
};

std::vector<Contender> MakeContenders(const Settings& settings,
                                      const Choice& choice, uint32_t threads) {
  std::vector<Contender> contenders;
  for (const CycleWayFactory& factory : settings.ways) {
    Contender contender;
    contender.factory = &factory;
    contender.way = factory.make(threads);
    if (contender.way == nullptr) continue;
    for (uint32_t t = 0; t < threads; ++t) {
      contender.slots.push_back(contender.way->NewSlot());
      contender.lists.emplace_back(choice, t + 1);
    }
    contenders.push_back(std::move(contender));
  }
  return contenders;
}

// Runs body(thread) on that many threads from one moment on; returns the ns
// from then until the last was done.
template <typename Body>
double OnThreads(uint32_t threads, Body body) {
  if (threads == 1) {
    const uint64_t start = NowTicks();
    body(0);
    return TicksToNs(NowTicks() - start);
  }
  std::atomic<uint32_t> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> workers;
  for (uint32_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      body(t);
    });
  }
  while (ready.load() != threads) std::this_thread::yield();
  const uint64_t start = NowTicks();
  go.store(true, std::memory_order_release);
  for (std::thread& worker : workers) worker.join();
  return TicksToNs(NowTicks() - start);
}

void MeasureRound(Contender& contender, const ImageRef& image, uint32_t threads,
                  const Settings& settings) {
  std::vector<std::vector<uint64_t>> ticks(threads);
  std::vector<int> cycles(threads);
  for (std::vector<uint64_t>& of_thread : ticks) {
    // There before anything is counted.
    of_thread.resize(settings.cycles);
    of_thread.clear();
  }
  const std::optional<uint64_t> shootdowns = TlbShootdowns();
  const uint64_t faults = MinorFaults();
  const double ns = OnThreads(threads, [&](uint32_t t) {
    cycles[t] = RunCycles(*contender.slots[t], image, contender.lists[t],
                          settings, ticks[t]);
  });
  const uint64_t faults_after = MinorFaults();
  const std::optional<uint64_t> shootdowns_after = TlbShootdowns();
  double total = 0;
  double slowest = 0;
  for (uint32_t t = 0; t < threads; ++t) {
    total += cycles[t];
    slowest = std::max(slowest, MedianCycleTicks(ticks[t]));
    contender.all_ticks.insert(contender.all_ticks.end(), ticks[t].begin(),
                               ticks[t].end());
  }
  contender.median_ticks.push_back(slowest);
  contender.faults.push_back(static_cast<double>(faults_after - faults) /
                             total);
  if (shootdowns.has_value() && shootdowns_after.has_value()) {
    contender.shootdowns.push_back(
        static_cast<double>(*shootdowns_after - *shootdowns) / total);
  }
  contender.cycles_per_second.push_back(total / (ns * 1e-9));
}

// In a child of its own, so that nothing of another way is in it.
std::optional<CallCounts> CountFor(const CycleWayFactory& factory,
                                   const ImageRef& image, const Choice& choice,
                                   const Settings& settings,
                                   std::string& counted_by) {
  if (settings.counted == 0) {
    counted_by = "nothing (--counted=0)";
    return std::nullopt;
  }
  absl::StatusOr<CallCounts> counts =
      CountCalls([&](absl::FunctionRef<void()> mark) {
        const std::unique_ptr<CycleWay> way = factory.make(1);
        if (way == nullptr) {
          mark();
          mark();
          return;
        }
        const std::unique_ptr<CycleSlot> slot = way->NewSlot();
        Lists lists(choice, 1);
        for (int i = 0; i < settings.warmup; ++i) {
          OneCycle(*slot, image, lists.Next());
        }
        mark();
        for (int i = 0; i < settings.counted; ++i) {
          OneCycle(*slot, image, lists.Next());
        }
        mark();
      });
  if (!counts.ok()) {
    counted_by = absl::StrCat("nothing: ", counts.status().ToString());
    return std::nullopt;
  }
  return *counts;
}

CycleRow& AddRow(CycleReport& report, CycleRow::Table table,
                 const Choice& choice, const std::string& way,
                 uint32_t threads) {
  CycleRow& row = *report.add_rows();
  row.set_table(table);
  row.set_pages(choice.pages);
  row.set_touched_bytes(choice.touched_bytes);
  row.set_changed_pages(choice.k);
  row.set_way(way);
  row.set_threads(threads);
  return row;
}

void MeasureSteady(const Settings& settings, const Choice& choice,
                   uint32_t threads, CycleRow::Table table,
                   CycleReport& report) {
  const ImageRef image = PatternImage(kCycleImageBytes);
  std::vector<std::optional<CallCounts>> counts;
  if (table == CycleRow::STEADY) {
    std::string counted_by = "ptrace";
    for (const CycleWayFactory& factory : settings.ways) {
      counts.push_back(CountFor(factory, image, choice, settings, counted_by));
    }
    report.set_counted_by(counted_by);
  }
  std::vector<Contender> contenders = MakeContenders(settings, choice, threads);
  for (Contender& contender : contenders) {
    OnThreads(threads, [&](uint32_t t) {
      for (int i = 0; i < settings.warmup; ++i) {
        OneCycle(*contender.slots[t], image, contender.lists[t].Next());
      }
    });
  }
  for (int round = 0; round < settings.rounds; ++round) {
    for (Contender& contender : contenders) {
      MeasureRound(contender, image, threads, settings);
    }
  }
  for (Contender& contender : contenders) {
    CycleRow& row =
        AddRow(report, table, choice, contender.factory->name, threads);
    row.set_median_ns(Median(contender.median_ticks) / TicksPerNs());
    row.set_p99_ns(TicksToNs(Quantile(contender.all_ticks, 0.99)));
    row.set_cycles_per_second(Median(contender.cycles_per_second));
    row.set_page_faults(Median(contender.faults));
    if (!contender.shootdowns.empty()) {
      row.set_tlb_shootdowns(Median(contender.shootdowns));
    }
    const size_t index = contender.factory - settings.ways.data();
    if (index < counts.size() && counts[index].has_value()) {
      const double cycles = settings.counted;
      row.set_system_calls(static_cast<double>(counts[index]->system_calls) /
                           cycles);
      row.set_signals(static_cast<double>(counts[index]->signals) / cycles);
    }
    const std::optional<uint64_t> idle = contender.way->PrivateBytesOfAll();
    if (idle.has_value()) {
      row.set_private_kib_per_idle_slot(static_cast<double>(*idle >> 10) /
                                        threads);
    }
    CheckClean(*contender.slots[0], image, contender.factory->name);
  }
}

// The first cycle of slots that nobody had before.
void MeasureFirst(const Settings& settings, const Choice& choice,
                  bool image_known, CycleReport& report) {
  std::vector<std::vector<double>> medians(settings.ways.size());
  std::vector<std::vector<uint64_t>> all(settings.ways.size());
  uint32_t seed = 1;
  for (int round = 0; round < settings.rounds; ++round) {
    for (size_t w = 0; w < settings.ways.size(); ++w) {
      if (settings.ways[w].is_limit) continue;
      const std::unique_ptr<CycleWay> way =
          settings.ways[w].make(kFirstCycleSlots + 1);
      if (way == nullptr) continue;
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
      const std::unique_ptr<CycleSlot> other = way->NewSlot();
      const ImageRef other_image =
          image_known ? images[0] : PatternImage(kCycleImageBytes, ++seed);
      for (int i = 0; i < 20; ++i) OneCycle(*other, other_image, list);
      other->Acquire(other_image);

      std::vector<std::unique_ptr<CycleSlot>> slots;
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        slots.push_back(way->NewSlot());
      }
      std::vector<uint64_t> ticks(kFirstCycleSlots);
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        const uint64_t start = NowTicks();
        volatile std::byte* const base = slots[s]->Acquire(images[s]);
        for (uint32_t page : list) {
          base[page * kPageBytes + kPageTouchOffset] = std::byte{1};
        }
        ticks[s] = NowTicks() - start;
      }
      for (uint32_t s = 0; s < kFirstCycleSlots; ++s) {
        const uint64_t start = NowTicks();
        slots[s]->Release(list);
        ticks[s] += NowTicks() - start;
      }
      other->Release({});
      CheckClean(*slots[0], images[0], settings.ways[w].name);
      all[w].insert(all[w].end(), ticks.begin(), ticks.end());
      medians[w].push_back(static_cast<double>(Median(std::move(ticks))));
    }
  }
  for (size_t w = 0; w < settings.ways.size(); ++w) {
    if (medians[w].empty()) continue;
    CycleRow& row = AddRow(
        report,
        image_known ? CycleRow::FIRST_KNOWN_IMAGE : CycleRow::FIRST_NEW_IMAGE,
        choice, settings.ways[w].name, 1);
    row.set_median_ns(Median(medians[w]) / TicksPerNs());
    row.set_p99_ns(TicksToNs(Quantile(all[w], 0.99)));
  }
}

std::string Title(const CycleRow& row) {
  std::string title;
  switch (row.table()) {
    case CycleRow::FIRST_KNOWN_IMAGE:
      title = "first cycle of a slot, image known";
      break;
    case CycleRow::FIRST_NEW_IMAGE:
      title = "first cycle of a slot, image new";
      break;
    case CycleRow::THREADS:
      title = absl::StrCat(row.threads(),
                           row.threads() == 1 ? " thread" : " threads");
      break;
    default:
      title = "steady";
  }
  return absl::StrCat(title, ", k=", row.changed_pages(), " ", row.pages(),
                      " of ", row.touched_bytes() >> 20, " MiB");
}

// Rows of one table, and what its last column divides by.
struct Block {
  std::vector<const CycleRow*> rows;
  const CycleRow* unit = nullptr;
};

std::vector<Block> Blocks(const CycleReport& report) {
  std::vector<Block> blocks;
  for (const CycleRow& row : report.rows()) {
    if (blocks.empty() || Title(*blocks.back().rows[0]) != Title(row)) {
      blocks.emplace_back();
    }
    Block& block = blocks.back();
    block.rows.push_back(&row);
    const bool first = row.table() == CycleRow::FIRST_KNOWN_IMAGE ||
                       row.table() == CycleRow::FIRST_NEW_IMAGE;
    if (row.way() == (first ? kCopyOnWriteName : kLimitName)) {
      block.unit = &row;
    }
  }
  return blocks;
}

std::string ToText(const CycleReport& report) {
  std::string text = MachineText(report.machine());
  absl::StrAppend(
      &text, report.rounds(), " rounds; image ", report.image_bytes() >> 20,
      " MiB, memory ", report.memory_bytes() >> 20, " MiB; all per cycle\n",
      "median, p99: ns; calls, sigs: system calls and signals, counted by ",
      report.counted_by().empty() ? "nothing" : report.counted_by(),
      "\nfaults: page faults (getrusage); TLB: shootdowns of the whole "
      "machine\n"
      "KiB: private to an idle slot (smaps)\n"
      "x: median as a multiple of the limit's (first cycle: of ",
      kCopyOnWriteName, "'s)\n");
  for (const Block& block : Blocks(report)) {
    const bool threads = block.rows[0]->table() == CycleRow::THREADS;
    absl::StrAppend(&text, "\n", Title(*block.rows[0]), "\n");
    absl::StrAppendFormat(&text, "%-22s%7s%8s", "", "median", "p99");
    if (threads) {
      absl::StrAppendFormat(&text, "%14s", "cycles/s");
    } else {
      absl::StrAppendFormat(&text, "%7s%7s", "calls", "sigs");
    }
    absl::StrAppendFormat(&text, "%7s%7s%7s%8s\n", "faults", "TLB", "KiB", "x");
    for (const CycleRow* row : block.rows) {
      const auto cell = [](bool has, double value) {
        return has ? Short(value) : std::string("-");
      };
      absl::StrAppendFormat(&text, "%-22s%7s%8s", row->way(),
                            Short(row->median_ns()), Short(row->p99_ns()));
      if (threads) {
        absl::StrAppendFormat(&text, "%14.0f", row->cycles_per_second());
      } else {
        absl::StrAppendFormat(
            &text, "%7s%7s", cell(row->has_system_calls(), row->system_calls()),
            cell(row->has_signals(), row->signals()));
      }
      const bool has_unit =
          block.unit != nullptr && block.unit->median_ns() > 0;
      absl::StrAppendFormat(
          &text, "%7s%7s%7s%8s\n",
          cell(row->has_page_faults(), row->page_faults()),
          cell(row->has_tlb_shootdowns(), row->tlb_shootdowns()),
          cell(row->has_private_kib_per_idle_slot(),
               row->private_kib_per_idle_slot()),
          cell(has_unit,
               has_unit ? row->median_ns() / block.unit->median_ns() : 0));
    }
  }
  return text;
}

std::vector<uint32_t> Numbers(const std::vector<std::string>& words,
                              const char* flag, uint32_t most) {
  std::vector<uint32_t> numbers;
  for (const std::string& word : words) {
    uint32_t number = 0;
    if (!absl::SimpleAtoi(word, &number) || number > most) {
      Die(absl::StrCat("--", flag, ": ", word, " is not in 0 to ", most));
    }
    numbers.push_back(number);
  }
  return numbers;
}

std::vector<Choice> Choices(const std::string& pages) {
  std::vector<Choice> choices;
  for (const std::string& touched : absl::GetFlag(FLAGS_touched)) {
    if (touched != "image" && touched != "memory") {
      Die(absl::StrCat("--touched: ", touched, " is neither image nor memory"));
    }
    Choice choice;
    choice.pages = pages;
    choice.touched_bytes =
        touched == "image" ? kCycleImageBytes : kCycleMemoryBytes;
    if (pages == "mixed") {
      choice.k = kMixedSame + kMixedDrifting;
      choices.push_back(choice);
      continue;
    }
    for (uint32_t k :
         Numbers(absl::GetFlag(FLAGS_k), "k", kCycleImageBytes / kPageBytes)) {
      choice.k = k;
      // No page cannot drift.
      if (k > 0 || pages == "same") choices.push_back(choice);
    }
  }
  return choices;
}

Settings SettingsFromFlags() {
  Settings settings;
  settings.rounds = absl::GetFlag(FLAGS_rounds);
  settings.cycles = absl::GetFlag(FLAGS_cycles);
  settings.warmup = absl::GetFlag(FLAGS_warmup);
  settings.counted = absl::GetFlag(FLAGS_counted);
  settings.round_ns = absl::GetFlag(FLAGS_round_ms) * 1e6;
  if (settings.rounds < 1 || settings.cycles < 1 || settings.warmup < 1 ||
      settings.counted < 0) {
    Die("--rounds, --cycles and --warmup must be at least 1, --counted 0");
  }
  for (const CycleWayFactory& factory : AllCycleWays()) {
    if (factory.name.find(absl::GetFlag(FLAGS_ways)) != std::string::npos) {
      settings.ways.push_back(factory);
    }
  }
  if (settings.ways.empty()) Die("--ways: there is no such way");
  return settings;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Acquire, change pages, release.");
  absl::ParseCommandLine(argc, argv);
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    Die(absl::StrCat("--format=", format, " is neither text nor json"));
  }
  const Settings settings = SettingsFromFlags();
  CycleReport report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(settings.rounds);
  report.set_image_bytes(kCycleImageBytes);
  report.set_memory_bytes(kCycleMemoryBytes);
  const std::vector<std::string> pages_flag = absl::GetFlag(FLAGS_pages);
  for (const std::string& pages : pages_flag) {
    if (pages != "same" && pages != "drifting" && pages != "mixed") {
      Die(absl::StrCat("--pages: ", pages,
                       " is none of same, drifting, mixed"));
    }
  }
  for (const std::string& table : absl::GetFlag(FLAGS_tables)) {
    if (table == "steady") {
      for (const std::string& pages : pages_flag) {
        for (const Choice& choice : Choices(pages)) {
          MeasureSteady(settings, choice, 1, CycleRow::STEADY, report);
        }
      }
    } else if (table == "first") {
      for (bool known : {true, false}) {
        for (const Choice& choice : Choices("same")) {
          if (choice.touched_bytes != kCycleImageBytes) continue;
          MeasureFirst(settings, choice, known, report);
        }
      }
    } else if (table == "threads") {
      const auto threads = Numbers(absl::GetFlag(FLAGS_threads), "threads", 64);
      for (const std::string& pages : pages_flag) {
        const uint32_t k = pages == "mixed" ? kMixedSame + kMixedDrifting : 16;
        const Choice choice{pages, kCycleImageBytes, k};
        for (uint32_t t : threads) {
          if (t == 0) Die("--threads: 0 threads do nothing");
          MeasureSteady(settings, choice, t, CycleRow::THREADS, report);
        }
      }
    } else {
      Die(absl::StrCat("--tables: ", table,
                       " is none of steady, first, threads"));
    }
  }
  std::cout << (format == "json" ? ToJson(report) : ToText(report));
  return 0;
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
