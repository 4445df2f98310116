// Guests on every way of supplying memory: results, traps, snapshots, threads.
#include "firsttouch/integrations/wasm2c/guest.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/source_test.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "firsttouch/service/signals.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "integrations/wasm2c/exceptions.firsttouch.h"
#include "integrations/wasm2c/imports.firsttouch.h"
#include "integrations/wasm2c/large.firsttouch.h"
#include "integrations/wasm2c/no_state.firsttouch.h"
#include "integrations/wasm2c/start_traps.firsttouch.h"
#include "integrations/wasm2c/traps.firsttouch.h"
#include "integrations/wasm2c/two_memories.firsttouch.h"

// What imports.wat imports.
struct Z_env_instance_t {
  u32 added = 0;
  u32 base = 0;
  wasm_rt_funcref_table_t shared = {};
};
struct Z_other_instance_t {
  u32 factor = 2;
};
extern "C" {
u32 Z_envZ_add(Z_env_instance_t* env, u32 x) { return x + env->added; }
u32* Z_envZ_base(Z_env_instance_t* env) { return &env->base; }
wasm_rt_funcref_table_t* Z_envZ_shared(Z_env_instance_t* env) {
  return &env->shared;
}
u32 Z_otherZ_twice(Z_other_instance_t* other, u32 x) {
  return x * other->factor;
}
}

namespace firsttouch::wasm2c {
namespace {

using ::testing::HasSubstr;
using TrapsGuest = Guest<Z_traps_instance_t>;
using ImportsGuest = Guest<Z_imports_instance_t>;

constexpr uint64_t kMaxBytes = 16 * kWasmPageBytes;

class GuestTest : public SourceTest {
 protected:
  void SetUp() override { MakeSource(8, kMaxBytes); }

  TrapsGuest MakeTraps() {
    absl::StatusOr<TrapsGuest> guest = TrapsGuest::Create(source());
    EXPECT_TRUE(guest.ok()) << guest.status();
    return *std::move(guest);
  }
};

INSTANTIATE_TEST_SUITE_P(Sources, GuestTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

// Asserts that a call ended in a trap of that code.
template <typename R>
void ExpectTrap(const Outcome<R>& outcome, wasm_rt_trap_t code) {
  ASSERT_TRUE(outcome.trapped()) << outcome.status();
  EXPECT_EQ(outcome.trap().code, code) << outcome.trap().Message();
}

TEST_P(GuestTest, RunsAndKeepsItsState) {
  TrapsGuest guest = MakeTraps();
  EXPECT_EQ(*guest.Call(&Z_trapsZ_get), 7u);
  EXPECT_TRUE(guest.Call(&Z_trapsZ_set, 42u).ok());
  EXPECT_EQ(*guest.Call(&Z_trapsZ_get), 42u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 100u), 0x73726966u);  // "firs"
  EXPECT_EQ(*guest.Call(&Z_trapsZ_sum, 100u), 5050u);
}

TEST_P(GuestTest, EachTrapHasItsCode) {
  TrapsGuest guest = MakeTraps();
  ExpectTrap(guest.Call(&Z_trapsZ_trap_unreachable), WASM_RT_TRAP_UNREACHABLE);
  ExpectTrap(guest.Call(&Z_trapsZ_divide, 1u, 0u), WASM_RT_TRAP_DIV_BY_ZERO);
  ExpectTrap(guest.Call(&Z_trapsZ_divide, 0x80000000u, 0xffffffffu),
             WASM_RT_TRAP_INT_OVERFLOW);
  ExpectTrap(guest.Call(&Z_trapsZ_truncate, __builtin_nan("")),
             WASM_RT_TRAP_INVALID_CONVERSION);
  ExpectTrap(guest.Call(&Z_trapsZ_call, 1u), WASM_RT_TRAP_CALL_INDIRECT);
  ExpectTrap(guest.Call(&Z_trapsZ_call, 2u), WASM_RT_TRAP_CALL_INDIRECT);
  ExpectTrap(guest.Call(&Z_trapsZ_call, 4u), WASM_RT_TRAP_CALL_INDIRECT);
  ExpectTrap(guest.Call(&Z_trapsZ_forever, 0u), WASM_RT_TRAP_EXHAUSTION);
  const Outcome<Nothing> fill = guest.Call(&Z_trapsZ_fill, 65535u, 1u, 2u);
  ExpectTrap(fill, WASM_RT_TRAP_OOB);
  EXPECT_FALSE(fill.trap().has_touch);
  // And it goes on.
  EXPECT_EQ(*guest.Call(&Z_trapsZ_call, 0u), 7u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_call_chosen), 7u);
}

TEST_P(GuestTest, OutOfBoundsNamesTheOffset) {
  TrapsGuest guest = MakeTraps();
  struct Case {
    u32 address;
    int64_t offset;
  };
  for (const Case& c :
       {Case{65536, 65536}, Case{1 << 20, 1 << 20},
        Case{0x7ffffffc, 0x7ffffffc}, Case{0xfffffffc, 0xfffffffc},
        // Begins in bounds: reported at the first byte outside.
        Case{65534, 65536}}) {
    const Outcome<u32> load = guest.Call(&Z_trapsZ_load, c.address);
    ExpectTrap(load, WASM_RT_TRAP_OOB);
    ASSERT_TRUE(load.trap().has_touch);
    EXPECT_EQ(load.trap().touch.offset_bytes, c.offset);
    EXPECT_EQ(load.trap().touch.size_bytes, 65536u);
    EXPECT_FALSE(load.trap().touch.write);
    const Outcome<Nothing> store = guest.Call(&Z_trapsZ_store, c.address, 1u);
    ExpectTrap(store, WASM_RT_TRAP_OOB);
    EXPECT_EQ(store.trap().touch.offset_bytes, c.offset);
    EXPECT_TRUE(store.trap().touch.write);
  }
  // The largest index and the largest constant offset.
  const Outcome<u64> far = guest.Call(&Z_trapsZ_load_far, 0xffffffffu);
  ExpectTrap(far, WASM_RT_TRAP_OOB);
  EXPECT_EQ(far.trap().touch.offset_bytes, 0x1fffffffe);
  EXPECT_EQ(guest.Call(&Z_trapsZ_load, 70000u).trap().Message(),
            absl::StrCat("out of bounds: read at offset 70000 of memory 0 of "
                         "instance ",
                         far.trap().touch.instance, ", size 65536 bytes"));
  // The last bytes inside are inside.
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 65532u), 0u);
}

TEST_P(GuestTest, AThousandTrapsInOneThread) {
  TrapsGuest guest = MakeTraps();
  for (u32 i = 0; i < 1000; ++i) {
    const Outcome<Nothing> store =
        guest.Call(&Z_trapsZ_store, 65536 + i * 4096, 1u);
    ExpectTrap(store, WASM_RT_TRAP_OOB);
    ASSERT_EQ(store.trap().touch.offset_bytes, 65536 + i * 4096);
  }
}

TEST_P(GuestTest, GrowsUpToTheModulesMaximum) {
  TrapsGuest guest = MakeTraps();
  EXPECT_EQ(*guest.Call(&Z_trapsZ_size), 1u);
  ExpectTrap(guest.Call(&Z_trapsZ_store, 65536u, 5u), WASM_RT_TRAP_OOB);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow, 2u), 1u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_size), 3u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 65536u), 0u);
  EXPECT_TRUE(guest.Call(&Z_trapsZ_store, 3 * 65536u - 4, 5u).ok());
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 3 * 65536u - 4), 5u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow, 2u), 0xffffffffu);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow, 0xffffffffu), 0xffffffffu);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow, 0u), 3u);
  EXPECT_EQ(guest.Call(&Z_trapsZ_store, 3 * 65536u, 5u).trap().touch.size_bytes,
            3 * 65536u);
}

TEST_P(GuestTest, TablesGrowUpToTheirMaximum) {
  TrapsGuest guest = MakeTraps();
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow_table, 3u), 4u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow_table, 2u), 0xffffffffu);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_grow_table, 0u), 7u);
  ExpectTrap(guest.Call(&Z_trapsZ_call, 6u), WASM_RT_TRAP_CALL_INDIRECT);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_call, 0u), 7u);
}

TEST_P(GuestTest, ASnapshotIsWhereOthersStart) {
  TrapsGuest guest = MakeTraps();
  ASSERT_TRUE(guest.Call(&Z_trapsZ_set, 11u).ok());
  ASSERT_EQ(*guest.Call(&Z_trapsZ_grow, 1u), 1u);
  ASSERT_TRUE(guest.Call(&Z_trapsZ_store, 70000u, 12u).ok());
  ASSERT_TRUE(guest.Call(&Z_trapsZ_choose, 0u).ok());
  auto prepared = guest.Snapshot("prepared");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  // The original goes on, and changes nothing of the snapshot.
  ASSERT_TRUE(guest.Call(&Z_trapsZ_set, 1u).ok());
  ASSERT_TRUE(guest.Call(&Z_trapsZ_store, 70000u, 2u).ok());

  auto first = (*prepared)->Instantiate(source());
  auto second = (*prepared)->Instantiate(source());
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  for (TrapsGuest* copy : {&*first, &*second}) {
    EXPECT_EQ(*copy->Call(&Z_trapsZ_get), 11u);
    EXPECT_EQ(*copy->Call(&Z_trapsZ_size), 2u);
    EXPECT_EQ(*copy->Call(&Z_trapsZ_load, 70000u), 12u);
    EXPECT_EQ(*copy->Call(&Z_trapsZ_load, 100u), 0x73726966u);
    // Functions in the table belong to the copy.
    EXPECT_EQ(*copy->Call(&Z_trapsZ_call, 3u), 11u);
  }
  ASSERT_TRUE(first->Call(&Z_trapsZ_set, 21u).ok());
  ASSERT_TRUE(first->Call(&Z_trapsZ_store, 70000u, 22u).ok());
  EXPECT_EQ(*first->Call(&Z_trapsZ_call, 3u), 21u);
  EXPECT_EQ(*first->Call(&Z_trapsZ_call_chosen), 21u);
  EXPECT_EQ(*second->Call(&Z_trapsZ_call, 3u), 11u);
  EXPECT_EQ(*second->Call(&Z_trapsZ_load, 70000u), 12u);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_get), 1u);
}

TEST_P(GuestTest, ATemplateCanHaveOtherMemories) {
  TrapsGuest guest = MakeTraps();
  auto fresh = guest.Snapshot("fresh");
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  ASSERT_TRUE(guest.Call(&Z_trapsZ_store, 3000u, 12u).ok());
  auto stored = guest.Snapshot("stored");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_TRUE((*fresh)->EqualsApartFromMemories(**stored));
  auto joined = (*fresh)->WithMemories((*stored)->memories());
  ASSERT_TRUE(joined.ok()) << joined.status();
  auto copy = (*joined)->Instantiate(source());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*copy->Call(&Z_trapsZ_load, 3000u), 12u);

  ASSERT_TRUE(guest.Call(&Z_trapsZ_set, 11u).ok());
  auto set = guest.Snapshot("set");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_FALSE((*fresh)->EqualsApartFromMemories(**set));

  EXPECT_EQ((*fresh)->WithMemories({}).status().message(),
            "module traps: 0 memories were given and it has 1");
  auto odd = (*stored)->memories();
  odd[0].size_bytes -= 1;
  EXPECT_THAT(std::string((*fresh)->WithMemories(odd).status().message()),
              HasSubstr("the size must be a multiple of 65536 and at most"));
}

TEST_P(GuestTest, EveryByteOfACopyEqualsTheOriginal) {
  TrapsGuest guest = MakeTraps();
  ASSERT_EQ(*guest.Call(&Z_trapsZ_grow, 1u), 1u);
  for (u32 i = 0; i < 131072; i += 4100) {
    ASSERT_TRUE(guest.Call(&Z_trapsZ_store, i, i * 2654435761u).ok());
  }
  auto prepared = guest.Snapshot("bytes");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(source());
  ASSERT_TRUE(copy.ok()) << copy.status();
  ASSERT_EQ(copy->memory().size, guest.memory().size);
  EXPECT_EQ(memcmp(copy->memory().data, guest.memory().data, 131072), 0);
}

TEST_P(GuestTest, ResetAndReleaseLeaveNothingBehind) {
  TrapsGuest guest = MakeTraps();
  auto prepared = guest.Snapshot("clean");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  std::optional<TrapsGuest> tenant;
  for (int round = 0; round < 20; ++round) {
    if (tenant.has_value() && round % 3 != 0) {
      ASSERT_TRUE(tenant->Reset().ok());
    } else {
      tenant.reset();
      auto made = (*prepared)->Instantiate(source());
      ASSERT_TRUE(made.ok()) << made.status();
      tenant.emplace(*std::move(made));
    }
    ASSERT_EQ(*tenant->Call(&Z_trapsZ_get), 7u);
    ASSERT_EQ(*tenant->Call(&Z_trapsZ_size), 1u);
    ASSERT_EQ(*tenant->Call(&Z_trapsZ_call, 0u), 7u);
    ExpectTrap(tenant->Call(&Z_trapsZ_call, 3u), WASM_RT_TRAP_CALL_INDIRECT);
    ExpectTrap(tenant->Call(&Z_trapsZ_load, 65536u), WASM_RT_TRAP_OOB);
    ASSERT_EQ(memcmp(tenant->memory().data, guest.memory().data, 65536), 0)
        << "round " << round;
    // Be a bad tenant.
    ASSERT_TRUE(tenant->Call(&Z_trapsZ_set, 99u).ok());
    ASSERT_TRUE(tenant->Call(&Z_trapsZ_choose, 0u).ok());
    ASSERT_EQ(*tenant->Call(&Z_trapsZ_grow, 3u), 1u);
    ASSERT_EQ(*tenant->Call(&Z_trapsZ_grow_table, 4u), 4u);
    ASSERT_TRUE(tenant->Call(&Z_trapsZ_fill, 0u, 0xeeu, 4 * 65536u).ok());
    ExpectTrap(tenant->Call(&Z_trapsZ_store, 4 * 65536u, 1u), WASM_RT_TRAP_OOB);
  }
}

TEST_P(GuestTest, ResetNeedsATemplate) {
  TrapsGuest guest = MakeTraps();
  const absl::Status reset = guest.Reset();
  EXPECT_EQ(reset.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(reset.message()),
              HasSubstr("guest of module traps was not made from a template"));
}

TEST_P(GuestTest, ExhaustionIsAnError) {
  TrapsGuest guest = MakeTraps();
  auto prepared = guest.Snapshot("many");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  std::vector<TrapsGuest> guests;
  for (int i = 0; i < 7; ++i) {
    auto made = (*prepared)->Instantiate(source());
    ASSERT_TRUE(made.ok()) << made.status();
    guests.push_back(*std::move(made));
  }
  EXPECT_EQ((*prepared)->Instantiate(source()).status().code(),
            absl::StatusCode::kResourceExhausted);
  const absl::Status created = TrapsGuest::Create(source()).status();
  EXPECT_EQ(created.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(created.message()),
              HasSubstr("cannot instantiate module traps: "));
  guests.pop_back();
  EXPECT_TRUE((*prepared)->Instantiate(source()).ok());
}

TEST_P(GuestTest, AModuleThatWantsTooMuchMemoryIsAnError) {
  const absl::Status created =
      Guest<Z_large_instance_t>::Create(source()).status();
  EXPECT_FALSE(created.ok());
  EXPECT_THAT(std::string(created.message()),
              HasSubstr("cannot instantiate module large: the module's memory "
                        "has 100 pages (6553600 bytes) at first: "));
  EXPECT_THAT(std::string(created.message()), HasSubstr("max_memory_bytes"));
  // Its slot is free again.
  std::vector<TrapsGuest> guests;
  for (int i = 0; i < 8; ++i) guests.push_back(MakeTraps());
}

TEST_P(GuestTest, AStartFunctionMayTrap) {
  const absl::Status created =
      Guest<Z_start_traps_instance_t>::Create(source()).status();
  EXPECT_EQ(created.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(created.message()),
              HasSubstr("cannot instantiate module start_traps: out of bounds: "
                        "write at offset 65536 of memory 0"));
}

TEST_P(GuestTest, AModuleWithoutStateWorksToo) {
  auto guest = Guest<Z_no_state_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  auto prepared = guest->Snapshot("nothing");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(source());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*copy->Call(&Z_no_stateZ_one), 1u);
}

TEST_P(GuestTest, TwoMemories) {
  absl::StatusOr<TestSource> made =
      MakeTestSource(GetParam(), 3, kMaxBytes, /*memories_per_instance=*/2);
  ASSERT_TRUE(made.ok()) << made.status();
  auto guest = Guest<Z_two_memories_instance_t>::Create(made->source.get());
  ASSERT_TRUE(guest.ok()) << guest.status();
  ASSERT_TRUE(guest->Call(&Z_two_memoriesZ_store_b, 5u, 55u).ok());
  auto prepared = guest->Snapshot("two");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(made->source.get());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_load_a, 0u), 97u);
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_load_b, 65536u), 98u);
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_load_b, 5u), 55u);
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_load_a, 5u), 0u);
  const Outcome<u32> a = copy->Call(&Z_two_memoriesZ_load_a, 65536u);
  ExpectTrap(a, WASM_RT_TRAP_OOB);
  EXPECT_EQ(a.trap().touch.size_bytes, 65536u);
  const Outcome<u32> b = copy->Call(&Z_two_memoriesZ_load_b, 131072u);
  ExpectTrap(b, WASM_RT_TRAP_OOB);
  EXPECT_EQ(b.trap().touch.size_bytes, 131072u);
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_grow_b, 1u), 2u);
  EXPECT_EQ(*copy->Call(&Z_two_memoriesZ_load_b, 131072u), 0u);
}

TEST_P(GuestTest, ExceptionsAreCaughtOrAreTraps) {
  auto guest = Guest<Z_exceptions_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  EXPECT_EQ(*guest->Call(&Z_exceptionsZ_caught, 41u), 42u);
  ExpectTrap(guest->Call(&Z_exceptionsZ_uncaught, 1u),
             WASM_RT_TRAP_UNCAUGHT_EXCEPTION);
  EXPECT_EQ(*guest->Call(&Z_exceptionsZ_caught, 1u), 2u);
}

// The host's side of imports.wat, with a table that it shares.
class ImportsTest : public GuestTest {
 protected:
  // `Z_env_instance_t` is filled by the host.
  void MakeEnv(Z_env_instance_t* env, u32 added, u32 base) {
    env->added = added;
    env->base = base;
    wasm_rt_allocate_funcref_table(&env->shared, 2, 2);
    env->shared.data[1] = {
        .func_type = wasm_rt_register_func_type(1, 1, WASM_RT_I32, WASM_RT_I32),
        .func = reinterpret_cast<wasm_rt_function_ptr_t>(&Z_envZ_add),
        .module_instance = env};
  }
};

INSTANTIATE_TEST_SUITE_P(Sources, ImportsTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

TEST_P(ImportsTest, EachWayToCallTheHostGetsItsOwnInstance) {
  Z_env_instance_t env;
  Z_other_instance_t other = {.factor = 3};
  MakeEnv(&env, 100, 1000);
  auto guest = ImportsGuest::Create(source(), &env, &other);
  ASSERT_TRUE(guest.ok()) << guest.status();
  EXPECT_EQ(*guest->Call(&Z_importsZ_direct, 1u), 101u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_table, 0u, 1u), 101u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_table, 1u, 7u), 21u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_table, 2u, 1u), 1001u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_shared, 1u, 1u), 101u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_global, 7u), 21u);
  ASSERT_TRUE(guest->Call(&Z_importsZ_init_passive).ok());
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_table, 3u, 7u), 21u);
  EXPECT_EQ(*guest->Call(&Z_importsZ_by_table, 4u, 1u), 101u);
  wasm_rt_free_funcref_table(&env.shared);
}

TEST_P(ImportsTest, ACopyCallsTheImportsItWasGiven) {
  Z_env_instance_t env, copy_env;
  Z_other_instance_t other = {.factor = 3}, copy_other = {.factor = 5};
  MakeEnv(&env, 100, 1000);
  MakeEnv(&copy_env, 200, 2000);
  auto guest = ImportsGuest::Create(source(), &env, &other);
  ASSERT_TRUE(guest.ok()) << guest.status();
  guest->get()->w2c_things.data[1] = &other;
  auto prepared = guest->Snapshot("imports");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(source(), &copy_env, &copy_other);
  ASSERT_TRUE(copy.ok()) << copy.status();
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(*copy->Call(&Z_importsZ_direct, 1u), 201u);
    EXPECT_EQ(*copy->Call(&Z_importsZ_by_table, 0u, 1u), 201u);
    EXPECT_EQ(*copy->Call(&Z_importsZ_by_table, 1u, 7u), 35u);
    EXPECT_EQ(*copy->Call(&Z_importsZ_by_table, 2u, 1u), 2001u);
    EXPECT_EQ(*copy->Call(&Z_importsZ_by_shared, 1u, 1u), 201u);
    EXPECT_EQ(*copy->Call(&Z_importsZ_by_global, 7u), 35u);
    EXPECT_EQ(copy->get()->w2c_things.data[1], &other);
    ASSERT_TRUE(copy->Reset().ok());
  }
  wasm_rt_free_funcref_table(&env.shared);
  wasm_rt_free_funcref_table(&copy_env.shared);
}

TEST_P(ImportsTest, AFunctionOfAnotherInstanceCannotBeKept) {
  Z_env_instance_t env;
  Z_other_instance_t other, foreign;
  MakeEnv(&env, 100, 1000);
  env.shared.data[0] = env.shared.data[1];
  env.shared.data[0].module_instance = &foreign;
  auto guest = ImportsGuest::Create(source(), &env, &other);
  ASSERT_TRUE(guest.ok()) << guest.status();
  ASSERT_TRUE(guest->Call(&Z_importsZ_borrow).ok());
  const absl::Status snapshot = guest->Snapshot("mixed").status();
  EXPECT_EQ(snapshot.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(snapshot.message(),
            "snapshot 'mixed' of module imports: funcref table 0 element 0 "
            "holds a function of another module's instance, which a snapshot "
            "of this one alone cannot keep");
  wasm_rt_free_funcref_table(&env.shared);
}

TEST_P(GuestTest, ManyThreadsRunManyInstances) {
  TrapsGuest guest = MakeTraps();
  auto prepared = guest.Snapshot("threads");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  constexpr u32 kThreads = 7;  // and the original: all slots
  std::vector<std::string> errors(kThreads);
  std::vector<std::thread> threads;
  for (u32 thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (u32 round = 0; round < 50; ++round) {
        auto copy = (*prepared)->Instantiate(source());
        if (!copy.ok()) {
          errors[thread] = copy.status().ToString();
          return;
        }
        const u32 mine = thread * 1000 + round;
        copy->Call(&Z_trapsZ_set, mine);
        copy->Call(&Z_trapsZ_store, 8192 * thread, mine);
        const Outcome<Nothing> bad =
            copy->Call(&Z_trapsZ_store, 65536 + 4096 * thread, 1u);
        const Outcome<u32> deep = copy->Call(&Z_trapsZ_forever, 0u);
        const u32 got = *copy->Call(&Z_trapsZ_call, 0u);
        const u32 loaded = *copy->Call(&Z_trapsZ_load, 8192 * thread);
        if (!bad.trapped() ||
            bad.trap().touch.offset_bytes != 65536 + 4096 * thread ||
            !deep.trapped() || deep.trap().code != WASM_RT_TRAP_EXHAUSTION ||
            got != mine || loaded != mine) {
          errors[thread] =
              absl::StrCat("round ", round, ": got ", got, " and ", loaded,
                           ", wanted ", mine, "; ", bad.status().ToString(),
                           "; ", deep.status().ToString());
          return;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

TEST_P(GuestTest, AGuestMovesBetweenThreads) {
  TrapsGuest guest = MakeTraps();
  ASSERT_TRUE(guest.Call(&Z_trapsZ_set, 5u).ok());
  std::thread([&] {
    EXPECT_EQ(*guest.Call(&Z_trapsZ_get), 5u);
    EXPECT_EQ(*guest.Call(&Z_trapsZ_grow, 1u), 1u);
    ExpectTrap(guest.Call(&Z_trapsZ_load, 131072u), WASM_RT_TRAP_OOB);
    TrapsGuest(std::move(guest));  // destroyed here
  }).join();
}

// Runs `body` on a thread whose stack has `bytes`.
void OnSmallStack(size_t bytes, std::function<void()> body) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, bytes), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(
                &thread, &attributes,
                [](void* argument) -> void* {
                  (*static_cast<std::function<void()>*>(argument))();
                  return nullptr;
                },
                &body),
            0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

TEST_P(GuestTest, ASmallStackIsExhaustedEarlierAndNotOverrun) {
  TrapsGuest guest = MakeTraps();
  OnSmallStack(256 << 10, [&] {
    ExpectTrap(guest.Call(&Z_trapsZ_forever, 0u), WASM_RT_TRAP_EXHAUSTION);
    EXPECT_EQ(*guest.Call(&Z_trapsZ_sum, 100u), 5050u);
  });
}

TEST_P(GuestTest, TheStackOptionBounds) {
  TrapsGuest guest = MakeTraps();
  const auto deep = [](Z_traps_instance_t* instance) {
    return Z_trapsZ_sum(instance, 3000);
  };
  EXPECT_EQ(*guest.Run(deep), 3000u * 3001 / 2);
  ExpectTrap(guest.Run(deep, {.stack_bytes = 16 << 10}),
             WASM_RT_TRAP_EXHAUSTION);
}

TEST_P(GuestTest, RunsNest) {
  TrapsGuest outer = MakeTraps();
  TrapsGuest inner = MakeTraps();
  bool inner_trapped = false;
  const Outcome<u32> outcome = outer.Run([&](Z_traps_instance_t* instance) {
    inner_trapped = inner.Call(&Z_trapsZ_load, 65536u).trapped();
    const u32 before = Z_trapsZ_get(instance);
    Z_trapsZ_trap_unreachable(instance);
    return before;
  });
  EXPECT_TRUE(inner_trapped);
  ExpectTrap(outcome, WASM_RT_TRAP_UNREACHABLE);
  EXPECT_FALSE(GuestIsRunning());
}

TEST_P(GuestTest, TheHostCanFailAGuest) {
  TrapsGuest guest = MakeTraps();
  const Outcome<Nothing> outcome = guest.Run([](Z_traps_instance_t*) {
    FailGuest(absl::UnavailableError("no such service"));
  });
  EXPECT_FALSE(outcome.trapped());
  EXPECT_EQ(outcome.status(), absl::UnavailableError("no such service"));
}

TEST_P(GuestTest, ItsMemoryIsTheHostsToRead) {
  TrapsGuest guest = MakeTraps();
  EXPECT_EQ(memcmp(guest.memory().data + 100, "firsttouch", 10), 0);
  memcpy(guest.memory().data + 50000, "host", 4);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 50000u), 0x74736f68u);
}

using GuestDeathTest = GuestTest;

INSTANTIATE_TEST_SUITE_P(Sources, GuestDeathTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

TEST_P(GuestDeathTest, ATrapOutsideOfARunAborts) {
  TrapsGuest guest = MakeTraps();
  EXPECT_DEATH(Z_trapsZ_trap_unreachable(guest.get()),
               "firsttouch wasm2c: unreachable instruction executed");
}

TEST_P(GuestTest, BytesAreCheckedAgainstTheMemorysSize) {
  TrapsGuest guest = MakeTraps();
  auto bytes = guest.Bytes(100, 10);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(memcmp(bytes->data(), "firsttouch", 10), 0);
  EXPECT_TRUE(guest.Bytes(65536, 0).ok());
  EXPECT_EQ(guest.Bytes(65535, 2).status(),
            absl::OutOfRangeError(
                "2 bytes at address 65535 do not end within memory 0 of module "
                "traps, which has 65536 bytes"));
  EXPECT_FALSE(guest.Bytes(0xffffffff, 0xffffffff).ok());
}

TEST_P(GuestTest, SystemCallsReachWhatWasMadeReady) {
  TrapsGuest guest = MakeTraps();
  std::array<int, 2> pipe_ends;
  ASSERT_EQ(pipe(pipe_ends.data()), 0);
  const std::string sent(8000, 'r');
  ASSERT_EQ(write(pipe_ends[1], sent.data(), sent.size()), 8000);
  ASSERT_TRUE(guest.MakeReady(20000, 8000, Access::kWrite).ok());
  EXPECT_EQ(read(pipe_ends[0], guest.Bytes(20000, 8000)->data(), 8000), 8000)
      << strerror(errno);
  EXPECT_EQ(*guest.Call(&Z_trapsZ_load, 27996u), 0x72727272u);
  ASSERT_TRUE(guest.MakeReady(40000, 100, Access::kRead).ok());
  EXPECT_EQ(write(pipe_ends[1], guest.Bytes(40000, 100)->data(), 100), 100)
      << strerror(errno);
  EXPECT_EQ(guest.MakeReady(65000, 1000, Access::kRead).code(),
            absl::StatusCode::kOutOfRange);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

TEST_P(GuestTest, APoolMayHaveMoreMemoriesThanAGuest) {
  absl::StatusOr<TestSource> made =
      MakeTestSource(GetParam(), 2, kMaxBytes, /*memories_per_instance=*/3);
  ASSERT_TRUE(made.ok()) << made.status();
  auto one = TrapsGuest::Create(made->source.get());
  ASSERT_TRUE(one.ok()) << one.status();
  auto two = Guest<Z_two_memories_instance_t>::Create(made->source.get());
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(*one->Call(&Z_trapsZ_load, 100u), 0x73726966u);
  EXPECT_EQ(*two->Call(&Z_two_memoriesZ_load_b, 65536u), 98u);
  auto prepared = one->Snapshot("one");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  // The instance is free for the next when the guest's own memory is.
  for (int i = 0; i < 10; ++i) {
    { TrapsGuest(*std::move(one)); }
    one = (*prepared)->Instantiate(made->source.get());
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_EQ(*one->Call(&Z_trapsZ_get), 7u);
  }
}

TEST(PoolMemorySourceTest, AGuestWithMoreMemoriesThanThePoolIsRefused) {
  auto service = Service::Create(
      {.name = "single", .layout = LayoutForGuests(2, kMaxBytes)});
  if (!service.ok()) GTEST_SKIP() << "no service here: " << service.status();
  auto source = PoolMemorySource::Create(service->get());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(
      Guest<Z_two_memories_instance_t>::Create(source->get()).status(),
      absl::InvalidArgumentError(
          "cannot instantiate module two_memories: the guest has 2 memories, "
          "and pool 'single' has memories_per_instance 1: make the pool with "
          "LayoutForGuests(instances, max_memory_bytes, 2)"));
}

void HostsHandler(int signal, siginfo_t* info, void* context) {
  if (HandleFault(signal, info, context) != FaultOutcome::kResolved) abort();
}

TEST(PoolMemorySourceTest, TheHostMayOwnTheSignals) {
  // With everything blocked while its handler runs, as careful hosts do.
  struct sigaction action = {}, old_bus, old_segv;
  action.sa_sigaction = &HostsHandler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigfillset(&action.sa_mask);
  ASSERT_EQ(sigaction(SIGBUS, &action, &old_bus), 0);
  ASSERT_EQ(sigaction(SIGSEGV, &action, &old_segv), 0);
  ServiceOptions options;
  options.name = "hosted";
  options.layout = LayoutForGuests(2, kMaxBytes);
  options.signals = SignalOwnership::kHost;
  auto service = Service::Create(std::move(options));
  if (service.ok()) {
    auto source = PoolMemorySource::Create(service->get());
    ASSERT_TRUE(source.ok()) << source.status();
    auto guest = TrapsGuest::Create(source->get());
    ASSERT_TRUE(guest.ok()) << guest.status();
    for (u32 i = 0; i < 1000; ++i) {
      const Outcome<u32> load = guest->Call(&Z_trapsZ_load, 65536 + i);
      ASSERT_TRUE(load.trapped()) << load.status();
      ASSERT_EQ(load.trap().touch.offset_bytes, 65536 + i);
    }
    // Nothing stayed blocked.
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, nullptr, &blocked);
    EXPECT_EQ(sigismember(&blocked, SIGBUS), 0);
    EXPECT_EQ(sigismember(&blocked, SIGTERM), 0);
  }
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGSEGV, &old_segv, nullptr);
  if (!service.ok()) GTEST_SKIP() << "no service here: " << service.status();
}

TEST(PoolMemorySourceTest, GuardsMustCoverWhatAGuestCanReach) {
  ServiceOptions options;
  options.name = "narrow";
  options.layout = LayoutForGuests(2, kMaxBytes);
  options.layout.guard_after_bytes -= 4096;
  auto service = Service::Create(std::move(options));
  if (!service.ok()) GTEST_SKIP() << "no service here: " << service.status();
  const absl::Status made = PoolMemorySource::Create(service->get()).status();
  EXPECT_EQ(made.message(),
            "max_memory_bytes 1048576 and guard_after_bytes 8588890112 of pool "
            "'narrow', without the last 4096 that the next memory can reach, "
            "too, cover less than the 8589938688 bytes that generated code can "
            "reach; use LayoutForGuests");
}

TEST(PoolMemorySourceTest, SizesMustFit32Bits) {
  ServiceOptions options;
  options.name = "wide";
  options.layout = LayoutForGuests(1, uint64_t{1} << 32);
  auto service = Service::Create(std::move(options));
  if (!service.ok()) GTEST_SKIP() << "no service here: " << service.status();
  const absl::Status made = PoolMemorySource::Create(service->get()).status();
  EXPECT_EQ(made.message(),
            "max_memory_bytes 4294967296 of pool 'wide' exceeds 4294901760 "
            "bytes, the most that a wasm2c memory can have");
}

}  // namespace
}  // namespace firsttouch::wasm2c
