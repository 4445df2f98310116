#include "firsttouch/tools/cli/table.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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

TEST(TableText, WritesSizesOfAColumnInOneWay) {
  const auto table = [](std::vector<uint64_t> sizes) {
    PlainTable table{.titles = {"size"}};
    for (const uint64_t size : sizes)
      table.rows.push_back({Value::Bytes(size)});
    return TableText(table, {});
  };
  EXPECT_EQ(table({0, 4096, 3 << 20}), " size\n  0 B\n4 KiB\n3 MiB\n");
  EXPECT_EQ(table({0, 4096, 100000, 231072}),
            "     size\n      0 B\n  4.0 KiB\n 97.7 KiB\n225.7 KiB\n");
  // No wider than it has to be, with anything else in the column.
  PlainTable mixed{.titles = {"s"},
                   .rows = {{Value::Bytes(4096)}, {Value::Unknown()}}};
  EXPECT_EQ(TableText(mixed, {}), "    s\n4 KiB\n    -\n");
  // Never "1024.0 KiB".
  EXPECT_EQ(table({(1 << 20) - 1}), "   size\n1.0 MiB\n");
}

TEST(TableText, ChangesHaveASignAndSortByGrowth) {
  const PlainTable table{
      .titles = {"n", "size"},
      .rows = {{Value::CountChange(-3), Value::BytesChange(4096)},
               {Value::CountChange(0), Value::BytesChange(-100000)}}};
  EXPECT_EQ(TableText(table, {}),
            " n       size\n-3   +4.0 KiB\n 0  -97.7 KiB\n");
  EXPECT_EQ(TableCsv(table), "n,size\r\n-3,4096\r\n0,-100000\r\n");
  EXPECT_TRUE(Value::Before(Value::BytesChange(1), Value::BytesChange(-5)));
  EXPECT_FALSE(Value::Before(Value::BytesChange(-5), Value::BytesChange(1)));
}

TEST(Value, ARateThatIsNotZeroNeverLooksLikeZero) {
  EXPECT_EQ(ShownAs(Value::Rate(0), {}), "0.0");
  EXPECT_EQ(ShownAs(Value::Rate(0.0125), {}), "<0.1");
  EXPECT_EQ(ShownAs(Value::Rate(0.06), {}), "0.1");
  EXPECT_EQ(CsvLine({Value::Rate(0.0125)}), "0.0125\r\n");
}

TEST(FitTable, LeavesOutTheLargestRanksFirst) {
  const auto fitted = [](size_t columns) {
    PlainTable table{.titles = {"slot", "state", "private", "calls"},
                     .rows = {{Value::Count(1), Value::Text("held"),
                               Value::Bytes(4096), Value::Count(12)}}};
    const std::vector<std::string> gone =
        FitTable({.columns = columns}, {0, 0, 1, 2}, &table);
    return absl::StrCat(TableText(table, {}), absl::StrJoin(gone, ","));
  };
  EXPECT_EQ(fitted(0),
            "slot  state  private  calls\n   1  held     4 KiB     12\n");
  EXPECT_EQ(fitted(27), fitted(0));
  EXPECT_EQ(fitted(26), "slot  state  private\n   1  held     4 KiB\ncalls");
  EXPECT_EQ(fitted(19), "slot  state\n   1  held\nprivate,calls");
  EXPECT_EQ(fitted(3), "slot  state\n   1  held\nprivate,calls");
}

TEST(ChooseColumns, KeepsTheOrderThatIsAskedFor) {
  Columns<int> columns;
  for (const char* name : {"a", "b", "c"}) {
    columns.push_back({name, "", [](const int&) { return Value::Unknown(); }});
  }
  EXPECT_EQ(ChooseColumns(columns, {"all"})->size(), 3u);
  const auto chosen = ChooseColumns(columns, {"c", "a", "c"});
  ASSERT_EQ(chosen->size(), 2u);
  EXPECT_EQ(chosen->front().name, "c");
  EXPECT_EQ(ChooseColumns(columns, {"a", "x"}).status().message(),
            "no column \"x\"; there are a, b, c");
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
