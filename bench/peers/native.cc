// The contenders written in C++: this library, and the kernel's own ways. Does
// the work of guest.wat without WebAssembly, and answers the requests of
// standard input as README.md has them:
//
//   native WAY
//   native counted PROGRAM ARGUMENT...
//
// Ways: those of ways.h; "fork", a child for each lease; and those that only
// do what rows.h has. The second form counts what a contender asks of the
// kernel.

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/peers/guest.h"
#include "firsttouch/bench/peers/rows.h"
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

// Between the two, system calls are counted if the request says so.
void Mark(const Request& request, bool begin) {
  if (request.Number("marked", 0) == 0) return;
  if (begin) examples::WaitUntilOtherThreadsSleep();
  (begin ? examples::BeginCountedPart : examples::EndCountedPart)();
}

// A child of a lease has what its parent has mapped.
std::unique_ptr<Way> MakeWay(const std::string& word,
                             const LayoutOptions& layout, uint64_t size_bytes) {
  return OrDie(OpenWay(word == "fork" ? "dontneed" : word, layout, size_bytes));
}

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
        grown_bytes_(memory_bytes_ + (request.Number("grown", 0) << 16)),
        thread_(thread),
        fork_(way == "fork"),
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
    if (Grows()) {
      CycleSlot& slot = *slots_.front().slot;
      slot.Acquire(images.front());
      slot.Release(std::nullopt, memory_bytes_);
      slot.Close(memory_bytes_, LayoutOf(request, 1).max_memory_bytes);
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

  bool Grows() const { return grown_bytes_ > memory_bytes_; }

  const ImageRef& Wanted(uint64_t i) const {
    return images_[zipf_.Pick((next_ + i) ^ (thread_ << 32))];
  }

  void Work(CycleSlot& slot, std::byte* base) {
    sum = std::rotl(sum, 1) ^ WorkOf(slot, base, next_++);
  }

  uint64_t WorkOf(CycleSlot& slot, std::byte* base, uint64_t number) {
    if (Grows()) return Grow(slot, base);
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

  // Writes to what is new, as grow of guest.wat.
  uint64_t Grow(CycleSlot& slot, std::byte* base) const {
    slot.Grow(memory_bytes_, grown_bytes_);
    uint64_t read = 0;
    for (uint64_t at = memory_bytes_; at < grown_bytes_; at += kPageBytes) {
      read += Load(base + at);
      Store(base + at, 1);
    }
    return read + grown_bytes_;
  }

  // A lease in the only slot, which begins at `start`.
  void Alone(uint64_t start) {
    CycleSlot& slot = *slots_.front().slot;
    std::byte* const base = slot.Acquire(Wanted(0));
    if (parts_) acquire_ticks.push_back(NowTicks() - start);
    Work(slot, base);
    if (fork_) return;
    const uint64_t done = parts_ ? NowTicks() : 0;
    if (Grows()) {
      slot.Release(std::nullopt, grown_bytes_);
      slot.Close(memory_bytes_, grown_bytes_);
    } else {
      slot.Release(cycle_.list, memory_bytes_);
    }
    if (parts_) release_ticks.push_back(NowTicks() - done);
  }

  // As many leases at once as there are slots, each in a free one; in one that
  // has the image, if there is one. (A pool chooses by itself.)
  void Batch(uint64_t together) {
    std::vector<std::pair<Slot*, std::byte*>> leases;
    for (uint64_t i = 0; i < together; ++i) {
      const ImageRef& image = Wanted(i);
      Slot* found = nullptr;
      for (Slot& slot : slots_) {
        if (slot.taken || (found && slot.image != image.get())) continue;
        found = &slot;
        if (slot.image == image.get()) break;
      }
      found->taken = true;
      found->image = image.get();
      leases.emplace_back(found, found->slot->Acquire(image));
    }
    std::vector<std::vector<uint32_t>> lists;
    for (const auto& [slot, base] : leases) {
      Work(*slot->slot, base);
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
  const uint64_t grown_bytes_;
  const uint64_t thread_;
  const bool fork_;
  const bool parts_;
  std::vector<Slot> slots_;
  uint64_t* told_ = nullptr;
  uint64_t next_ = 1;
};

// What answers the rounds of a row that keeps its memories warm.
class Row {
 public:
  virtual ~Row() = default;
  virtual void Round(Answer& answer) = 0;
  // Whether the next guest finds the image and zeroes.
  virtual bool FindsClean() = 0;
};

class CycleRows : public Row {
 public:
  CycleRows(const std::string& way, const Request& request)
      : request_(request),
        zipf_(request.Number("images", 1)),
        threads_(static_cast<uint32_t>(request.Number("threads", 1))),
        thread_pool_(threads_),
        way_(MakeWay(
            way, LayoutOf(request, request.Number("slots", 1) * threads_ + 1),
            MemoryBytes(request))) {
    for (uint64_t i = 0; i < request.Number("images", 1); ++i) {
      images_.push_back(ImageOf(i, request.Number("image_kib", 1024) << 10));
    }
    for (uint32_t thread = 0; thread < threads_; ++thread) {
      workers_.push_back(std::make_unique<Worker>(way, *way_, images_, zipf_,
                                                  request_, thread));
    }
    thread_pool_.Run(
        [&](uint32_t i) { workers_[i]->Run(request_.Number("warmup", 400)); });
  }

  void Round(Answer& answer) override {
    const uint64_t cycles = request_.Number("cycles", 500);
    const uint64_t ms = request_.Number("ms", 0);
    const auto budget =
        static_cast<uint64_t>(static_cast<double>(ms) * 1e6 * TicksPerNs());
    thread_pool_.Run([&](uint32_t i) { workers_[i]->Run(1); });
    const std::optional<uint64_t> shootdowns_before = TlbShootdowns();
    const uint64_t before = Faults();
    thread_pool_.Run([&](uint32_t i) {
      Mark(request_, true);
      workers_[i]->Run(cycles, ms == 0 ? UINT64_MAX : budget);
      Mark(request_, false);
    });
    const uint64_t faults = Faults() - before;
    const std::optional<uint64_t> shootdowns = TlbShootdowns();
    std::vector<Ticks> ticks;
    Ticks acquire;
    Ticks release;
    uint64_t sum = 0;
    uint64_t done = 0;
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
      done += worker->ticks.size() * request_.Number("slots", 1);
    }
    answer.Times(ticks, request_.Number("slots", 1));
    // Of all that passed, also while a thread waited for a core or for a lock.
    answer.Number("per_second",
                  1e9 * static_cast<double>(done) / TicksToNs(ended - begun));
    answer.Number("faults", faults);
    if (shootdowns.has_value() && shootdowns_before.has_value()) {
      answer.Number("shootdowns", *shootdowns - *shootdowns_before);
    }
    if (!release.empty()) {
      answer.Number("acquire_p999_ns", TicksToNs(Quantile(acquire, 0.999)));
      answer.Number("release_p999_ns", TicksToNs(Quantile(release, 0.999)));
    }
    // Who is faster comes further in a time, and reads more.
    if (ms == 0) answer.Sum(sum);
  }

  bool FindsClean() override {
    // Each in the thread that has the slots.
    std::atomic<bool> clean = true;
    thread_pool_.Run([&](uint32_t i) {
      if (!workers_[i]->FindsClean()) clean = false;
    });
    return clean;
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

// SQLite, compiled by wasm2c.
class SqliteRows : public Row {
 public:
  SqliteRows(const std::string& way, const Request& request)
      : request_(request), rows_(request.Number("rows", 20000)) {
    const auto plain = OrDie(wasm2c::PlainMemorySource::Create(
        {.slots = 1, .max_memory_bytes = kSqliteMemoryBytes}));
    database_ = OrDie(
        examples::SetUpDatabase(plain.get(), static_cast<uint32_t>(rows_)));
    way_ = MakeWay(way, wasm2c::LayoutForGuests(2, kSqliteMemoryBytes),
                   kSqliteMemoryBytes);
    source_ = way_->NewSource();
    for (uint64_t i = 0; i < request.Number("warmup", 60); ++i) Serve();
  }

  void Round(Answer& answer) override {
    Ticks ticks;
    Ticks recycle;
    const uint64_t before = Faults();
    Mark(request_, true);
    for (uint64_t i = 0; i < request_.Number("cycles", 40); ++i) {
      const uint64_t start = NowTicks();
      recycle.push_back(Serve());
      ticks.push_back(NowTicks() - start);
    }
    Mark(request_, false);
    answer.Number("faults", Faults() - before);
    answer.Times({ticks});
    const RoundTimes recycled = TimesOfRound({recycle});
    answer.Number("recycle_median_ns", recycled.median_ns);
    answer.Number("recycle_mean_ns", recycled.mean_ns);
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

// Private and proportional memory, page tables (KiB) and mappings of this
// process.
std::array<double, 4> Footprint() {
  std::map<std::string, double> kib;
  for (const char* file : {"/proc/self/smaps_rollup", "/proc/self/status"}) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string name;
      words >> name >> kib[name];
    }
  }
  std::ifstream maps("/proc/self/maps");
  const auto mappings =
      std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
  return {kib["Private_Clean:"] + kib["Private_Dirty:"], kib["Pss:"],
          kib["VmPTE:"], static_cast<double>(mappings)};
}

// One lease of each of so many slots that nobody had, all at once.
//
//   first   times, of an image that ran in another slot, or with `new`, each of
//           an image that ran nowhere
//   many    times of its parts, and memory
void LeaseEachOnce(const std::string& way, const Request& request,
                   Answer& answer) {
  const bool many = request.Text("work") == "many";
  const uint64_t count = request.Number("slots", many ? 100 : 12);
  const uint64_t memory_bytes = MemoryBytes(request);
  const ImageRef image = ImageOf(0, kImageBytes);
  std::vector<ImageRef> images(count, image);
  for (uint64_t i = 0; i < count && request.Number("new", 0) != 0; ++i) {
    images[i] = ImageOf(i + 1, kImageBytes);
  }
  const uint64_t begun = NowTicks();
  const auto slots_of =
      MakeWay(way, LayoutOf(request, count + 1), memory_bytes);
  // Who has no pool reserves each for itself.
  const auto held = slots_of->NewSlot();
  std::vector<std::unique_ptr<CycleSlot>> slots(count);
  for (auto& slot : slots) slot = slots_of->NewSlot();
  if (many) answer.Number("create_ns", NsSince(begun));
  // Guests may read further pages, all over the image.
  const uint64_t reads = request.Number("reads", 0);
  Cycle cycle(request);
  const auto run = [&](std::byte* base, uint64_t number) {
    const uint64_t sum = cycle.Run(base, number);
    for (uint64_t r = 0; r < reads; ++r) {
      const volatile std::byte* const page = base + r * (kImageBytes / reads);
      static_cast<void>(page[kPageBytes]);
    }
    return sum;
  };
  for (uint64_t i = 1; i <= (many ? 100 : 20); ++i) {
    run(held->Acquire(image), i);
    held->Release(cycle.list, memory_bytes);
  }
  held->Acquire(image);
  const auto footprint = [&] {
    return many ? Footprint() : std::array<double, 4>{};
  };
  footprint();  // Its own pages are there then.
  const auto before = footprint();
  Ticks all(count);
  Ticks acquire(count);
  Ticks touch(count);
  Ticks release(count);
  std::vector<std::vector<uint32_t>> lists(count);
  uint64_t sum = 0;
  const uint64_t faults_before = Faults();
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    std::byte* const base = slots[i]->Acquire(images[i]);
    acquire[i] = NowTicks() - start;
    sum = std::rotl(sum, 1) ^ run(base, i + 1);
    all[i] = NowTicks() - start;
    touch[i] = all[i] - acquire[i];
    lists[i] = cycle.list;
  }
  const auto busy = footprint();
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    slots[i]->Release(lists[i], memory_bytes);
    release[i] = NowTicks() - start;
    all[i] += release[i];
  }
  const uint64_t faults = Faults() - faults_before;
  const auto idle = footprint();
  const uint64_t kept = slots_of->pool() == nullptr
                            ? 0
                            : slots_of->pool()->Stats().idle_private_bytes;
  held->Release(PageList(), memory_bytes);
  if (!many) {
    answer.Times({all});
    answer.Number("faults", faults);
    answer.Sum(sum);
    return;
  }
  answer.Number("acquire_ns", TicksToNs(Median(acquire)));
  answer.Number("touch_ns", TicksToNs(Median(touch)));
  answer.Number("release_ns", TicksToNs(Median(release)));
  const auto slots_in_all = static_cast<double>(count);
  const char* const what[] = {"private_kib", "pss_kib", "tables_kib",
                              "mappings"};
  for (size_t i = 0; i < std::size(what); ++i) {
    answer.Number(absl::StrCat("busy_", what[i]),
                  (busy[i] - before[i]) / slots_in_all);
    answer.Number(absl::StrCat("idle_", what[i]),
                  (idle[i] - before[i]) / slots_in_all);
  }
  if (kept != 0) {
    // Private all the same, and no page of a slot.
    answer.Number("book_bytes",
                  ((idle[0] - before[0]) * 1024 - static_cast<double>(kept)) /
                      slots_in_all);
  }
}

// What a pool of these options is on this machine, in a few words.
std::string DescribePool(ServiceOptions options) {
  options.layout = OneSlot(1 << 20);
  const auto pool = Service::Create(std::move(options));
  if (!pool.ok()) return pool.status().ToString();
  std::string supply = SupplyName((*pool)->supply());
  if (IsMappings((*pool)->supply())) return supply;
  return absl::StrCat(supply, ", ", BackingName((*pool)->backing()));
}

// Prints what a program asks of the kernel between its marks. It reads the
// requests of standard input; its answers are discarded.
void PrintCounted(const std::vector<std::string>& program) {
  const auto calls = OrDie(examples::CountSystemCalls(program));
  if (calls.parts == 0) Die("counted: the program has made no mark");
  Answer answer;
  answer.Number("calls", calls.total);
  answer.Number("signals", calls.signals);
  answer.Print();
}

int Main(int argc, char** argv) {
  if (argc < 2) Die("the way is expected");
  const std::string way = argv[1];
  if (way == "counted") {
    PrintCounted({argv + 2, argv + argc});
    return 0;
  }
  const std::map<std::string, Round*> works = {
      {"build", BuildRound}, {"create", CreateRound}, {"first", LeaseEachOnce},
      {"floor", FloorRound}, {"locate", LookupRound}, {"many", LeaseEachOnce},
      {"size", OpenRound},   {"start", StartRound},   {"store", StoreRound},
      {"touch", TouchRound}, {"traps", TrapRound}};
  // Calibrates.
  TicksPerNs();
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
    } else if (const auto found = works.find(work); found != works.end()) {
      found->second(way, request, answer);
    } else {
      if (of != line) {
        row = nullptr;
        of = line;
        if (work == "sqlite") {
          row = std::make_unique<SqliteRows>(way, request);
        } else {
          row = std::make_unique<CycleRows>(way, request);
        }
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
