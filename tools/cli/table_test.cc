#include "firsttouch/tools/cli/table.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch::cli {
namespace {

TEST(TableText, SumsStandUnderTheirColumnsWithoutRows) {
  PlainTable table{.titles = {"slot", "state", "size"}};
  table.totals.push_back(
      {Value::Text("total"), Value::Text(""), Value::Bytes(1024)});
  EXPECT_EQ(TableText(table, {}),
            " slot  state   size\n"
            "total         1 KiB\n");
  table.rows.push_back(
      {Value::Count(7), Value::Text("leased"), Value::Bytes(1024)});
  EXPECT_EQ(TableText(table, {}),
            " slot  state    size\n"
            "    7  leased  1 KiB\n"
            "total          1 KiB\n");
}

TEST(TableText, UnknownIsADashAndNothingInCsv) {
  const PlainTable table{.titles = {"a", "b"},
                         .rows = {{Value::Unknown(), Value::Count(0)}}};
  EXPECT_EQ(TableText(table, {}), "a  b\n-  0\n");
  EXPECT_EQ(TableCsv(table), "a,b\r\n,0\r\n");
}

TEST(Value, SignedNumbersSortAsNumbers) {
  EXPECT_TRUE(Value::Before(Value::Signed(-8), Value::Signed(7)));
  EXPECT_TRUE(Value::Before(Value::Signed(9), Value::Signed(10)));
  EXPECT_EQ(ShownAs(Value::Signed(-8), {}), "-8");
}

TEST(FindColumn, TakesTheTitleToo) {
  const Columns<int> columns = {{"kernel-calls", "calls", [](const int& row) {
                                   return Value::Count(
                                       static_cast<uint64_t>(row));
                                 }}};
  EXPECT_EQ((*FindColumn(columns, "calls"))->name, "kernel-calls");
  EXPECT_EQ((*FindColumn(columns, "kernel-calls"))->name, "kernel-calls");
  EXPECT_EQ(FindColumn(columns, "").status().message(),
            "no column \"\"; there are kernel-calls");
}

TEST(WrappedAt, BreaksAtBlanks) {
  EXPECT_EQ(WrappedAt(10, 2, "one two three"), "one two\n  three");
  EXPECT_EQ(WrappedAt(10, 2, "longer-than-a-line x"),
            "longer-than-a-line\n  x");
}

}  // namespace
}  // namespace firsttouch::cli
