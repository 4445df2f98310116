#include "firsttouch/pool/stack_pool.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/pool/stack_pool_with_kernel.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/probe.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#if defined(__SANITIZE_THREAD__)
#define FIRSTTOUCH_TEST_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIRSTTOUCH_TEST_THREAD_SANITIZER 1
#endif
#endif

namespace firsttouch {
namespace {

using testing::ContainsRegex;
using Op = FakeKernel::Op;

constexpr uint64_t kPage = 4096;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

std::unique_ptr<StackPool> MakePool(Kernel& kernel,
                                    const StackPoolOptions& options) {
  absl::StatusOr<std::unique_ptr<StackPool>> pool =
      CreateStackPool(kernel, options);
  EXPECT_TRUE(pool.ok()) << pool.status();
  return pool.ok() ? *std::move(pool) : nullptr;
}

// A pool without MADV_GUARD_INSTALL: the third madvise (after the reservation's
// two) is the first guard.
std::unique_ptr<StackPool> MakeOldKernelPool(FakeKernel& kernel,
                                             const StackPoolOptions& options) {
  kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  return MakePool(kernel, options);
}

bool AllZero(const std::byte* start, uint64_t bytes) {
  return std::all_of(start, start + bytes,
                     [](std::byte b) { return b == std::byte{0}; });
}

TEST(StackPoolTest, StacksLieBetweenGuards) {
  std::unique_ptr<StackPool> pool = MakePool(
      RealKernel(),
      {.name = "test", .stacks = 3, .stack_bytes = 65536, .guard_bytes = 8192});
  EXPECT_TRUE(
      CheckLayoutInvariants(pool->layout().options(), pool->layout()).ok());
  EXPECT_EQ(pool->capacity(), 3u);
  std::vector<StackLease> leases;
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<StackLease> lease = pool->Acquire();
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(lease->base()),
              pool->base() + 8192 + i * (65536 + 8192));
    EXPECT_EQ(lease->bytes(), 65536u);
    EXPECT_EQ(lease->top(), lease->base() + 65536);
    leases.push_back(*std::move(lease));
  }
  EXPECT_EQ(pool->in_use(), 3u);
  EXPECT_EQ(Text(pool->Acquire().status()),
            "all 3 slots are taken: 3 in use, 0 quarantined; release one, wait "
            "for one with a deadline, or raise StackPoolOptions::stacks");
  leases.clear();
  EXPECT_EQ(pool->in_use(), 0u);
}

TEST(StackPoolTest, GuardsTakeNoMappings) {
  const uint64_t before = ReadLimitFacts().maps;
  std::unique_ptr<StackPool> pool =
      MakePool(RealKernel(),
               {.stacks = 10'000, .stack_bytes = 65536, .guard_bytes = 4096});
  if (pool->guards() != StackPool::Guards::kMarkers) {
    GTEST_SKIP() << "needs MADV_GUARD_INSTALL (kernel 6.13)";
  }
  EXPECT_LT(ReadLimitFacts().maps, before + 20);
}

TEST(StackPoolTest, TheNextOwnerSeesNothing) {
  FakeKernel old_kernel;
  const StackPoolOptions options = {.stacks = 1,
                                    .stack_bytes = 16 * kPage,
                                    .guard_bytes = kPage,
                                    .keep_resident_bytes = 3 * kPage};
  StackPoolOptions keep_none = options;
  keep_none.keep_resident_bytes = 0;
  StackPoolOptions keep_all = options;
  keep_all.keep_resident_bytes = ~uint64_t{0};
  StackPoolOptions keep_odd = options;
  keep_odd.keep_resident_bytes = kPage + 17;
  std::vector<std::unique_ptr<StackPool>> pools;
  for (const StackPoolOptions& o : {options, keep_none, keep_all, keep_odd}) {
    pools.push_back(MakePool(RealKernel(), o));
  }
  pools.push_back(MakeOldKernelPool(old_kernel, options));
  for (const std::unique_ptr<StackPool>& pool : pools) {
    for (int round = 0; round < 3; ++round) {
      absl::StatusOr<StackLease> lease = pool->Acquire();
      ASSERT_TRUE(lease.ok()) << lease.status();
      EXPECT_TRUE(AllZero(lease->base(), lease->bytes()));
      std::memset(lease->base(), 0x5a, lease->bytes());
      lease->Release();
      EXPECT_EQ(lease->base(), nullptr);
      EXPECT_EQ(lease->bytes(), 0u);
      lease->Release();  // nothing happens
      EXPECT_EQ(pool->in_use(), 0u);
    }
  }
}

TEST(StackPoolTest, MovingKeepsOneOwner) {
  std::unique_ptr<StackPool> pool =
      MakePool(RealKernel(), {.stacks = 2, .stack_bytes = kPage});
  StackLease a = *pool->Acquire();
  StackLease b = *pool->Acquire();
  std::byte* base = b.base();
  a = std::move(b);
  EXPECT_EQ(a.base(), base);
  EXPECT_EQ(b.base(), nullptr);
  EXPECT_EQ(pool->in_use(), 1u);
  StackLease c(std::move(a));
  EXPECT_EQ(c.base(), base);
  EXPECT_EQ(pool->in_use(), 1u);
}

TEST(StackPoolTest, AStackThatCannotBeCleanedIsQuarantined) {
  FakeKernel kernel;
  std::unique_ptr<StackPool> pool =
      MakePool(kernel, {.stacks = 2, .stack_bytes = 65536});
  absl::StatusOr<StackLease> lease = pool->Acquire();
  ASSERT_TRUE(lease.ok());
  std::byte* dirty = lease->base();
  std::memset(dirty, 1, lease->bytes());
  kernel.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  lease->Release();
  EXPECT_EQ(pool->quarantined(), 1u);
  EXPECT_EQ(pool->in_use(), 0u);
  StackLease other = *pool->Acquire();
  EXPECT_NE(other.base(), dirty);
  EXPECT_EQ(pool->Acquire().status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(StackPoolTest, WaitsForAStack) {
  std::unique_ptr<StackPool> pool =
      MakePool(RealKernel(), {.stacks = 1, .stack_bytes = kPage});
  StackLease lease = *pool->Acquire();
  std::thread waiter(
      [&] { EXPECT_TRUE(pool->Acquire(absl::InfiniteFuture()).ok()); });
  lease.Release();
  waiter.join();
}

TEST(StackPoolTest, ErrorsNameTheOption) {
  auto error = [](const StackPoolOptions& options) {
    const absl::Status status = CreateStackPool(RealKernel(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Text(status);
  };
  EXPECT_EQ(error({.stacks = 0, .stack_bytes = kPage}),
            "stacks is 0; a stack pool holds at least 1 stack");
  EXPECT_EQ(error({.stacks = 1, .stack_bytes = 0}),
            "stack_bytes 0 is not a multiple of the page size 4096 above 0");
  EXPECT_EQ(error({.stacks = 1, .stack_bytes = 5000}),
            "stack_bytes 5000 is not a multiple of the page size 4096 above 0");
  EXPECT_EQ(error({.stacks = 1, .stack_bytes = kPage, .guard_bytes = 0}),
            "guard_bytes 0 is not a multiple of the page size 4096 above 0; "
            "without a guard an overflow reaches the next stack");
  EXPECT_EQ(
      error({.stacks = 4'000'000'000,
             .stack_bytes = uint64_t{1} << 40,
             .guard_bytes = kPage}),
      "stacks 4000000000 * (stack_bytes 1099511627776 (1 TiB) + guard_bytes "
      "4096) does not fit 64 bits; lower one of them");
  EXPECT_EQ(CreateStackPool(RealKernel(),
                            {.stacks = 1'000'000'000, .stack_bytes = 1 << 20})
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(StackPoolTest, AKernelThatRefusesAGuardByMarker) {
  if (Probe(RealKernel()).guard_install_error != 0) {
    GTEST_SKIP() << "MADV_GUARD_INSTALL (Linux 6.13)";
  }
  // The third guard fails.
  FakeKernel kernel;
  kernel.Fail(Op::kMadvise, 5, CallResult{0, ENOMEM});
  const absl::Status status =
      CreateStackPool(kernel, {.stacks = 4, .stack_bytes = kPage}).status();
  EXPECT_THAT(Text(status),
              ContainsRegex("madvise\\(MADV_GUARD_INSTALL\\) of the guard "
                            "above stack 1 \\[0x[0-9a-f]+, 0x[0-9a-f]+\\): "
                            "Cannot allocate memory"));
  EXPECT_EQ(kernel.Calls(Op::kMmap), 1u);
  EXPECT_GE(kernel.Calls(Op::kMunmap), 1u);
}

TEST(StackPoolTest, AKernelThatRefusesAGuardByMprotect) {
  FakeKernel old_kernel;
  old_kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  // The first call makes the reservation accessible.
  old_kernel.Fail(Op::kMprotect, 2, CallResult{0, ENOMEM});
  absl::Status status =
      CreateStackPool(old_kernel, {.stacks = 4, .stack_bytes = kPage}).status();
  EXPECT_THAT(Text(status),
              ContainsRegex("mprotect\\(PROT_NONE\\) of the guard below stack "
                            "0 \\[.*\\): Cannot allocate memory"));
  // More guards than there are mappings.
  FakeKernel small_kernel;
  small_kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  status = CreateStackPool(small_kernel, {.stacks = 1'000'000,
                                          .stack_bytes = kPage,
                                          .guard_bytes = kPage})
               .status();
  if (ReadLimitFacts().max_map_count < 2'000'000) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(
        Text(status),
        ContainsRegex("1000000 slots .* need up to 2000001 mappings \\(2 "
                      "a slot\\), but vm.max_map_count is "));
    EXPECT_EQ(small_kernel.Calls(Op::kMprotect), 1u);
  }
}

// Writes one byte and reports that it survived.
[[noreturn]] void Touch(std::byte* at) {
  std::signal(SIGSEGV, SIG_DFL);
  *reinterpret_cast<volatile char*>(at) = 1;
  _exit(0);
}

TEST(StackPoolDeathTest, TouchingAGuardKills) {
  FakeKernel old_kernel;
  const StackPoolOptions options = {
      .stacks = 3, .stack_bytes = 4 * kPage, .guard_bytes = 2 * kPage};
  std::unique_ptr<StackPool> pools[] = {MakePool(RealKernel(), options),
                                        MakeOldKernelPool(old_kernel, options)};
  EXPECT_EQ(pools[1]->guards(), StackPool::Guards::kMprotect);
  for (const std::unique_ptr<StackPool>& pool : pools) {
    std::vector<StackLease> leases;
    for (int i = 0; i < 3; ++i) {
      leases.push_back(*pool->Acquire());
      // Recycling leaves the guards in place.
      std::memset(leases.back().base(), 1, leases.back().bytes());
      leases.back().Release();
      leases.back() = *pool->Acquire();
    }
    for (StackLease& lease : leases) {
      EXPECT_EXIT(Touch(lease.base()), testing::ExitedWithCode(0), "");
      EXPECT_EXIT(Touch(lease.top() - 1), testing::ExitedWithCode(0), "");
      EXPECT_EXIT(Touch(lease.base() - 1), testing::KilledBySignal(SIGSEGV),
                  "");
      EXPECT_EXIT(Touch(lease.base() - 2 * kPage),
                  testing::KilledBySignal(SIGSEGV), "");
      EXPECT_EXIT(Touch(lease.top()), testing::KilledBySignal(SIGSEGV), "");
    }
  }
}

// Runs a fiber on a pool's stack, small and large.
ucontext_t g_caller;
ucontext_t g_fiber;
int g_depth;
int g_result;

[[gnu::noinline]] int Recurse(int depth) {
  volatile char frame[256];
  frame[0] = static_cast<char>(depth);
  return depth == 0 ? frame[0] : Recurse(depth - 1) + 1 + (frame[0] & 0);
}

void RunFiber() {
  g_result = Recurse(g_depth);
  swapcontext(&g_fiber, &g_caller);
}

void RunOn(const StackLease& stack, int depth) {
  g_depth = depth;
  getcontext(&g_fiber);
  g_fiber.uc_stack.ss_sp = stack.base();
  g_fiber.uc_stack.ss_size = stack.bytes();
  g_fiber.uc_link = nullptr;
  makecontext(&g_fiber, RunFiber, 0);
  swapcontext(&g_caller, &g_fiber);
}

[[noreturn]] void RunForever(const StackLease& stack) {
  std::signal(SIGSEGV, SIG_DFL);
  RunOn(stack, 1 << 30);
  _exit(0);
}

TEST(StackPoolDeathTest, CodeThatOverflowsItsStackDies) {
#ifdef FIRSTTOUCH_TEST_THREAD_SANITIZER
  GTEST_SKIP() << "needs a build without ThreadSanitizer, which follows stacks";
#endif
  std::unique_ptr<StackPool> pool =
      MakePool(RealKernel(), {.stacks = 2, .stack_bytes = 256 * 1024});
  StackLease neighbour = *pool->Acquire();
  StackLease stack = *pool->Acquire();
  RunOn(stack, 100);
  EXPECT_EQ(g_result, 100);
  EXPECT_FALSE(AllZero(stack.base(), stack.bytes()));
  EXPECT_TRUE(AllZero(neighbour.base(), neighbour.bytes()));
  EXPECT_EXIT(RunForever(stack), testing::KilledBySignal(SIGSEGV), "");
}

TEST(StackPoolDeathTest, DestroyingALeasedStackEndsTheProcess) {
  std::unique_ptr<StackPool> pool =
      MakePool(RealKernel(), {.stacks = 2, .stack_bytes = kPage});
  StackLease lease = *pool->Acquire();
  EXPECT_DEATH(pool.reset(),
               "firsttouch: a StackPool is destroyed while 1 of its stacks are "
               "leased");
}

}  // namespace
}  // namespace firsttouch
