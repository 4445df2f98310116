// The contenders written in C++: this library, and the kernel's own ways. Does
// the work of guest.wat without WebAssembly, and answers the requests of
// standard input as README.md has them:
//
//   native WAY
//
// Ways: those of ways.h; "fork", a child for each lease; and those that only
// do what parts.h and images.h have.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/peers/guest.h"
#include "firsttouch/bench/peers/images.h"
#include "firsttouch/bench/peers/parts.h"
#include "firsttouch/bench/peers/thread_pool.h"
#include "firsttouch/bench/peers/ways.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/examples/system_calls.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kMaxMemoryBytes = 8 << 20;

// One thread's part of a row: its slots, each with the image that it had last.
class Worker {
 public:
  Worker(const std::string& way, Way& strategy,
         const std::vector<ImageRef>& images, const Zipf& zipf,
         const Request& request, uint64_t thread)
      : images_(images),
        zipf_(zipf),
        cycle_(request),
        memory_bytes_(MemoryBytes(request)),
        thread_(thread),
        fork_(way == "fork"),
        // Whose slots are all alike.
        pool_(PoolOptionsOf(way).has_value()),
        parts_(request.Number("parts", 0) != 0) {
    for (uint64_t i = 0; i < request.Number("slots", 1); ++i) {
      slots_.push_back({strategy.NewSlot(), nullptr});
    }
    if (fork_) {
      void* const shared = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (shared == MAP_FAILED) Die("mmap failed");
      told_ = static_cast<uint64_t*>(shared);
    }
  }

  // So many cycles, or as many as begin within so many ticks.
  void Run(uint64_t cycles, uint64_t budget = UINT64_MAX) {
    for (Ticks* times : {&ticks, &acquire_ticks, &release_ticks}) {
      times->clear();
    }
    sum = 0;
    const uint64_t together = slots_.size();
    begun = NowTicks();
    uint64_t last = begun;
    for (uint64_t done = 0; done < cycles && last - begun < budget;
         done += together) {
      if (together == 1) {
        Alone(last);
      } else {
        Batch(together);
      }
      const uint64_t now = NowTicks();
      ticks.push_back((now - last) / together);
      last = now;
    }
    ended = last;
  }

  bool FindsClean() {
    const ImageRef& image = images_.front();
    bool clean = true;
    std::vector<std::byte*> bases;
    for (Slot& slot : slots_) bases.push_back(slot.slot->Acquire(image));
    for (const std::byte* base : bases) {
      const uint64_t bytes = image->pages().bytes();
      clean &= memcmp(base, image->data(), bytes) == 0;
      for (uint64_t i = bytes; i < memory_bytes_; ++i) {
        clean &= base[i] == std::byte{0};
      }
    }
    for (Slot& slot : slots_) slot.slot->Release(PageList(), memory_bytes_);
    return clean;
  }

  Ticks ticks;
  // Where the request asks for the parts of a cycle.
  Ticks acquire_ticks;
  Ticks release_ticks;
  uint64_t sum = 0;
  // When the last Run() did.
  uint64_t begun = 0;
  uint64_t ended = 0;

 private:
  struct Slot {
    std::unique_ptr<CycleSlot> slot;
    const Image* image;
    bool taken = false;
  };

  const ImageRef& Wanted(uint64_t i) const {
    return images_[zipf_.Pick((next_ + i) ^ (thread_ << 32))];
  }

  uint64_t Work(std::byte* base, uint64_t number) {
    if (!fork_) return cycle_.Run(base, number);
    const pid_t child = fork();
    if (child < 0) Die("fork failed");
    if (child == 0) {
      *told_ = cycle_.Run(base, number);
      _exit(0);
    }
    waitpid(child, nullptr, 0);
    return *told_;
  }

  // A lease in the only slot, which begins at `start`.
  void Alone(uint64_t start) {
    CycleSlot& slot = *slots_.front().slot;
    std::byte* const base = slot.Acquire(Wanted(0));
    if (parts_) acquire_ticks.push_back(NowTicks() - start);
    sum = std::rotl(sum, 1) ^ Work(base, next_++);
    if (fork_) return;
    const uint64_t done = parts_ ? NowTicks() : 0;
    slot.Release(cycle_.list, memory_bytes_);
    if (parts_) release_ticks.push_back(NowTicks() - done);
  }

  // As many leases at once as there are slots.
  void Batch(uint64_t together) {
    std::vector<std::pair<Slot*, std::byte*>> leases;
    for (uint64_t i = 0; i < together; ++i) {
      const ImageRef& image = Wanted(i);
      // A pool chooses by itself; of the others, a free slot with the image.
      auto found = slots_.end();
      if (!pool_) {
        found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) {
          return !s.taken && s.image == image.get();
        });
      }
      if (found == slots_.end()) {
        found = std::find_if(slots_.begin(), slots_.end(),
                             [](const Slot& s) { return !s.taken; });
      }
      found->taken = true;
      found->image = image.get();
      leases.emplace_back(&*found, found->slot->Acquire(image));
    }
    std::vector<std::vector<uint32_t>> lists;
    for (const auto& [slot, base] : leases) {
      sum = std::rotl(sum, 1) ^ Work(base, next_++);
      lists.push_back(cycle_.list);
    }
    for (uint64_t i = 0; i < together; ++i) {
      leases[i].first->slot->Release(lists[i], memory_bytes_);
      leases[i].first->taken = false;
    }
  }

  const std::vector<ImageRef>& images_;
  const Zipf& zipf_;
  Cycle cycle_;
  const uint64_t memory_bytes_;
  const uint64_t thread_;
  const bool fork_;
  const bool pool_;
  const bool parts_;
  std::vector<Slot> slots_;
  uint64_t* told_ = nullptr;
  uint64_t next_ = 1;
};

void Mark(const Request& request, bool begin) {
  if (request.Number("marked", 0) == 0) return;
  if (begin) examples::WaitUntilOtherThreadsSleep();
  (begin ? examples::BeginCountedPart : examples::EndCountedPart)();
}

// A child of a lease has what its parent has mapped.
std::unique_ptr<Way> MakeWay(const std::string& word,
                             const LayoutOptions& layout,
                             uint64_t size_bytes = 0) {
  return OrDie(OpenWay(word == "fork" ? "dontneed" : word, layout, size_bytes));
}

class CycleRows : public Row {
 public:
  CycleRows(const std::string& way, const Request& request)
      : request_(request),
        zipf_(request.Number("images", 1)),
        threads_(static_cast<uint32_t>(request.Number("threads", 1))),
        thread_pool_(threads_),
        way_(MakeWay(
            way,
            LayoutOf(request, request.Number("slots", 1) * threads_ + 1))) {
    for (uint64_t i = 0; i < request.Number("images", 1); ++i) {
      images_.push_back(ImageOf(i, request.Number("image_kib", 1024) << 10));
    }
    for (uint32_t thread = 0; thread < threads_; ++thread) {
      workers_.push_back(std::make_unique<Worker>(way, *way_, images_, zipf_,
                                                  request_, thread));
    }
    thread_pool_.Run(threads_, [&](uint32_t i) {
      workers_[i]->Run(request_.Number("warmup", 400));
    });
  }

  void Round(Answer& answer) override {
    const uint64_t cycles = request_.Number("cycles", 500);
    const uint64_t budget = request_.BudgetTicks();
    thread_pool_.Run(threads_, [&](uint32_t i) { workers_[i]->Run(1); });
    const std::optional<uint64_t> shootdowns_before = TlbShootdowns();
    const uint64_t before = Faults();
    thread_pool_.Run(threads_, [&](uint32_t i) {
      Mark(request_, true);
      workers_[i]->Run(cycles, budget);
      Mark(request_, false);
    });
    const uint64_t faults = Faults() - before;
    const std::optional<uint64_t> shootdowns = TlbShootdowns();
    std::vector<Ticks> ticks;
    Ticks acquire;
    Ticks release;
    uint64_t sum = 0;
    double done = 0;
    uint64_t begun = UINT64_MAX;
    uint64_t ended = 0;
    for (const auto& worker : workers_) {
      ticks.push_back(worker->ticks);
      acquire.insert(acquire.end(), worker->acquire_ticks.begin(),
                     worker->acquire_ticks.end());
      release.insert(release.end(), worker->release_ticks.begin(),
                     worker->release_ticks.end());
      sum += worker->sum;
      begun = std::min(begun, worker->begun);
      ended = std::max(ended, worker->ended);
      done += static_cast<double>(worker->ticks.size() *
                                  request_.Number("slots", 1));
    }
    answer.Times(ticks);
    // Of all that passed, also while a thread waited for a core or for a lock.
    answer.Number("per_second", 1e9 * done / TicksToNs(ended - begun));
    answer.Number("cycles", done);
    answer.Number("faults", static_cast<double>(faults));
    if (shootdowns.has_value() && shootdowns_before.has_value()) {
      answer.Number("shootdowns",
                    static_cast<double>(*shootdowns - *shootdowns_before));
    }
    if (!release.empty()) {
      answer.Number("acquire_p999_ns", TicksToNs(Quantile(acquire, 0.999)));
      answer.Number("release_p999_ns", TicksToNs(Quantile(release, 0.999)));
    }
    // Who is faster comes further in a time, and reads more.
    if (budget == UINT64_MAX) answer.Sum(sum);
  }

  bool FindsClean() override {
    // Each in the thread that has the slots.
    std::vector<char> clean(threads_);
    thread_pool_.Run(threads_, [&](uint32_t i) {
      clean[i] = workers_[i]->FindsClean() ? 1 : 0;
    });
    return std::count(clean.begin(), clean.end(), 1) == threads_;
  }

 private:
  const Request request_;
  const Zipf zipf_;
  const uint32_t threads_;
  ThreadPool thread_pool_;
  std::unique_ptr<Way> way_;
  std::vector<ImageRef> images_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// Growing in each cycle, and writing to what is new. Who has no pool opens what
// is new with mprotect(2), and closes it once the slot is clean: without that a
// touch behind the size would be no trap.
class GrowRows : public Row {
 public:
  GrowRows(const std::string& way, const Request& request)
      : request_(request),
        memory_bytes_(MemoryBytes(request)),
        way_(MakeWay(way, wasm2c::LayoutForGuests(2, kMaxMemoryBytes))),
        source_(way_->NewSource()),
        image_(ImageOf(0, kImageBytes)),
        opens_(!PoolOptionsOf(way).has_value()) {
    if (opens_) {
      Allow(OrDie(source_->Acquire({&wanted_, 1}))[0]->base(),
            kMaxMemoryBytes - memory_bytes_, PROT_NONE);
    }
    Run(request.Number("warmup", 400));
  }

  void Round(Answer& answer) override {
    const uint64_t before = Faults();
    Mark(request_, true);
    Run(request_.Number("cycles", 500));
    Mark(request_, false);
    answer.Number("faults", static_cast<double>(Faults() - before));
    answer.Times({ticks_});
    answer.Number("cycles", static_cast<double>(ticks_.size()));
    answer.Sum(sum_);
  }

 private:
  // Of so many bytes behind the size.
  void Allow(std::byte* base, uint64_t bytes, int access) const {
    if (mprotect(base + memory_bytes_, bytes, access) != 0) {
      Die("mprotect failed");
    }
  }

  void Run(uint64_t cycles) {
    const uint64_t grown = request_.Number("grown", 1) << 16;
    ticks_.clear();
    sum_ = 0;
    for (uint64_t i = 0; i < cycles; ++i) {
      const uint64_t start = NowTicks();
      std::byte* base = nullptr;
      {
        const auto memories = OrDie(source_->Acquire({&wanted_, 1}));
        OrDie(memories[0]->Grow(memory_bytes_ + grown));
        base = memories[0]->base();
        if (opens_) Allow(base, grown, PROT_READ | PROT_WRITE);
        uint64_t sum = 0;
        for (uint64_t at = memory_bytes_; at < memory_bytes_ + grown;
             at += kPageBytes) {
          sum += Load(base + at);
          Store(base + at, 1);
        }
        sum_ = std::rotl(sum_, 1) ^ (sum + memory_bytes_ + grown);
      }
      if (opens_) Allow(base, grown, PROT_NONE);
      ticks_.push_back(NowTicks() - start);
    }
  }

  const Request request_;
  const uint64_t memory_bytes_;
  std::unique_ptr<Way> way_;
  std::unique_ptr<wasm2c::MemorySource> source_;
  const ImageRef image_;
  const wasm2c::MemoryRequest wanted_ = {.image = image_,
                                         .size_bytes = memory_bytes_};
  const bool opens_;
  Ticks ticks_;
  uint64_t sum_ = 0;
};

// SQLite, compiled by wasm2c.
class SqliteRows : public Row {
 public:
  SqliteRows(const std::string& way, const Request& request)
      : request_(request), rows_(request.Number("rows", 20000)) {
    const auto plain = OrDie(wasm2c::PlainMemorySource::Create(
        {.slots = 1, .max_memory_bytes = kSqliteMemoryBytes}));
    database_ = OrDie(
        examples::SetUpDatabase(plain.get(), static_cast<uint32_t>(rows_)));
    way_ = MakeWay(way, wasm2c::LayoutForGuests(2, kSqliteMemoryBytes));
    source_ = way_->NewSource();
    for (uint64_t i = 0; i < request.Number("warmup", 60); ++i) Serve();
  }

  void Round(Answer& answer) override {
    const uint64_t cycles = request_.Number("cycles", 40);
    Ticks ticks;
    Ticks recycle;
    const uint64_t before = Faults();
    Mark(request_, true);
    for (uint64_t i = 0; i < cycles; ++i) {
      const uint64_t start = NowTicks();
      recycle.push_back(Serve());
      ticks.push_back(NowTicks() - start);
    }
    Mark(request_, false);
    answer.Number("faults", static_cast<double>(Faults() - before));
    answer.Times({ticks});
    const RoundTimes recycled = TimesOfRound({recycle});
    answer.Number("recycle_median_ns", recycled.median_ns);
    answer.Number("recycle_mean_ns", recycled.mean_ns);
    answer.Number("cycles", static_cast<double>(cycles));
  }

  bool FindsClean() override {
    return OrDie(examples::CompareSlots(*database_, source_.get(), 1))
               .differing_bytes == 0;
  }

 private:
  // Returns the ticks of the part that is acquire and release.
  uint64_t Serve() {
    const uint64_t begun = NowTicks();
    wasi_.Reset();
    std::optional<examples::SqliteGuest> guest =
        OrDie(database_->Instantiate(source_.get(), &wasi_));
    const uint64_t acquired = NowTicks();
    RequestOrDie(*guest, rows_, request_.Text("pages") == "same" ? 0 : ++next_);
    const uint64_t done = NowTicks();
    guest.reset();
    return acquired - begun + (NowTicks() - done);
  }

  const Request request_;
  const uint64_t rows_;
  std::shared_ptr<const examples::SqliteTemplate> database_;
  std::unique_ptr<Way> way_;
  std::unique_ptr<wasm2c::MemorySource> source_;
  wasm2c::Wasi wasi_;
  uint64_t next_ = 0;
};

// The first cycles of slots that nobody had, of an image that ran in another,
// or with `new`, each of an image that ran nowhere.
void FirstCycles(const std::string& way, const Request& request,
                 Answer& answer) {
  const uint64_t count = request.Number("slots", 12);
  const uint64_t memory_bytes = MemoryBytes(request);
  const auto slots_of = MakeWay(way, LayoutOf(request, count + 1));
  const ImageRef image = ImageOf(0, kImageBytes);
  std::vector<ImageRef> images(count, image);
  for (uint64_t i = 0; i < count && request.Number("new", 0) != 0; ++i) {
    images[i] = ImageOf(i + 1, kImageBytes);
  }
  Cycle cycle(request);
  const auto held = slots_of->NewSlot();
  for (uint64_t i = 1; i <= 20; ++i) {
    cycle.Run(held->Acquire(image), i);
    held->Release(cycle.list, memory_bytes);
  }
  held->Acquire(image);
  std::vector<std::unique_ptr<CycleSlot>> slots(count);
  for (auto& slot : slots) slot = slots_of->NewSlot();
  std::vector<std::vector<uint32_t>> lists(count);
  Ticks ticks(count);
  uint64_t sum = 0;
  const uint64_t before = Faults();
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    sum = std::rotl(sum, 1) ^ cycle.Run(slots[i]->Acquire(images[i]), i + 1);
    ticks[i] = NowTicks() - start;
    lists[i] = cycle.list;
  }
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    slots[i]->Release(lists[i], memory_bytes);
    ticks[i] += NowTicks() - start;
  }
  answer.Number("faults", static_cast<double>(Faults() - before));
  held->Release(PageList(), memory_bytes);
  answer.Times({ticks});
  answer.Number("cycles", static_cast<double>(count));
  answer.Sum(sum);
}

// So many slots, all leased at once: time of each part, and memory.
void Many(const std::string& way, const Request& request, Answer& answer) {
  const uint64_t count = request.Number("slots", 100);
  const uint64_t memory_bytes = MemoryBytes(request);
  const ImageRef image = ImageOf(0, kImageBytes);
  Cycle cycle(request);
  uint64_t start = NowTicks();
  const auto slots_of = MakeWay(way, LayoutOf(request, count), memory_bytes);
  std::vector<std::unique_ptr<CycleSlot>> slots(count);
  // Who has no pool reserves each for itself.
  for (auto& slot : slots) slot = slots_of->NewSlot();
  answer.Number("create_ns", NsSince(start));
  // Guests read further pages, all over the image.
  const uint64_t reads = request.Number("reads", 0);
  const auto run = [&](std::byte* base, uint64_t number) {
    cycle.Run(base, number);
    for (uint64_t r = 0; r < reads; ++r) {
      const volatile std::byte* const page = base + r * (kImageBytes / reads);
      static_cast<void>(page[kPageBytes]);
    }
  };
  for (uint64_t i = 0; i < 100; ++i) {
    run(slots[0]->Acquire(image), i);
    slots[0]->Release(cycle.list, memory_bytes);
  }
  const auto before = Footprint();
  Ticks acquire;
  Ticks touch;
  Ticks release;
  std::vector<std::vector<uint32_t>> lists(count);
  for (uint64_t i = 0; i < count; ++i) {
    start = NowTicks();
    std::byte* const base = slots[i]->Acquire(image);
    const uint64_t acquired = NowTicks();
    run(base, i);
    touch.push_back(NowTicks() - acquired);
    acquire.push_back(acquired - start);
    lists[i] = cycle.list;
  }
  const auto busy = Footprint();
  for (uint64_t i = 0; i < count; ++i) {
    start = NowTicks();
    slots[i]->Release(lists[i], memory_bytes);
    release.push_back(NowTicks() - start);
  }
  const auto idle = Footprint();
  answer.Number("acquire_ns", TicksToNs(Median(acquire)));
  answer.Number("touch_ns", TicksToNs(Median(touch)));
  answer.Number("release_ns", TicksToNs(Median(release)));
  constexpr const char* kWhat[] = {"private_kib", "pss_kib", "tables_kib",
                                   "mappings"};
  for (size_t i = 0; i < std::size(kWhat); ++i) {
    const auto all = static_cast<double>(count);
    answer.Number(absl::StrCat("busy_", kWhat[i]), (busy[i] - before[i]) / all);
    answer.Number(absl::StrCat("idle_", kWhat[i]), (idle[i] - before[i]) / all);
  }
  if (const uint64_t kept = slots_of->IdlePrivateBytes(); kept != 0) {
    // Private all the same, and no page of a slot.
    answer.Number("book_bytes",
                  ((idle[0] - before[0]) * 1024 - static_cast<double>(kept)) /
                      static_cast<double>(count));
  }
}

std::unique_ptr<Row> MakeRow(const std::string& way, const Request& request) {
  if (auto row = MakePartRow(way, request)) return row;
  if (auto row = MakeImageRow(way, request)) return row;
  if (request.Text("work") == "sqlite") {
    return std::make_unique<SqliteRows>(way, request);
  }
  if (request.Number("grown", 0) > 0) {
    return std::make_unique<GrowRows>(way, request);
  }
  return std::make_unique<CycleRows>(way, request);
}

int Main(int argc, char** argv) {
  if (argc < 2) Die("the way is expected");
  const std::string way = argv[1];
  // Of the request that was made last; a row is over when another begins.
  std::string of;
  std::unique_ptr<Row> row;
  for (std::string line; std::getline(std::cin, line);) {
    const Request request(line);
    const std::string work = request.Text("work");
    Answer answer;
    if (request.verb == "check") {
      answer.Text("clean", row == nullptr || row->FindsClean() ? "yes" : "no");
      if (const auto options = PoolOptionsOf(way)) {
        answer.Text("supply", DescribePool(*options));
      }
#ifdef __OPTIMIZE__
      answer.Text("optimized", "yes");
#endif
      row = nullptr;
      of.clear();
    } else if (work == "first") {
      FirstCycles(way, request, answer);
    } else if (work == "many") {
      Many(way, request, answer);
    } else {
      if (of != line) {
        row = nullptr;
        of = line;
        row = MakeRow(way, request);
      }
      row->Round(answer);
    }
    answer.Print();
  }
  return 0;
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
