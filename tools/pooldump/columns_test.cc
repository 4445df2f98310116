#include "firsttouch/tools/pooldump/columns.h"

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::HasSubstr;

std::string Document() {
  std::ifstream file("docs/pooldump.md");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Each column, once, with a name of its own.
template <typename Row>
void ExpectExplained(const cli::Columns<Row>& columns) {
  const std::string document = Document();
  std::set<std::string> names;
  for (const cli::Column<Row>& column : columns) {
    EXPECT_THAT(document, HasSubstr(absl::StrCat("`", column.name, "`")));
    if (!column.title.empty()) {
      EXPECT_THAT(document, HasSubstr(absl::StrCat("`", column.title, "`")));
    }
    EXPECT_TRUE(names.insert(column.name).second) << column.name;
  }
}

TEST(Columns, AreExplainedInTheDocument) {
  ExpectExplained(SlotColumns());
  ExpectExplained(ImageColumns());
  ExpectExplained(RangeColumns());
  ExpectExplained(FoundColumns());
  ExpectExplained(PageRunColumns());
  ExpectExplained(ImageRunColumns());
  ExpectExplained(RatedSlotColumns());
  ExpectExplained(PsColumns());
  ExpectExplained(DiffColumns());
}

}  // namespace
}  // namespace firsttouch::pooldump
