#include "firsttouch/tools/cli/terminal.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

namespace firsttouch::cli {
namespace {

// A pseudo-terminal, 40 columns wide.
class TerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    winsize size = {};
    size.ws_col = 40;
    size.ws_row = 10;
    ASSERT_EQ(openpty(&master_, &terminal_, nullptr, nullptr, &size), 0);
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
  }
  void TearDown() override {
    close(terminal_);
    close(master_);
  }

  // What `run` prints to standard error, which is `fd` meanwhile. The last
  // thing that is printed is a mark of this function's.
  template <typename Run>
  std::string ErrorsOn(int fd, int from, Run run) {
    const int kept = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    run();
    EXPECT_EQ(write(fd, "$", 1), 1);
    dup2(kept, STDERR_FILENO);
    close(kept);
    std::string text;
    while (!text.ends_with('$')) {
      std::array<char, 256> some;
      const ssize_t bytes = read(from, some.data(), some.size());
      if (bytes <= 0) break;
      text.append(some.data(), static_cast<size_t>(bytes));
    }
    return text;
  }

  int master_ = -1;
  int terminal_ = -1;
};

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST_F(TerminalTest, ColoursAreForTerminalsThatKnowThem) {
  EXPECT_TRUE(WantsColor("auto", terminal_));
  setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(WantsColor("auto", terminal_));
  EXPECT_TRUE(WantsColor("always", terminal_));
  setenv("NO_COLOR", "", 1);
  EXPECT_TRUE(WantsColor("auto", terminal_));
  EXPECT_FALSE(WantsColor("never", terminal_));
  setenv("TERM", "dumb", 1);
  EXPECT_FALSE(WantsColor("auto", terminal_));
}

TEST_F(TerminalTest, NoColoursInAPipe) {
  std::array<int, 2> ends;
  ASSERT_EQ(pipe(ends.data()), 0);
  EXPECT_FALSE(WantsColor("auto", ends[1]));
  EXPECT_TRUE(WantsColor("always", ends[1]));
  EXPECT_EQ(TerminalColumns(ends[1], 80), 80);
  EXPECT_EQ(TerminalLines(ends[1], 24), 24);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(TerminalTest, ColumnsAndLinesAreTheTerminals) {
  EXPECT_EQ(TerminalColumns(terminal_, 80), 40);
  EXPECT_EQ(TerminalLines(terminal_, 24), 10);
}

TEST_F(TerminalTest, ProgressIsOneLineThatIsTakenAway) {
  EXPECT_EQ(ErrorsOn(terminal_, master_,
                     [] {
                       Progress progress("pack a\033.ftimg");
                       const auto tell = progress.Callback();
                       tell(8 * kMiB, 32 * kMiB);
                       // The same percent is not printed again.
                       tell(8 * kMiB + 1, 32 * kMiB);
                       tell(32 * kMiB, 32 * kMiB);
                     }),
            "\rpack a?.ftimg: 25 % of 32 MiB\033[K"
            "\rpack a?.ftimg: 100 % of 32 MiB\033[K"
            "\r\033[K$");
}

TEST_F(TerminalTest, ShortWorkHasNoProgress) {
  EXPECT_EQ(ErrorsOn(terminal_, master_,
                     [] { Progress("pack").Callback()(1, 2 * kMiB); }),
            "$");
}

TEST_F(TerminalTest, NoProgressInAPipe) {
  std::array<int, 2> ends;
  ASSERT_EQ(pipe(ends.data()), 0);
  EXPECT_EQ(ErrorsOn(ends[1], ends[0],
                     [] {
                       Progress progress("pack");
                       EXPECT_EQ(progress.Callback(), nullptr);
                     }),
            "$");
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace firsttouch::cli
