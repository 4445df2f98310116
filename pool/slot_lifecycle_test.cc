#include "firsttouch/pool/slot_lifecycle.h"

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

std::vector<SlotLifecycle> All() {
  std::vector<SlotLifecycle> all;
  for (uint32_t i = 0; i < kSlotLifecycles; ++i) {
    all.push_back(static_cast<SlotLifecycle>(i));
  }
  return all;
}

std::set<SlotLifecycle> ReachableFrom(SlotLifecycle start) {
  std::set<SlotLifecycle> reached = {start};
  for (bool grew = true; grew;) {
    grew = false;
    for (const SlotTransition& transition : kSlotTransitions) {
      if (reached.contains(transition.from)) {
        grew |= reached.insert(transition.to).second;
      }
    }
  }
  return reached;
}

// A cell that has reached a state by transitions of the table.
LifecycleCell* CellIn(SlotLifecycle state) {
  auto* const cell = new LifecycleCell;
  using L = SlotLifecycle;
  const auto go = [cell](std::initializer_list<L> way) {
    for (const L to : way) cell->Move(to);
  };
  switch (state) {
    case L::kFree:
      break;
    case L::kReturning:
      go({L::kReturning});
      break;
    case L::kLeased:
      go({L::kReturning, L::kLeased});
      break;
    case L::kParking:
      go({L::kReturning, L::kParking});
      break;
    case L::kParked:
      go({L::kReturning, L::kParking, L::kParked});
      break;
    case L::kQuarantined:
      go({L::kReturning, L::kQuarantined});
      break;
    case L::kTrimming:
      go({L::kTrimming});
      break;
    case L::kTrimmingParked:
      go({L::kReturning, L::kParking, L::kParked, L::kTrimmingParked});
      break;
  }
  return cell;
}

TEST(SlotLifecycleTest, EachStateHasAName) {
  for (const SlotLifecycle state : All()) {
    EXPECT_STRNE(SlotLifecycleName(state), "unknown");
  }
  EXPECT_STREQ(SlotLifecycleName(static_cast<SlotLifecycle>(kSlotLifecycles)),
               "unknown");
}

TEST(SlotLifecycleTest, EveryStateIsReachedFromAFreeSlot) {
  EXPECT_EQ(ReachableFrom(SlotLifecycle::kFree).size(), kSlotLifecycles);
}

TEST(SlotLifecycleTest, EveryStateButQuarantineLeadsBackToAFreeSlot) {
  for (const SlotLifecycle state : All()) {
    EXPECT_EQ(ReachableFrom(state).contains(SlotLifecycle::kFree),
              state != SlotLifecycle::kQuarantined)
        << SlotLifecycleName(state);
  }
  EXPECT_EQ(ReachableFrom(SlotLifecycle::kQuarantined).size(), 1u);
}

TEST(SlotLifecycleTest, ASlotBecomesParkedOnlyWhileParkingOrAfterATrim) {
  for (const SlotTransition& transition : kSlotTransitions) {
    if (transition.to != SlotLifecycle::kParked) continue;
    EXPECT_TRUE(transition.from == SlotLifecycle::kParking ||
                transition.from == SlotLifecycle::kTrimmingParked);
  }
}

TEST(SlotLifecycleTest, NoTransitionIsThereTwiceAndNoneStays) {
  std::set<std::pair<SlotLifecycle, SlotLifecycle>> seen;
  for (const SlotTransition& transition : kSlotTransitions) {
    EXPECT_TRUE(seen.insert({transition.from, transition.to}).second);
    EXPECT_NE(transition.from, transition.to);
  }
}

TEST(SlotLifecycleDeathTest, AMoveThatIsNotInTheTableEndsTheProcess) {
  for (const SlotLifecycle from : All()) {
    for (const SlotLifecycle to : All()) {
      const std::unique_ptr<LifecycleCell> cell(CellIn(from));
      ASSERT_EQ(cell->Load(std::memory_order_relaxed), from);
      if (IsSlotTransition(from, to)) {
        cell->Move(to);
        EXPECT_EQ(cell->Load(std::memory_order_relaxed), to);
      }
    }
  }
#ifndef NDEBUG
  const std::unique_ptr<LifecycleCell> cell(CellIn(SlotLifecycle::kFree));
  EXPECT_DEATH(cell->Move(SlotLifecycle::kLeased), "IsSlotTransition");
  const std::unique_ptr<LifecycleCell> lost(
      CellIn(SlotLifecycle::kQuarantined));
  EXPECT_DEATH(lost->Move(SlotLifecycle::kFree), "IsSlotTransition");
#endif
}

TEST(SlotLifecycleTest, WhoTakesGetsAnIdleSlotAndNoOther) {
  for (const SlotLifecycle from : All()) {
    // The Take methods wait until a trim has ended.
    if (from == SlotLifecycle::kTrimming ||
        from == SlotLifecycle::kTrimmingParked) {
      continue;
    }
    const std::unique_ptr<LifecycleCell> parked(CellIn(from));
    EXPECT_EQ(parked->TakeParked(), from == SlotLifecycle::kParked)
        << SlotLifecycleName(from);
    const std::unique_ptr<LifecycleCell> free(CellIn(from));
    EXPECT_EQ(free->TakeFree(),
              from == SlotLifecycle::kFree || from == SlotLifecycle::kReturning)
        << SlotLifecycleName(from);
    const std::unique_ptr<LifecycleCell> idle(CellIn(from));
    const std::optional<SlotLifecycle> before = idle->BeginTrim();
    EXPECT_EQ(before.has_value(),
              from == SlotLifecycle::kFree || from == SlotLifecycle::kParked)
        << SlotLifecycleName(from);
    if (before.has_value()) {
      EXPECT_EQ(*before, from);
      idle->Move(*before);
      EXPECT_EQ(idle->Load(std::memory_order_relaxed), from);
    }
  }
}

}  // namespace
}  // namespace firsttouch
