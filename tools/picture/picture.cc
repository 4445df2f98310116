#include "firsttouch/tools/picture/picture.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/table.h"
#include "pugixml.hpp"

namespace firsttouch::picture {
namespace {

constexpr size_t kMostNotes = 4;
constexpr size_t kLeastColumns = 32;
constexpr size_t kMostColumns = 1024;
constexpr size_t kLeastLines = 10;
constexpr size_t kMostLines = 1024;

// XML also forbids the two numbers of Unicode that are no characters.
std::string Printable(const std::string& text) {
  return absl::StrReplaceAll(cli::Printable(text),
                             {{"\xef\xbf\xbe", "?"}, {"\xef\xbf\xbf", "?"}});
}

bool IsColor(const std::string& color) {
  return color.size() == 7 && color[0] == '#' &&
         std::all_of(color.begin() + 1, color.end(),
                     [](char c) { return absl::ascii_isxdigit(c); });
}

void CheckOrDie(const PageMapPicture& picture) {
  const absl::Status status = Check(picture);
  if (status.ok()) return;
  const std::string text(status.message());
  std::fprintf(stderr, "firsttouch: %s\n", text.c_str());
  std::abort();
}

// "pages 16-31"; "page 16" of one.
std::string PagesText(uint64_t first, uint64_t pages) {
  if (pages == 1) return absl::StrCat("page ", first);
  return absl::StrCat("pages ", first, "-", first + pages - 1);
}

std::vector<uint64_t> CountsOf(const PageMapPicture& picture) {
  std::vector<uint64_t> counts(picture.states.size());
  uint64_t in_runs = 0;
  for (const Run& run : picture.runs) {
    counts[run.state] += run.pages;
    in_runs += run.pages;
  }
  counts[0] += picture.pages - in_runs;
  return counts;
}

std::string LegendText(const State& state, uint64_t pages) {
  return absl::StrCat(Printable(state.name), ": ", pages);
}

std::string ScaleText(const PageMapPicture& picture, uint64_t pages_per_cell) {
  return absl::StrCat(
      picture.pages, picture.pages == 1 ? " page of " : " pages of ",
      cli::BytesText(picture.page_bytes, {}), ", ",
      pages_per_cell == 1 ? std::string("one a cell")
                          : absl::StrCat(pages_per_cell, " a cell"));
}

std::string OffsetText(const PageMapPicture& picture, uint64_t page) {
  return cli::HexText(page * picture.page_bytes);
}

// --- Rows ------------------------------------------------------------------

// Some cells in sequence, of which `alike` further rows are a copy.
struct Row {
  size_t begin = 0;
  size_t end = 0;
  size_t alike = 0;
};

// `equal` compares two cells by their index.
std::vector<Row> RowsOf(size_t cells, size_t per_row,
                        const std::function<bool(size_t, size_t)>& equal) {
  std::vector<Row> rows;
  const auto repeats = [&](const Row& last, size_t begin) {
    if (cells - begin < per_row) return false;
    for (size_t i = 0; i < per_row; ++i) {
      if (!equal(last.begin + i, begin + i)) return false;
    }
    return true;
  };
  for (size_t begin = 0; begin < cells; begin += per_row) {
    if (!rows.empty() && repeats(rows.back(), begin)) {
      ++rows.back().alike;
      continue;
    }
    // To say that there is one more takes as much room as that one.
    if (!rows.empty() && rows.back().alike == 1) {
      rows.back().alike = 0;
      rows.push_back({begin - per_row, begin});
    }
    rows.push_back({begin, std::min(begin + per_row, cells)});
  }
  if (!rows.empty() && rows.back().alike == 1) {
    const size_t begin = rows.back().end;
    rows.back().alike = 0;
    rows.push_back({begin, begin + per_row});
  }
  return rows;
}

std::string AlikeText(const PageMapPicture& picture,
                      const std::vector<Cell>& cells, const Row& row) {
  const size_t last = row.end - 1 + row.alike * (row.end - row.begin);
  return absl::StrCat(
      row.alike, " more rows like this, up to ",
      cli::HexText((cells[last].first_page + cells[last].pages) *
                       picture.page_bytes -
                   1));
}

// --- Terminal --------------------------------------------------------------

uint32_t Rgb(const std::string& color) {
  uint32_t rgb = 0;
  return absl::SimpleHexAtoi(color.substr(1), &rgb) ? rgb : 0;
}

// The colour of xterm's 256 that is next to "#rrggbb".
int TerminalColor(const std::string& color) {
  // The cube's steps: 0, 95, 135, 175, 215, 255.
  const auto step = [rgb = Rgb(color)](int shift) {
    const int value = static_cast<int>(rgb >> shift & 255);
    return value < 48 ? 0 : value < 115 ? 1 : (value - 35) / 40;
  };
  return 16 + 36 * step(16) + 6 * step(8) + step(0);
}

// How a letter is painted: on the state's colour, so that the picture is the
// same whatever the terminal's own colours are. What is not there has none, and
// a grey that is weak on black and on white.
std::string Paint(const std::string& color) {
  constexpr int kBlackText = 16, kWhiteText = 231, kGreyText = 244;
  if (color == kPaper || color == kShade) {
    return absl::StrCat("\033[0;38;5;", kGreyText, "m");
  }
  if (color == kBlack) return "\033[0;7m";
  const uint32_t rgb = Rgb(color);
  const uint32_t brightness =
      (299 * (rgb >> 16) + 587 * (rgb >> 8 & 255) + 114 * (rgb & 255)) / 1000;
  return absl::StrCat("\033[0;38;5;",
                      brightness < 128 ? kWhiteText : kBlackText, ";48;5;",
                      TerminalColor(color), "m");
}

// What a terminal shows of a cell.
struct Mark {
  size_t state = 0;    // The last that one of the pages has.
  bool mixed = false;  // Not all have it.

  bool operator==(const Mark&) const = default;
};

Mark MarkOf(const Cell& cell) {
  size_t state = cell.in_state.size() - 1;
  while (state > 0 && cell.in_state[state] == 0) --state;
  return {state, cell.in_state[state] != cell.pages};
}

void AppendMarks(const PageMapPicture& picture, const std::vector<Mark>& marks,
                 const Row& row, bool color, std::string& out) {
  std::string last;
  for (size_t i = row.begin; i < row.end; ++i) {
    const State& state = picture.states[marks[i].state];
    if (color) {
      // A colour holds until the next.
      const std::string paint = Paint(state.color);
      if (paint != last) out += paint;
      last = paint;
    }
    const auto letter = static_cast<unsigned char>(state.letter);
    out += marks[i].mixed ? absl::ascii_tolower(letter)
                          : absl::ascii_toupper(letter);
  }
  if (color) out += "\033[0m";
  out += "\n";
}

// Lines of "S stored: 4", next to each other as far as there is room.
std::string TerminalLegend(const PageMapPicture& picture, size_t columns,
                           bool color) {
  constexpr size_t kIndent = 2, kGap = 3;
  const std::vector<uint64_t> counts = CountsOf(picture);
  std::string out;
  size_t column = 0;
  for (size_t state = 0; state < picture.states.size(); ++state) {
    const std::string text = LegendText(picture.states[state], counts[state]);
    const size_t width = 2 + cli::Width(text);
    if (column > 0 && column + kGap + width > columns) {
      out += "\n";
      column = 0;
    }
    const size_t blanks = column == 0 ? kIndent : kGap;
    const std::string letter(1, absl::ascii_toupper(static_cast<unsigned char>(
                                    picture.states[state].letter)));
    absl::StrAppend(&out, std::string(blanks, ' '),
                    color ? Paint(picture.states[state].color) : "", letter,
                    color ? "\033[0m " : " ", text);
    column += blanks + width;
  }
  return out + "\n";
}

// --- SVG -------------------------------------------------------------------

constexpr int kMargin = 16;
constexpr int kLabelWidth = 84;  // Of twelve digits.
constexpr int kLegendLine = 20;
// Of a cell; between it and the next is a line.
constexpr double kLine = 1;
constexpr int kLegendPerLine = 3;
constexpr size_t kTitleColumns = 92;

// How cells are laid out.
struct Grid {
  size_t per_row;
  uint64_t most_cells;
  int cell;  // Width and height.

  int width() const { return kLabelWidth + static_cast<int>(per_row) * cell; }
};

constexpr Grid kWide = {.per_row = 64, .most_cells = kMostCells, .cell = 12};
constexpr Grid kNarrow = {.per_row = 16, .most_cells = 1024, .cell = 15};

// The greys of a dark page.
const char* DarkColor(const std::string& color) {
  if (color == kPaper) return "#2c2c2c";
  if (color == kShade) return "#4c4c4c";
  return color == kBlack ? "#e8e8e8" : nullptr;
}

std::string Style(const PageMapPicture& picture) {
  std::string light =
      "text{font:12px sans-serif;fill:#303030}"
      ".head{font-size:16px;font-weight:bold}"
      ".row,.alike{font:10px monospace;fill:#707070}"
      ".row{text-anchor:end}"
      ".ground{fill:#ffffff}.cell:hover{opacity:.6}";
  std::string dark =
      "text{fill:#e4e4e4}.row,.alike{fill:#a0a0a0}.ground{fill:#161616}";
  for (size_t state = 0; state < picture.states.size(); ++state) {
    const std::string& color = picture.states[state].color;
    absl::StrAppend(&light, ".s", state, "{fill:", color, ";background:", color,
                    "}");
    const char* other = DarkColor(color);
    if (other == nullptr) continue;
    absl::StrAppend(&dark, ".s", state, "{fill:", other, ";background:", other,
                    "}");
  }
  return absl::StrCat(light, "@media(prefers-color-scheme:dark){", dark, "}");
}

std::string Tenths(double value) {
  std::string text = absl::StrFormat("%.1f", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

void Set(pugi::xml_node node, const char* name, const std::string& value) {
  node.append_attribute(name).set_value(value.c_str());
}

pugi::xml_node AddText(pugi::xml_node parent, int x, int y, const char* kind,
                       const std::string& text) {
  pugi::xml_node node = parent.append_child("text");
  Set(node, "x", absl::StrCat(x));
  Set(node, "y", absl::StrCat(y));
  Set(node, "class", kind);
  node.text().set(text.c_str());
  return node;
}

void AddRect(pugi::xml_node parent, double x, int y, double width,
             double height, size_t state) {
  pugi::xml_node rect = parent.append_child("rect");
  Set(rect, "x", Tenths(x));
  Set(rect, "y", absl::StrCat(y));
  Set(rect, "width", Tenths(width));
  Set(rect, "height", Tenths(height));
  Set(rect, "class", absl::StrCat("s", state));
}

// A cell, divided among its states from left to right. None is too small to be
// seen.
void AddCell(pugi::xml_node parent, const Cell& cell, int x, int y, int size) {
  constexpr double kLeast = 1.5;
  const double whole = size - kLine;
  std::vector<double> widths(cell.in_state.size());
  double sum = 0;
  for (size_t state = 0; state < widths.size(); ++state) {
    if (cell.in_state[state] == 0) continue;
    widths[state] =
        std::max(kLeast, whole * static_cast<double>(cell.in_state[state]) /
                             static_cast<double>(cell.pages));
    sum += widths[state];
  }
  double at = x;
  for (size_t state = 0; state < widths.size(); ++state) {
    if (widths[state] == 0) continue;
    const double width = widths[state] * whole / sum;
    AddRect(parent, at, y, width, whole, state);
    at += width;
  }
}

pugi::xml_node AddSvg(pugi::xml_node parent, int width) {
  pugi::xml_node svg = parent.append_child("svg");
  Set(svg, "xmlns", "http://www.w3.org/2000/svg");
  Set(svg, "role", "img");
  Set(svg, "width", absl::StrCat(width));
  return svg;
}

// Once it is known.
void SetHeight(pugi::xml_node svg, int height) {
  const std::string width = svg.attribute("width").value();
  Set(svg, "height", absl::StrCat(height));
  Set(svg, "viewBox", absl::StrCat("0 0 ", width, " ", height));
}

// Draws rows of cells from (x, y) on, and gives the y of what comes below.
// `in_page`: texts of cells go to an attribute, for the page's script, which is
// quicker than a title.
int DrawRows(const PageMapPicture& picture, const std::vector<Cell>& cells,
             const Grid& grid, bool in_page, int x, int y,
             pugi::xml_node parent) {
  const int first_cell = x + kLabelWidth;
  const std::vector<Row> rows =
      RowsOf(cells.size(), grid.per_row, [&cells](size_t a, size_t b) {
        return cells[a].in_state == cells[b].in_state &&
               cells[a].notes == cells[b].notes;
      });
  for (const Row& row : rows) {
    AddText(parent, first_cell - 8, y + grid.cell - 3, "row",
            OffsetText(picture, cells[row.begin].first_page));
    for (size_t i = row.begin; i < row.end; ++i) {
      pugi::xml_node group = parent.append_child("g");
      Set(group, "class", "cell");
      const std::string text = CellText(picture, cells[i]);
      if (in_page) {
        Set(group, "data-text", text);
      } else {
        group.append_child("title").text().set(text.c_str());
      }
      AddCell(group, cells[i],
              first_cell + static_cast<int>(i - row.begin) * grid.cell, y,
              grid.cell);
    }
    y += grid.cell;
    if (row.alike == 0) continue;
    AddText(parent, first_cell, y + grid.cell - 2, "alike",
            AlikeText(picture, cells, row));
    y += grid.cell + 4;
  }
  return y;
}

std::string Written(const pugi::xml_document& document) {
  std::ostringstream out;
  document.save(out, "", pugi::format_indent | pugi::format_no_declaration,
                pugi::encoding_utf8);
  return out.str();
}

// Without the characters that XML writes otherwise: an HTML reader takes styles
// and scripts as they stand.
constexpr char kPageStyle[] = R"(
body{margin:0;padding:0 16px 16px;background:#ffffff;color:#303030;
font:14px/1.4 sans-serif}
header{position:sticky;top:0;padding:12px 0 8px;background:inherit}
h1{margin:0;font-size:18px;overflow-wrap:anywhere}
p{margin:4px 0}
ul{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0;padding:0;list-style:none}
.key{display:inline-block;width:14px;height:14px;margin-right:6px;
vertical-align:-2px}
svg{display:block;width:100%;height:auto}
svg.wide{max-width:1700px}
.narrow{display:none}
#tip{position:fixed;max-width:90vw;box-sizing:border-box;padding:6px 8px;
border-radius:4px;background:#303030;color:#ffffff;font-size:13px;
white-space:pre-wrap;overflow-wrap:anywhere;pointer-events:none}
@media(max-width:760px){
header{position:static}
span.wide,svg.wide{display:none}
span.narrow{display:inline}
svg.narrow{display:block;max-width:560px}
}
@media(prefers-color-scheme:dark){
body{background:#161616;color:#e4e4e4}
#tip{background:#e4e4e4;color:#161616}
}
)";

constexpr char kScript[] = R"(
"use strict";
const tip = document.getElementById("tip");
function tell(event) {
  const cell = event.target.closest("[data-text]");
  tip.hidden = cell === null;
  if (tip.hidden) { return; }
  tip.textContent = cell.dataset.text;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(0, Math.min(event.clientX + 14, right)) + "px";
  const bottom = document.documentElement.clientHeight - tip.offsetHeight - 8;
  tip.style.top = Math.max(0, Math.min(event.clientY + 14, bottom)) + "px";
}
document.addEventListener("pointermove", tell);
// A finger does not move before it is there.
document.addEventListener("pointerdown", tell);
document.addEventListener("pointerleave", function () { tip.hidden = true; });
)";

}  // namespace

absl::Status Check(const PageMapPicture& picture) {
  const auto wrong = [](const std::string& text) {
    return absl::InvalidArgumentError(absl::StrCat("picture: ", text));
  };
  if (picture.pages > kMostPages) {
    return wrong(absl::StrCat(picture.pages, " pages are more than ",
                              kMostPages, ", the most that can be drawn"));
  }
  if (picture.states.empty() || picture.states.size() > kMostStates) {
    return wrong(absl::StrCat("there are ", picture.states.size(),
                              " states; 1 to ", kMostStates, " can be drawn"));
  }
  for (size_t i = 0; i < picture.states.size(); ++i) {
    if (!IsColor(picture.states[i].color)) {
      return wrong(absl::StrCat("state ", i, ": \"",
                                Printable(picture.states[i].color),
                                "\" is not a colour such as #0072b2"));
    }
    if (!absl::ascii_isprint(
            static_cast<unsigned char>(picture.states[i].letter))) {
      return wrong(absl::StrCat("state ", i, ": its letter is none"));
    }
  }
  uint64_t end = 0;
  for (size_t i = 0; i < picture.runs.size(); ++i) {
    const Run& run = picture.runs[i];
    if (run.state >= picture.states.size()) {
      return wrong(absl::StrCat("run ", i, ": there is no state ", run.state));
    }
    if (run.first_page < end) {
      return wrong(absl::StrCat("run ", i, " begins at page ", run.first_page,
                                ", and the one before ends at ", end));
    }
    if (run.first_page > picture.pages ||
        run.pages > picture.pages - run.first_page) {
      return wrong(absl::StrCat("run ", i, ": page ", run.first_page, " + ",
                                run.pages, " is behind the end, ",
                                picture.pages));
    }
    end = run.first_page + run.pages;
  }
  return absl::OkStatus();
}

uint64_t PagesPerCell(uint64_t pages, uint64_t most_cells) {
  if (pages == 0) return 1;
  most_cells = std::max<uint64_t>(most_cells, 1);
  uint64_t per_cell = 1;
  while (per_cell < kMostPages && (pages - 1) / per_cell + 1 > most_cells) {
    per_cell *= 2;
  }
  return per_cell;
}

std::vector<Cell> Cells(const PageMapPicture& picture,
                        uint64_t pages_per_cell) {
  CheckOrDie(picture);
  pages_per_cell = std::max<uint64_t>(pages_per_cell, 1);
  std::vector<Cell> cells;
  cells.reserve((picture.pages + pages_per_cell - 1) / pages_per_cell);
  for (uint64_t first = 0; first < picture.pages; first += pages_per_cell) {
    Cell& cell = cells.emplace_back();
    cell.first_page = first;
    cell.pages = std::min(pages_per_cell, picture.pages - first);
    cell.in_state.resize(picture.states.size());
    cell.in_state[0] = cell.pages;
  }
  for (const Run& run : picture.runs) {
    const uint64_t end = run.first_page + run.pages;
    for (uint64_t page = run.first_page; page < end;) {
      Cell& cell = cells[page / pages_per_cell];
      const uint64_t here = std::min(end, cell.first_page + cell.pages) - page;
      cell.in_state[0] -= here;
      cell.in_state[run.state] += here;
      page += here;
      if (run.note.empty() || std::find(cell.notes.begin(), cell.notes.end(),
                                        run.note) != cell.notes.end()) {
        continue;
      }
      if (cell.notes.size() < kMostNotes) {
        cell.notes.push_back(run.note);
      } else {
        ++cell.notes_left_out;
      }
    }
  }
  return cells;
}

std::string CellText(const PageMapPicture& picture, const Cell& cell) {
  const uint64_t begin = cell.first_page * picture.page_bytes;
  const uint64_t end = begin + cell.pages * picture.page_bytes;
  std::string text =
      absl::StrCat(PagesText(cell.first_page, cell.pages), ", offset ",
                   cli::HexText(begin), "-", cli::HexText(end - 1));
  std::vector<std::string> parts;
  for (size_t state = 0; state < cell.in_state.size(); ++state) {
    const std::string name = Printable(picture.states[state].name);
    if (cell.in_state[state] == 0) continue;
    parts.push_back(cell.in_state[state] == cell.pages
                        ? name
                        : absl::StrCat(name, " ", cell.in_state[state]));
  }
  absl::StrAppend(&text, "\n", absl::StrJoin(parts, ", "));
  for (const std::string& note : cell.notes) {
    absl::StrAppend(&text, "\n", Printable(note));
  }
  if (cell.notes_left_out > 0) {
    absl::StrAppend(&text, "\nand ", cell.notes_left_out, " more");
  }
  return text;
}

std::string TerminalText(const PageMapPicture& picture,
                         const TerminalOptions& options) {
  CheckOrDie(picture);
  const size_t columns =
      std::clamp(options.columns, kLeastColumns, kMostColumns);
  const std::string title =
      cli::WrappedAt(columns, 0, Printable(picture.title)) + "\n";
  const std::string legend = TerminalLegend(picture, columns, options.color);
  const auto scale = [&](uint64_t pages_per_cell, bool mixed) {
    return cli::WrappedAt(
               columns, 0,
               absl::StrCat(
                   ScaleText(picture, pages_per_cell),
                   mixed ? " (a small letter: not all of them)" : "")) +
           "\n";
  };
  // What stands beside the rows at most, and the prompt.
  size_t others = 1;
  for (const std::string& text : {title, legend, scale(kMostPages, true)}) {
    others += static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }
  const size_t lines = std::clamp(options.lines, kLeastLines, kMostLines);
  const size_t most_rows = lines > others ? lines - others : 1;
  const size_t label =
      2 + OffsetText(picture, std::max<uint64_t>(picture.pages, 1) - 1).size();
  // Rows begin at round numbers.
  const size_t per_row = std::bit_floor(columns - label);
  const uint64_t pages_per_cell =
      PagesPerCell(picture.pages, per_row * most_rows);
  const std::vector<Cell> cells = Cells(picture, pages_per_cell);
  std::vector<Mark> marks;
  marks.reserve(cells.size());
  bool mixed = false;
  for (const Cell& cell : cells) {
    marks.push_back(MarkOf(cell));
    mixed |= marks.back().mixed;
  }
  std::string out = absl::StrCat(title, scale(pages_per_cell, mixed), legend);
  const std::vector<Row> rows =
      RowsOf(cells.size(), per_row,
             [&marks](size_t a, size_t b) { return marks[a] == marks[b]; });
  const auto add_label = [&](const std::string& text) {
    absl::StrAppend(&out, std::string(label - 2 - text.size(), ' '), text,
                    "  ");
  };
  for (const Row& row : rows) {
    add_label(OffsetText(picture, cells[row.begin].first_page));
    AppendMarks(picture, marks, row, options.color, out);
    if (row.alike == 0) continue;
    add_label("*");
    absl::StrAppend(&out, AlikeText(picture, cells, row), "\n");
  }
  return out;
}

std::string Svg(const PageMapPicture& picture) {
  CheckOrDie(picture);
  const std::vector<uint64_t> counts = CountsOf(picture);
  const uint64_t pages_per_cell = PagesPerCell(picture.pages, kWide.most_cells);
  const int width = kWide.width() + 2 * kMargin;
  pugi::xml_document document;
  pugi::xml_node svg = AddSvg(document, width);
  Set(svg, "aria-label", Printable(picture.title));
  // Around it there is nothing of another colour.
  svg.append_child("style").text().set(
      absl::StrCat(":root{max-width:100%;height:auto;background:#ffffff}",
                   "@media(prefers-color-scheme:dark){:root{background:"
                   "#161616}}",
                   Style(picture))
          .c_str());
  pugi::xml_node ground = svg.append_child("rect");
  Set(ground, "width", absl::StrCat(width));
  Set(ground, "class", "ground");

  int y = kMargin;
  const std::vector<std::string> title = absl::StrSplit(
      cli::WrappedAt(kTitleColumns, 0, Printable(picture.title)), '\n');
  for (const std::string& line : title) {
    AddText(svg, kMargin, y + 12, "head", line);
    y += kLegendLine;
  }
  AddText(svg, kMargin, y + 10, "scale", ScaleText(picture, pages_per_cell));
  y += kLegendLine + 4;
  constexpr int kEntry = (kWide.per_row * kWide.cell + kLabelWidth) /
                         static_cast<size_t>(kLegendPerLine);
  for (size_t state = 0; state < picture.states.size(); ++state) {
    const int column = static_cast<int>(state) % kLegendPerLine;
    if (state > 0 && column == 0) y += kLegendLine;
    const int x = kMargin + column * kEntry;
    AddRect(svg, x, y, kWide.cell - kLine, kWide.cell - kLine, state);
    AddText(svg, x + kWide.cell + 6, y + 10, "legend",
            LegendText(picture.states[state], counts[state]));
  }
  y += kLegendLine + kMargin / 2;
  const std::vector<Cell> cells = Cells(picture, pages_per_cell);
  const int height =
      DrawRows(picture, cells, kWide, false, kMargin, y, svg) + kMargin;
  Set(ground, "height", absl::StrCat(height));
  SetHeight(svg, height);
  return Written(document);
}

std::string Html(const PageMapPicture& picture) {
  CheckOrDie(picture);
  const std::vector<uint64_t> counts = CountsOf(picture);
  const std::string title = Printable(picture.title);
  pugi::xml_document document;
  document.append_child(pugi::node_doctype).set_value("html");
  pugi::xml_node html = document.append_child("html");
  Set(html, "lang", "en");
  pugi::xml_node head = html.append_child("head");
  Set(head.append_child("meta"), "charset", "utf-8");
  const auto add_meta = [&head](const char* name, const char* content) {
    pugi::xml_node meta = head.append_child("meta");
    Set(meta, "name", name);
    Set(meta, "content", content);
  };
  add_meta("viewport", "width=device-width, initial-scale=1");
  add_meta("color-scheme", "light dark");
  head.append_child("title").text().set(title.c_str());
  head.append_child("style").text().set(
      absl::StrCat(kPageStyle, Style(picture)).c_str());
  pugi::xml_node body = html.append_child("body");

  pugi::xml_node header = body.append_child("header");
  header.append_child("h1").text().set(title.c_str());
  pugi::xml_node scale = header.append_child("p");
  pugi::xml_node legend = header.append_child("ul");
  for (size_t state = 0; state < picture.states.size(); ++state) {
    pugi::xml_node entry = legend.append_child("li");
    pugi::xml_node key = entry.append_child("span");
    Set(key, "class", absl::StrCat("key s", state));
    // An element without contents would be written as one that HTML takes for
    // open.
    key.text().set(" ");
    entry.append_child(pugi::node_pcdata)
        .set_value(LegendText(picture.states[state], counts[state]).c_str());
  }
  for (const Grid& grid : {kWide, kNarrow}) {
    const char* kind = grid.per_row == kWide.per_row ? "wide" : "narrow";
    const uint64_t pages_per_cell =
        PagesPerCell(picture.pages, grid.most_cells);
    pugi::xml_node text = scale.append_child("span");
    Set(text, "class", kind);
    text.text().set(ScaleText(picture, pages_per_cell).c_str());
    pugi::xml_node svg = AddSvg(body, grid.width());
    Set(svg, "class", kind);
    Set(svg, "aria-label", title);
    SetHeight(svg, DrawRows(picture, Cells(picture, pages_per_cell), grid, true,
                            0, 0, svg));
  }

  pugi::xml_node tip = body.append_child("div");
  Set(tip, "id", "tip");
  Set(tip, "hidden", "hidden");
  tip.text().set(" ");
  body.append_child("script").text().set(kScript);
  return Written(document);
}

}  // namespace firsttouch::picture
