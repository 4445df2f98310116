// What a cycle's numbers are made of: strategies that are right, readings that
// become one number, and goals that are held against it.

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Each strategy that is possible here.
class CycleStrategies : public testing::TestWithParam<CycleStrategyFactory> {};

TEST_P(CycleStrategies, PutBackImageAndZeroes) {
  auto strategy = GetParam().make(CycleLayout(1));
  if (!strategy.ok()) GTEST_SKIP() << strategy.status();
  const std::unique_ptr<CycleSlot> slot = (*strategy)->NewSlot();
  const ImageRef image = PatternImage(kCycleImageBytes);
  // On both sides of the image's end, neighbours and alone.
  constexpr uint64_t kEnd = kCycleImageBytes / kPageBytes;
  const uint32_t changed[] = {3, kEnd - 2, kEnd - 1, kEnd, kEnd + 1, kEnd + 30};
  for (int round = 0; round < 3; ++round) {
    std::byte* const memory = slot->Acquire(image);
    EXPECT_EQ(memcmp(memory, image->data(), kCycleImageBytes), 0) << round;
    EXPECT_TRUE(std::all_of(memory + kCycleImageBytes,
                            memory + kCycleMemoryBytes,
                            [](std::byte b) { return b == std::byte{0}; }))
        << round;
    for (uint32_t page : changed) memset(memory + page * kPageBytes, 1, 8);
    slot->Release(changed, kCycleMemoryBytes);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CycleStrategies,
                         testing::ValuesIn(AllCycleStrategies()));

uint64_t TicksOf(double ns) {
  return static_cast<uint64_t>(ns * TicksPerNs() + EmptyLoopTicks());
}

TEST(TimesOfRound, WhatHappensNowAndThenIsInTheMeanOnly) {
  Ticks ticks(90, TicksOf(10'000));
  ticks.insert(ticks.end(), 10, TicksOf(60'000));
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 10'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 15'000, 100);
}

TEST(TimesOfRound, TimeSlicesOfOthersAreInNeither) {
  Ticks ticks(99, TicksOf(10'000));
  ticks.push_back(TicksOf(4'000'000));
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 10'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 10'000, 100);
}

TEST(TimesOfRound, LongCyclesAreNotTakenForTimeSlices) {
  const Ticks ticks = {TicksOf(900'000), TicksOf(1'000'000),
                       TicksOf(2'000'000)};
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 1'000'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 1'300'000, 100);
}

TEST(TimesOfRound, ShortCyclesAreMeasuredFinerThanTheClocksSteps) {
  // A clock that stands still, and then moves by four cycles at once.
  Ticks ticks(400);
  for (size_t i = 0; i < ticks.size(); i += 4) ticks[i] = 4 * TicksOf(50);
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 50, 1);
}

TEST(TimesOfRound, OfThreadsTheSlowestMedianAndTheMeanOfAllCount) {
  const RoundTimes times =
      TimesOfRound({Ticks(300, TicksOf(10'000)), Ticks(100, TicksOf(30'000))});
  EXPECT_NEAR(times.median_ns, 30'000, 100);
  EXPECT_NEAR(times.mean_ns, 15'000, 100);
  EXPECT_NEAR(times.p99_ns, 30'000, 100);
  EXPECT_NEAR(times.cycles_per_second, 133'333, 1000);
}

TEST(MedianRatio, IsTakenWithinRounds) {
  EXPECT_EQ(MedianRatio({1, 4, 9}, {1, 2, 3}), 2);
  EXPECT_EQ(MedianRatio({1, 4, 9}, {0, 2}), 2);
  EXPECT_EQ(MedianRatio({1}, {0}), std::nullopt);
}

class CycleGoals : public testing::Test {
 protected:
  // Adds a row whose rounds took so long, by median and by mean.
  CycleRow& Row(CycleRow::Table table, const std::string& pages, uint32_t k,
                const char* strategy, const std::vector<double>& medians,
                const std::vector<double>& means) {
    CycleRow& row = *report_.add_rows();
    row.set_table(table);
    row.set_pages(pages);
    row.set_touched_bytes(1 << 20);
    row.set_changed_pages(k);
    row.set_way(strategy);
    row.set_threads(table == CycleRow::THREADS ? 2 : 1);
    row.set_mean_ns(means[0]);
    row.mutable_round_median_ns()->Assign(medians.begin(), medians.end());
    row.mutable_round_mean_ns()->Assign(means.begin(), means.end());
    return row;
  }
  CycleRow& Row(CycleRow::Table table, const std::string& pages, uint32_t k,
                const char* strategy, double ns) {
    return Row(table, pages, k, strategy, {ns}, {ns});
  }

  // Of the rows: "name | where | other: <= bound, measured, reached".
  std::vector<std::string> Goals() {
    AddGoals(report_);
    std::vector<std::string> told;
    for (const Goal& goal : report_.goals()) {
      told.push_back(absl::StrCat(
          goal.name(), " | ", goal.where(), " | ", goal.other(), ": ",
          goal.at_least() ? ">= " : "<= ", goal.bound(), ", ",
          !goal.has_measured() ? "-" : absl::StrCat(goal.measured()), ", ",
          !goal.has_reached() ? "-"
          : goal.reached()    ? "reached"
                              : "missed"));
    }
    return told;
  }

  CycleReport report_;
};

TEST_F(CycleGoals, SamePagesAreComparedWithTheLimitAndTheScan) {
  CycleRow& ours = Row(CycleRow::STEADY, "same", 4, kDefaultName, 110);
  ours.set_system_calls(0);
  ours.set_signals(0.25);
  Row(CycleRow::STEADY, "same", 4, kLimitName, 100);
  Row(CycleRow::STEADY, "same", 4, kScanName, 990);
  EXPECT_THAT(
      Goals(),
      ElementsAre(
          "same pages: system calls | k=4 of 1 MiB | : <= 0, 0, reached",
          "same pages: signals | k=4 of 1 MiB | : <= 0, 0.25, missed",
          // Nobody counted these.
          "same pages: page faults | k=4 of 1 MiB | : <= 0, -, -",
          "same pages: time / limit | k=4 of 1 MiB | memcpy of the changed: "
          "<= 1.15, 1.1, reached",
          "same pages: PAGEMAP_SCAN / ours | k=4 of 1 MiB | CoW + "
          "PAGEMAP_SCAN: >= 10, 9, missed"));
  const std::string text = GoalsText("goals", report_.goals());
  EXPECT_THAT(text, HasSubstr("\ngoals\n\nsame pages: system calls\n"
                              "  k=4 of 1 MiB                                  "
                              "   <=0            0  ok\n"));
  EXPECT_THAT(text,
              HasSubstr("  k=4 of 1 MiB           memcpy of the changed  <=1.15"
                        "    1.10 1.10  ok\n"));
  EXPECT_THAT(text, HasSubstr("0.25  NOT REACHED\n"));
  EXPECT_THAT(text, HasSubstr("  not measured\n"));
  EXPECT_THAT(text, HasSubstr("2 of 4 goals that were measured are reached\n"));
}

TEST_F(CycleGoals, OneAndFourHaveOtherBoundsThanSixteenAndSixtyFour) {
  for (uint32_t k : {0, 1, 4, 16, 64, 256}) {
    Row(CycleRow::STEADY, "same", k, kDefaultName, 1);
    Row(CycleRow::STEADY, "same", k, kScanName, 1);
  }
  AddGoals(report_);
  std::vector<double> bounds;
  for (const Goal& goal : report_.goals()) {
    if (goal.name() == "same pages: PAGEMAP_SCAN / ours") {
      bounds.push_back(goal.bound());
    }
  }
  EXPECT_THAT(bounds, ElementsAre(10, 10, 2, 1.2));
}

TEST_F(CycleGoals, RatiosAreTakenWithinRounds) {
  // Each round three quarters of the other's; the medians of the columns are
  // equal.
  Row(CycleRow::STEADY, "churning", 16, kDefaultName, {75, 150, 300},
      {75, 150, 300});
  Row(CycleRow::STEADY, "churning", 16, kCopyOnWriteName, {100, 200, 400},
      {100, 200, 400});
  EXPECT_THAT(Goals(),
              ElementsAre("churning pages: time / best other | k=16 of 1 MiB | "
                          "CoW + MADV_DONTNEED: <= 0.75, 0.75, reached"));
}

TEST_F(CycleGoals, AGoalHoldsForMediansAndForMeans) {
  // Cheap most of the time, and dear now and then.
  Row(CycleRow::STEADY, "mixed", 32, kDefaultName, {50}, {70});
  Row(CycleRow::STEADY, "mixed", 32, kScanName, {100}, {100});
  EXPECT_THAT(Goals(),
              ElementsAre("mixed pages: time / best other | k=32 of 1 MiB | "
                          "CoW + PAGEMAP_SCAN: <= 0.6, 0.5, missed"));
  EXPECT_EQ(report_.goals(0).measured_by_mean(), 0.7);
}

TEST_F(CycleGoals, TheBestOfTheOthersIsNeitherTheLimitNorOneOfOurs) {
  Row(CycleRow::STEADY, "churning", 1, kDefaultName, 100);
  Row(CycleRow::STEADY, "churning", 1, "copied, in-thread", 1);
  Row(CycleRow::STEADY, "churning", 1, kLimitName, 1);
  Row(CycleRow::STEADY, "churning", 1, kScanName, 400);
  Row(CycleRow::STEADY, "churning", 1, kCopyImageName, 200);
  Row(CycleRow::STEADY, "churning", 1, kCopyOnWriteName, 300);
  EXPECT_THAT(Goals(),
              ElementsAre("churning pages: time / best other | k=1 of 1 MiB | "
                          "memcpy of the image: <= 1.1, 0.5, reached"));
}

TEST_F(CycleGoals, TheRestIsComparedWithWhatItIsToBeat) {
  for (const auto table :
       {CycleRow::FIRST_KNOWN_IMAGE, CycleRow::FIRST_NEW_IMAGE}) {
    Row(table, "same", 16, kDefaultName, 100);
    Row(table, "same", 16, kCopyOnWriteName, 100);
  }
  Row(CycleRow::IDLE, "same", 16, kDefaultName, 0)
      .set_private_kib_per_idle_slot(77);
  CycleRow& threads = Row(CycleRow::THREADS, "same", 16, kDefaultName, 100);
  threads.set_scaling_of_limit(0.96);
  threads.set_tlb_shootdowns(1.5);
  Row(CycleRow::THREADS, "same", 16, kLimitName, 100).set_tlb_shootdowns(1);
  for (const char* strategy : {kDefaultName, kScanName, kCopyOnWriteName}) {
    const double ns = strategy == kCopyOnWriteName ? 400 : 100;
    CycleRow& row = Row(CycleRow::SQLITE, "same", 0, strategy, ns);
    const double recycle = strategy == kDefaultName ? 40 : 100;
    row.add_round_handover_median_ns(recycle);
    row.add_round_handover_mean_ns(recycle);
  }
  EXPECT_THAT(
      Goals(),
      ElementsAre(
          "first cycle, known image: time / CoW | k=16 | CoW + MADV_DONTNEED: "
          "<= 0.9, 1, missed",
          "first cycle, new image: time / CoW | k=16 | CoW + MADV_DONTNEED: <= "
          "1.1, 1, reached",
          "private KiB of an idle slot | k=16 | : <= 76, 77, missed",
          "same pages, 2 threads: scaling / the limit's | k=16 of 1 MiB | : >= "
          "0.95, 0.96, reached",
          "same pages, 2 threads: shootdowns, above the limit's | k=16 of 1 "
          "MiB | : <= 0.01, 0.5, missed",
          "SQLite: recycle / PAGEMAP_SCAN | the same rows | CoW + "
          "PAGEMAP_SCAN: <= 0.5, 0.4, reached",
          "SQLite: request / PAGEMAP_SCAN | the same rows | CoW + "
          "PAGEMAP_SCAN: <= 0.9, 1, missed",
          "SQLite: request / MADV_DONTNEED | the same rows | CoW + "
          "MADV_DONTNEED: <= 0.2, 0.25, missed"));
}

TEST_F(CycleGoals, WithoutOurRowsThereAreNone) {
  Row(CycleRow::STEADY, "same", 4, kLimitName, 100);
  EXPECT_THAT(Goals(), IsEmpty());
}

}  // namespace
}  // namespace firsttouch::bench
