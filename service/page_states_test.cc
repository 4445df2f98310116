#include "firsttouch/service/page_states.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Zeroed memory of the right size and alignment.
class StatesMemory {
 public:
  explicit StatesMemory(uint64_t pages)
      : bytes_(PageStates::BytesFor(PageCount(pages))),
        memory_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        states(memory_, PageCount(pages)) {}
  ~StatesMemory() { munmap(memory_, bytes_); }

  // Word `index` of the summary, behind the object's back.
  uint64_t& summary(uint64_t index) {
    return static_cast<uint64_t*>(memory_)[index];
  }

 private:
  const uint64_t bytes_;
  void* const memory_;

 public:
  PageStates states;
};

void SetPage(PageStates& states, uint64_t page, bool present, bool untracked,
             bool dirty, bool retained) {
  PageGroup& group = states.GroupOf(page);
  const uint64_t bit = uint64_t{1} << (page % kPagesPerGroup);
  if (present) group.present.fetch_or(bit);
  if (untracked) group.untracked.fetch_or(bit);
  if (dirty) group.dirty.fetch_or(bit);
  if (retained) group.retained.fetch_or(bit);
  states.NoteGroup(page / kPagesPerGroup);
}

TEST(PageStatesTest, EachCombinationOfPlanesIsTheStateThatTheTableSays) {
  for (int bits = 0; bits < 16; ++bits) {
    StatesMemory memory(70);
    const bool present = bits & 1, untracked = bits & 2, dirty = bits & 4,
               retained = bits & 8;
    SetPage(memory.states, 65, present, untracked, dirty, retained);
    PageState expected = PageState::kMissing;
    if (dirty) {
      expected = retained ? PageState::kRetained : PageState::kDirty;
    } else if (present) {
      expected = untracked ? PageState::kUntracked : PageState::kClean;
    }
    EXPECT_EQ(memory.states.StateOf(65), expected) << bits;
    EXPECT_EQ(memory.states.StateOf(64), PageState::kMissing);
    EXPECT_EQ(memory.states.StateOf(1), PageState::kMissing);
  }
}

TEST(PageStatesTest, NamesAreThoseOfTheTable) {
  EXPECT_STREQ(PageStateName(PageState::kMissing), "missing");
  EXPECT_STREQ(PageStateName(PageState::kClean), "clean");
  EXPECT_STREQ(PageStateName(PageState::kUntracked), "untracked");
  EXPECT_STREQ(PageStateName(PageState::kDirty), "dirty");
  EXPECT_STREQ(PageStateName(PageState::kRetained), "retained");
}

TEST(PageStatesTest, FourKiBOfBookKeepingTellOfFifteenMiB) {
  EXPECT_EQ(PageStates::BytesFor(PageCount((15 << 20) / 4096)), 3904u);
  // 4 GiB: 2 KiB of summary and 1 MiB of planes.
  EXPECT_EQ(PageStates::BytesFor(PageCount(1 << 20)), (1u << 20) + 2048);
}

TEST(PageStatesTest, SmallMemoriesTakeNoWholePageEach) {
  EXPECT_EQ(PageStates::BytesFor(PageCount(1)), 128u);
  // 4 MiB: three of these in a page.
  EXPECT_EQ(PageStates::BytesFor(PageCount((4 << 20) / 4096)), 1088u);
}

TEST(PageStatesTest, WalksVisitNotedGroupsInOrder) {
  StatesMemory memory(64 * 200);
  for (uint64_t group : {199, 3, 64, 0, 63}) {
    SetPage(memory.states, group * 64 + group % 64, true, false, false, false);
  }
  std::vector<uint64_t> visited;
  memory.states.ForEachGroup(
      [&](uint64_t index, PageGroup&) { visited.push_back(index); });
  EXPECT_EQ(visited, (std::vector<uint64_t>{0, 3, 63, 64, 199}));
}

TEST(PageStatesTest, WalksReadNoFurtherThanTheLastWordInWhichAGroupWasNoted) {
  StatesMemory memory(64 * 64 * 4);
  const auto visited = [&] {
    std::vector<uint64_t> up;
    std::vector<uint64_t> down;
    memory.states.ForEachGroup(
        [&](uint64_t index, PageGroup&) { up.push_back(index); });
    memory.states.ForEachGroupDown(
        [&](uint64_t index, PageGroup&) { down.insert(down.begin(), index); });
    EXPECT_EQ(up, down);
    return up;
  };
  memory.summary(0) = 1;
  memory.summary(3) = 1;
  EXPECT_EQ(visited(), (std::vector<uint64_t>{}));
  memory.states.NoteGroup(65);
  EXPECT_EQ(visited(), (std::vector<uint64_t>{0, 65}));
  // A lower one does not make them read less.
  memory.states.NoteGroup(2);
  EXPECT_EQ(visited(), (std::vector<uint64_t>{0, 2, 65}));
  memory.states.NoteGroup(193);
  EXPECT_EQ(visited(), (std::vector<uint64_t>{0, 2, 65, 192, 193}));
}

TEST(PageStatesTest, ForgetClearsJustTheRangeForEveryRangeOfThreeGroups) {
  constexpr uint64_t kPages = 130;
  for (uint64_t first = 0; first <= kPages; first += 5) {
    for (uint64_t end = first; end <= kPages; end += 7) {
      StatesMemory memory(kPages);
      for (uint64_t page = 0; page < kPages; ++page) {
        SetPage(memory.states, page, true, false, page % 2 == 0, page % 4 == 0);
      }
      memory.states.Forget(first, end);
      for (uint64_t page = 0; page < kPages; ++page) {
        const PageState expected = page >= first && page < end
                                       ? PageState::kMissing
                                   : page % 4 == 0 ? PageState::kRetained
                                   : page % 2 == 0 ? PageState::kDirty
                                                   : PageState::kClean;
        ASSERT_EQ(memory.states.StateOf(page), expected)
            << first << ".." << end << " page " << page;
      }
    }
  }
}

TEST(PageStatesTest, ForgottenGroupsAreNotVisitedAnyMore) {
  StatesMemory memory(64 * 4);
  SetPage(memory.states, 10, true, false, true, true);
  SetPage(memory.states, 70, true, false, true, true);
  SetPage(memory.states, 71, true, false, false, false);
  // A fill of this page was left half-way: it is only marked as perhaps
  // changed.
  SetPage(memory.states, 130, false, true, false, false);
  SetPage(memory.states, 131, true, false, false, false);
  memory.states.Forget(0, 71);
  memory.states.Forget(131, 132);
  std::vector<uint64_t> visited;
  memory.states.ForEachGroup(
      [&](uint64_t index, PageGroup&) { visited.push_back(index); });
  EXPECT_EQ(visited, (std::vector<uint64_t>{1, 2}));
}

}  // namespace
}  // namespace firsttouch
