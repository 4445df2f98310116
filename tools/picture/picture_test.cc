#include "firsttouch/tools/picture/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "pugixml.hpp"

namespace firsttouch::picture {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

PageMapPicture Small() {
  return {
      .title = "guest",
      .pages = 40,
      .states = {{"zero", '.', kPaper},
                 {"stored", 's', kBlue},
                 {"dirty", 'd', kRed}},
      .runs = {{.first_page = 2, .pages = 3, .state = 1, .note = "data"},
               {.first_page = 5, .pages = 1, .state = 2, .note = "stack of 7"},
               {.first_page = 39, .pages = 1, .state = 1}}};
}

// 1 GiB with one dirty page.
PageMapPicture Large() {
  PageMapPicture picture = Small();
  picture.pages = 262144;
  picture.runs = {{.first_page = 0, .pages = 64, .state = 1, .note = "code"},
                  {.first_page = 100000, .pages = 1, .state = 2}};
  return picture;
}

std::string Error(const PageMapPicture& picture) {
  return std::string(Check(picture).message());
}

TEST(PictureTest, CheckNamesWhatCannotBeDrawn) {
  EXPECT_EQ(Error(Small()), "");
  PageMapPicture picture = Small();
  picture.runs[1].first_page = 4;
  EXPECT_EQ(Error(picture),
            "picture: run 1 begins at page 4, and the one before ends at 5");
  picture = Small();
  picture.runs[2].pages = ~uint64_t{0};
  EXPECT_EQ(Error(picture),
            "picture: run 2: page 39 + 18446744073709551615 is behind the end, "
            "40");
  picture = Small();
  picture.runs[0].state = 3;
  EXPECT_EQ(Error(picture), "picture: run 0: there is no state 3");
  picture = Small();
  picture.states[2].color = "red";
  EXPECT_EQ(Error(picture),
            "picture: state 2: \"red\" is not a colour such as #0072b2");
  picture = Small();
  picture.states.clear();
  EXPECT_EQ(Error(picture),
            "picture: there are 0 states; 1 to 16 can be drawn");
  picture = Small();
  picture.pages = kMostPages + 1;
  EXPECT_EQ(Error(picture),
            "picture: 268435457 pages are more than 268435456, the most that "
            "can be drawn");
}

TEST(PictureTest, CellsGrowUntilAllFit) {
  EXPECT_EQ(PagesPerCell(0, 4096), 1);
  EXPECT_EQ(PagesPerCell(4096, 4096), 1);
  EXPECT_EQ(PagesPerCell(4097, 4096), 2);
  EXPECT_EQ(PagesPerCell(262144, 4096), 64);
  EXPECT_EQ(PagesPerCell(kMostPages, 1), kMostPages);
  EXPECT_EQ(PagesPerCell(~uint64_t{0}, 0), kMostPages);
}

TEST(PictureTest, CellsCountTheirPagesAndKeepNotes) {
  const std::vector<Cell> cells = Cells(Small(), 16);
  ASSERT_EQ(cells.size(), 3u);
  EXPECT_THAT(cells[0].in_state, ElementsAre(12, 3, 1));
  EXPECT_THAT(cells[0].notes, ElementsAre("data", "stack of 7"));
  EXPECT_THAT(cells[1].in_state, ElementsAre(16, 0, 0));
  EXPECT_THAT(cells[1].notes, IsEmpty());
  EXPECT_EQ(cells[2].pages, 8);
  EXPECT_THAT(cells[2].in_state, ElementsAre(7, 1, 0));
}

TEST(PictureTest, CellsKeepOnlyTheFirstNotes) {
  PageMapPicture picture = Small();
  picture.runs.clear();
  for (uint64_t page = 0; page < 10; ++page) {
    picture.runs.push_back({.first_page = page,
                            .pages = 1,
                            .state = 1,
                            .note = absl::StrCat("owner ", page)});
  }
  EXPECT_EQ(CellText(picture, Cells(picture, 64)[0]),
            "pages 0-39, offset 0x0-0x27fff\nzero 30, stored 10\nowner "
            "0\nowner 1\nowner 2\nowner 3\nand 6 more");
}

TEST(PictureTest, CellTextOfOnePage) {
  EXPECT_EQ(CellText(Small(), Cells(Small(), 1)[5]),
            "page 5, offset 0x5000-0x5fff\ndirty\nstack of 7");
}

TEST(PictureTest, TerminalHasLettersWithoutColours) {
  EXPECT_EQ(TerminalText(Small(), {.columns = 36}),
            "guest\n"
            "40 pages of 4 KiB, one a cell\n"
            " 0  ..SSSD..........................\n"
            "32  .......S\n"
            "  .  zero: 35 pages\n"
            "  S  stored: 4 pages\n"
            "  D  dirty: 1 page\n");
}

TEST(PictureTest, TerminalShowsOneDirtyPageOfAGigabyte) {
  const std::string text = TerminalText(Large(), {.columns = 80});
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  EXPECT_EQ(lines[1], "262144 pages of 4 KiB, 256 a cell");
  // 16 rows of 64 cells, and page 100000 in row 6, cell 390 - 6 * 64.
  EXPECT_EQ(lines[2], absl::StrCat("     0  s", std::string(63, '.')));
  EXPECT_EQ(lines[8], absl::StrCat(" 98304  ", std::string(6, '.'), "d",
                                   std::string(57, '.')));
  EXPECT_EQ(lines[18], "  .  zero: 262079 pages");
  EXPECT_EQ(lines[21], "  small letters: only some pages");
  for (const std::string& line : lines) EXPECT_LE(line.size(), 80u) << line;
}

TEST(PictureTest, TerminalHasColouredLettersThatEndWithTheLine) {
  const std::string text =
      TerminalText(Small(), {.columns = 40, .color = true});
  // What is not there is quiet, whatever the background.
  EXPECT_THAT(text, HasSubstr("32  \033[0;2m.."));
  // Blue once for three pages.
  EXPECT_THAT(text, HasSubstr("\033[0;38;5;25mSSS\033[0;38;5;166mD\033[0;2m."));
  EXPECT_THAT(text, HasSubstr("S\033[0m\n"));
  // Any terminal can show it.
  for (const char c : text) EXPECT_LT(static_cast<unsigned char>(c), 0x80);
}

TEST(PictureTest, TerminalsOfAnySizeWillDo) {
  const std::string narrow = TerminalText(Small(), {.columns = 0});
  EXPECT_EQ(narrow, TerminalText(Small(), {.columns = 32}));
  const std::string wide =
      TerminalText(Small(), {.columns = ~size_t{0}, .most_rows = ~size_t{0}});
  EXPECT_THAT(wide,
              HasSubstr("\n 0  ..SSSD.................................S\n"));
}

TEST(PictureTest, TextsCannotPaintTheTerminal) {
  PageMapPicture picture = Small();
  picture.title = "a\033[31mb\n";
  EXPECT_THAT(TerminalText(picture, {}), HasSubstr("a?[31mb?\n40 pages"));
}

TEST(PictureTest, NoPagesAreAPictureToo) {
  PageMapPicture picture = Small();
  picture.pages = 0;
  picture.runs.clear();
  EXPECT_EQ(TerminalText(picture, {}),
            "guest\n0 pages of 4 KiB, one a cell\n  .  zero: 0 pages\n"
            "  S  stored: 0 pages\n  D  dirty: 0 pages\n");
  EXPECT_THAT(Svg(picture), HasSubstr("</svg>"));
}

TEST(PictureTest, SvgHasACellForEachPageWithItsText) {
  pugi::xml_document document;
  const std::string svg = Svg(Small());
  ASSERT_TRUE(document.load_string(svg.c_str()));
  const pugi::xpath_node_set cells = document.select_nodes("/svg/g");
  ASSERT_EQ(cells.size(), 40u);
  EXPECT_STREQ(cells[5].node().child_value("title"),
               "page 5, offset 0x5000-0x5fff\ndirty\nstack of 7");
  EXPECT_STREQ(cells[5].node().child("rect").attribute("class").value(), "s2");
  EXPECT_THAT(document.child("svg").child_value("style"),
              HasSubstr(".s2{fill:#d55e00}"));
  EXPECT_THAT(svg, HasSubstr(">dirty: 1 page</text>"));
}

TEST(PictureTest, SvgDividesACellAmongItsStates) {
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Svg(Large()).c_str()));
  const pugi::xpath_node_set cells = document.select_nodes("/svg/g");
  ASSERT_EQ(cells.size(), 4096u);
  // Page 100000 is one of 64, and can be seen.
  const pugi::xml_node cell = cells[100000 / 64].node();
  const pugi::xml_node zero = cell.child("rect");
  const pugi::xml_node dirty = zero.next_sibling("rect");
  EXPECT_STREQ(zero.attribute("class").value(), "s0");
  EXPECT_STREQ(dirty.attribute("class").value(), "s2");
  EXPECT_GT(dirty.attribute("width").as_double(), 1.0);
  EXPECT_NEAR(zero.attribute("width").as_double() +
                  dirty.attribute("width").as_double(),
              11, 0.11);
}

TEST(PictureTest, TextsCannotBreakOutOfXml) {
  PageMapPicture picture = Small();
  picture.title = "</title><script>alert(\"1\")</script>\x01\xff\xef\xbf\xbf";
  picture.runs[0].note = "\"><script>x&y</script>";
  picture.states[1].name = "<b>";
  for (const std::string& text : {Svg(picture), Html(picture)}) {
    EXPECT_THAT(text, Not(HasSubstr("<script>alert")));
    EXPECT_THAT(text, Not(HasSubstr("<script>x")));
    pugi::xml_document document;
    EXPECT_TRUE(document.load_string(text.c_str(), pugi::parse_full));
  }
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Svg(picture).c_str()));
  EXPECT_STREQ(document.child("svg").attribute("aria-label").value(),
               "</title><script>alert(\"1\")</script>???");
}

TEST(PictureTest, HtmlNeedsNothingElse) {
  const std::string html = Html(Small());
  EXPECT_THAT(html, testing::StartsWith("<!DOCTYPE html>\n<html lang=\"en\">"));
  EXPECT_THAT(html, HasSubstr("data-text=\"page 5, offset 0x5000-0x5fff&#10;"
                              "dirty&#10;stack of 7\""));
  EXPECT_THAT(html, HasSubstr("event.target.closest(\"[data-text]\")"));
  // Nothing is loaded from anywhere.
  EXPECT_THAT(html, Not(HasSubstr("src=")));
  EXPECT_THAT(html, Not(HasSubstr("href=")));
  // What XML would have written otherwise than HTML wants it.
  const size_t script = html.find("<script>");
  EXPECT_EQ(html.find('&', script), std::string::npos);
}

TEST(PictureTest, LargeMapsStaySmall) {
  PageMapPicture picture = Large();
  picture.runs.clear();
  for (uint64_t page = 0; page < picture.pages; page += 2) {
    picture.runs.push_back({.first_page = page, .pages = 1, .state = 1});
  }
  EXPECT_LT(Svg(picture).size(), size_t{2} << 20);
}

TEST(PictureDeathTest, WhatCheckRefusesIsNotDrawn) {
  PageMapPicture picture = Small();
  picture.runs[0].state = 9;
  EXPECT_DEATH(Svg(picture), "picture: run 0: there is no state 9");
}

}  // namespace
}  // namespace firsttouch::picture
