#include "firsttouch/service/restore_groups.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class RestoreGroupsTest : public ScriptedSlotTest {
 protected:
  struct Visit {
    uint64_t index;
    uint64_t dirty;
    uint64_t changed;
    bool operator==(const Visit&) const = default;
  };

  RestoreGroupsTest() { UseRealMemory(); }

  Restored Restore() {
    visits_.clear();
    clean_.clear();
    return RestoreGroups(
        slot_,
        [&](uint64_t index, PageGroup&, uint64_t dirty, uint64_t changed) {
          visits_.push_back({index, dirty, changed});
        },
        [&](PageGroup& group) {
          clean_.push_back(&group - &slot_.pages.group(0));
        });
  }

  std::vector<Visit> visits_;
  std::vector<uint64_t> clean_;
};

TEST_F(RestoreGroupsTest, EachDirtyPageIsRestoredAndTellsWhetherItHadChanged) {
  UseImage(ImageOf(20, {4}), /*mapped=*/true);
  Put(2, 3, PageState::kDirty);
  Put(70, 1, PageState::kDirty);
  PagePointer(2)[0] = std::byte{3};  // What the image has.
  PagePointer(4)[9] = std::byte{7};
  PagePointer(70)[9] = std::byte{7};
  const Restored restored = Restore();
  EXPECT_EQ(restored.pages, 4u);
  EXPECT_EQ(restored.changed_pages, 3u);
  EXPECT_EQ(slot_.counters.pages_restored, 4u);
  EXPECT_THAT(visits_, ElementsAre(Visit{1, 1 << 6, 1 << 6},
                                   Visit{0, 0b11100, 0b11000}));
  EXPECT_EQ(PagePointer(3)[0], std::byte{4});
  EXPECT_EQ(PagePointer(4)[9], std::byte{0});
  EXPECT_EQ(PagePointer(70)[9], std::byte{0});
}

TEST_F(RestoreGroupsTest, PagesThatAreNotDirtyAreLeftAlone) {
  Put(2, 1, PageState::kClean);
  PagePointer(2)[9] = std::byte{7};
  EXPECT_EQ(Restore().pages, 0u);
  EXPECT_EQ(PagePointer(2)[9], std::byte{7});
  EXPECT_THAT(visits_, IsEmpty());
  EXPECT_THAT(clean_, ElementsAre(0));
}

TEST_F(RestoreGroupsTest, EachRestoreStartsAtTheOtherEnd) {
  Put(2, 1, PageState::kDirty);
  Put(70, 1, PageState::kDirty);
  Put(200, 1, PageState::kDirty);
  for (const std::vector<uint64_t>& order :
       {std::vector<uint64_t>{3, 1, 0}, {0, 1, 3}, {3, 1, 0}}) {
    Restore();
    std::vector<uint64_t> groups;
    for (const Visit& visit : visits_) groups.push_back(visit.index);
    EXPECT_EQ(groups, order);
  }
}

TEST_F(RestoreGroupsTest, AChangeIsNotedOnce) {
  PageGroup& group = slot_.pages.group(0);
  NoteChanged(group, 0b0110);
  NoteChanged(group, 0b0011);
  EXPECT_EQ(group.recent, 0b0111u);
  NoteChanged(group, 0);
  EXPECT_EQ(group.recent, 0b0111u);
}

}  // namespace
}  // namespace firsttouch
