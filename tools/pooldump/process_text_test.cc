#include "firsttouch/tools/pooldump/process_text.h"

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::Not;

ProcessSnapshot Process() {
  ProcessSnapshot process;
  process.set_pid(77);
  process.set_command("server");
  PoolSnapshot& pool = *process.add_pools();
  pool.set_name("tenants");
  pool.mutable_options()->set_resident_budget_bytes(8192);
  pool.mutable_totals()->set_idle_private_bytes(4096);
  pool.mutable_totals()->set_slots(3);
  pool.mutable_totals()->set_free(2);
  pool.mutable_totals()->set_trimming(1);
  pool.mutable_totals()->set_quarantined(1);
  for (uint32_t i = 0; i < 3; ++i) {
    Slot& slot = *pool.add_slots();
    slot.set_slot(i);
    slot.set_state(i == 0 ? Slot::QUARANTINED : Slot::HELD);
    slot.set_state_name(i == 0 ? "quarantined" : "held");
    slot.set_image_name("a-guest-with-a-long-name.wasm");
    slot.set_private_bytes(100000 * i);
    slot.mutable_counters()->set_traps(i);
  }
  return process;
}

std::vector<size_t> Widths(const std::string& text) {
  std::vector<size_t> widths;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    widths.push_back(cli::Width(line));
  }
  return widths;
}

TEST(LiveText, FitsATerminalAndSaysWhatIsLeftOut) {
  for (const size_t columns : {60u, 80u, 120u}) {
    const std::string text =
        LiveText(Process(), Options(), {.columns = columns});
    EXPECT_THAT(Widths(text), Each(testing::Le(columns))) << text;
    EXPECT_THAT(text, HasSubstr("left out for want of room:"));
    EXPECT_THAT(text, HasSubstr("private  "));
    EXPECT_THAT(text, HasSubstr("traps"));
  }
  const std::string file = LiveText(Process(), Options(), {});
  EXPECT_THAT(file, Not(HasSubstr("left out")));
  EXPECT_THAT(file, HasSubstr("calls"));
}

TEST(LiveText, TheSortedColumnStaysAndLongNamesAreCut) {
  Options options;
  options.set_sort("-calls");
  const std::string text = LiveText(Process(), options, {.columns = 60});
  EXPECT_THAT(text, HasSubstr("calls ^"));
  EXPECT_THAT(LiveText(Process(), Options(), {.columns = 80}),
              HasSubstr("a-guest-with-a-long-n..."));
  EXPECT_THAT(LiveText(Process(), Options(), {}),
              HasSubstr("a-guest-with-a-long-name.wasm"));
}

TEST(LiveText, NamedColumnsAreThereWhetherTheyFitOrNot) {
  Options options;
  options.add_columns("all");
  EXPECT_THAT(LiveText(Process(), options, {.columns = 40}),
              HasSubstr("binds  calls"));
  options.clear_columns();
  options.add_columns("private");
  options.add_columns("slot");
  EXPECT_THAT(LiveText(Process(), options, {}),
              HasSubstr("  private   slot\n      0 B      0\n"));
}

TEST(LiveText, ShowsSortAndLimit) {
  Options options;
  options.set_sort("private");
  options.set_limit(2);
  const std::string text = LiveText(Process(), options, {});
  EXPECT_THAT(text, HasSubstr("private v"));
  EXPECT_THAT(text, HasSubstr("rows 1-2 of 3 (--limit=2)"));
  options.set_sort("-private");
  EXPECT_THAT(LiveText(Process(), options, {}), HasSubstr("private ^"));
  options.set_sort("image");
  EXPECT_THAT(LiveText(Process(), options, {}), HasSubstr("image ^"));
}

TEST(LiveText, OnlyWhatDeservesAttentionHasAColour) {
  const cli::TextStyle color{.color = true};
  ProcessSnapshot process = Process();
  std::string text = LiveText(process, Options(), color);
  EXPECT_THAT(text, HasSubstr("\033[31m1 quarantined\033[0m"));
  EXPECT_THAT(text, HasSubstr("\033[31mquarantined\033[0m"));
  EXPECT_THAT(text, HasSubstr("\033[31m2\033[0m"));  // Traps.
  EXPECT_THAT(text, HasSubstr("held"));
  EXPECT_THAT(text, Not(HasSubstr("mheld")));
  EXPECT_THAT(text, Not(HasSubstr("above the budget")));
  process.mutable_pools(0)->mutable_totals()->set_idle_private_bytes(12288);
  text = LiveText(process, Options(), color);
  EXPECT_THAT(text, HasSubstr("\033[31m12 KiB kept, above the budget\033[0m; "
                              "8 KiB for what slots keep that nobody has"));
}

TEST(LiveText, StatesOfRowsAndSumsHaveOneWord) {
  EXPECT_THAT(
      LiveText(Process(), Options(), {}),
      HasSubstr("slots           3: 1 free, 1 trimming, 1 quarantined"));
}

TEST(LiveText, SaysThatAFilterLeavesNothing) {
  ProcessSnapshot process = Process();
  process.mutable_pools(0)->clear_slots();
  Options options;
  options.set_filter("xyz");
  EXPECT_THAT(LiveText(process, options, {}),
              HasSubstr("no slot and no image has a name in which "
                        "--filter=xyz is found"));
}

TEST(LiveText, RatesStandBesideTheSlot) {
  ProcessSnapshot process = Process();
  Rates& rates = *process.mutable_pools(0)->mutable_totals()->mutable_rates();
  rates.set_traps(0.5);
  *process.mutable_pools(0)->mutable_slots(1)->mutable_rates() = rates;
  const std::string text = LiveText(process, Options(), {.columns = 80});
  EXPECT_THAT(Widths(text), Each(testing::Le(80u)));
  EXPECT_THAT(text,
              HasSubstr(" slot  state        faults/s  traps/s  handovers/s"));
  EXPECT_THAT(text,
              HasSubstr("    1  held                -      0.5          0.0"));
  EXPECT_THAT(text,
              HasSubstr("total                      -      0.5          0.0"));
}

TEST(PsText, SaysThatThereIsNothingAndWhatItCouldNotLookAt) {
  PsReport report;
  report.set_forbidden(3);
  EXPECT_EQ(PsText(report, Options(), {}),
            "no process that may be looked at has a pool of firsttouch\n"
            "3 processes of others may have pools, and may not be looked at: "
            "run pooldump as root\n");
}

}  // namespace
}  // namespace firsttouch::pooldump
