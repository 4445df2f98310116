#include "firsttouch/pool/table_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/table_pool_with_kernel.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uint64_t kPage = 4096;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

std::unique_ptr<TablePool> MakePool(Kernel& kernel,
                                    const TablePoolOptions& options) {
  absl::StatusOr<std::unique_ptr<TablePool>> pool =
      CreateTablePool(kernel, options);
  EXPECT_TRUE(pool.ok()) << pool.status();
  return pool.ok() ? *std::move(pool) : nullptr;
}

bool AllZero(const std::byte* start, uint64_t bytes) {
  return std::all_of(start, start + bytes,
                     [](std::byte b) { return b == std::byte{0}; });
}

TEST(TablePoolTest, TablesLieSideBySide) {
  std::unique_ptr<TablePool> pool =
      MakePool(RealKernel(), {.tables = 2, .max_elements = 1000});
  EXPECT_EQ(pool->layout().memory_bytes(), 2 * kPage);
  EXPECT_EQ(pool->layout().reservation_bytes(), 4 * kPage);
  EXPECT_TRUE(
      CheckLayoutInvariants(pool->layout().options(), pool->layout()).ok());
  TableLease a = *pool->Acquire(1000);
  TableLease b = *pool->Acquire(0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()), pool->base());
  EXPECT_EQ(b.data(), a.data() + 2 * kPage);
  EXPECT_EQ(a.elements(), 1000u);
  EXPECT_EQ(b.elements(), 0u);
  EXPECT_EQ(Text(pool->Acquire(1).status()),
            "all 2 slots are taken: 2 in use, 0 quarantined; release one, wait "
            "for one with a deadline, or raise TablePoolOptions::tables");
}

TEST(TablePoolTest, TheNextOwnerSeesNothing) {
  std::mt19937_64 random(3);
  for (uint64_t element_bytes : {1, 8, 24}) {
    for (uint64_t keep : {uint64_t{0}, uint64_t{100}, kPage, ~uint64_t{0}}) {
      std::unique_ptr<TablePool> pool =
          MakePool(RealKernel(), {.tables = 1,
                                  .max_elements = 2000,
                                  .element_bytes = element_bytes,
                                  .keep_resident_bytes = keep});
      for (int round = 0; round < 50; ++round) {
        const uint64_t first = random() % 2001;
        const uint64_t grown = first + random() % (2001 - first);
        TableLease table = *pool->Acquire(first);
        ASSERT_TRUE(AllZero(table.data(), 2000 * element_bytes));
        std::memset(table.data(), 0x5a, first * element_bytes);
        ASSERT_TRUE(table.Grow(grown).ok());
        EXPECT_EQ(table.elements(), grown);
        std::memset(table.data(), 0xa5, grown * element_bytes);
      }
    }
  }
}

TEST(TablePoolTest, GrowsUpToItsMaximum) {
  std::unique_ptr<TablePool> pool =
      MakePool(RealKernel(), {.tables = 1, .max_elements = 10});
  EXPECT_EQ(Text(pool->Acquire(11).status()),
            "a table of 11 elements exceeds max_elements 10; raise "
            "TablePoolOptions::max_elements");
  TableLease table = *pool->Acquire(5);
  EXPECT_EQ(Text(table.Grow(4)), "a table of 5 elements cannot shrink to 4");
  EXPECT_EQ(Text(table.Grow(~uint64_t{0})),
            "a table of 18446744073709551615 elements exceeds max_elements 10; "
            "raise TablePoolOptions::max_elements");
  EXPECT_EQ(table.elements(), 5u);
  EXPECT_TRUE(table.Grow(10).ok());
  table.Release();
  EXPECT_EQ(table.data(), nullptr);
  EXPECT_EQ(table.elements(), 0u);
  EXPECT_EQ(table.Grow(10).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Text(table.Grow(10)), "the table was released");
  table.Release();  // nothing happens
  EXPECT_EQ(pool->in_use(), 0u);
}

TEST(TablePoolTest, MovingKeepsOneOwner) {
  std::unique_ptr<TablePool> pool =
      MakePool(RealKernel(), {.tables = 2, .max_elements = 10});
  TableLease a = *pool->Acquire(1);
  TableLease b = *pool->Acquire(2);
  std::byte* data = b.data();
  a = std::move(b);
  EXPECT_EQ(a.data(), data);
  EXPECT_EQ(a.elements(), 2u);
  EXPECT_EQ(b.data(), nullptr);
  EXPECT_EQ(pool->in_use(), 1u);
  TableLease c(std::move(a));
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(pool->in_use(), 1u);
}

TEST(TablePoolTest, ATableThatCannotBeCleanedIsQuarantined) {
  FakeKernel kernel;
  std::unique_ptr<TablePool> pool = MakePool(
      kernel, {.tables = 1, .max_elements = 1000, .keep_resident_bytes = 0});
  kernel.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  { TableLease table = *pool->Acquire(1000); }
  EXPECT_EQ(pool->quarantined(), 1u);
  EXPECT_EQ(pool->in_use(), 0u);
  EXPECT_EQ(Text(pool->Acquire(1).status()),
            "all 1 slots are taken: 0 in use, 1 quarantined because their "
            "reset failed, so that none will become free; make a new pool");
}

// Does everything that the child can do with it, in the two orders in which the
// child may destroy pool and lease, with memory of the child's own where the
// tables were.
TEST(TablePoolTest, AChildOfForkIsToldAndKeepsWhatLiesWhereTheTablesWere) {
  for (const bool pool_first : {false, true}) {
    std::unique_ptr<TablePool> pool = MakePool(
        RealKernel(),
        {.tables = 2, .max_elements = 1000, .keep_resident_bytes = kPage});
    std::optional<TableLease> table = *pool->Acquire(1000);
    std::memset(table->data(), 1, 8000);
    const ChildResult child = RunInChild([&]() -> std::string {
      auto* const base = reinterpret_cast<std::byte*>(table->data());
      void* const own =
          mmap(base, 2 * kPage, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (own != base) return "the tables are there in the child";
      std::memset(own, 42, 2 * kPage);
      const absl::Status grown = table->Grow(1000);
      if (grown != pool->Acquire(1).status()) return "two texts";
      if (pool_first) pool = nullptr;
      table.reset();
      pool = nullptr;
      unsigned char resident[2];
      if (mincore(own, 2 * kPage, resident) != 0) return "unmapped";
      const bool same = std::all_of(base, base + 2 * kPage, [](std::byte b) {
        return b == std::byte{42};
      });
      return same ? grown.ToString() : "the child's memory was changed";
    });
    EXPECT_EQ(child.output,
              "FAILED_PRECONDITION: the tables belong to the process that made "
              "the TablePool; this is a child of fork(2), which does not have "
              "them: make a TablePool of its own in the child");
    EXPECT_EQ(child.exit_code, 0);
    EXPECT_EQ(table->data()[7999], std::byte{1});
    EXPECT_TRUE(table->Grow(1000).ok());
  }
}

TEST(TablePoolTest, ErrorsNameTheOption) {
  auto error = [](const TablePoolOptions& options) {
    const absl::Status status = CreateTablePool(RealKernel(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Text(status);
  };
  EXPECT_EQ(error({.tables = 0, .max_elements = 1}),
            "tables is 0; a table pool holds at least 1 table");
  EXPECT_EQ(error({.tables = 1, .max_elements = 0}),
            "max_elements 0 * element_bytes 8 is 0; a table has room for at "
            "least 1 byte");
  EXPECT_EQ(error({.tables = 1, .max_elements = 5, .element_bytes = 0}),
            "max_elements 5 * element_bytes 0 is 0; a table has room for at "
            "least 1 byte");
  EXPECT_EQ(error({.tables = 1, .max_elements = uint64_t{1} << 61}),
            "max_elements 2305843009213693952 * element_bytes 8 does not fit "
            "64 bits; lower one of them");
  EXPECT_EQ(
      error({.tables = 1, .max_elements = ~uint64_t{0}, .element_bytes = 1}),
      "max_elements 18446744073709551615 * element_bytes 1 does not fit "
      "64 bits; lower one of them");
  EXPECT_EQ(error({.tables = 4'000'000'000, .max_elements = uint64_t{1} << 40}),
            "tables 4000000000 * max_elements 1099511627776 * element_bytes 8 "
            "does not fit 64 bits; lower one of them");
  EXPECT_EQ(CreateTablePool(RealKernel(),
                            {.tables = 1'000'000'000, .max_elements = 1 << 20})
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(TablePoolDeathTest, DestroyingALeasedTableEndsTheProcess) {
  // All of it runs in the process that dies, which has to be the one that made
  // the pool.
  EXPECT_DEATH(
      {
        std::unique_ptr<TablePool> pool =
            MakePool(RealKernel(), {.tables = 2, .max_elements = 1});
        TableLease lease = *pool->Acquire(1);
        pool.reset();
      },
      "firsttouch: a TablePool is destroyed while 1 of its tables are leased");
}

}  // namespace
}  // namespace firsttouch
