#include "firsttouch/serve/touches.h"

#include <chrono>
#include <cstdint>
#include <vector>

#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Touch Of(uint64_t page, bool write = false) {
  return {PageIndex(page), write, std::chrono::nanoseconds(0)};
}

PageRun Pages(uint64_t first, uint64_t pages) {
  return {PageIndex(first), PageCount(pages)};
}

TEST(Touches, ThatFollowCloselyAreSortedAndJoined) {
  const std::vector<Touch> touches = {Of(9), Of(2), Of(8), Of(1), Of(30)};
  EXPECT_THAT(RunsOf(touches),
              ElementsAre(Pages(1, 2), Pages(8, 2), Pages(30, 1)));
  EXPECT_THAT(RunsOf(std::vector<Touch>()), IsEmpty());
}

// What is touched first is placed first, however it lies.
TEST(Touches, OfLaterGroupsComeLater) {
  std::vector<Touch> touches;
  for (uint64_t i = 0; i < 256; ++i) touches.push_back(Of(1000 + i));
  // The next group is twice as large.
  for (uint64_t i = 0; i < 510; ++i) touches.push_back(Of(4999 - i));
  touches.push_back(Of(5));
  touches.push_back(Of(4));
  touches.push_back(Of(3));
  EXPECT_THAT(RunsOf(touches), ElementsAre(Pages(1000, 256), Pages(4, 2),
                                           Pages(4490, 510), Pages(3, 1)));
}

TEST(Touches, InARowAreOneRunAcrossGroups) {
  std::vector<Touch> touches;
  for (uint64_t i = 0; i < 9000; ++i) touches.push_back(Of(i));
  EXPECT_THAT(RunsOf(touches), ElementsAre(Pages(0, 9000)));
}

TEST(Touches, SetsOfPagesKeepRunsAcrossWords) {
  WorkingSet::Words words;
  AddPages(words, 60, 70);
  AddPages(words, 128, 129);
  AddPages(words, 3, 3);
  EXPECT_THAT(RunsIn(words), ElementsAre(Pages(60, 10), Pages(128, 1)));
  // Pages that are there already stay.
  AddPages(words, 65, 130);
  EXPECT_THAT(RunsIn(words), ElementsAre(Pages(60, 70)));
  EXPECT_THAT(RunsIn({}), IsEmpty());
}

TEST(Touches, AWorkingSetIsWhatWasReadOrWritten) {
  WorkingSet set;
  EXPECT_THAT(RunsOf(set), IsEmpty());
  Teach(std::vector<Touch>{Of(7), Of(200, /*write=*/true), Of(8)}, set);
  EXPECT_TRUE(set.known());
  EXPECT_THAT(RunsIn(set.written()), ElementsAre(Pages(200, 1)));
  EXPECT_THAT(RunsOf(set), ElementsAre(Pages(7, 2), Pages(200, 1)));
  EXPECT_THAT(RunsOf(set, std::vector<PageRun>{Pages(0, 8), Pages(500, 1)}),
              ElementsAre(Pages(8, 1), Pages(200, 1)));
  // Later guests add to it.
  Teach(std::vector<Touch>{Of(9)}, set);
  EXPECT_THAT(RunsOf(set), ElementsAre(Pages(7, 3), Pages(200, 1)));
}

}  // namespace
}  // namespace firsttouch
