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
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/peers/guest.h"
#include "bench/peers/rows.h"
#include "bench/peers/thread_pool.h"
#include "bench/peers/ways.h"
#include "firsttouch/bench/fixture.h"
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

// One thread's part of a row.
class Worker {
 public:
  // The cycles of which one reading is taken.
  explicit Worker(uint64_t together) : together_(together) {}
  virtual ~Worker() = default;

  // So many cycles, or as many as begin within so many ticks.
  void Run(uint64_t cycles, uint64_t budget = UINT64_MAX) {
    for (Ticks* times : {&ticks, &acquire_ticks, &release_ticks}) {
      times->clear();
    }
    sum = 0;
    begun = NowTicks();
    ended = begun;
    for (uint64_t done = 0; done < cycles && ended - begun < budget;
         done += together_) {
      Cycles(ended);
      const uint64_t now = NowTicks();
      ticks.push_back((now - ended) / together_);
      ended = now;
    }
  }

  // Whether the next guest finds the image and zeroes.
  virtual bool FindsClean() = 0;

  // Of the last Run(): of each cycle, and of its parts where they are asked
  // for.
  Ticks ticks;
  Ticks acquire_ticks;
  Ticks release_ticks;
  // Of what was read.
  uint64_t sum = 0;
  uint64_t begun = 0;
  uint64_t ended = 0;

 protected:
  // As many as one reading is taken of; they begin at `start`.
  virtual void Cycles(uint64_t start) = 0;

 private:
  const uint64_t together_;
};

// What the guests of all threads share.
struct Shared {
  Way way;
  std::vector<ImageRef> images;
  Zipf zipf;
};

// Has slots, each with the image that it had last.
class GuestWorker : public Worker {
 public:
  GuestWorker(const std::string& way, const Shared& shared,
              const Request& request, uint64_t thread)
      : Worker(request.Number("slots", 1)),
        shared_(shared),
        cycle_(request),
        memory_bytes_(MemoryBytes(request)),
        grown_bytes_(memory_bytes_ + (request.Number("grown", 0) << 16)),
        thread_(thread),
        fork_(way == "fork"),
        parts_(request.Number("parts", 0) != 0),
        slots_(request.Number("slots", 1)) {
    for (Slot& slot : slots_) slot.slot = shared.way.new_slot();
    if (fork_) {
      void* const memory = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) Die("mmap failed");
      told_ = static_cast<uint64_t*>(memory);
    }
    if (Grows()) {
      CycleSlot& slot = *slots_.front().slot;
      slot.Acquire(shared.images.front());
      slot.Release(std::nullopt, memory_bytes_);
      slot.Close(memory_bytes_, shared.way.max_memory_bytes);
    }
  }

  bool FindsClean() override {
    const ImageRef& image = shared_.images.front();
    const uint64_t image_bytes = image->pages().bytes();
    bool clean = true;
    std::vector<std::byte*> bases;
    for (Slot& slot : slots_) bases.push_back(slot.slot->Acquire(image));
    for (const std::byte* base : bases) {
      clean &= memcmp(base, image->data(), image_bytes) == 0 &&
               std::all_of(base + image_bytes, base + memory_bytes_,
                           [](std::byte byte) { return byte == std::byte{0}; });
    }
    for (Slot& slot : slots_) slot.slot->Release(PageList(), memory_bytes_);
    return clean;
  }

 private:
  struct Slot {
    std::unique_ptr<CycleSlot> slot;
    const Image* image = nullptr;
    bool taken = false;
  };

  void Cycles(uint64_t start) override {
    if (slots_.size() == 1) {
      Alone(start);
    } else {
      Batch();
    }
  }

  bool Grows() const { return grown_bytes_ > memory_bytes_; }

  const ImageRef& Wanted(uint64_t i) const {
    return shared_.images[shared_.zipf.Pick((next_ + i) ^ (thread_ << 32))];
  }

  void Work(CycleSlot& slot, std::byte* base) {
    const uint64_t number = next_++;
    uint64_t read = 0;
    if (Grows()) {
      read = Grow(slot, base);
    } else if (!fork_) {
      read = cycle_.Run(base, number);
    } else {
      const pid_t child = fork();
      if (child < 0) Die("fork failed");
      if (child == 0) {
        *told_ = cycle_.Run(base, number);
        _exit(0);
      }
      waitpid(child, nullptr, 0);
      read = *told_;
    }
    sum = std::rotl(sum, 1) ^ read;
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
  void Batch() {
    std::vector<std::pair<Slot*, std::byte*>> leases;
    for (uint64_t i = 0; i < slots_.size(); ++i) {
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
    for (uint64_t i = 0; i < leases.size(); ++i) {
      leases[i].first->slot->Release(lists[i], memory_bytes_);
      leases[i].first->taken = false;
    }
  }

  const Shared& shared_;
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

// SQLite, compiled by wasm2c.
class SqliteWorker : public Worker {
 public:
  SqliteWorker(const Way& way, const Request& request)
      : Worker(1),
        rows_(request.Number("rows", 20000)),
        same_(request.Text("pages") == "same") {
    const auto plain = OrDie(wasm2c::PlainMemorySource::Create(
        {.slots = 1, .max_memory_bytes = kSqliteMemoryBytes}));
    database_ = OrDie(
        examples::SetUpDatabase(plain.get(), static_cast<uint32_t>(rows_)));
    source_ = way.NewSource();
  }

  bool FindsClean() override {
    return OrDie(examples::CompareSlots(*database_, source_.get(), 1))
               .differing_bytes == 0;
  }

 private:
  void Cycles(uint64_t start) override {
    wasi_.Reset();
    std::optional<examples::SqliteGuest> guest =
        OrDie(database_->Instantiate(source_.get(), &wasi_));
    acquire_ticks.push_back(NowTicks() - start);
    RequestOrDie(*guest, rows_, same_ ? 0 : ++next_);
    const uint64_t done = NowTicks();
    guest.reset();
    release_ticks.push_back(NowTicks() - done);
  }

  const uint64_t rows_;
  const bool same_;
  std::shared_ptr<const examples::SqliteTemplate> database_;
  std::unique_ptr<wasm2c::MemorySource> source_;
  wasm2c::Wasi wasi_;
  uint64_t next_ = 0;
};

// What answers the rounds of a row whose memories stay warm.
class WarmRow {
 public:
  WarmRow(const std::string& way, const Request& request)
      : request_(request),
        sqlite_(request.Text("work") == "sqlite"),
        slots_(request.Number("slots", 1)),
        threads_(static_cast<uint32_t>(request.Number("threads", 1))),
        thread_pool_(threads_),
        shared_{WayOf(way, request), {}, Zipf(request.Number("images", 1))} {
    for (uint64_t i = 0; i < request.Number("images", 1); ++i) {
      shared_.images.push_back(
          ImageOf(i, request.Number("image_kib", 1024) << 10));
    }
    for (uint32_t thread = 0; thread < threads_; ++thread) {
      if (sqlite_) {
        workers_.push_back(
            std::make_unique<SqliteWorker>(shared_.way, request_));
      } else {
        workers_.push_back(
            std::make_unique<GuestWorker>(way, shared_, request_, thread));
      }
    }
    const uint64_t warmup = request.Number("warmup", sqlite_ ? 60 : 400);
    thread_pool_.Run([&](uint32_t i) { workers_[i]->Run(warmup); });
  }

  void Round(Answer& answer) {
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
    answer.Number("faults", Faults() - before);
    const std::optional<uint64_t> shootdowns = TlbShootdowns();
    if (shootdowns.has_value() && shootdowns_before.has_value()) {
      answer.Number("shootdowns", *shootdowns - *shootdowns_before);
    }
    Ticks ticks;
    Ticks acquire;
    Ticks release;
    uint64_t sum = 0;
    uint64_t begun = UINT64_MAX;
    uint64_t ended = 0;
    for (const auto& worker : workers_) {
      const auto add = [](Ticks& all, const Ticks& some) {
        all.insert(all.end(), some.begin(), some.end());
      };
      add(ticks, worker->ticks);
      add(acquire, worker->acquire_ticks);
      add(release, worker->release_ticks);
      sum += worker->sum;
      begun = std::min(begun, worker->begun);
      ended = std::max(ended, worker->ended);
    }
    const uint64_t done = ticks.size() * slots_;
    // Of all that passed, also while a thread waited for a core or for a lock.
    answer.Number("per_second",
                  1e9 * static_cast<double>(done) / TicksToNs(ended - begun));
    if (sqlite_) {
      std::transform(acquire.begin(), acquire.end(), release.begin(),
                     acquire.begin(), std::plus<>());
      answer.Readings("recycle_ns", acquire);
    } else if (!release.empty()) {
      answer.Number("acquire_p999_ns", TicksToNs(Quantile(acquire, 0.999)));
      answer.Number("release_p999_ns", TicksToNs(Quantile(release, 0.999)));
    }
    if (ms != 0) {
      // Who is faster comes further in a time, and reads more.
      answer.Number("cycles", done);
      return;
    }
    answer.Cycles(ticks, slots_);
    if (!sqlite_) answer.Sum(sum);
  }

  bool FindsClean() {
    // Each in the thread that has the slots.
    std::atomic<bool> clean = true;
    thread_pool_.Run([&](uint32_t i) {
      if (!workers_[i]->FindsClean()) clean = false;
    });
    return clean;
  }

 private:
  Way WayOf(const std::string& way, const Request& request) const {
    if (sqlite_) {
      return OrDie(OpenWay(way, wasm2c::LayoutForGuests(2, kSqliteMemoryBytes),
                           kSqliteMemoryBytes));
    }
    // A child of a lease has what its parent has mapped.
    return OrDie(OpenWay(way == "fork" ? "dontneed" : way,
                         LayoutOf(request, slots_ * threads_ + 1),
                         MemoryBytes(request)));
  }

  const Request request_;
  const bool sqlite_;
  const uint64_t slots_;
  const uint32_t threads_;
  ThreadPool thread_pool_;
  Shared shared_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

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
      {"build", BuildRound}, {"create", CreateRound}, {"first", SlotsRound},
      {"floor", FloorRound}, {"locate", LookupRound}, {"many", SlotsRound},
      {"size", OpenRound},   {"start", StartRound},   {"store", StoreRound},
      {"touch", TouchRound}, {"traps", TrapRound}};
  // Calibrates.
  TicksPerNs();
  // Of the request that was made last; a row is over when another begins.
  std::string of;
  std::unique_ptr<WarmRow> row;
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
        row = std::make_unique<WarmRow>(way, request);
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
