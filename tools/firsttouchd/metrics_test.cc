#include "firsttouch/tools/firsttouchd/metrics.h"

#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "firsttouch/serve/guest.h"
#include "gtest/gtest.h"

namespace firsttouch::firsttouchd {
namespace {

// The grammar of OpenMetrics 1.0, as far as counters and gauges go: families
// one after the other, each with its type and help before its samples, whose
// names end by "_total" where it is a counter; "# EOF" at the end.
TEST(MetricsTest, TheTextIsOpenMetrics) {
  const std::string text = OpenMetricsText({}, 0, 0);
  const std::regex type("# TYPE ([a-z][a-z0-9_]*) (counter|gauge)");
  const std::regex help("# HELP ([a-z][a-z0-9_]*) [^\\\\]+");
  const std::regex sample(
      "([a-z][a-z0-9_]*)(\\{[a-z_]+=\"[a-z_]+\"\\})? ([0-9]+)");
  std::istringstream lines(text);
  std::string line;
  std::map<std::string, std::string> types;
  std::set<std::string> samples;
  std::string family;
  bool has_help = false;
  bool ended = false;
  while (std::getline(lines, line)) {
    ASSERT_FALSE(ended) << line;
    std::smatch match;
    if (line == "# EOF") {
      ended = true;
    } else if (std::regex_match(line, match, type)) {
      family = match[1];
      has_help = false;
      EXPECT_TRUE(types.emplace(family, match[2]).second) << "twice: " << line;
    } else if (std::regex_match(line, match, help)) {
      EXPECT_EQ(match[1], family);
      has_help = true;
    } else {
      ASSERT_TRUE(std::regex_match(line, match, sample)) << line;
      EXPECT_TRUE(has_help) << line;
      EXPECT_EQ(match[1],
                family + (types[family] == "counter" ? "_total" : ""));
      EXPECT_TRUE(samples.insert(match[1].str() + match[2].str()).second);
    }
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_GE(samples.size(), 16u);
}

TEST(MetricsTest, EachCounterIsThere) {
  // Each field has a value of its own.
  GuestStats one;
  one.faults = 1001;
  one.write_protect_faults = 1002;
  one.pages_copied = 1003;
  one.pages_zeroed = 1004;
  one.pages_placed_early = 1005;
  one.removes = 1006;
  one.unmaps = 1007;
  one.moves = 1008;
  one.forks = 1009;
  one.stopped = 1010;
  one.waits = 1011;
  one.retries = 1012;
  one.lost = 1013;
  one.bytes = 1014;
  GuestStats sum;
  Add(one, &sum);
  const std::string text = OpenMetricsText(sum, 7, 8);
  for (int value = 1001; value <= 1014; ++value) {
    EXPECT_NE(text.find(" " + std::to_string(value) + "\n"), std::string::npos)
        << value;
  }
  Add(one, &sum);
  EXPECT_NE(OpenMetricsText(sum, 7, 8).find(
                "firsttouchd_faults_total{kind=\"missing\"} 2002\n"),
            std::string::npos);
  EXPECT_NE(text.find("firsttouchd_guests 7\n"), std::string::npos);
  EXPECT_NE(text.find("firsttouchd_guests_ended_total 8\n"), std::string::npos);
}

}  // namespace
}  // namespace firsttouch::firsttouchd
