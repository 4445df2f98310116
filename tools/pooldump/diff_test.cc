#include "firsttouch/tools/pooldump/diff.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ProcessSnapshot Process(int64_t second) {
  ProcessSnapshot process;
  process.set_pid(77);
  process.set_monotonic_ns(second * 1'000'000'000);
  PoolSnapshot& pool = *process.add_pools();
  pool.set_name("tenants");
  pool.set_pool_id(3);
  for (uint32_t i = 0; i < 3; ++i) {
    Slot& slot = *pool.add_slots();
    slot.set_slot(i);
    slot.set_state(Slot::FREE);
    slot.set_state_name("free");
    slot.set_private_bytes(4096);
    slot.mutable_counters()->set_traps(2);
    slot.mutable_counters()->set_minor_faults(10);
  }
  return process;
}

TEST(Diff, TellsWhatGrewAndWhatChangedItsState) {
  ProcessSnapshot after = Process(14);
  Slot& slot = *after.mutable_pools(0)->mutable_slots(1);
  slot.set_state_name("held");
  slot.set_image_name("guest");
  slot.set_private_bytes(12288);
  slot.mutable_counters()->set_traps(5);
  slot.mutable_counters()->set_write_protect_faults(4);
  after.mutable_pools(0)->mutable_slots(2)->set_private_bytes(0);
  const DiffReport report = Diff(Process(10), after);
  EXPECT_EQ(report.pid(), 77);
  EXPECT_EQ(report.seconds(), 4);
  EXPECT_THAT(report.warnings(), IsEmpty());
  ASSERT_EQ(report.pools_size(), 1);
  const DiffReport::Pool& pool = report.pools(0);
  EXPECT_EQ(pool.pool_id(), 3u);
  EXPECT_EQ(pool.slots(), 3u);
  EXPECT_EQ(pool.changed_slots(), 2u);
  EXPECT_EQ(pool.changed_states(), 1u);
  ASSERT_EQ(pool.changes_size(), 3);
  EXPECT_FALSE(pool.changes(0).changed());
  EXPECT_TRUE(pool.changes(1).changed());
  EXPECT_EQ(pool.changes(1).state_before(), "free");
  EXPECT_EQ(pool.changes(1).state(), "held");
  EXPECT_EQ(pool.changes(1).image(), "guest");
  EXPECT_EQ(pool.changes(1).private_bytes(), 8192);
  EXPECT_EQ(pool.changes(1).traps(), 3);
  EXPECT_EQ(pool.changes(1).faults(), 4);
  EXPECT_EQ(pool.changes(2).private_bytes(), -4096);
  EXPECT_EQ(pool.sum().private_bytes(), 4096);
  EXPECT_EQ(pool.sum().traps(), 3);
}

TEST(Diff, WhatOneLookDoesNotKnowIsUnknown) {
  ProcessSnapshot after = Process(14);
  Slot& slot = *after.mutable_pools(0)->mutable_slots(0);
  slot.clear_private_bytes();
  slot.mutable_counters()->set_faults_unknown(true);
  after.set_monotonic_ns(0);
  const DiffReport report = Diff(Process(10), after);
  EXPECT_FALSE(report.has_seconds());
  const DiffReport::Change& change = report.pools(0).changes(0);
  EXPECT_FALSE(change.has_private_bytes());
  EXPECT_FALSE(change.has_faults());
  EXPECT_FALSE(change.has_dirty_pages());
}

TEST(Diff, SaysWhatCannotBeCompared) {
  ProcessSnapshot after = Process(14);
  after.set_pid(78);
  after.mutable_pools(0)->mutable_slots(0)->mutable_counters()->set_traps(0);
  after.mutable_pools(0)->mutable_slots()->RemoveLast();
  *after.add_pools() = after.pools(0);
  after.mutable_pools(1)->set_pool_id(4);
  EXPECT_THAT(Diff(Process(10), after).warnings(),
              ElementsAre(HasSubstr("of two processes, 77 and 78"),
                          HasSubstr("pool tenants (number 3): a counter fell"),
                          HasSubstr("1 slot is in one file only"),
                          "pool tenants (number 4) is new"));
  EXPECT_THAT(Diff(Process(10), ProcessSnapshot()).warnings(),
              testing::Contains("pool tenants (number 3) is gone"));
}

}  // namespace
}  // namespace firsttouch::pooldump
