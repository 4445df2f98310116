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

std::vector<std::string> Lines(const std::string& text) {
  return absl::StrSplit(text, '\n', absl::SkipEmpty());
}

TEST(PictureTest, TerminalHasLegendFirstAndOffsetsInFrontOfRows) {
  EXPECT_EQ(TerminalText(Small(), {.columns = 42}),
            "guest\n"
            "40 pages of 4 KiB, one a cell\n"
            "  . zero: 35   S stored: 4   D dirty: 1\n"
            "    0x0  ..SSSD..........................\n"
            "0x20000  .......S\n");
}

TEST(PictureTest, TerminalLegendTakesLinesAsItNeeds) {
  EXPECT_THAT(TerminalText(Small(), {.columns = 32}),
              HasSubstr("\n  . zero: 35   S stored: 4\n  D dirty: 1\n"));
}

TEST(PictureTest, TerminalShowsOneDirtyPageOfAGigabyte) {
  // Rows of 64 cells for 128 pages each: 32 rows, of which four are left.
  EXPECT_EQ(
      TerminalText(Large(), {.columns = 80, .lines = 40}),
      absl::StrCat("guest\n"
                   "262144 pages of 4 KiB, 128 a cell "
                   "(a small letter: not all of them)\n"
                   "  . zero: 262079   S stored: 64   D dirty: 1\n",
                   "       0x0  s", std::string(63, '.'), "\n",  //
                   " 0x2000000  ", std::string(64, '.'), "\n",   //
                   "         *  10 more rows like this, up to 0x17ffffff\n",
                   "0x18000000  ", std::string(13, '.'), "d",   //
                   std::string(50, '.'), "\n",                  //
                   "0x1a000000  ", std::string(64, '.'), "\n",  //
                   "         *  18 more rows like this, up to 0x3fffffff\n"));
}

TEST(PictureTest, TwoEqualRowsAreBothDrawn) {
  PageMapPicture picture = Small();
  picture.runs.clear();
  picture.pages = 64;
  EXPECT_EQ(Lines(TerminalText(picture, {.columns = 42})).size(), 5u);
  picture.pages = 96;
  EXPECT_THAT(TerminalText(picture, {.columns = 42}),
              HasSubstr("      *  2 more rows like this, up to 0x5ffff\n"));
  // A last row that is shorter is another.
  picture.pages = 70;
  EXPECT_THAT(TerminalText(picture, {.columns = 42}),
              HasSubstr("0x20000  ................................\n"
                        "0x40000  ......\n"));
}

TEST(PictureTest, TerminalFitsTheScreenWithALineForThePrompt) {
  PageMapPicture picture = Small();
  picture.runs.clear();
  picture.pages = 1 << 20;
  // No row is like the one before.
  for (uint64_t page = 0; page < picture.pages; page += 1 + page / 16) {
    picture.runs.push_back({.first_page = page, .pages = 1, .state = 1});
  }
  for (const size_t lines : {10, 24, 50}) {
    for (const size_t columns : {40, 80, 200}) {
      const std::vector<std::string> text =
          Lines(TerminalText(picture, {.columns = columns, .lines = lines}));
      EXPECT_LT(text.size(), lines) << columns;
      EXPECT_GT(text.size(), lines / 2) << columns;
      for (const std::string& line : text) {
        EXPECT_LE(line.size(), columns) << line;
      }
    }
  }
}

TEST(PictureTest, TerminalHasColouredLettersThatEndWithTheLine) {
  const std::string text =
      TerminalText(Small(), {.columns = 42, .color = true});
  // What is not there has no colour, but a grey letter.
  EXPECT_THAT(text, HasSubstr("0x20000  \033[0;38;5;244m.."));
  // White on blue once for three pages, and white on red.
  EXPECT_THAT(text, HasSubstr("\033[0;38;5;231;48;5;25mSSS"
                              "\033[0;38;5;231;48;5;166mD\033[0;38;5;244m."));
  EXPECT_THAT(text, HasSubstr("S\033[0m\n"));
  EXPECT_THAT(text, HasSubstr("\033[0;38;5;231;48;5;25mS\033[0m stored: 4"));
  // Any terminal can show it.
  for (const char c : text) EXPECT_LT(static_cast<unsigned char>(c), 0x80);
}

TEST(PictureTest, LettersAreReadableOnTheirColour) {
  PageMapPicture picture = Small();
  picture.states[1].color = kYellow;
  picture.states[2].color = kBlack;
  const std::string text = TerminalText(picture, {.color = true});
  EXPECT_THAT(text, HasSubstr("\033[0;38;5;16;48;5;221mS"));
  // The other way round than the rest of the terminal.
  EXPECT_THAT(text, HasSubstr("\033[0;7mD"));
}

TEST(PictureTest, TerminalsOfAnySizeWillDo) {
  const std::string narrow = TerminalText(Small(), {.columns = 0, .lines = 0});
  EXPECT_EQ(narrow, TerminalText(Small(), {.columns = 32, .lines = 10}));
  const std::string wide =
      TerminalText(Small(), {.columns = ~size_t{0}, .lines = ~size_t{0}});
  EXPECT_THAT(
      wide, HasSubstr("\n    0x0  ..SSSD.................................S\n"));
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
            "guest\n0 pages of 4 KiB, one a cell\n"
            "  . zero: 0   S stored: 0   D dirty: 0\n");
  EXPECT_THAT(Svg(picture), HasSubstr("</svg>"));
  EXPECT_THAT(Html(picture), HasSubstr("</html>"));
}

// The texts of a drawing that are of a class, in order.
std::vector<std::string> TextsOf(const pugi::xml_node& svg, const char* kind) {
  std::vector<std::string> texts;
  for (const pugi::xpath_node& node :
       svg.select_nodes(absl::StrCat("text[@class='", kind, "']").c_str())) {
    texts.push_back(node.node().child_value());
  }
  return texts;
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
  const std::string style = document.child("svg").child_value("style");
  EXPECT_THAT(style, HasSubstr(".s2{fill:#d55e00"));
  EXPECT_THAT(TextsOf(document.child("svg"), "legend"),
              ElementsAre("zero: 35", "stored: 4", "dirty: 1"));
}

TEST(PictureTest, SvgIsDarkForWhoPrefersThat) {
  const std::string svg = Svg(Small());
  const size_t dark = svg.find("@media(prefers-color-scheme:dark){text");
  ASSERT_NE(dark, std::string::npos);
  // The greys change, the colours do not.
  EXPECT_THAT(svg.substr(dark), HasSubstr(".ground{fill:#161616}"));
  EXPECT_THAT(svg.substr(dark), HasSubstr(".s0{fill:#2c2c2c"));
  EXPECT_THAT(svg.substr(dark), Not(HasSubstr(".s1{")));
}

TEST(PictureTest, SvgHasItsLegendAboveTheRowsAndFitsWhatItIsIn) {
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Svg(Large()).c_str()));
  const pugi::xml_node svg = document.child("svg");
  const auto y_of = [&svg](const char* kind) {
    return svg.find_child_by_attribute("text", "class", kind)
        .attribute("y")
        .as_int();
  };
  EXPECT_LT(y_of("head"), y_of("legend"));
  EXPECT_LT(y_of("legend"), y_of("row"));
  EXPECT_THAT(svg.child_value("style"),
              HasSubstr(":root{max-width:100%;height:auto;"));
  EXPECT_EQ(absl::StrCat("0 0 ", svg.attribute("width").value(), " ",
                         svg.attribute("height").value()),
            svg.attribute("viewBox").value());
}

TEST(PictureTest, SvgDrawsOneOfEqualRowsAndDividesCells) {
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Svg(Large()).c_str()));
  EXPECT_THAT(TextsOf(document.child("svg"), "row"),
              ElementsAre("0x0", "0x1000000", "0x18000000", "0x19000000"));
  EXPECT_THAT(TextsOf(document.child("svg"), "alike"),
              ElementsAre("22 more rows like this, up to 0x17ffffff",
                          "38 more rows like this, up to 0x3fffffff"));
  const pugi::xpath_node_set cells = document.select_nodes("/svg/g");
  ASSERT_EQ(cells.size(), 4 * 64u);
  // Page 100000 is one of 64, and can be seen.
  const pugi::xml_node cell = cells[2 * 64 + 100000 / 64 % 64].node();
  const pugi::xml_node zero = cell.child("rect");
  const pugi::xml_node dirty = zero.next_sibling("rect");
  EXPECT_STREQ(zero.attribute("class").value(), "s0");
  EXPECT_STREQ(dirty.attribute("class").value(), "s2");
  EXPECT_GT(dirty.attribute("width").as_double(), 1.0);
  EXPECT_NEAR(zero.attribute("width").as_double() +
                  dirty.attribute("width").as_double(),
              11, 0.11);
}

TEST(PictureTest, RowsOfOtherNotesAreNotEqual) {
  PageMapPicture picture = Small();
  picture.pages = 64 * 4;
  picture.runs.clear();
  for (uint64_t page = 0; page < picture.pages; page += 64) {
    picture.runs.push_back({.first_page = page,
                            .pages = 64,
                            .state = 1,
                            .note = page == 128 ? "another" : "owner"});
  }
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Svg(picture).c_str()));
  EXPECT_THAT(TextsOf(document.child("svg"), "row"),
              ElementsAre("0x0", "0x40000", "0x80000", "0xc0000"));
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

TEST(PictureTest, HtmlHasALegendAndADrawingForNarrowWindowsToo) {
  pugi::xml_document document;
  ASSERT_TRUE(document.load_string(Html(Large()).c_str()));
  std::vector<std::string> legend;
  for (const pugi::xpath_node& entry :
       document.select_nodes("/html/body/header/ul/li")) {
    legend.push_back(entry.node().select_node("text()[last()]").node().value());
    EXPECT_EQ(entry.node().child("span").attribute("class").value(),
              absl::StrCat("key s", legend.size() - 1));
  }
  EXPECT_THAT(legend, ElementsAre("zero: 262079", "stored: 64", "dirty: 1"));
  const pugi::xml_node body = document.child("html").child("body");
  const pugi::xml_node wide =
      body.find_child_by_attribute("svg", "class", "wide");
  const pugi::xml_node narrow =
      body.find_child_by_attribute("svg", "class", "narrow");
  // 64 pages a cell in rows of 64, 256 a cell in rows of 16.
  EXPECT_THAT(TextsOf(wide, "row"),
              ElementsAre("0x0", "0x1000000", "0x18000000", "0x19000000"));
  EXPECT_THAT(TextsOf(narrow, "row"),
              ElementsAre("0x0", "0x1000000", "0x18000000", "0x19000000"));
  EXPECT_GT(wide.attribute("width").as_int(), 800);
  EXPECT_LT(narrow.attribute("width").as_int(), 400);
}

TEST(PictureTest, HtmlFitsWindowsAndIsDarkForWhoPrefersThat) {
  const std::string html = Html(Small());
  EXPECT_THAT(html, HasSubstr("<meta name=\"viewport\" "
                              "content=\"width=device-width, "
                              "initial-scale=1\""));
  EXPECT_THAT(html, HasSubstr("content=\"light dark\""));
  EXPECT_THAT(html, HasSubstr("@media(prefers-color-scheme:dark)"));
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
  for (const char* part : {"<style>", "<script>"}) {
    const size_t begin = html.find(part);
    const size_t end = html.find("</", begin);
    EXPECT_EQ(html.substr(begin, end - begin).find('&'), std::string::npos);
  }
}

TEST(PictureTest, LargeMapsStaySmall) {
  PageMapPicture picture = Large();
  picture.runs.clear();
  // No row is like the one before.
  for (uint64_t page = 0; page < picture.pages; page += 2 + page % 3) {
    picture.runs.push_back({.first_page = page, .pages = 1, .state = 1});
  }
  EXPECT_LT(Svg(picture).size(), size_t{2} << 20);
  EXPECT_LT(Html(picture).size(), size_t{2} << 20);
}

TEST(PictureDeathTest, WhatCheckRefusesIsNotDrawn) {
  PageMapPicture picture = Small();
  picture.runs[0].state = 9;
  EXPECT_DEATH(Svg(picture), "picture: run 0: there is no state 9");
}

}  // namespace
}  // namespace firsttouch::picture
