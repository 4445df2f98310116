// Guests as others compile them: imported memories, tables and globals, WASI on
// an imported memory, instantiations that fail, large frames, and guests that
// never end.
#include <pthread.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/source_test.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "integrations/wasm2c/endless.firsttouch.h"
#include "integrations/wasm2c/fails_late.firsttouch.h"
#include "integrations/wasm2c/frames.firsttouch.h"
#include "integrations/wasm2c/linked.firsttouch.h"
#include "integrations/wasm2c/wasi_on_import.firsttouch.h"

// What linked.wat and fails_late.wat import.
struct Z_box_instance_t {
  wasm_rt_memory_t memory = {};
  wasm_rt_funcref_table_t table = {};
  wasm_rt_externref_table_t things = {};
  u32 counter = 7;
  wasm_rt_funcref_t chosen = {};
  u64 fixed = 99;
};
struct Z_env_instance_t {
  wasm_rt_memory_t memory = {};
};
extern "C" {
wasm_rt_memory_t* Z_boxZ_memory(Z_box_instance_t* box) { return &box->memory; }
wasm_rt_funcref_table_t* Z_boxZ_table(Z_box_instance_t* box) {
  return &box->table;
}
wasm_rt_externref_table_t* Z_boxZ_things(Z_box_instance_t* box) {
  return &box->things;
}
u32* Z_boxZ_counter(Z_box_instance_t* box) { return &box->counter; }
wasm_rt_funcref_t* Z_boxZ_chosen(Z_box_instance_t* box) { return &box->chosen; }
u64* Z_boxZ_fixed(Z_box_instance_t* box) { return &box->fixed; }
wasm_rt_memory_t* Z_envZ_memory(Z_env_instance_t* env) { return &env->memory; }
}

namespace firsttouch::wasm2c {
namespace {

using ::testing::HasSubstr;
using Box = Z_box_instance_t;
using LinkedGuest = Guest<Z_linked_instance_t>;

class ForeignGuestTest : public SourceTest {
 protected:
  void SetUp() override { MakeSource(4, 8 * kWasmPageBytes); }
};

INSTANTIATE_TEST_SUITE_P(Sources, ForeignGuestTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

TEST_P(ForeignGuestTest, EmptyImportsAreTheGuests) {
  Box box;
  {
    auto guest = LinkedGuest::Create(source(), &box);
    ASSERT_TRUE(guest.ok()) << guest.status();
    EXPECT_EQ(box.memory.pages, 1u);
    EXPECT_EQ(box.memory.max_pages, 4u);
    EXPECT_EQ(box.table.size, 4u);
    EXPECT_EQ(box.things.size, 2u);
    EXPECT_EQ(&guest->memory(), &box.memory);
    EXPECT_EQ(*guest->Call(&Z_linkedZ_load, 100u), 0x73726966u);
    EXPECT_EQ(*guest->Call(&Z_linkedZ_call, 0u), 7u);
    EXPECT_EQ(*guest->Call(&Z_linkedZ_fixed), 99u);
    EXPECT_EQ(*guest->Call(&Z_linkedZ_grow, 3u), 1u);
    EXPECT_EQ(*guest->Call(&Z_linkedZ_grow, 1u), 0xffffffffu);
  }
  // And empty again.
  EXPECT_EQ(box.memory.data, nullptr);
  EXPECT_EQ(box.table.data, nullptr);
  EXPECT_EQ(box.things.data, nullptr);
}

TEST_P(ForeignGuestTest, NothingOfALeaseIsLeftInImportedParts) {
  Box first_box;
  auto first = LinkedGuest::Create(source(), &first_box);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(first->Call(&Z_linkedZ_set, 11u).ok());
  ASSERT_TRUE(first->Call(&Z_linkedZ_store, 3000u, 12u).ok());
  ASSERT_TRUE(first->Call(&Z_linkedZ_put, 1u).ok());
  int object = 0;
  first_box.things.data[1] = &object;
  auto prepared = first->Snapshot("linked");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ((*prepared)->memories().size(), 1u);

  Box box;
  auto guest = (*prepared)->Instantiate(source(), &box);
  ASSERT_TRUE(guest.ok()) << guest.status();
  for (int lease = 0; lease < 4; ++lease) {
    ASSERT_EQ(*guest->Call(&Z_linkedZ_get), 11u);
    ASSERT_EQ(*guest->Call(&Z_linkedZ_load, 3000u), 12u);
    ASSERT_EQ(*guest->Call(&Z_linkedZ_load, 5000u), 0u);
    ASSERT_EQ(*guest->Call(&Z_linkedZ_load, 100u), 0x73726966u);
    ASSERT_EQ(*guest->Call(&Z_linkedZ_size), 1u);
    // Functions of the copy's own, not of the first guest.
    ASSERT_EQ(*guest->Call(&Z_linkedZ_call, 1u), 11u);
    ASSERT_EQ(box.table.data[1].module_instance, guest->get());
    ASSERT_TRUE(guest->Call(&Z_linkedZ_call, 2u).trapped());
    ASSERT_EQ(box.table.size, 4u);
    ASSERT_EQ(box.things.data[0], nullptr);
    ASSERT_EQ(box.things.data[1], &object);
    ASSERT_EQ(box.chosen.func, nullptr);
    // Leave something behind in each.
    ASSERT_TRUE(guest->Call(&Z_linkedZ_set, 99u).ok());
    ASSERT_EQ(*guest->Call(&Z_linkedZ_grow, 2u), 1u);
    for (u32 at = 0; at < 3 * 65536; at += 4096) {
      ASSERT_TRUE(guest->Call(&Z_linkedZ_store, at, 0xeeeeeeeeu).ok());
    }
    ASSERT_TRUE(guest->Call(&Z_linkedZ_store, 5000u, 1u).ok());
    ASSERT_TRUE(guest->Call(&Z_linkedZ_put, 2u).ok());
    ASSERT_EQ(*guest->Call(&Z_linkedZ_grow_table, 4u), 4u);
    ASSERT_TRUE(guest->Call(&Z_linkedZ_copy_thing).ok());
    ASSERT_TRUE(guest->Call(&Z_linkedZ_choose).ok());
    if (lease % 2 == 0) {
      ASSERT_TRUE(guest->Reset().ok());
    } else {
      { LinkedGuest(*std::move(guest)); }
      ASSERT_EQ(box.chosen.func, nullptr);
      guest = (*prepared)->Instantiate(source(), &box);
      ASSERT_TRUE(guest.ok()) << guest.status();
    }
  }
}

TEST_P(ForeignGuestTest, AMemoryOfSomebodyElsesIsNotOverwritten) {
  Box box;
  auto owner = LinkedGuest::Create(source(), &box);
  ASSERT_TRUE(owner.ok()) << owner.status();
  auto prepared = owner->Snapshot("owned");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const absl::Status refused =
      (*prepared)->Instantiate(source(), &box).status();
  EXPECT_EQ(refused,
            absl::FailedPreconditionError(
                "module linked: imported memory 'box.memory' is not empty, and "
                "a guest that is made from a template fills it: give each "
                "guest imports of its own"));
  // A memory of the host's own can be linked with, and not be snapshotted.
  std::vector<uint8_t> bytes(kWasmPageBytes);
  Box hosts;
  hosts.memory = {.data = bytes.data(),
                  .pages = 1,
                  .max_pages = 1,
                  .size = static_cast<uint32_t>(kWasmPageBytes)};
  auto guest = LinkedGuest::Create(source(), &hosts);
  ASSERT_TRUE(guest.ok()) << guest.status();
  EXPECT_EQ(memcmp(bytes.data() + 100, "firsttouch", 10), 0);
  EXPECT_THAT(std::string(guest->Snapshot("hosts").status().message()),
              HasSubstr("imported memory 'box.memory' is none of a "
                        "MemorySource, and a snapshot cannot keep it"));
  EXPECT_EQ(guest->MakeReady(0, 1, Access::kRead).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_P(ForeignGuestTest, ImportsThatAreTooSmallAreNamed) {
  Box box;
  uint8_t byte = 0;
  box.memory = {.data = &byte};
  EXPECT_EQ(LinkedGuest::Create(source(), &box).status().message(),
            "cannot instantiate module linked: module linked: imported memory "
            "'box.memory' has 0 pages, and the module asks for at least 1");
  Box table_box;
  wasm_rt_allocate_funcref_table(&table_box.table, 3, 3);
  EXPECT_EQ(LinkedGuest::Create(source(), &table_box).status().message(),
            "cannot instantiate module linked: module linked: imported table "
            "'box.table' has 3 elements, and the module asks for at least 4");
  wasm_rt_free_funcref_table(&table_box.table);
}

TEST_P(ForeignGuestTest, ImportsThatMayGrowTooFarAreNamed) {
  Box box;
  uint8_t byte = 0;
  box.memory = {.data = &byte, .pages = 1, .max_pages = 5};
  EXPECT_EQ(LinkedGuest::Create(source(), &box).status().message(),
            "cannot instantiate module linked: module linked: imported memory "
            "'box.memory' may grow to 5 pages, and the module allows at most "
            "4");
  Box table_box;
  wasm_rt_allocate_funcref_table(&table_box.table, 4, 9);
  EXPECT_EQ(LinkedGuest::Create(source(), &table_box).status().message(),
            "cannot instantiate module linked: module linked: imported table "
            "'box.table' may grow to 9 elements, and the module allows at most "
            "8");
  wasm_rt_free_funcref_table(&table_box.table);
}

TEST_P(ForeignGuestTest, AFailedInstanceLivesAsLongAsATableHasItsFunctions) {
  Box box;
  wasm_rt_allocate_funcref_table(&box.table, 4, 8);
  auto caller = LinkedGuest::Create(source(), &box);
  ASSERT_TRUE(caller.ok()) << caller.status();
  for (int i = 0; i < 10; ++i) {  // more often than the pool has instances
    const absl::Status failed =
        Guest<Z_fails_late_instance_t>::Create(source(), &box).status();
    ASSERT_EQ(failed.code(), absl::StatusCode::kAborted) << failed;
    ASSERT_EQ(*caller->Call(&Z_linkedZ_call, 2u), 82u);
  }
  wasm_rt_free_funcref_table(&box.table);
}

TEST_P(ForeignGuestTest, ADestroyedGuestLeavesNoFunctionsInOthersTables) {
  Box box;
  wasm_rt_allocate_funcref_table(&box.table, 4, 8);
  {
    Box other_memory = box;
    auto guest = LinkedGuest::Create(source(), &other_memory);
    ASSERT_TRUE(guest.ok()) << guest.status();
    EXPECT_EQ(box.table.data[0].module_instance, guest->get());
  }
  EXPECT_EQ(box.table.data[0].module_instance, nullptr);
  EXPECT_EQ(box.table.data[0].func, nullptr);
  wasm_rt_free_funcref_table(&box.table);
}

TEST_P(ForeignGuestTest, WasiWorksOnAnImportedMemory) {
  Z_env_instance_t env;
  std::string output;
  Wasi wasi(
      {.on_output = [&](int, std::string_view text) { output.append(text); },
       .fixed_clock_ns = 1234});
  auto guest =
      Guest<Z_wasi_on_import_instance_t>::Create(source(), &env, &wasi);
  ASSERT_TRUE(guest.ok()) << guest.status();
  EXPECT_EQ(*guest->Call(&Z_wasi_on_importZ_greet), 0u);
  EXPECT_EQ(output, "hello");
  EXPECT_EQ(*guest->Call(&Z_wasi_on_importZ_seek, 1u), kWasiSpipe);
  EXPECT_EQ(*guest->Call(&Z_wasi_on_importZ_seek, 9u), kWasiBadf);
  EXPECT_EQ(*guest->Call(&Z_wasi_on_importZ_clock), 1234u);
}

// Runs `body` on a stack of that many bytes, which lies behind bytes that are
// not to be touched, and says whether they are as they were.
bool KeepsBelowItsStack(size_t stack_bytes, std::function<void()> body) {
  constexpr size_t kBelow = size_t{1} << 20;
  constexpr uint8_t kMark = 0x5a;
  constexpr size_t kPage = 4096;
  std::vector<uint8_t> storage(kPage + kBelow + stack_bytes, kMark);
  uint8_t* const bytes =
      storage.data() +
      (kPage - reinterpret_cast<uintptr_t>(storage.data()) % kPage);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  EXPECT_EQ(pthread_attr_setstack(&attributes, bytes + kBelow, stack_bytes), 0);
  pthread_t thread;
  EXPECT_EQ(pthread_create(
                &thread, &attributes,
                [](void* argument) -> void* {
                  (*static_cast<std::function<void()>*>(argument))();
                  return nullptr;
                },
                &body),
            0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  size_t changed = 0;
  for (size_t i = 0; i < kBelow; ++i) changed += bytes[i] != kMark;
  return changed == 0;
}

TEST_P(ForeignGuestTest, TheLargestFramesStayOnTheStack) {
  auto guest = Guest<Z_frames_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  // So that what a frame spills is told from what was there.
  memset(guest->memory().data, 0xee, guest->memory().size);
  for (const size_t kib : {192, 196, 200, 204, 208, 256, 512}) {
    bool exhausted = false;
    EXPECT_TRUE(KeepsBelowItsStack(kib << 10, [&] {
      const Outcome<u64> outcome = guest->Call(&Z_framesZ_run, 0u);
      exhausted = outcome.trapped() &&
                  outcome.trap().code == WASM_RT_TRAP_EXHAUSTION &&
                  !outcome.trap().interrupted;
    })) << kib;
    EXPECT_TRUE(exhausted) << kib;
  }
}

// Ends a guest from outside, once it says that it runs.
template <typename Function>
void InterruptWhenRunning(Guest<Z_endless_instance_t>* guest,
                          Function exported) {
  Interrupt stop;
  auto* const word = reinterpret_cast<std::atomic<u32>*>(guest->memory().data);
  word->store(0);
  std::thread watchdog([&] {
    while (word->load() == 0) std::this_thread::yield();
    stop.Request();
  });
  const Outcome<Nothing> outcome = guest->Run(
      [&](Z_endless_instance_t* it) { exported(it); }, {.interrupt = &stop});
  watchdog.join();
  ASSERT_TRUE(outcome.trapped()) << outcome.status();
  EXPECT_TRUE(outcome.trap().interrupted);
  EXPECT_EQ(outcome.status(), absl::AbortedError("interrupted by the host"));
  EXPECT_TRUE(stop.requested());
  // Those that come later end at once, until it is cleared.
  EXPECT_TRUE(
      guest
          ->Run([](Z_endless_instance_t* it) { return Z_endlessZ_answer(it); },
                {.interrupt = &stop})
          .trapped());
  stop.Clear();
  const Outcome<u32> answer =
      guest->Run([](Z_endless_instance_t* it) { return Z_endlessZ_answer(it); },
                 {.interrupt = &stop});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(*answer, 42u);
}

TEST_P(ForeignGuestTest, TheHostEndsAGuestThatNeverDoes) {
  auto guest = Guest<Z_endless_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  InterruptWhenRunning(&*guest, &Z_endlessZ_loop);
  InterruptWhenRunning(&*guest, &Z_endlessZ_calls);
}

TEST_P(ForeignGuestTest, AnInterruptOfTheOuterRunEndsTheInnerToo) {
  auto guest = Guest<Z_endless_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  Interrupt stop;
  bool inner_interrupted = false;
  const Outcome<u32> outer = guest->Run(
      [&](Z_endless_instance_t* it) {
        stop.Request();
        const Outcome<Nothing> inner = guest->Call(&Z_endlessZ_loop);
        inner_interrupted = inner.trapped() && inner.trap().interrupted;
        return Z_endlessZ_answer(it);
      },
      {.interrupt = &stop});
  EXPECT_TRUE(inner_interrupted);
  EXPECT_TRUE(outer.trapped() && outer.trap().interrupted);
  EXPECT_EQ(wasm_rt_stack_limit, 0u);
  EXPECT_EQ(*guest->Call(&Z_endlessZ_answer), 42u);
}

}  // namespace
}  // namespace firsttouch::wasm2c
