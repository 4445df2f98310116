#include "firsttouch/bench/cycle_goals.h"

#include <string>
#include <vector>

#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A row whose rounds took so long, by median and by mean.
CycleRow& Row(CycleReport& report, CycleRow::Table table,
              const std::string& pages, uint32_t k, const char* strategy,
              const std::vector<double>& medians,
              const std::vector<double>& means) {
  CycleRow& row = *report.add_rows();
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

CycleRow& Row(CycleReport& report, CycleRow::Table table,
              const std::string& pages, uint32_t k, const char* strategy,
              double ns) {
  return Row(report, table, pages, k, strategy, {ns}, {ns});
}

// "name | where | other: <= bound, measured, reached".
std::vector<std::string> Told(const CycleReport& report) {
  std::vector<std::string> told;
  for (const Goal& goal : report.goals()) {
    char text[200];
    snprintf(text, sizeof text, "%s | %s | %s: %s %g, %g, %s",
             goal.name().c_str(), goal.where().c_str(), goal.other().c_str(),
             goal.at_least() ? ">=" : "<=", goal.bound(),
             goal.has_measured() ? goal.measured() : -1,
             !goal.has_reached() ? "-"
             : goal.reached()    ? "reached"
                                 : "missed");
    told.emplace_back(text);
  }
  return told;
}

TEST(CycleGoals, SamePagesAreComparedWithTheLimitAndTheScan) {
  CycleReport report;
  CycleRow& ours = Row(report, CycleRow::STEADY, "same", 4, kDefaultName, 110);
  ours.set_system_calls(0);
  ours.set_signals(0.25);
  Row(report, CycleRow::STEADY, "same", 4, kLimitName, 100);
  Row(report, CycleRow::STEADY, "same", 4, kScanName, 990);
  AddGoals(report);
  EXPECT_THAT(
      Told(report),
      ElementsAre(
          "same pages: system calls | k=4 of 1 MiB | : <= 0, 0, reached",
          "same pages: signals | k=4 of 1 MiB | : <= 0, 0.25, missed",
          // Nobody counted these.
          "same pages: page faults | k=4 of 1 MiB | : <= 0, -1, -",
          "same pages: time / limit | k=4 of 1 MiB | memcpy of the changed: "
          "<= 1.15, 1.1, reached",
          "same pages: PAGEMAP_SCAN / ours | k=4 of 1 MiB | CoW + "
          "PAGEMAP_SCAN: >= 10, 9, missed"));
}

TEST(CycleGoals, OneAndFourHaveOtherBoundsThanSixteenAndSixtyFour) {
  CycleReport report;
  for (uint32_t k : {0, 1, 4, 16, 64, 256}) {
    Row(report, CycleRow::STEADY, "same", k, kDefaultName, 1);
    Row(report, CycleRow::STEADY, "same", k, kScanName, 1);
  }
  AddGoals(report);
  std::vector<double> bounds;
  for (const Goal& goal : report.goals()) {
    if (goal.name() == "same pages: PAGEMAP_SCAN / ours") {
      bounds.push_back(goal.bound());
    }
  }
  EXPECT_THAT(bounds, ElementsAre(10, 10, 2, 1.2));
}

TEST(CycleGoals, RatiosAreTakenWithinRounds) {
  CycleReport report;
  // Each round three quarters of the other's; the medians of the columns are
  // equal.
  Row(report, CycleRow::STEADY, "churning", 16, kDefaultName, {75, 150, 300},
      {75, 150, 300});
  Row(report, CycleRow::STEADY, "churning", 16, kCopyOnWriteName,
      {100, 200, 400}, {100, 200, 400});
  AddGoals(report);
  EXPECT_THAT(Told(report),
              ElementsAre("churning pages: time / best other | k=16 of 1 MiB | "
                          "CoW + MADV_DONTNEED: <= 0.75, 0.75, reached"));
}

TEST(CycleGoals, AGoalHoldsForMediansAndForMeans) {
  CycleReport report;
  // Cheap most of the time, and dear now and then.
  Row(report, CycleRow::STEADY, "mixed", 32, kDefaultName, {50}, {70});
  Row(report, CycleRow::STEADY, "mixed", 32, kScanName, {100}, {100});
  AddGoals(report);
  ASSERT_EQ(report.goals_size(), 1);
  EXPECT_EQ(report.goals(0).measured(), 0.5);
  EXPECT_EQ(report.goals(0).measured_by_mean(), 0.7);
  EXPECT_FALSE(report.goals(0).reached());
}

TEST(CycleGoals, TheBestOfTheOthersIsNeitherTheLimitNorOneOfOurs) {
  CycleReport report;
  Row(report, CycleRow::STEADY, "churning", 1, kDefaultName, 100);
  Row(report, CycleRow::STEADY, "churning", 1, "copied, in-thread", 1);
  Row(report, CycleRow::STEADY, "churning", 1, kLimitName, 1);
  Row(report, CycleRow::STEADY, "churning", 1, kScanName, 400);
  Row(report, CycleRow::STEADY, "churning", 1, kCopyImageName, 200);
  Row(report, CycleRow::STEADY, "churning", 1, kCopyOnWriteName, 300);
  AddGoals(report);
  EXPECT_THAT(Told(report),
              ElementsAre("churning pages: time / best other | k=1 of 1 MiB | "
                          "memcpy of the image: <= 1.1, 0.5, reached"));
}

TEST(CycleGoals, TheRestIsComparedWithWhatItIsToBeat) {
  CycleReport report;
  for (const auto table :
       {CycleRow::FIRST_KNOWN_IMAGE, CycleRow::FIRST_NEW_IMAGE}) {
    Row(report, table, "same", 16, kDefaultName, 100);
    Row(report, table, "same", 16, kCopyOnWriteName, 100);
  }
  Row(report, CycleRow::IDLE, "same", 16, kDefaultName, 0)
      .set_private_kib_per_idle_slot(77);
  CycleRow& threads =
      Row(report, CycleRow::THREADS, "same", 16, kDefaultName, 100);
  threads.set_scaling_of_limit(0.96);
  threads.set_tlb_shootdowns(1.5);
  Row(report, CycleRow::THREADS, "same", 16, kLimitName, 100)
      .set_tlb_shootdowns(1);
  for (const char* strategy : {kDefaultName, kScanName, kCopyOnWriteName}) {
    const double ns = strategy == kCopyOnWriteName ? 400 : 100;
    CycleRow& row = Row(report, CycleRow::SQLITE, "same", 0, strategy, ns);
    const double recycle = strategy == kDefaultName ? 40 : 100;
    row.add_round_handover_median_ns(recycle);
    row.add_round_handover_mean_ns(recycle);
  }
  AddGoals(report);
  EXPECT_THAT(
      Told(report),
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

TEST(CycleGoals, WithoutOurRowsThereAreNone) {
  CycleReport report;
  Row(report, CycleRow::STEADY, "same", 4, kLimitName, 100);
  AddGoals(report);
  EXPECT_THAT(report.goals(), IsEmpty());
}

TEST(GoalsText, SaysWhatIsReached) {
  CycleReport report;
  Row(report, CycleRow::STEADY, "same", 4, kDefaultName, 110)
      .set_system_calls(2);
  Row(report, CycleRow::STEADY, "same", 4, kLimitName, 100);
  AddGoals(report);
  const std::string text = GoalsText(report.goals());
  EXPECT_THAT(text, HasSubstr("same pages: system calls\n"
                              "  k=4 of 1 MiB                                  "
                              " <=0         2.00  NOT REACHED\n"));
  EXPECT_THAT(text,
              HasSubstr("  k=4 of 1 MiB         memcpy of the changed  <=1.15"
                        "    1.10 1.10  ok\n"));
  EXPECT_THAT(text, HasSubstr("  not measured\n"));
  EXPECT_THAT(text, HasSubstr("1 of 2 goals that were measured are reached\n"));
}

}  // namespace
}  // namespace firsttouch::bench
