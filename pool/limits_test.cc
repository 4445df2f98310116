#include "firsttouch/pool/limits.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/uffd/mapping_wall.h"
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

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr uint64_t kTib = uint64_t{1} << 40;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

// 4 GiB of memory and 2 GiB of guard each, as for 32-bit Wasm.
PoolLayout SixGibEach(uint32_t instances, uint32_t memories = 1) {
  const absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = instances,
                           .memories_per_instance = memories,
                           .max_memory_bytes = 4 * kGib,
                           .guard_before_bytes = 2 * kGib,
                           .guard_after_bytes = 2 * kGib});
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

TEST(LimitsTest, NamesAreTheOnesToLookUp) {
  EXPECT_EQ(LimitName(Limit::kAddressSpace), "address space");
  EXPECT_EQ(LimitName(Limit::kRlimitAs), "RLIMIT_AS");
  EXPECT_EQ(LimitName(Limit::kMapCount), "vm.max_map_count");
  EXPECT_EQ(LimitName(Limit::kOvercommit), "overcommit");
}

TEST(LimitsTest, WithoutLimitsEverythingFitsTheAddressSpace) {
  const LimitVerdict verdict = JudgeLimits(SixGibEach(20'000), {}, {});
  EXPECT_EQ(verdict.exceeded, std::nullopt);
  // (2^47 - 2 GiB) / 6 GiB.
  EXPECT_EQ(verdict.largest_instances, 21'845u);
  EXPECT_TRUE(CheckLimits(SixGibEach(21'845), {}, {}).ok());
  EXPECT_FALSE(CheckLimits(SixGibEach(21'846), {}, {}).ok());
}

TEST(LimitsTest, ABillionSlots) {
  EXPECT_EQ(Text(CheckLimits(SixGibEach(1'000'000'000), {}, {})),
            "1000000000 slots (instances 1000000000 * memories_per_instance 1) "
            "need 6442450946147483648 bytes (5.588 EiB) of address space, but "
            "of 47 bits (140737488355328 bytes (128 TiB)) only 140737488355328 "
            "bytes (128 TiB) are free in one piece; the largest pool that fits "
            "has instances = 21845; lower instances, max_memory_bytes or "
            "guard_after_bytes");
}

TEST(LimitsTest, SmallAddressSpaces) {
  // 39 bits, as some kernels and processors have.
  LimitFacts facts = {.address_space_bits = 39, .mapped_bytes = 12 * kGib};
  LimitVerdict verdict = JudgeLimits(SixGibEach(100), {}, facts);
  EXPECT_EQ(verdict.exceeded, Limit::kAddressSpace);
  EXPECT_EQ(verdict.asked, 602 * kGib);
  EXPECT_EQ(verdict.available, 500 * kGib);
  EXPECT_EQ(verdict.largest_instances, 83u);

  // The gap counts where it is known, less what alignment may lose.
  facts.largest_gap_bytes = 200 * kGib;
  verdict = JudgeLimits(SixGibEach(100), {}, facts);
  EXPECT_EQ(verdict.exceeded, Limit::kAddressSpace);
  EXPECT_EQ(verdict.available, 196 * kGib);
  EXPECT_EQ(verdict.largest_instances, 32u);
  verdict = JudgeLimits(SixGibEach(100), {.alignment_bytes = 4096}, facts);
  EXPECT_EQ(verdict.available, 200 * kGib - 4096);
}

TEST(LimitsTest, RlimitAs) {
  const LimitFacts facts = {.rlimit_as_bytes = 4 * kGib,
                            .mapped_bytes = 100 * kMib};
  const absl::Status status = CheckLimits(SixGibEach(10, 2), {}, facts);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      Text(status),
      "20 slots (instances 10 * memories_per_instance 2) need 130996502528 "
      "bytes (122 GiB) of address space, but RLIMIT_AS (ulimit -v) is "
      "4294967296 bytes (4 GiB), of which 4190109696 bytes (3.902 GiB) are "
      "free; not even 1 instance fits; raise the limit (ulimit -v unlimited), "
      "or lower instances, max_memory_bytes or guard_after_bytes");

  // A compact layout of the same number of slots fits.
  const absl::StatusOr<PoolLayout> compact =
      PoolLayout::Compute({.instances = 10,
                           .memories_per_instance = 2,
                           .max_memory_bytes = 128 * kMib,
                           .guard_after_bytes = 64 * 1024});
  ASSERT_TRUE(compact.ok()) << compact.status();
  EXPECT_TRUE(CheckLimits(*compact, {}, facts).ok());
  EXPECT_EQ(JudgeLimits(*compact, {}, facts).largest_instances, 15u);

  // This process is over its limit already.
  EXPECT_EQ(JudgeLimits(*compact, {},
                        {.rlimit_as_bytes = kGib, .mapped_bytes = 2 * kGib})
                .largest_instances,
            0u);
}

TEST(LimitsTest, MapCount) {
  const LimitFacts facts = {.max_map_count = 65'530, .maps = 530};
  const LimitUse bound = {.fixed_maps = 1, .maps_per_slot = 2};
  EXPECT_EQ(
      Text(CheckLimits(
          SixGibEach(20'000, 2), bound,
          {.address_space_bits = 57, .max_map_count = 65'530, .maps = 530})),
      "40000 slots (instances 20000 * memories_per_instance 2) need up "
      "to 80001 mappings (2 a slot), but vm.max_map_count is 65530, of "
      "which 65000 are free; the largest pool that fits has instances = "
      "16249; raise it (sysctl vm.max_map_count), lower instances, or "
      "take a backing that needs no mapping for each slot");
  EXPECT_TRUE(CheckLimits(SixGibEach(16'249, 1), bound, facts).ok());
  // A pool that copies needs one mapping, however many slots it has.
  EXPECT_TRUE(CheckLimits(SixGibEach(20'000), {}, facts).ok());
  // No mapping is left at all.
  const LimitVerdict verdict =
      JudgeLimits(SixGibEach(1), {}, {.max_map_count = 65'530, .maps = 65'530});
  EXPECT_EQ(verdict.exceeded, Limit::kMapCount);
  EXPECT_EQ(verdict.asked, 1u);
  EXPECT_EQ(verdict.available, 0u);
  EXPECT_EQ(verdict.largest_instances, 0u);
}

TEST(LimitsTest, Overcommit) {
  LimitFacts facts = {.overcommit = Overcommit::kNever,
                      .commit_limit_bytes = 12 * kGib,
                      .committed_bytes = 2 * kGib};
  EXPECT_EQ(Text(CheckLimits(SixGibEach(2), {}, facts)),
            "2 slots (instances 2 * memories_per_instance 1) need 15032385536 "
            "bytes (14 GiB) of address space, all of which counts as committed "
            "under vm.overcommit_memory = 2; of the commit limit of "
            "12884901888 bytes (12 GiB) only 10737418240 bytes (10 GiB) are "
            "free; the largest pool that fits has instances = 1; set "
            "vm.overcommit_memory to 0 or 1, raise vm.overcommit_ratio, or "
            "lower instances, max_memory_bytes or guard_after_bytes");
  // In the other modes MAP_NORESERVE keeps the reservation out of the count.
  facts.overcommit = Overcommit::kHeuristic;
  EXPECT_TRUE(CheckLimits(SixGibEach(2), {}, facts).ok());
  facts.overcommit = Overcommit::kAlways;
  EXPECT_TRUE(CheckLimits(SixGibEach(2), {}, facts).ok());
}

TEST(LimitsTest, TheTightestLimitIsNamed) {
  const LimitFacts facts = {.rlimit_as_bytes = 10 * kTib,
                            .max_map_count = 1000,
                            .overcommit = Overcommit::kNever,
                            .commit_limit_bytes = 20 * kTib};
  const LimitUse bound = {.maps_per_slot = 2};
  // 1706 instances by RLIMIT_AS, 3413 by overcommit, 499 by mappings.
  LimitVerdict verdict = JudgeLimits(SixGibEach(20'000), bound, facts);
  EXPECT_EQ(verdict.exceeded, Limit::kMapCount);
  EXPECT_EQ(verdict.largest_instances, 499u);
  verdict = JudgeLimits(SixGibEach(20'000), {}, facts);
  EXPECT_EQ(verdict.exceeded, Limit::kRlimitAs);
  EXPECT_EQ(verdict.largest_instances, 1706u);
}

TEST(LimitsTest, TheLargestPoolThatIsNamedFits) {
  for (uint64_t limit = kGib; limit < 64 * kGib; limit += 777 * kMib) {
    const LimitFacts facts = {.rlimit_as_bytes = limit};
    const uint32_t largest =
        JudgeLimits(SixGibEach(100), {}, facts).largest_instances;
    if (largest > 0) {
      EXPECT_TRUE(CheckLimits(SixGibEach(largest), {}, facts).ok());
    }
    EXPECT_FALSE(CheckLimits(SixGibEach(largest + 1), {}, facts).ok());
  }
}

TEST(LimitsTest, FactsOfThisMachine) {
  const LimitFacts facts = ReadLimitFacts();
  EXPECT_EQ(facts.address_space_bits, 47u);
  EXPECT_GT(facts.mapped_bytes, kMib);
  EXPECT_GT(facts.maps, 5u);
  EXPECT_LT(facts.maps, facts.max_map_count);
  EXPECT_GT(facts.largest_gap_bytes, kGib);
  EXPECT_LE(facts.largest_gap_bytes, uint64_t{1} << 47);
  EXPECT_GT(facts.commit_limit_bytes, 0u);

  // The facts show what this test maps.
  constexpr uint64_t kBytes = 64 * kGib;
  void* mapped = mmap(nullptr, kBytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) GTEST_SKIP() << "needs 64 GiB of address space";
  const LimitFacts after = ReadLimitFacts();
  munmap(mapped, kBytes);
  EXPECT_GE(after.mapped_bytes, kBytes);
  EXPECT_GE(after.mapped_bytes, facts.mapped_bytes + kBytes - 16 * kMib);
  EXPECT_GE(after.maps + 2, facts.maps);
}

TEST(LimitsTest, BookKeepingThatMemoryHasNoRoomForIsRefused) {
  const PoolLayout layout = SixGibEach(1000);
  EXPECT_TRUE(CheckBookKeeping(layout, 1024, {}).ok());
  EXPECT_TRUE(
      CheckBookKeeping(layout, 1024, {.available_memory_bytes = 1'024'000})
          .ok());
  const absl::Status memory =
      CheckBookKeeping(layout, 1024, {.available_memory_bytes = 1'023'999});
  EXPECT_EQ(memory.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Text(memory),
            "the book-keeping of instances 1000 needs 1024000 bytes (1000 "
            "KiB), but only 1023999 bytes (1000 KiB) of memory and swap are "
            "available; lower instances to at most 999");
  EXPECT_EQ(Text(CheckBookKeeping(layout, 1024,
                                  {.rlimit_as_bytes = 5 * kMib,
                                   .mapped_bytes = 4 * kMib + 1024})),
            "");
  EXPECT_EQ(Text(CheckBookKeeping(
                layout, 1024,
                {.rlimit_as_bytes = kMib, .mapped_bytes = kMib - 2048})),
            "the book-keeping of instances 1000 needs 1024000 bytes (1000 "
            "KiB), but only 2048 bytes (2 KiB) are left below RLIMIT_AS "
            "(ulimit -v); lower instances to at most 2");
}

TEST(LimitsTest, FactsAreReadAtTheMappingLimit) {
#ifdef FIRSTTOUCH_TEST_SANITIZER
  GTEST_SKIP() << "a sanitizer needs mappings of its own";
#endif
  LimitFacts facts;
  {
    const MappingWall wall;
    if (!wall.at_limit()) GTEST_SKIP() << "vm.max_map_count is higher";
    facts = ReadLimitFacts();
  }
  // The last split of a mapping fails one or two mappings below the limit.
  EXPECT_GE(facts.maps + 2, facts.max_map_count);
  EXPECT_LE(facts.maps, facts.max_map_count + 2);
}

// Runs in a child, so that the limit is only the child's.
[[noreturn]] void ReadUnderRlimitAs() {
  const rlimit limit = {kTib, kTib};
  if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(1);
  std::fprintf(
      stderr, "limit %llu\n",
      static_cast<unsigned long long>(ReadLimitFacts().rlimit_as_bytes));
  _exit(0);
}

TEST(LimitsDeathTest, ReadsRlimitAs) {
#ifdef FIRSTTOUCH_TEST_SANITIZER
  GTEST_SKIP() << "needs an address space without a sanitizer's shadow";
#endif
  EXPECT_EXIT(ReadUnderRlimitAs(), testing::ExitedWithCode(0),
              "limit 1099511627776");
}

}  // namespace
}  // namespace firsttouch
