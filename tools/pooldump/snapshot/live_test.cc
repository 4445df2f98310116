#include "firsttouch/tools/pooldump/snapshot/live.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/block.h"
#include "firsttouch/control/guests_block.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uint64_t kMiB = 1 << 20;

ServiceOptions PoolOptionsOf(std::string name, uint32_t instances) {
  return {.name = std::move(name),
          .layout = {.instances = instances,
                     .max_memory_bytes = 16 * kMiB,
                     .guard_before_bytes = kMiB,
                     .guard_after_bytes = kMiB}};
}

std::unique_ptr<Service> MakeService(ServiceOptions options) {
  auto service = Service::Create(std::move(options));
  EXPECT_TRUE(service.ok()) << service.status();
  return service.ok() ? *std::move(service) : nullptr;
}

ImageRef MakeImage(std::string name, uint64_t pages) {
  std::vector<std::byte> bytes(pages * kPageBytes, std::byte{0x5a});
  auto image = ImageFromBytes(
      {.name = std::move(name), .size_bytes = bytes.size()}, bytes);
  EXPECT_TRUE(image.ok()) << image.status();
  return *image;
}

// A process that runs `body`, says that it has, and waits to be killed.
class OtherProcess {
 public:
  explicit OtherProcess(const std::function<void()>& body) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      close(ends[0]);
      body();
      if (write(ends[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    close(ends[1]);
    char byte = 0;
    ready_ = read(ends[0], &byte, 1) == 1;
    close(ends[0]);
  }
  ~OtherProcess() { Kill(); }

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  pid_t pid() const { return pid_; }
  bool ready() const { return ready_; }

 private:
  pid_t pid_ = -1;
  bool ready_ = false;
};

const Slot* SlotAt(const PoolSnapshot& pool, uint64_t base) {
  for (const Slot& slot : pool.slots()) {
    if (slot.base() == base) return &slot;
  }
  return nullptr;
}

const PoolSnapshot* PoolNamed(const ProcessSnapshot& snapshot,
                              std::string_view name) {
  for (const PoolSnapshot& pool : snapshot.pools()) {
    if (pool.name() == name) return &pool;
  }
  return nullptr;
}

ProcessSnapshot SnapshotOf(pid_t pid, const SnapshotOptions& options = {}) {
  auto process = LiveProcess::Open(pid);
  EXPECT_TRUE(process.ok()) << process.status();
  if (!process.ok()) return {};
  auto snapshot = process->Snapshot(options);
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  return snapshot.ok() ? *std::move(snapshot) : ProcessSnapshot();
}

TEST(LiveTest, TellsWhatEachSlotIs) {
  const ImageRef image = MakeImage("greeting", 4);
  auto service = MakeService(PoolOptionsOf("tenants", 8));
  auto held = service->Acquire({.image = image, .size_bytes = kMiB});
  auto gone = service->Acquire({.size_bytes = 2 * kMiB});
  ASSERT_TRUE(held.ok() && gone.ok());
  // The first lease of an image may be untracked: the second is tracked.
  ASSERT_TRUE(held->Release().ok());
  held = service->Acquire({.image = image, .size_bytes = kMiB});
  ASSERT_TRUE(held.ok());
  std::byte* const base = held->base();
  base[0] = std::byte{1};
  base[10 * kPageBytes] = std::byte{1};
  volatile std::byte read = base[kPageBytes];
  static_cast<void>(read);
  const auto gone_base = reinterpret_cast<uint64_t>(gone->base());
  ASSERT_TRUE(gone->Release().ok());

  const ProcessSnapshot snapshot = SnapshotOf(getpid());
  EXPECT_EQ(snapshot.source(), ProcessSnapshot::LIVE);
  EXPECT_EQ(snapshot.pid(), getpid());
  EXPECT_GT(snapshot.monotonic_ns(), 0);
  ASSERT_EQ(snapshot.pools_size(), 1);
  const PoolSnapshot& pool = snapshot.pools(0);
  EXPECT_EQ(pool.name(), "tenants");
  EXPECT_EQ(pool.pool_id(), service->pool_id());
  EXPECT_EQ(pool.base(), service->base());
  EXPECT_EQ(pool.layout().instances(), 8u);
  EXPECT_EQ(pool.layout().reservation_bytes(),
            service->layout().reservation_bytes());
  EXPECT_EQ(pool.options().supply(), SupplyName(service->supply()));
  EXPECT_EQ(pool.options().strategy(), "affinity");
  EXPECT_FALSE(pool.options().has_resident_budget_bytes());
  EXPECT_EQ(pool.description(), service->Describe());
  ASSERT_EQ(pool.slots_size(), 8);

  const Slot* const slot = SlotAt(pool, reinterpret_cast<uint64_t>(base));
  ASSERT_NE(slot, nullptr);
  EXPECT_EQ(slot->state(), Slot::HELD);
  EXPECT_EQ(slot->size_bytes(), kMiB);
  EXPECT_EQ(slot->initial_bytes(), kMiB);
  EXPECT_EQ(slot->image_name(), "greeting");
  EXPECT_EQ(slot->image_id(), image->id());
  EXPECT_EQ(slot->counters().handovers(), 1u);
  EXPECT_FALSE(slot->torn());
  EXPECT_GE(slot->resident_bytes(), 3 * kPageBytes);
  EXPECT_GE(slot->private_bytes(), 2 * kPageBytes);

  const Slot* const parked = SlotAt(pool, gone_base);
  ASSERT_NE(parked, nullptr);
  EXPECT_EQ(parked->state(), Slot::PARKED);
  EXPECT_EQ(parked->size_bytes(), 0u);
  EXPECT_EQ(parked->image_id(), 0u);

  EXPECT_EQ(pool.totals().slots(), 8u);
  EXPECT_EQ(pool.totals().held(), 1u);
  EXPECT_EQ(pool.totals().parked(), 1u);
  EXPECT_EQ(pool.totals().free(), 6u);
  EXPECT_EQ(pool.totals().size_bytes(), kMiB);
  const ServiceStats stats = service->Stats();
  EXPECT_EQ(pool.totals().counters().handovers(), stats.handovers);
  EXPECT_EQ(pool.totals().counters().kernel_calls(), stats.kernel_calls);
  EXPECT_EQ(pool.totals().counters().missing_write_faults(),
            stats.missing_write_faults);

  ASSERT_EQ(pool.images_size(), 1);
  EXPECT_EQ(pool.images(0).name(), "greeting");
  EXPECT_EQ(pool.images(0).size_bytes(), 4 * kPageBytes);
  EXPECT_EQ(pool.images(0).stored_pages(), 4u);
  EXPECT_EQ(pool.images(0).slots(), 1u);
  EXPECT_EQ(pool.images(0).held(), 1u);
}

TEST(LiveTest, MapsThePagesOfASlot) {
  const ImageRef image = MakeImage("mapped", 4);
  ServiceOptions options = PoolOptionsOf("pages", 2);
  options.supply = UserfaultfdOptions{.tracking = Tracking::kSignal};
  auto created = Service::Create(options);
  if (!created.ok()) GTEST_SKIP() << created.status();
  auto memory = (*created)->Acquire({.image = image, .size_bytes = kMiB});
  ASSERT_TRUE(memory.ok());
  std::byte* const base = memory->base();
  base[0] = std::byte{1};
  base[100 * kPageBytes] = std::byte{1};
  volatile std::byte read = base[2 * kPageBytes];
  static_cast<void>(read);

  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok()) << process.status();
  auto map = process->Pages("", memory->instance());
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->slot().image().size_bytes(), 4 * kPageBytes);
  std::vector<PageRun> page_of;
  uint64_t next = 0;
  for (const PageRun& run : map->runs()) {
    EXPECT_EQ(run.first_page(), next);
    next += run.pages();
    for (uint64_t i = 0; i < run.pages(); ++i) page_of.push_back(run);
  }
  ASSERT_EQ(next, kMiB / kPageBytes);
  EXPECT_EQ(page_of[0].state(), PAGE_DIRTY);
  EXPECT_EQ(page_of[0].source(), PAGE_OF_IMAGE);
  EXPECT_EQ(page_of[2].state(), PAGE_CLEAN);
  EXPECT_EQ(page_of[100].state(), PAGE_DIRTY);
  EXPECT_EQ(page_of[100].source(), PAGE_OF_ZEROES);
  EXPECT_EQ(page_of[50].state(), PAGE_MISSING);
  if (map->warnings_size() == 0) {
    EXPECT_EQ(page_of[0].resident(), 2);
    EXPECT_EQ(page_of[50].resident(), 0);
    if ((*created)->backing() == Backing::kShared) {
      EXPECT_EQ(page_of[2].resident(), 1);
    }
  }
  // Released, the written pages stay as the retained set.
  ASSERT_TRUE(memory->Release().ok());
  map = process->Pages("pages", 0);
  ASSERT_TRUE(map.ok());
  ASSERT_GE(map->runs_size(), 1);
  EXPECT_EQ(map->runs(0).state(), PAGE_HOT);
  EXPECT_EQ(map->runs(0).source(), PAGE_OUTSIDE);

  EXPECT_EQ(process->Pages("", 2).status().message(),
            "pool \"pages\" has no slot 2: its slots are 0 to 1");
}

// State and residency are two things: a page that the service has not heard of
// is not missing because of that.
TEST(LiveTest, WhatIsResidentIsNeverMissing) {
  const ImageRef image = MakeImage("settled", 64);
  auto service = MakeService(PoolOptionsOf("settled", 1));
  std::optional<Memory> memory;
  // Several leases alike, so that tracking settles.
  for (int i = 0; i < 12; ++i) {
    auto acquired = service->Acquire({.image = image, .size_bytes = kMiB});
    ASSERT_TRUE(acquired.ok());
    memory = *std::move(acquired);
    volatile std::byte* const base = memory->base();
    for (uint64_t page = 0; page < 64; page += 2) {
      base[page * kPageBytes] = std::byte{1};
      static_cast<void>(base[(page + 1) * kPageBytes]);
    }
    if (i < 11) {
      ASSERT_TRUE(memory->Release().ok());
    }
  }
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok()) << process.status();
  const auto map = process->Pages("", 0);
  ASSERT_TRUE(map.ok()) << map.status();
  if (map->warnings_size() > 0) GTEST_SKIP() << map->warnings(0);
  uint64_t resident = 0;
  for (const PageRun& run : map->runs()) {
    if (run.resident() <= 0) continue;
    resident += run.pages();
    EXPECT_NE(run.state(), PAGE_MISSING) << run.ShortDebugString();
  }
  EXPECT_GE(resident, 64u);
  for (uint64_t page = 0; page < 64; ++page) {
    const auto where = process->Locate(
        reinterpret_cast<uint64_t>(memory->base()) + page * kPageBytes);
    ASSERT_TRUE(where.ok());
    EXPECT_GT(where->resident(), 0) << page;
    EXPECT_NE(where->page_state(), PAGE_MISSING) << page;
  }
}

TEST(LiveTest, TellsPoolsOfOneNameApartByNumber) {
  auto first = MakeService(PoolOptionsOf("same", 1));
  auto second = MakeService(PoolOptionsOf("same", 2));
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok()) << process.status();
  const auto all = process->Snapshot({});
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->pools_size(), 2);
  for (const PoolSnapshot& pool : all->pools()) {
    const auto one =
        process->Snapshot({.pool = absl::StrCat("#", pool.pool_id())});
    ASSERT_TRUE(one.ok()) << one.status();
    ASSERT_EQ(one->pools_size(), 1);
    EXPECT_EQ(one->pools(0).base(), pool.base());
  }
  const std::string error(process->Pages("same", 0).status().message());
  EXPECT_THAT(error, HasSubstr(absl::StrCat(
                         "\"same\" (#", all->pools(0).pool_id(),
                         "), \"same\" (#", all->pools(1).pool_id(),
                         "): name one by --pool=NAME or --pool=#NUMBER")));
}

TEST(LiveTest, SaysThatAProcessIsStopped) {
  OtherProcess child([] {
    static std::unique_ptr<Service> service =
        MakeService(PoolOptionsOf("stopped", 1));
  });
  ASSERT_TRUE(child.ready());
  EXPECT_EQ(SnapshotOf(child.pid()).stopped(), "");
  kill(child.pid(), SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child.pid(), &status, WUNTRACED), child.pid());
  EXPECT_EQ(SnapshotOf(child.pid()).stopped(), "stopped by a signal");
  kill(child.pid(), SIGCONT);
}

TEST(LiveTest, LocatesAnAddress) {
  const ImageRef image = MakeImage("where", 4);
  auto service = MakeService(PoolOptionsOf("located", 4));
  auto memory = service->Acquire({.image = image, .size_bytes = kMiB + 100});
  ASSERT_TRUE(memory.ok());
  const auto base = reinterpret_cast<uint64_t>(memory->base());
  memory->base()[kPageBytes] = std::byte{1};
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok());

  auto where = process->Locate(base + kPageBytes + 5);
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->place(), Location::MEMORY);
  EXPECT_EQ(where->pool(), "located");
  EXPECT_EQ(where->instance(), memory->instance());
  EXPECT_EQ(where->offset_bytes(), static_cast<int64_t>(kPageBytes + 5));
  EXPECT_EQ(where->page(), 1u);
  EXPECT_TRUE(where->in_bounds());
  EXPECT_EQ(where->slot_state(), Slot::HELD);
  EXPECT_EQ(where->image_name(), "where");
  EXPECT_TRUE(where->has_image_page());
  EXPECT_EQ(where->image_page(), 1u);
  EXPECT_EQ(where->page_source(), PAGE_OF_IMAGE);

  where = process->Locate(base + kMiB + 200);
  EXPECT_FALSE(where->in_bounds());
  EXPECT_TRUE(where->page_in_bounds());
  where = process->Locate(base + 2 * kMiB);
  EXPECT_FALSE(where->page_in_bounds());
  EXPECT_EQ(where->page_source(), PAGE_OUTSIDE);
  where = process->Locate(base + 16 * kMiB);
  // The guard in front of the next memory is as large as that behind this one.
  EXPECT_EQ(where->place(), Location::GUARD_UNOWNED);
  EXPECT_EQ(where->slot(), memory->instance());
  where = process->Locate(service->base());
  EXPECT_EQ(where->place(), Location::GUARD_BEFORE);
  EXPECT_EQ(where->offset_bytes(), -static_cast<int64_t>(kMiB));
  where = process->Locate(reinterpret_cast<uint64_t>(&LiveProcess::Open));
  EXPECT_EQ(where->place(), Location::NO_POOL);
  EXPECT_THAT(where->mapping(), StartsWith("/"));
  where = process->Locate(16);
  EXPECT_EQ(where->place(), Location::NO_POOL);
  EXPECT_EQ(where->mapping(), "");
}

TEST(LiveTest, LocatesInWhatALookFound) {
  auto first = MakeService(PoolOptionsOf("first", 2));
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok());
  auto where = process->Locate(first->base());
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->pool(), "first");
  auto second = MakeService(PoolOptionsOf("second", 2));
  where = process->Locate(second->base());
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->place(), Location::NO_POOL);
  process->LookAnew();
  where = process->Locate(second->base());
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->pool(), "second");
  const uint64_t gone = first->base();
  first.reset();
  process->LookAnew();
  where = process->Locate(gone);
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->place(), Location::NO_POOL);
}

TEST(LiveTest, TotalsAgreeWithSmaps) {
  const ImageRef image = MakeImage("summed", 64);
  for (Backing backing : {Backing::kShared, Backing::kCopied}) {
    ServiceOptions options = PoolOptionsOf("sums", 16);
    options.supply = AnySupply{{.backing = backing}};
    auto service = Service::Create(options);
    if (!service.ok()) continue;
    std::vector<Memory> held;
    for (int round = 0; round < 3; ++round) {
      held.clear();
      for (int i = 0; i < 12; ++i) {
        auto memory = (*service)->Acquire({.image = image, .size_bytes = kMiB});
        ASSERT_TRUE(memory.ok());
        for (int page = 0; page < 200; page += 1 + i) {
          std::byte* const at = memory->base() + page * kPageBytes;
          if ((page + i) % 3 == 0) {
            *at = std::byte{1};
          } else {
            volatile std::byte read = *at;
            static_cast<void>(read);
          }
        }
        held.push_back(*std::move(memory));
      }
    }
    const ProcessSnapshot snapshot = SnapshotOf(getpid());
    ASSERT_EQ(snapshot.pools_size(), 1);
    const PoolSnapshot& pool = snapshot.pools(0);
    if (!pool.totals().has_resident_bytes()) {
      GTEST_SKIP() << snapshot.warnings(0);
    }
    EXPECT_GT(pool.totals().private_bytes(), 12 * 10 * kPageBytes);
    EXPECT_EQ(pool.totals().resident_bytes(), pool.mappings().rss_bytes());
    EXPECT_EQ(pool.totals().private_bytes(), pool.mappings().anonymous_bytes());
    EXPECT_EQ(pool.mappings().outside_bytes(), 0u);
    EXPECT_GE(pool.mappings().mappings(), 1u);
    uint64_t slots = 0;
    for (const Slot& slot : pool.slots()) slots += slot.resident_bytes();
    EXPECT_EQ(slots, pool.totals().resident_bytes());
  }
}

TEST(LiveTest, TellsPoolsApart) {
  auto first = MakeService(PoolOptionsOf("first", 2));
  auto second = MakeService(PoolOptionsOf("second", 3));
  const ProcessSnapshot both = SnapshotOf(getpid());
  ASSERT_EQ(both.pools_size(), 2);
  EXPECT_LT(both.pools(0).base(), both.pools(1).base());
  const ProcessSnapshot one = SnapshotOf(getpid(), {.pool = "second"});
  ASSERT_EQ(one.pools_size(), 1);
  EXPECT_EQ(one.pools(0).slots_size(), 3);

  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok());
  const absl::Status none = process->Snapshot({.pool = "third"}).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_THAT(std::string(none.message()),
              HasSubstr("has no pool \"third\"; it has \""));
  const absl::Status which = process->Pages("", 0).status();
  EXPECT_TRUE(absl::IsInvalidArgument(which)) << which;
  // One that is gone is no error to who looks again.
  first.reset();
  auto left = process->Snapshot({});
  ASSERT_TRUE(left.ok());
  EXPECT_EQ(left->pools_size(), 1);
}

TEST(LiveTest, ReadsAnotherProcess) {
  OtherProcess other([] {
    auto* const service =
        new std::unique_ptr<Service>(MakeService(PoolOptionsOf("there", 4)));
    auto memory = (*service)->Acquire({.size_bytes = kMiB});
    memory->base()[5] = std::byte{1};
    new Memory(*std::move(memory));
  });
  ASSERT_TRUE(other.ready());
  const ProcessSnapshot snapshot = SnapshotOf(other.pid());
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).totals().held(), 1u);
  EXPECT_EQ(snapshot.pools(0).totals().resident_bytes(), kPageBytes);
  EXPECT_EQ(snapshot.warnings_size(), 0);
}

TEST(LiveTest, SurvivesTheProcessesDeath) {
  for (int round = 0; round < 5; ++round) {
    OtherProcess other([] {
      new std::unique_ptr<Service>(MakeService(PoolOptionsOf("dying", 200)));
    });
    ASSERT_TRUE(other.ready());
    auto process = LiveProcess::Open(other.pid());
    ASSERT_TRUE(process.ok()) << process.status();
    ASSERT_TRUE(process->Snapshot({}).ok());
    std::thread killer([&] { kill(other.pid(), SIGKILL); });
    absl::StatusOr<ProcessSnapshot> last = ProcessSnapshot();
    while (last.ok()) last = process->Snapshot({});
    killer.join();
    EXPECT_TRUE(absl::IsUnavailable(last.status())) << last.status();
    EXPECT_EQ(last.status().message(),
              absl::StrCat("process ", other.pid(), " has ended"));
    other.Kill();
    EXPECT_TRUE(absl::IsUnavailable(process->Snapshot({}).status()));
  }
}

TEST(LiveTest, ShowsTenThousandSlots) {
  constexpr uint32_t kSlots = 10000;
  OtherProcess other([] {
    auto* const service = new std::unique_ptr<Service>(
        MakeService(PoolOptionsOf("large", kSlots)));
    const ImageRef image = MakeImage("large", 16);
    auto* const held = new std::vector<Memory>;
    for (uint32_t i = 0; i < kSlots; ++i) {
      auto memory =
          (*service)->Acquire({.image = image, .size_bytes = 64 * kPageBytes});
      if (!memory.ok()) abort();
      memory->base()[20 * kPageBytes] = std::byte{1};
      memory->base()[kPageBytes] = std::byte{1};
      held->push_back(*std::move(memory));
    }
  });
  ASSERT_TRUE(other.ready());
  auto process = LiveProcess::Open(other.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  const auto start = std::chrono::steady_clock::now();
  auto snapshot = process->Snapshot({});
  const std::chrono::duration<double> took =
      std::chrono::steady_clock::now() - start;
  RecordProperty("seconds", std::to_string(took.count()));
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  ASSERT_EQ(snapshot->pools_size(), 1);
  const PoolSnapshot& pool = snapshot->pools(0);
  EXPECT_EQ(pool.slots_size(), static_cast<int>(kSlots));
  EXPECT_EQ(pool.totals().held(), kSlots);
  if (pool.totals().has_resident_bytes()) {
    EXPECT_EQ(pool.totals().resident_bytes(), pool.mappings().rss_bytes());
    EXPECT_GE(pool.totals().private_bytes(), 2 * kSlots * kPageBytes);
  }
  ASSERT_EQ(pool.images_size(), 1);
  EXPECT_EQ(pool.images(0).held(), kSlots);
}

TEST(LiveTest, SaysThatThereIsNoSuchProcess) {
  for (pid_t pid : {-1, 0, 0x3fffffff}) {
    const absl::Status status = LiveProcess::Open(pid).status();
    EXPECT_EQ(status,
              absl::NotFoundError(absl::StrCat(
                  "there is no process ", pid,
                  " here: it has ended, or is of another container (pid "
                  "namespace)")));
  }
}

TEST(LiveTest, SaysThatThereIsNoPoolAndWhy) {
  OtherProcess none([] {});
  EXPECT_EQ(LiveProcess::Open(none.pid()).status(),
            absl::NotFoundError(absl::StrCat(
                "process ", none.pid(),
                " has no pool of firsttouch, or none yet: look for the process "
                "that calls Service::Create")));

  OtherProcess closed([] {
    new std::unique_ptr<Service>(MakeService(PoolOptionsOf("closed", 2)));
    close_range(3, 1000, CLOSE_RANGE_UNSHARE);
  });
  // The pipe that says so is closed, too.
  const absl::Status status = LiveProcess::Open(closed.pid()).status();
  EXPECT_TRUE(absl::IsNotFound(status) || absl::IsUnavailable(status));

  OtherProcess silent([] {
    ServiceOptions options = PoolOptionsOf("silent", 2);
    options.publish = false;
    new std::unique_ptr<Service>(MakeService(options));
  });
  EXPECT_TRUE(absl::IsNotFound(LiveProcess::Open(silent.pid()).status()));
}

// What a process of nobody is told of process `pid`.
std::string ErrorForNobody(pid_t pid) {
  int ends[2];
  if (pipe(ends) != 0) return "pipe failed";
  const pid_t child = fork();
  if (child == 0) {
    if (setgid(65534) != 0 || setuid(65534) != 0) _exit(1);
    const std::string text(LiveProcess::Open(pid).status().ToString());
    _exit(write(ends[1], text.data(), text.size()) ==
                  static_cast<ssize_t>(text.size())
              ? 0
              : 1);
  }
  close(ends[1]);
  char text[1000] = {};
  EXPECT_GT(read(ends[0], text, sizeof(text) - 1), 0);
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return text;
}

TEST(LiveTest, TellsOthersWhatIsMissing) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  auto service = MakeService(PoolOptionsOf("mine", 2));
  EXPECT_EQ(
      ErrorForNobody(getpid()),
      absl::StrCat("PERMISSION_DENIED: the descriptors of process ", getpid(),
                   ": Permission denied; the process is of user id 0, "
                   "and this is user id 65534: run pooldump as its "
                   "owner or as root"));
}

TEST(LiveTest, TellsTheOwnerOfAProcessThatForbidsIt) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  OtherProcess other([] {
    if (setgid(65534) != 0 || setuid(65534) != 0) abort();
    prctl(PR_SET_DUMPABLE, 0);
  });
  ASSERT_TRUE(other.ready());
  EXPECT_THAT(ErrorForNobody(other.pid()),
              HasSubstr("; the process is of this user, but has privileges "
                        "that this user lacks, or forbids it "
                        "(PR_SET_DUMPABLE): run pooldump as root"));
}

// Publishes that this process serves a process with one region.
void PublishGuest(pid_t pid) {
  const auto block = GuestsBlock::Create(RealMemfdCalls(), "server", 4);
  const GuestsBlock::Place place = {.start = kMiB, .bytes = kMiB};
  auto entry = block->Publish({.number = 1,
                               .pid = static_cast<uint64_t>(pid),
                               .name = "vm",
                               .image_name = "base"},
                              {&place, 1});
  // As long as the process is there.
  if (entry == nullptr || entry.release() == nullptr) abort();
}

TEST(LiveTest, ShowsTheGuestOfAServer) {
  OtherProcess guest([] {});
  OtherProcess server([&] { PublishGuest(guest.pid()); });
  ASSERT_TRUE(guest.ready() && server.ready());
  const ProcessSnapshot snapshot = SnapshotOf(guest.pid());
  EXPECT_EQ(snapshot.pid(), server.pid());
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).guest().pid(), guest.pid());
}

TEST(LiveTest, AServerIsNotBelievedThatSaysItServesSomebodyElsesProcess) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  OtherProcess victim([] {});
  OtherProcess liar([&] {
    PublishGuest(victim.pid());
    if (!BecomeNobody()) abort();
  });
  ASSERT_TRUE(victim.ready() && liar.ready());
  EXPECT_TRUE(absl::IsNotFound(LiveProcess::Open(victim.pid()).status()));
  const ProcessSnapshot snapshot = SnapshotOf(liar.pid());
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).guest().pid(), 0);
  ASSERT_GE(snapshot.warnings_size(), 1);
  EXPECT_EQ(snapshot.warnings(0),
            absl::StrCat("guest \"vm\": the server, of user id 65534, says "
                         "that it serves process ",
                         victim.pid(),
                         ", of user id 0, but has no userfaultfd of it: it is "
                         "not believed"));
}

TEST(LiveTest, AServerIsBelievedThatHasAUserfaultfdOfTheGuest) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const absl::StatusOr<Uffd> uffd = Uffd::Open(RealKernel(), {});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  OtherProcess guest([] {});
  OtherProcess server([&] {
    PublishGuest(guest.pid());
    if (!BecomeNobody()) abort();
  });
  ASSERT_TRUE(guest.ready() && server.ready());
  const ProcessSnapshot snapshot = SnapshotOf(guest.pid());
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).guest().pid(), guest.pid());
}

TEST(LiveTest, AServerInAnotherPidNamespaceHasOtherNumbersForItsGuests) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can make a pid namespace";
  // Server and guest, as this process sees them; and as they are in there.
  constexpr pid_t kServer = 1;
  constexpr pid_t kGuest = 2;
  struct Numbers {
    pid_t server;
    pid_t guest;
    std::atomic<bool> ready;
  };
  auto* const shared = static_cast<Numbers*>(
      mmap(nullptr, sizeof(Numbers), PROT_READ | PROT_WRITE,
           MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  OtherProcess other([&] {
    if (unshare(CLONE_NEWPID) != 0) return;
    const auto start = [&](pid_t number) {
      const pid_t pid = fork();
      if (pid != 0) return pid;
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getpid() != number) abort();
      if (number == kServer) {
        PublishGuest(kGuest);
        shared->ready = true;
      }
      while (true) pause();
    };
    shared->server = start(kServer);
    shared->guest = start(kGuest);
    while (!shared->ready && waitpid(-1, nullptr, WNOHANG) == 0) sched_yield();
  });
  ASSERT_TRUE(other.ready());
  if (!shared->ready) GTEST_SKIP() << "no pid namespace can be made";
  ProcessSnapshot snapshot = SnapshotOf(shared->server);
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).guest().pid(), shared->guest);
  snapshot = SnapshotOf(shared->guest);
  EXPECT_EQ(snapshot.pid(), shared->server);
  // There is a process of that number here as well, and it is another.
  EXPECT_FALSE(LiveProcess::Open(kGuest).ok());
  munmap(shared, sizeof(Numbers));
}

TEST(LiveTest, APoolOfMappingsHasNoPageStates) {
  ServiceOptions options = PoolOptionsOf("plain", 2);
  options.supply = MappingOptions{.scan = false};
  auto service = MakeService(options);
  auto memory = service->Acquire(
      {.image = MakeImage("plain", 4), .size_bytes = 8 * kPageBytes});
  ASSERT_TRUE(memory.ok());
  memory->base()[0] = std::byte{1};
  memory->base()[5 * kPageBytes] = std::byte{1};
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok()) << process.status();
  auto snapshot = process->Snapshot({});
  ASSERT_TRUE(snapshot.ok());
  const PoolSnapshot& pool = snapshot->pools(0);
  EXPECT_EQ(pool.options().supply(), "mappings-drop");
  EXPECT_EQ(pool.options().backing(), "");
  EXPECT_FALSE(pool.totals().has_pages());
  EXPECT_TRUE(pool.totals().counters().faults_unknown());
  EXPECT_TRUE(pool.slots(0).counters().faults_unknown());
  if (pool.totals().has_resident_bytes()) {
    EXPECT_EQ(pool.totals().private_bytes(), 2 * kPageBytes);
    EXPECT_EQ(pool.totals().resident_bytes(), pool.mappings().rss_bytes());
  }
  auto map = process->Pages("", memory->instance());
  ASSERT_TRUE(map.ok());
  for (const PageRun& run : map->runs()) {
    EXPECT_EQ(run.state(), PAGE_STATE_UNSPECIFIED);
  }
  auto where = process->Locate(reinterpret_cast<uint64_t>(memory->base() + 1));
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->page_state(), PAGE_STATE_UNSPECIFIED);
  EXPECT_TRUE(where->in_bounds());
}

TEST(LiveTest, AForkedChildHasNoPoolOfItsParent) {
  auto service = MakeService(PoolOptionsOf("parent", 2));
  auto memory = service->Acquire({.size_bytes = kMiB});
  ASSERT_TRUE(memory.ok());
  OtherProcess child([&] {
    // What it holds is its parent's, and it cannot change that.
    if (memory->Release().ok()) abort();
    service.reset();
  });
  ASSERT_TRUE(child.ready());
  const absl::Status none = LiveProcess::Open(child.pid()).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_THAT(std::string(none.message()),
              Not(HasSubstr("closed the descriptor")));
  const ProcessSnapshot snapshot = SnapshotOf(getpid());
  ASSERT_EQ(snapshot.pools_size(), 1);
  EXPECT_EQ(snapshot.pools(0).totals().held(), 1u);

  // A child by a bare system call has the descriptor.
  const pid_t bare = static_cast<pid_t>(syscall(SYS_fork));
  if (bare == 0) {
    while (true) pause();
  }
  const absl::Status status = LiveProcess::Open(bare).status();
  kill(bare, SIGKILL);
  waitpid(bare, nullptr, 0);
  EXPECT_EQ(
      status,
      absl::NotFoundError(absl::StrCat(
          "process ", bare,
          " has no pool of firsttouch: pool \"parent\" is not of process ",
          bare, ", which only has its descriptor: it is of process ",
          getpid())));
}

TEST(LiveTest, ACorruptedBlockIsAnErrorAndNoCrash) {
  const int fd = memfd_create("firsttouch-pool:evil", MFD_ALLOW_SEALING);
  ASSERT_GE(fd, 0);
  const std::string garbage(8192, 'x');
  ASSERT_EQ(write(fd, garbage.data(), garbage.size()), 8192);
  absl::Status status = LiveProcess::Open(getpid()).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("it is not sealed"));
  ASSERT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  status = LiveProcess::Open(getpid()).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("it begins with \"xxxxxxxx\""));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("not one that firsttouch made"));

  // It does not hide another pool.
  auto service = MakeService(PoolOptionsOf("good", 2));
  const ProcessSnapshot snapshot = SnapshotOf(getpid());
  EXPECT_NE(PoolNamed(snapshot, "good"), nullptr);
  ASSERT_EQ(snapshot.warnings_size(), 1);
  EXPECT_THAT(snapshot.warnings(0), HasSubstr("it begins with"));
  close(fd);
}

// Slots change hands as fast as they can, between two images of different
// sizes, while they are read: no record mixes two of them.
TEST(LiveTest, ReadsNoMixtureOfTwoMoments) {
  auto service = MakeService(PoolOptionsOf("racing", 2));
  const ImageRef small = MakeImage("small", 1);
  const ImageRef large = MakeImage("large", 3);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) {
      const bool is_small = i / 16 % 2 == 0;
      auto memory = service->Acquire(
          {.image = is_small ? small : large,
           .size_bytes = is_small ? 2 * kPageBytes : 5 * kPageBytes});
      if (!memory.ok()) abort();
      memory->base()[0] = std::byte{1};
    }
  });
  auto process = LiveProcess::Open(getpid());
  ASSERT_TRUE(process.ok());
  int looked = 0;
  int held = 0;
  for (int round = 0; round < 1500; ++round) {
    auto snapshot = process->Snapshot({.residency = false, .smaps = false});
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    for (const Slot& slot : snapshot->pools(0).slots()) {
      if (slot.torn()) continue;
      ++looked;
      if (slot.state() == Slot::PARKED || slot.state() == Slot::FREE) {
        EXPECT_EQ(slot.size_bytes(), 0u);
      }
      if (slot.state() == Slot::HELD && slot.size_bytes() != 0) {
        ++held;
        EXPECT_EQ(slot.image_name(),
                  slot.size_bytes() == 2 * kPageBytes ? "small" : "large");
      }
      if (slot.image_id() == small->id()) {
        EXPECT_EQ(slot.image_name(), "small");
      }
      if (slot.image_id() == large->id()) {
        EXPECT_EQ(slot.image_name(), "large");
      }
    }
    if (HasFailure()) break;
  }
  stop = true;
  writer.join();
  EXPECT_GT(looked, 500);
  EXPECT_GT(held, 0);
}

TEST(LiveTest, NobodyElseCanGetAWritableMapping) {
  auto service = MakeService(PoolOptionsOf("sealed", 2));
  // As any process of this user could.
  const int found =
      open(absl::StrCat("/proc/self/fd/", DescriptorOf("pool:sealed")).c_str(),
           O_RDWR);
  ASSERT_GE(found, 0);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, found, 0),
            MAP_FAILED);
  EXPECT_EQ(ftruncate(found, 0), -1);
  EXPECT_EQ(pwrite(found, "x", 1, 0), -1);
  close(found);
}

TEST(LiveTest, APoolWorksWhereItsBlockCannotBeShared) {
  OtherProcess other([] {
    signal(SIGXFSZ, SIG_DFL);
    const rlimit limit = {4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
    auto service = MakeService(PoolOptionsOf("limited", 2));
    if (service == nullptr) abort();
    if (service->Describe().find("control block: pooldump does not find the "
                                 "pool (RLIMIT_FSIZE 4096 is below") ==
        std::string::npos) {
      abort();
    }
    auto memory = service->Acquire({.size_bytes = kMiB});
    if (!memory.ok()) abort();
    memory->base()[3] = std::byte{1};
    if (!memory->Release().ok()) abort();
  });
  EXPECT_TRUE(other.ready());
}

}  // namespace
}  // namespace firsttouch::pooldump
