#include "firsttouch/init/working_set.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

using Words = WorkingSet::Words;

TEST(WorkingSetTest, KnowsNothingAtFirst) {
  WorkingSet set;
  EXPECT_FALSE(set.known());
  EXPECT_THAT(set.written(), IsEmpty());
  EXPECT_THAT(set.read(), IsEmpty());
}

TEST(WorkingSetTest, ATenantThatWroteNothingTeachesThatToo) {
  WorkingSet set;
  set.LearnWritten({});
  EXPECT_TRUE(set.known());
  EXPECT_THAT(set.written(), IsEmpty());
}

TEST(WorkingSetTest, AddsUpWhatTenantsWriteAndRead) {
  WorkingSet set;
  set.LearnWritten(Words{1, 0, 4});
  set.LearnWritten(Words{2});
  set.LearnRead(Words{8});
  EXPECT_THAT(set.written(), ElementsAre(3, 0, 4));
  EXPECT_THAT(set.read(), ElementsAre(8));
}

TEST(WorkingSetTest, VersionMovesOnlyWithTheSets) {
  WorkingSet set;
  set.LearnWritten(Words{1});
  const uint64_t version = set.version();
  set.LearnWritten(Words{1});
  set.ForgetWritten(Words{2});
  EXPECT_EQ(set.version(), version);
  set.LearnWritten(Words{2});
  EXPECT_NE(set.version(), version);
}

TEST(WorkingSetTest, ForgottenPagesAreGoneAndTheRestStays) {
  WorkingSet set;
  set.LearnWritten(Words{5, 1});
  set.ForgetWritten(Words{1, 1, 1});
  EXPECT_THAT(set.written(), ElementsAre(4));
  EXPECT_TRUE(set.known());
}

TEST(WorkingSetTest, ReplacingStartsAgain) {
  WorkingSet set;
  set.LearnWritten(Words{1});
  set.Replace(Words{2, 0}, Words{4});
  EXPECT_THAT(set.written(), ElementsAre(2));
  EXPECT_THAT(set.read(), ElementsAre(4));
  set.Replace({}, {});
  EXPECT_FALSE(set.known());
}

TEST(WorkingSetTest, PagesBehindTheLargestMemoryAreDropped) {
  WorkingSet set;
  Words words(WorkingSet::kMaxPages / 64 + 1);
  words.back() = 1;
  set.LearnWritten(words);
  EXPECT_THAT(set.written(), IsEmpty());
}

}  // namespace
}  // namespace firsttouch
