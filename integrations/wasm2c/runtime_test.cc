// The parts of the runtime that need no guest: signatures, tables, messages.
#include "firsttouch/integrations/wasm2c/runtime.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {
namespace {

TEST(FunctionTypeTest, TheSameSignatureHasTheSameNumber) {
  const uint32_t unary =
      wasm_rt_register_func_type(1, 1, WASM_RT_I32, WASM_RT_I32);
  EXPECT_NE(unary, 0u);
  EXPECT_EQ(wasm_rt_register_func_type(1, 1, WASM_RT_I32, WASM_RT_I32), unary);
  // The same types, otherwise divided.
  const uint32_t binary =
      wasm_rt_register_func_type(2, 0, WASM_RT_I32, WASM_RT_I32);
  const uint32_t source =
      wasm_rt_register_func_type(0, 2, WASM_RT_I32, WASM_RT_I32);
  EXPECT_NE(binary, unary);
  EXPECT_NE(source, unary);
  EXPECT_NE(source, binary);
  EXPECT_NE(wasm_rt_register_func_type(0, 0), unary);
  EXPECT_NE(wasm_rt_register_func_type(1, 1, WASM_RT_I64, WASM_RT_I32), unary);
}

TEST(FunctionTypeTest, ThreadsAgree) {
  std::vector<uint32_t> numbers(8 * 64);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&numbers, thread] {
      for (int i = 0; i < 64; ++i) {
        // Six parameters of four types each: the bits of i.
        const auto type = [&](int bit) {
          return ((i >> bit) & 1) != 0 ? WASM_RT_F64 : WASM_RT_F32;
        };
        numbers[thread * 64 + i] = wasm_rt_register_func_type(
            6, 0, type(0), type(1), type(2), type(3), type(4), type(5));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 8 * 64; ++i) EXPECT_EQ(numbers[i], numbers[i % 64]);
}

TEST(TableTest, GrowsToItsMaximumAndFills) {
  wasm_rt_funcref_table_t table;
  wasm_rt_allocate_funcref_table(&table, 2, 100);
  int instance = 0;
  const wasm_rt_funcref_t init = {
      .func_type = 3, .func = nullptr, .module_instance = &instance};
  for (uint32_t i = 0; i < 98; ++i) {
    ASSERT_EQ(wasm_rt_grow_funcref_table(&table, 1, init), 2 + i);
  }
  EXPECT_EQ(wasm_rt_grow_funcref_table(&table, 1, init), UINT32_MAX);
  EXPECT_EQ(wasm_rt_grow_funcref_table(&table, UINT32_MAX, init), UINT32_MAX);
  EXPECT_EQ(wasm_rt_grow_funcref_table(&table, 0, init), 100u);
  EXPECT_EQ(table.data[1].module_instance, nullptr);
  EXPECT_EQ(table.data[2].module_instance, &instance);
  EXPECT_EQ(table.data[99].func_type, 3u);
  wasm_rt_free_funcref_table(&table);
  EXPECT_EQ(table.data, nullptr);
}

TEST(TableTest, EmptyTablesGrowToo) {
  wasm_rt_externref_table_t table;
  wasm_rt_allocate_externref_table(&table, 0, UINT32_MAX);
  EXPECT_EQ(wasm_rt_grow_externref_table(&table, 0, nullptr), 0u);
  int object = 0;
  EXPECT_EQ(wasm_rt_grow_externref_table(&table, 3, &object), 0u);
  EXPECT_EQ(table.data[2], &object);
  wasm_rt_free_externref_table(&table);
}

TEST(RunGuardedTest, ReturnsTrapsExitsAndFailures) {
  Trap trap;
  absl::Status error;
  EXPECT_EQ(RunGuarded([] {}, {}, &trap, &error), RunEnd::kReturned);
  EXPECT_EQ(RunGuarded([] { wasm_rt_trap(WASM_RT_TRAP_UNREACHABLE); }, {},
                       &trap, &error),
            RunEnd::kTrapped);
  EXPECT_EQ(trap.code, WASM_RT_TRAP_UNREACHABLE);
  EXPECT_EQ(trap.Message(), "unreachable instruction executed");
  EXPECT_EQ(RunGuarded([] { ExitGuest(3); }, {}, &trap, &error),
            RunEnd::kExited);
  EXPECT_TRUE(trap.exited);
  EXPECT_EQ(trap.Message(), "the guest exited with code 3");
  EXPECT_EQ(RunGuarded([] { FailGuest(absl::DataLossError("gone")); }, {},
                       &trap, &error),
            RunEnd::kHostError);
  EXPECT_EQ(error, absl::DataLossError("gone"));
  EXPECT_EQ(wasm_rt_stack_limit, 0u);
}

TEST(RunGuardedTest, AnInnerRunGetsNoMoreStackThanTheOuterHasLeft) {
  Trap trap;
  absl::Status error;
  uintptr_t outer = 0, inner = 0;
  RunGuarded(
      [&] {
        outer = wasm_rt_stack_limit;
        Trap inner_trap;
        absl::Status inner_error;
        RunGuarded([&] { inner = wasm_rt_stack_limit; },
                   {.stack_bytes = size_t{1} << 20}, &inner_trap, &inner_error);
      },
      {.stack_bytes = 65536}, &trap, &error);
  EXPECT_NE(outer, 0u);
  EXPECT_EQ(inner, outer);
}

TEST(ScopedMemorySourceTest, WithoutOneThereIsNoMemory) {
  Trap trap;
  absl::Status error;
  wasm_rt_memory_t memory = {};
  EXPECT_EQ(RunGuarded([&] { wasm_rt_allocate_memory(&memory, 1, 2); }, {},
                       &trap, &error),
            RunEnd::kHostError);
  EXPECT_EQ(error,
            absl::FailedPreconditionError(
                "wasm_rt_allocate_memory: no MemorySource is bound to this "
                "thread; instantiate with Guest::Create, or under a "
                "ScopedMemorySource"));
}

// A source whose memories are vectors.
class VectorSource : public MemorySource {
 public:
  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override {
    class VectorMemory : public GuestMemory {
     public:
      std::byte* base() const override {
        return const_cast<std::byte*>(bytes_.data());
      }
      uint64_t size_bytes() const override { return size_; }
      absl::Status Grow(uint64_t size) override {
        if (size > bytes_.size()) return absl::OutOfRangeError("too large");
        size_ = size;
        return absl::OkStatus();
      }
      absl::Status Reset() override { return absl::OkStatus(); }
      absl::Status MakeReady(uint64_t, uint64_t, Access) override {
        return absl::OkStatus();
      }
      absl::StatusOr<ImageRef> Snapshot(std::string_view) override {
        return absl::UnimplementedError("no");
      }

     private:
      std::vector<std::byte> bytes_ =
          std::vector<std::byte>(4 * kWasmPageBytes);
      uint64_t size_ = 0;
    };
    std::vector<std::unique_ptr<GuestMemory>> result;
    for (size_t i = 0; i < requests.size(); ++i) {
      result.push_back(std::make_unique<VectorMemory>());
    }
    return result;
  }
};

TEST(ScopedMemorySourceTest, GivesTheMemoriesOfOneInstance) {
  VectorSource source;
  ScopedMemorySource scope(&source, 2);
  Trap trap;
  absl::Status error;
  wasm_rt_memory_t a = {}, b = {}, c = {};
  EXPECT_EQ(RunGuarded(
                [&] {
                  wasm_rt_allocate_memory(&a, 1, 3);
                  wasm_rt_allocate_memory(&b, 2, UINT32_MAX);
                },
                {}, &trap, &error),
            RunEnd::kReturned);
  EXPECT_EQ(a.size, 65536u);
  EXPECT_EQ(b.pages, 2u);
  EXPECT_EQ(wasm_rt_grow_memory(&a, 2), 1u);
  EXPECT_EQ(a.size, 3 * 65536u);
  EXPECT_EQ(wasm_rt_grow_memory(&a, 1), UINT32_MAX);  // the module's maximum
  EXPECT_EQ(wasm_rt_grow_memory(&b, 3), UINT32_MAX);  // the source's
  EXPECT_EQ(wasm_rt_grow_memory(&b, UINT32_MAX), UINT32_MAX);
  EXPECT_EQ(b.size, 2 * 65536u);
  EXPECT_EQ(
      RunGuarded([&] { wasm_rt_allocate_memory(&c, 1, 3); }, {}, &trap, &error),
      RunEnd::kHostError);
  EXPECT_EQ(error.message(),
            "the module asks for memory 2 but ScopedMemorySource was told it "
            "has 2 of its own");
  EXPECT_EQ(RunGuarded([&] { wasm_rt_allocate_memory(&c, 65536, 65536); }, {},
                       &trap, &error),
            RunEnd::kHostError);
  EXPECT_EQ(error.message(),
            "the module's memory has 65536 pages of 65536 bytes at first; at "
            "most 65535 pages are possible with wasm2c, whose sizes have 32 "
            "bits");
  wasm_rt_free_memory(&a);
  wasm_rt_free_memory(&b);
  EXPECT_EQ(a.data, nullptr);
}

TEST(RuntimeDeathTest, OutsideOfARun) {
  EXPECT_DEATH(wasm_rt_trap(WASM_RT_TRAP_DIV_BY_ZERO),
               "firsttouch wasm2c: integer divide by zero");
  EXPECT_DEATH(ExitGuest(0), "ExitGuest outside of a run");
  EXPECT_DEATH(FailGuest(absl::DataLossError("gone")),
               "outside of a run: DATA_LOSS: gone");
  EXPECT_DEATH(wasm_rt_throw(), "wasm_rt_throw outside of a run");
  TrapOutOfBounds({});  // not ours: comes back
}

}  // namespace
}  // namespace firsttouch::wasm2c
