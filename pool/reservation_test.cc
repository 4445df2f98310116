#include "firsttouch/pool/reservation.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FIRSTTOUCH_TEST_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FIRSTTOUCH_TEST_SANITIZER 1
#endif
#endif

namespace firsttouch {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;
using Op = FakeKernel::Op;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kGib = uint64_t{1} << 30;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

PoolLayout Layout(uint32_t instances, uint64_t memory_bytes = 65536,
                  uint64_t guard_bytes = 65536) {
  const absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = instances,
                           .max_memory_bytes = memory_bytes,
                           .guard_before_bytes = guard_bytes,
                           .guard_after_bytes = guard_bytes});
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

// The entries of /proc/self/smaps that overlap a range.
std::vector<std::string> Smaps(uintptr_t start, uint64_t bytes) {
  std::ifstream file("/proc/self/smaps");
  std::vector<std::string> entries;
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    unsigned long first, last;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      inside = first < start + bytes && last > start;
      if (inside) entries.emplace_back();
    }
    if (inside) entries.back() += line + "\n";
  }
  return entries;
}

std::string VmFlags(const std::string& entry) {
  const size_t at = entry.find("VmFlags:");
  return at == std::string::npos ? "" : entry.substr(at + 8) + " ";
}

TEST(ReservationTest, OneMappingWithItsPropertiesWhateverItsSize) {
  const PoolLayout layout = Layout(10'000);
  const uint64_t maps_before = ReadLimitFacts().maps;
  absl::StatusOr<Reservation> reservation =
      Reservation::Create(RealKernel(), layout, {.name = "ten thousand"});
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  EXPECT_EQ(reservation->bytes(), layout.reservation_bytes());
  EXPECT_EQ(reservation->base() % kPoolAlignmentBytes, 0u);
  EXPECT_LT(ReadLimitFacts().maps, maps_before + 20);

  const std::vector<std::string> entries =
      Smaps(reservation->base(), reservation->bytes());
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_THAT(entries[0], HasSubstr(absl::StrFormat(
                              "%x-%x rw-p", reservation->base(),
                              reservation->base() + reservation->bytes())));
  const std::string flags = VmFlags(entries[0]);
  EXPECT_THAT(flags, HasSubstr(" dc "));  // not inherited by a child
  EXPECT_THAT(flags, HasSubstr(" dd "));  // not in a core dump
  EXPECT_THAT(flags, HasSubstr(" nh "));  // no huge pages
  EXPECT_THAT(flags, HasSubstr(" nr "));  // no swap reservation

  // Every memory is usable, and using some does not split the mapping.
  for (uint32_t slot = 0; slot < 10'000; slot += 999) {
    auto* memory = reinterpret_cast<volatile char*>(
        reservation->base() + layout.memory_offset_bytes(SlotIndex(slot)));
    EXPECT_EQ(memory[0], 0);
    memory[65535] = 1;
  }
  EXPECT_EQ(Smaps(reservation->base(), reservation->bytes()).size(), 1u);
}

TEST(ReservationTest, NameIsShownWithoutWhatTheKernelRefuses) {
  const absl::StatusOr<Reservation> reservation = Reservation::Create(
      RealKernel(), Layout(1), {.name = "a[b]\\c$`\n" + std::string(100, 'x')});
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  const std::vector<std::string> entries =
      Smaps(reservation->base(), reservation->bytes());
  ASSERT_EQ(entries.size(), 1u);
  if (entries[0].find("[anon:") == std::string::npos) {
    GTEST_SKIP() << "needs CONFIG_ANON_VMA_NAME";
  }
  EXPECT_THAT(entries[0], HasSubstr("[anon:firsttouch:a_b__c___xxx"));
  EXPECT_THAT(entries[0], HasSubstr(std::string(79 - 20, 'x') + "]"));
}

TEST(ReservationTest, EachPropertyCanBeTurned) {
  const absl::StatusOr<Reservation> reservation =
      Reservation::Create(RealKernel(), Layout(1),
                          {.include_in_core_dump = true,
                           .inherit_on_fork = true,
                           .alignment_bytes = 4096});
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  const std::vector<std::string> entries =
      Smaps(reservation->base(), reservation->bytes());
  ASSERT_GE(entries.size(), 1u);
  EXPECT_THAT(VmFlags(entries[0]), Not(HasSubstr(" dc ")));
  EXPECT_THAT(VmFlags(entries[0]), Not(HasSubstr(" dd ")));

  const absl::StatusOr<Reservation> huge = Reservation::Create(
      RealKernel(), Layout(1, 2 * kMib), {.huge_pages = true});
  if (absl::IsFailedPrecondition(huge.status())) {
    GTEST_SKIP() << "needs transparent huge pages";
  }
  ASSERT_TRUE(huge.ok()) << huge.status();
  const std::string flags = VmFlags(Smaps(huge->base(), huge->bytes())[0]);
  EXPECT_THAT(flags, HasSubstr(" hg "));
  EXPECT_THAT(flags, Not(HasSubstr(" nh ")));
}

TEST(ReservationTest, AChildHasNoneOfIt) {
  const absl::StatusOr<Reservation> reservation =
      Reservation::Create(RealKernel(), Layout(1), {});
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  auto* byte = reinterpret_cast<volatile char*>(reservation->base());
  *byte = 1;
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    *byte = 2;
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  EXPECT_EQ(*byte, 1);
}

TEST(ReservationTest, UnmapsWhenItGoes) {
  FakeKernel kernel;
  uintptr_t base;
  {
    absl::StatusOr<Reservation> made =
        Reservation::Create(kernel, Layout(1), {});
    ASSERT_TRUE(made.ok()) << made.status();
    base = made->base();
    Reservation moved = *std::move(made);
    EXPECT_EQ(moved.base(), base);
    EXPECT_EQ(made->base(), 0u);
    EXPECT_EQ(made->bytes(), 0u);
    EXPECT_TRUE(moved.Contains(base));
    EXPECT_TRUE(moved.Contains(base + moved.bytes() - 1));
    EXPECT_FALSE(moved.Contains(base + moved.bytes()));
    EXPECT_FALSE(moved.Contains(base - 1));
    EXPECT_FALSE(made->Contains(base));

    absl::StatusOr<Reservation> other =
        Reservation::Create(kernel, Layout(2), {});
    ASSERT_TRUE(other.ok()) << other.status();
    const uintptr_t other_base = other->base();
    *other = std::move(moved);
    EXPECT_EQ(other->base(), base);
    EXPECT_EQ(Smaps(other_base, 4096).size(), 0u);
    EXPECT_EQ(Smaps(base, 4096).size(), 1u);
  }
  EXPECT_EQ(Smaps(base, 4096).size(), 0u);
}

TEST(ReservationTest, WrongPageOrAlignment) {
  const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(
      {.instances = 1, .max_memory_bytes = 65536, .page_bytes = 16384});
  ASSERT_TRUE(layout.ok()) << layout.status();
  absl::Status status = Reservation::Create(RealKernel(), *layout, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Text(status),
            "page_bytes 16384 is not this machine's page size 4096");
  for (uint64_t alignment : {0, 2048, 12288}) {
    status = Reservation::Create(RealKernel(), Layout(1),
                                 {.alignment_bytes = alignment})
                 .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Text(status),
              absl::StrFormat("alignment_bytes %u is not a power of two from "
                              "the page size 4096 on",
                              alignment));
  }
}

// 3 GiB each: the aligned place below the first free address is taken by the
// previous reservation.
TEST(ReservationTest, FindsAnAlignedPlaceWithoutSlack) {
  FakeKernel kernel;
  std::vector<Reservation> reservations;
  for (int i = 0; i < 5; ++i) {
    // The first mapping, with slack, is refused.
    kernel.ResetCalls();
    kernel.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
    absl::StatusOr<Reservation> reservation =
        Reservation::Create(kernel, Layout(1, kGib, kGib), {});
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    EXPECT_GE(kernel.Calls(Op::kMmap), 2u);
    EXPECT_EQ(reservation->base() % kPoolAlignmentBytes, 0u);
    EXPECT_EQ(reservation->bytes(), 3 * kGib);
    EXPECT_EQ(Smaps(reservation->base(), reservation->bytes()).size(), 1u);
    reservations.push_back(*std::move(reservation));
  }
}

TEST(ReservationTest, SlackIsGivenBack) {
  const LimitFacts before = ReadLimitFacts();
  const absl::StatusOr<Reservation> reservation =
      Reservation::Create(RealKernel(), Layout(16), {});
  ASSERT_TRUE(reservation.ok()) << reservation.status();
  const LimitFacts after = ReadLimitFacts();
  EXPECT_LT(after.mapped_bytes, before.mapped_bytes + 64 * kMib);
}

TEST(ReservationTest, FailuresNameTheCallAndLeaveNothingBehind) {
  struct Case {
    Op op;
    uint64_t nth;
    int error;
    absl::StatusCode code;
    std::string text;
  };
  const Case cases[] = {
      {Op::kMmap, FakeKernel::kEvery, EAGAIN, absl::StatusCode::kUnavailable,
       "mmap of 196608 bytes for 1 slots: Resource temporarily unavailable; "
       "under mlockall\\(MCL_FUTURE\\) .* RLIMIT_MEMLOCK \\(ulimit -l\\), "
       "which is [0-9]+ bytes"},
      {Op::kMadvise, 1, ENOMEM, absl::StatusCode::kResourceExhausted,
       "madvise\\(MADV_DONTFORK\\) of the reservation \\[0x[0-9a-f]+, "
       "0x[0-9a-f]+\\): Cannot allocate memory"},
      {Op::kMadvise, 2, EINVAL, absl::StatusCode::kInvalidArgument,
       "madvise\\(MADV_DONTDUMP\\) of the reservation .*: Invalid argument"},
      {Op::kMadvise, 3, EACCES, absl::StatusCode::kPermissionDenied,
       "madvise\\(MADV_NOHUGEPAGE\\) of the reservation .*: Permission "
       "denied"},
      {Op::kMunmap, 1, ENOMEM, absl::StatusCode::kResourceExhausted, "mmap"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    FakeKernel kernel;
    kernel.Fail(c.op, c.nth, CallResult{0, c.error});
    // Where a refused trim leads to the second way, that way is refused as
    // well.
    if (c.op == Op::kMunmap) {
      kernel.Fail(Op::kMmap, 2, CallResult{0, ENOMEM});
    }
    const uint64_t maps_before = ReadLimitFacts().mapped_bytes;
    const absl::Status status =
        Reservation::Create(kernel, Layout(1), {}).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(Text(status), ContainsRegex(c.text));
    EXPECT_LT(ReadLimitFacts().mapped_bytes, maps_before + 16 * kMib);
  }
}

TEST(ReservationTest, KernelsWithoutHugePages) {
  FakeKernel kernel;
  kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  EXPECT_TRUE(Reservation::Create(kernel, Layout(1), {}).ok());
  kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  const absl::Status status =
      Reservation::Create(kernel, Layout(1), {.huge_pages = true}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Text(status),
            "huge_pages is set, but madvise(MADV_HUGEPAGE) gives EINVAL: this "
            "kernel has no transparent huge pages "
            "(CONFIG_TRANSPARENT_HUGEPAGE); clear huge_pages");
}

TEST(ReservationTest, RefusedByALimitThatShows) {
  EXPECT_EQ(
      Text(ExplainRefusedReservation(
          Layout(4), kPoolAlignmentBytes,
          {.rlimit_as_bytes = 64 * kMib, .mapped_bytes = 64 * kMib}, ENOMEM)),
      "4 slots (instances 4 * memories_per_instance 1) need 589824 bytes "
      "(576 KiB) of address space, but RLIMIT_AS (ulimit -v) is 67108864 "
      "bytes (64 MiB), of which 0 bytes are free; not even 1 instance "
      "fits; raise the limit (ulimit -v unlimited), or lower instances, "
      "max_memory_bytes or guard_after_bytes [mmap of 589824 bytes for 4 "
      "slots: Cannot allocate memory (errno 12)]");
  // Where the facts show no reason, the text has all of them.
  EXPECT_EQ(Text(ExplainRefusedReservation(
                Layout(4), kPoolAlignmentBytes,
                {.mapped_bytes = 5 * kMib, .max_map_count = 65530, .maps = 40},
                ENOMEM)),
            "mmap of 589824 bytes for 4 slots: Cannot allocate memory (errno "
            "12); no limit that we know of explains it: address space 47 bits "
            "with a gap of unlimited bytes, RLIMIT_AS unlimited with 5242880 "
            "mapped, vm.max_map_count 65530 with 40 in use, "
            "vm.overcommit_memory 0; lower instances, max_memory_bytes or "
            "guard_after_bytes, and look for a limit of the container "
            "(RLIMIT_AS, RLIMIT_DATA, a security module)");
}

TEST(ReservationTest, BeyondTheAddressSpace) {
  const absl::Status status =
      Reservation::Create(RealKernel(),
                          Layout(1'000'000'000, 4 * kGib, 2 * kGib), {})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(status),
              ContainsRegex("1000000000 slots .* need 6442450946147483648 "
                            "bytes \\(5.588 EiB\\) of address space, but of 47 "
                            "bits .* the largest pool that fits has instances "
                            "= [0-9]+; .*errno 12"));
  // The pool that the text says would fit does fit.
  const std::string text = Text(status);
  const size_t at = text.find("has instances = ") + 16;
  const uint32_t fits = static_cast<uint32_t>(std::stoul(text.substr(at)));
  EXPECT_GT(fits, 10u);
  const absl::StatusOr<Reservation> largest =
      Reservation::Create(RealKernel(), Layout(fits, 4 * kGib, 2 * kGib), {});
  EXPECT_TRUE(largest.ok()) << largest.status();
}

// Runs in a child, so that the limit is only the child's.
[[noreturn]] void MapUnderRlimitAs() {
  const rlimit limit = {4 * kGib, 4 * kGib};
  if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(1);
  const absl::Status status =
      Reservation::Create(RealKernel(), Layout(16, 4 * kGib, 2 * kGib), {})
          .status();
  std::fprintf(stderr, "%s\n", Text(status).c_str());
  // There is room for this one, but not for 4 GiB of slack beside it.
  const absl::StatusOr<Reservation> compact =
      Reservation::Create(RealKernel(), Layout(16, 64 * kMib), {});
  std::fprintf(stderr, "compact: %s, aligned: %d\n",
               compact.ok() ? "OK" : Text(compact.status()).c_str(),
               compact.ok() && compact->base() % kPoolAlignmentBytes == 0);
  _exit(0);
}

TEST(ReservationDeathTest, RlimitAsIsNamedAndACompactLayoutFits) {
#ifdef FIRSTTOUCH_TEST_SANITIZER
  GTEST_SKIP() << "needs an address space without a sanitizer's shadow";
#endif
  EXPECT_EXIT(
      MapUnderRlimitAs(), testing::ExitedWithCode(0),
      "16 slots .* need 105226698752 bytes \\(98 GiB\\) of address space, but "
      "RLIMIT_AS \\(ulimit -v\\) is 4294967296 bytes \\(4 GiB\\), of which "
      "[0-9]+ bytes .* are free; not even 1 instance fits; raise the limit "
      "\\(ulimit -v unlimited\\).*errno 12\\)\\]\n"
      "compact: OK, aligned: 1");
}

TEST(ReservationTest, TwoThousandPoolsInAProcess) {
  struct Pool {
    Reservation reservation;
    std::atomic<uint64_t> sizes[2];
    PoolEntry entry;
    explicit Pool(Reservation r) : reservation(std::move(r)), sizes{} {}
  };
  const PoolLayout layout = Layout(2);
  std::vector<std::unique_ptr<Pool>> pools;
  for (uint32_t i = 0; i < 2000; ++i) {
    absl::StatusOr<Reservation> reservation =
        Reservation::Create(RealKernel(), layout, {.name = "small"});
    ASSERT_TRUE(reservation.ok()) << i << ": " << reservation.status();
    pools.push_back(std::make_unique<Pool>(*std::move(reservation)));
    Pool& pool = *pools.back();
    pool.entry.base = pool.reservation.base();
    pool.entry.bytes = layout.reservation_bytes();
    pool.entry.first_memory_offset_bytes = layout.first_memory_offset_bytes();
    pool.entry.slot_stride_bytes = layout.slot_stride_bytes();
    pool.entry.max_memory_bytes = layout.memory_bytes();
    pool.entry.slots = layout.slots();
    pool.entry.first_size_bytes = pool.sizes;
    pool.entry.size_stride_bytes = sizeof(pool.sizes[0]);
    pool.entry.pool_id = i;
    const absl::Status registered = RegisterPool(&pool.entry);
    ASSERT_TRUE(registered.ok()) << registered;
  }
  for (uint32_t i = 0; i < 2000; ++i) {
    const Location at = Locate(pools[i]->reservation.base() +
                               layout.memory_offset_bytes(SlotIndex(1)) + 3);
    ASSERT_EQ(at.pool, &pools[i]->entry);
    EXPECT_EQ(at.slot, 1u);
    EXPECT_EQ(at.offset_bytes, 3);
  }
  for (std::unique_ptr<Pool>& pool : pools) UnregisterPool(&pool->entry);
  pools.clear();
  EXPECT_EQ(RegisteredPools(), 0u);
}

// The object that the child inherited does not unmap what the child has mapped
// in the reservation's place; it does unmap a reservation that the child
// inherited.
TEST(ReservationTest, AChildOfForkUnmapsOnlyWhatItHas) {
  for (const bool inherited : {false, true}) {
    const PoolLayout layout = *PoolLayout::Compute(
        {.instances = 1, .max_memory_bytes = uint64_t{1} << 20});
    std::optional<Reservation> reservation = *Reservation::Create(
        RealKernel(), layout, {.inherit_on_fork = inherited});
    const ChildResult child = RunInChild([&]() -> std::string {
      void* const base = reinterpret_cast<void*>(reservation->base());
      const uint64_t bytes = reservation->bytes();
      if (reservation->IsMappedHere() != inherited)
        return "IsMappedHere is off";
      const auto map = [&] {
        return mmap(
            base, bytes, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
            -1, 0);
      };
      if ((map() == base) == inherited) return "inherited otherwise";
      Reservation moved = *std::move(reservation);
      reservation.emplace(std::move(moved));
      reservation.reset();
      return map() == base ? "free" : "taken";
    });
    EXPECT_EQ(child.output, inherited ? "free" : "taken");
    EXPECT_TRUE(reservation->IsMappedHere());
  }
}

}  // namespace
}  // namespace firsttouch
