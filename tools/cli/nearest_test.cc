#include "firsttouch/tools/cli/nearest.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch::cli {
namespace {

TEST(Nearest, TakesBeginnings) {
  const std::vector<std::string> names = {"--help", "--version", "--html"};
  EXPECT_EQ(Nearest("--vers", names), "--version");
  // Of several none.
  EXPECT_EQ(Nearest("--h", names), "");
  EXPECT_EQ(Nearest("--", names), "");
}

TEST(Nearest, ForgivesAThirdOfTheLetters) {
  const std::vector<std::string> names = {"--format", "--filter", "--all"};
  EXPECT_EQ(Nearest("--fromat", names), "--format");
  EXPECT_EQ(Nearest("--filtr", names), "--filter");
  EXPECT_EQ(Nearest("--al", names), "--all");
  // Swapped letters are one mistake.
  EXPECT_EQ(Nearest("liev", {"layout", "live", "locate"}), "live");
  EXPECT_EQ(Nearest("mpa", {"map", "image"}), "map");
  EXPECT_EQ(Nearest("--zzzzzz", names), "");
  EXPECT_EQ(Nearest("", names), "");
  EXPECT_EQ(Nearest("--x", {}), "");
}

}  // namespace
}  // namespace firsttouch::cli
