#include "firsttouch/tools/pooldump/watch_view.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::HasSubstr;
using testing::Not;

// `slots` slots, of which slot i has i KiB of private memory, `handovers`
// cycles, and an image if i is odd.
ProcessSnapshot Process(int slots, int64_t second, uint64_t handovers) {
  ProcessSnapshot process;
  process.set_pid(77);
  process.set_command("server");
  process.set_monotonic_ns(second * 1'000'000'000);
  PoolSnapshot& pool = *process.add_pools();
  pool.set_name("tenants");
  pool.set_pool_id(1);
  pool.mutable_totals()->set_slots(static_cast<uint32_t>(slots));
  for (int i = 0; i < slots; ++i) {
    Slot& slot = *pool.add_slots();
    slot.set_slot(static_cast<uint32_t>(i));
    slot.set_state(Slot::HELD);
    slot.set_state_name("held");
    slot.set_private_bytes(static_cast<uint64_t>(i) << 10);
    if (i % 2 == 1) slot.set_image_name("guest");
    slot.mutable_counters()->set_handovers(handovers);
  }
  return process;
}

std::string Text(WatchView& view, int rows = 24, int columns = 160) {
  std::string text;
  for (const ScreenLine& line : view.Lines(rows, columns)) {
    absl::StrAppend(&text, line.text(), "\n");
  }
  return text;
}

// Numbers of the slots on the screen, from above.
std::vector<int> Slots(WatchView& view, int rows = 24) {
  std::vector<int> slots;
  for (const ScreenLine& line : view.Lines(rows, 160)) {
    int slot = 0;
    const std::string text = line.text();
    if (sscanf(text.c_str(), " %d held", &slot) == 1 &&
        text.find("held") != std::string::npos) {
      slots.push_back(slot);
    }
  }
  return slots;
}

void Type(WatchView& view, const std::string& text) {
  for (const char c : text) {
    EXPECT_TRUE(view.Press(static_cast<unsigned char>(c)));
  }
}

TEST(WatchView, RatesAreTheDifferenceByTheClock) {
  WatchView view((Options()));
  view.Take(Process(2, 10, 100));
  // One look is no rate.
  EXPECT_THAT(Text(view), HasSubstr("all slots: no rates yet"));
  view.Take(Process(2, 12, 150));
  EXPECT_THAT(Text(view), HasSubstr("traps/s, 50.0 cycles/s"));
  // Counters that fall belong to another pool: no rate, and no huge one.
  view.Take(Process(2, 13, 5));
  EXPECT_THAT(Text(view), HasSubstr("traps/s, 0.0 cycles/s"));
}

TEST(WatchView, SortsByTheColumnThatIsChosen) {
  WatchView view((Options()));
  view.Take(Process(4, 1, 1));
  EXPECT_THAT(Slots(view), testing::ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Text(view), HasSubstr("by slot, the smallest first"));
  EXPECT_THAT(Text(view), HasSubstr("SLOT ^"));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(view.Press('>'));
  EXPECT_THAT(Text(view), HasSubstr("by private, the largest first"));
  EXPECT_THAT(Text(view), HasSubstr("PRIVATE v"));
  EXPECT_THAT(Slots(view), testing::ElementsAre(3, 2, 1, 0));
  EXPECT_TRUE(view.Press('r'));
  EXPECT_THAT(Text(view), HasSubstr("PRIVATE ^"));
  EXPECT_THAT(Slots(view), testing::ElementsAre(0, 1, 2, 3));

  Options options;
  options.set_sort("-private");
  WatchView other(options);
  other.Take(Process(4, 1, 1));
  EXPECT_THAT(Slots(other), testing::ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Text(other), HasSubstr("PRIVATE"));
}

TEST(WatchView, FiltersByWhatIsTyped) {
  WatchView view((Options()));
  view.Take(Process(4, 1, 1));
  Type(view, "/gue");
  EXPECT_THAT(Text(view), HasSubstr("filter: gue_"));
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kEnter)));
  EXPECT_THAT(Slots(view), testing::ElementsAre(1, 3));
  // A wrong one is told, and the old one stays.
  Type(view, "/(");
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kEnter)));
  EXPECT_THAT(Text(view), HasSubstr("missing )"));
  EXPECT_THAT(Slots(view), testing::ElementsAre(1, 3));
  // "q" is a letter there.
  EXPECT_TRUE(view.Press('q'));
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kEscape)));
  EXPECT_THAT(Slots(view), testing::ElementsAre(1, 3));
  EXPECT_FALSE(view.Press('q'));
}

TEST(WatchView, ScrollsAndStaysInside) {
  WatchView view((Options()));
  view.Take(Process(100, 1, 1));
  const size_t shown = Slots(view).size();
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kPageDown)));
  EXPECT_EQ(Slots(view).front(), static_cast<int>(shown));
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kEnd)));
  EXPECT_EQ(Slots(view).back(), 99);
  EXPECT_EQ(Slots(view).size(), shown);
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kDown)));
  EXPECT_EQ(Slots(view).back(), 99);
  view.Take(Process(3, 2, 1));
  EXPECT_EQ(Slots(view).size(), 3u);
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kHome)));
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kUp)));
  EXPECT_EQ(Slots(view).front(), 0);
}

TEST(WatchView, FitsEveryScreen) {
  WatchView view((Options()));
  view.Take(Process(50, 1, 1));
  for (const int rows : {1, 2, 3, 5, 10, 24, 200}) {
    for (const int columns : {1, 2, 10, 40, 80, 300}) {
      for (const int key : {static_cast<int>('h'), static_cast<int>('x')}) {
        const std::vector<ScreenLine> lines = view.Lines(rows, columns);
        ASSERT_EQ(lines.size(), static_cast<size_t>(rows));
        for (const ScreenLine& line : lines) {
          EXPECT_LE(cli::Width(line.text()), static_cast<size_t>(columns));
        }
        view.Press(key);
      }
    }
  }
}

TEST(WatchView, ShowsTheEndAboveWhatWasKnown) {
  WatchView view((Options()));
  view.Take(Process(2, 1, 1));
  view.End("process 77 has ended");
  EXPECT_TRUE(view.ended());
  EXPECT_TRUE(view.paused());
  EXPECT_THAT(Text(view), HasSubstr("process 77 has ended; q quits"));
  EXPECT_THAT(Slots(view), testing::ElementsAre(0, 1));
}

TEST(WatchView, GoesOnWhenThereIsNoPoolForAMoment) {
  WatchView view((Options()));
  view.Take(Process(2, 10, 100));
  view.Take(Process(2, 12, 150));
  view.Lose("process 77 has no pool of firsttouch");
  EXPECT_FALSE(view.ended());
  EXPECT_FALSE(view.paused());
  EXPECT_THAT(Text(view), HasSubstr("has no pool of firsttouch; below is what "
                                    "was known last"));
  EXPECT_THAT(Text(view), HasSubstr("all slots: no rates yet"));
  EXPECT_THAT(Text(view), Not(HasSubstr("25.0")));
  EXPECT_THAT(Slots(view), testing::ElementsAre(0, 1));
  view.Take(Process(2, 14, 160));
  EXPECT_THAT(Text(view), Not(HasSubstr("has no pool")));
  EXPECT_THAT(Text(view), HasSubstr("traps/s, 10.0 cycles/s"));
}

TEST(WatchView, TheEndHasNoRatesAndNoInterval) {
  WatchView view((Options()));
  view.Take(Process(2, 10, 100));
  view.Take(Process(2, 12, 150));
  view.End("process 77 has ended");
  EXPECT_THAT(Text(view), HasSubstr("as it was last"));
  EXPECT_THAT(Text(view), Not(HasSubstr("every 1 s")));
  EXPECT_THAT(Text(view), Not(HasSubstr("25.0")));
}

TEST(WatchView, SaysThatTheProcessIsStopped) {
  ProcessSnapshot process = Process(1, 1, 1);
  process.set_stopped("stopped by a signal");
  WatchView view((Options()));
  view.Take(process);
  EXPECT_THAT(Text(view), HasSubstr("the process is stopped by a signal"));
  view.Take(Process(1, 2, 1));
  EXPECT_THAT(Text(view), Not(HasSubstr("stopped")));
}

TEST(WatchView, PoolsOfOneNameHaveTheirNumbers) {
  ProcessSnapshot process = Process(1, 1, 1);
  *process.add_pools() = process.pools(0);
  process.mutable_pools(1)->set_pool_id(2);
  WatchView view((Options()));
  view.Take(process);
  EXPECT_THAT(Text(view), HasSubstr("tenants#1"));
  EXPECT_THAT(Text(view), HasSubstr("tenants#2"));
}

TEST(WatchView, PoolsStayTogetherWhereSlotsHaveTheOrder) {
  ProcessSnapshot process = Process(2, 1, 1);
  process.mutable_pools(0)->set_name("b");
  *process.add_pools() = process.pools(0);
  process.mutable_pools(1)->set_name("a");
  process.mutable_pools(1)->set_pool_id(2);
  WatchView view((Options()));
  view.Take(process);
  // "b0": slot 0 of pool b, from above.
  const auto rows = [&view] {
    std::vector<std::string> names;
    for (const ScreenLine& line : view.Lines(24, 160)) {
      char pool = 0;
      int slot = 0;
      if (sscanf(line.text().c_str(), "%c %d held", &pool, &slot) == 2) {
        names.push_back(absl::StrCat(std::string(1, pool), slot));
      }
    }
    return names;
  };
  // As the process has them, above the table, too.
  EXPECT_THAT(rows(), testing::ElementsAre("b0", "b1", "a0", "a1"));
  EXPECT_THAT(Text(view), HasSubstr("by pool/slot, the smallest first"));
  EXPECT_TRUE(view.Press('r'));
  EXPECT_THAT(rows(), testing::ElementsAre("b1", "b0", "a1", "a0"));
  // Who holds most is asked of all pools together.
  EXPECT_TRUE(view.Press('r'));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(view.Press('>'));
  EXPECT_THAT(rows(), testing::ElementsAre("b1", "a1", "b0", "a0"));
  EXPECT_THAT(Text(view), HasSubstr("by private, the largest first"));
}

TEST(WatchView, UnknownFaultsAreADash) {
  ProcessSnapshot process = Process(1, 1, 1);
  process.mutable_pools(0)
      ->mutable_slots(0)
      ->mutable_counters()
      ->set_faults_unknown(true);
  Options options;
  for (const char* name : {"slot", "faults/s", "traps/s"}) {
    options.add_columns(name);
  }
  WatchView view(options);
  view.Take(process);
  process.set_monotonic_ns(2'000'000'000);
  view.Take(process);
  const std::vector<ScreenLine> lines = view.Lines(10, 80);
  EXPECT_EQ(lines[5].text(), "     0         -      0.0");
}

TEST(WatchView, RatesAreOnAScreenOf80Columns) {
  WatchView view((Options()));
  view.Take(Process(64, 10, 100));
  view.Take(Process(64, 12, 150));
  const std::vector<ScreenLine> lines = view.Lines(24, 80);
  EXPECT_THAT(lines[3].text(), HasSubstr("rows 1-19 of 64, by slot"));
  EXPECT_THAT(lines[4].text(),
              HasSubstr("SLOT ^  state  faults/s  traps/s  handovers/s"));
  EXPECT_THAT(lines[5].text(), HasSubstr("0  held        0.0      0.0         "
                                         "25.0"));
}

TEST(WatchView, ArrowsShowTheOtherColumnsBesideTheSlot) {
  WatchView view((Options()));
  view.Take(Process(2, 1, 1));
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("columns 3-"));
  EXPECT_THAT(Text(view, 24, 60), Not(HasSubstr("calls")));
  // Further than there are columns is as far as there are.
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(view.Press(static_cast<int>(Key::kRight)));
    EXPECT_THAT(Text(view, 24, 60), HasSubstr("SLOT ^  state"));
  }
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("calls"));
  EXPECT_THAT(Text(view, 24, 60), Not(HasSubstr("faults/s  traps/s  hand")));
  // It stays there when another column gets wider.
  ProcessSnapshot wider = Process(2, 2, 1);
  wider.mutable_pools(0)->mutable_slots(0)->set_state_name("as wide as can be");
  view.Take(wider);
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("calls"));
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(view.Press(static_cast<int>(Key::kLeft)));
  }
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("faults/s"));
  // The column by which is sorted comes into view.
  EXPECT_TRUE(view.Press('<'));
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("CALLS v"));
  EXPECT_TRUE(view.Press('>'));
  EXPECT_TRUE(view.Press('>'));
  EXPECT_TRUE(view.Press('>'));
  EXPECT_THAT(Text(view, 24, 60), HasSubstr("FAULTS/S"));
}

TEST(WatchView, HasTheColumnsAndRowsThatAreAskedFor) {
  Options options;
  options.add_columns("slot");
  options.add_columns("calls");
  options.add_columns("private");
  options.set_sort("private");
  options.set_limit(2);
  WatchView view(options);
  view.Take(Process(4, 1, 1));
  const std::vector<ScreenLine> lines = view.Lines(24, 80);
  EXPECT_EQ(lines[4].text(), "slot  calls  PRIVATE v" + std::string(58, ' '));
  EXPECT_EQ(lines[5].text(), "   3      0      3 KiB");
  EXPECT_EQ(lines[6].text(), "   2      0      2 KiB");
  EXPECT_EQ(lines[7].text(), "");
  EXPECT_THAT(Text(view), HasSubstr("rows 1-2 of 2 (--limit; 4 in all)"));
}

TEST(WatchView, SaysWhyThereIsNoRow) {
  ProcessSnapshot unused = Process(2, 1, 0);
  for (Slot& slot : *unused.mutable_pools(0)->mutable_slots()) {
    slot.set_state(Slot::FREE);
    slot.clear_image_name();
  }
  WatchView view((Options()));
  view.Take(unused);
  EXPECT_THAT(Text(view), HasSubstr("no slot was ever used; a shows all"));
  view.Take(Process(2, 2, 1));
  Type(view, "/xyz");
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kEnter)));
  EXPECT_THAT(Text(view), HasSubstr("no slot and no image has a name in which "
                                    "xyz is found"));
}

// The colours of a piece of the screen.
cli::Tint TintOf(WatchView& view, const std::string& text) {
  for (const ScreenLine& line : view.Lines(24, 300)) {
    for (const cli::Piece& piece : line.pieces) {
      if (piece.text == text) return piece.tint;
    }
  }
  ADD_FAILURE() << text << " is not there";
  return cli::Tint::kNone;
}

TEST(WatchView, OnlyWhatDeservesAttentionHasAColour) {
  ProcessSnapshot process = Process(2, 1, 7);
  PoolSnapshot& pool = *process.mutable_pools(0);
  pool.mutable_slots(0)->mutable_counters()->set_traps(3);
  pool.mutable_options()->set_resident_budget_bytes(8192);
  pool.mutable_totals()->set_idle_private_bytes(8192);
  WatchView view((Options()));
  view.Take(process);
  EXPECT_EQ(TintOf(view, "held"), cli::Tint::kNone);
  EXPECT_EQ(TintOf(view, "7"), cli::Tint::kNone);
  EXPECT_EQ(TintOf(view, "3"), cli::Tint::kBad);
  EXPECT_EQ(TintOf(view, "8 KiB idle of 8 KiB budget"), cli::Tint::kNone);
  pool.mutable_totals()->set_idle_private_bytes(12288);
  pool.mutable_totals()->set_quarantined(1);
  pool.mutable_slots(1)->set_state(Slot::QUARANTINED);
  pool.mutable_slots(1)->set_state_name("quarantined");
  view.Take(process);
  EXPECT_EQ(TintOf(view, "12 KiB idle of 8 KiB budget"), cli::Tint::kBad);
  EXPECT_EQ(TintOf(view, "1 quarantined"), cli::Tint::kBad);
  EXPECT_EQ(TintOf(view, "quarantined"), cli::Tint::kBad);
}

TEST(WatchView, ALongNameLeavesRoomForNumbers) {
  ProcessSnapshot process = Process(1, 1, 1);
  process.mutable_pools(0)->mutable_slots(0)->set_image_name(
      std::string(60, 'x'));
  WatchView view((Options()));
  view.Take(process);
  EXPECT_THAT(Text(view, 24, 200), HasSubstr(std::string(21, 'x') + "..."));
  EXPECT_THAT(Text(view, 24, 200), Not(HasSubstr(std::string(22, 'x'))));
}

TEST(WatchView, BackspaceTakesAWholeCharacter) {
  WatchView view((Options()));
  view.Take(Process(1, 1, 1));
  Type(view, "/a\u00e9");
  EXPECT_TRUE(view.Press(static_cast<int>(Key::kBackspace)));
  EXPECT_THAT(Text(view), HasSubstr("filter: a_"));
}

TEST(WatchView, NamesCannotMoveTheCursor) {
  ProcessSnapshot process = Process(2, 1, 1);
  process.set_command("a\033[2Jb\nc");
  process.mutable_pools(0)->mutable_slots(0)->set_image_name("\033]0;x\007");
  WatchView view((Options()));
  view.Take(process);
  EXPECT_THAT(Text(view), Not(HasSubstr("\033")));
  EXPECT_THAT(Text(view), HasSubstr("a?[2Jb?c"));
}

TEST(WatchView, IntervalAndPause) {
  Options options;
  options.set_interval_ms(400);
  WatchView view(options);
  view.Take(Process(1, 1, 1));
  Type(view, "+");
  EXPECT_EQ(view.interval_ms(), 200u);
  Type(view, "+++");
  EXPECT_EQ(view.interval_ms(), 100u);
  Type(view, "--");
  EXPECT_EQ(view.interval_ms(), 400u);
  EXPECT_FALSE(view.paused());
  // Less often is never more often.
  options.set_interval_ms(3'600'000);
  WatchView slow(options);
  Type(slow, "-");
  EXPECT_EQ(slow.interval_ms(), 3'600'000u);
  Type(view, "p");
  EXPECT_TRUE(view.paused());
  EXPECT_FALSE(view.TakeRefresh());
  Type(view, " ");
  EXPECT_TRUE(view.TakeRefresh());
  EXPECT_FALSE(view.TakeRefresh());
}

}  // namespace
}  // namespace firsttouch::pooldump
