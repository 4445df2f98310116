#include "firsttouch/tools/picture/picture.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/table.h"
#include "pugixml.hpp"

namespace firsttouch::picture {
namespace {

constexpr size_t kMostNotes = 4;
constexpr size_t kLeastColumns = 32;
constexpr size_t kMostColumns = 1024;
constexpr size_t kMostRows = 1024;

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
  return absl::StrCat(Printable(state.name), ": ", pages,
                      pages == 1 ? " page" : " pages");
}

std::string ScaleText(const PageMapPicture& picture, uint64_t pages_per_cell) {
  return absl::StrCat(
      picture.pages, picture.pages == 1 ? " page of " : " pages of ",
      cli::BytesText(picture.page_bytes, {}), ", ",
      pages_per_cell == 1 ? std::string("one a cell")
                          : absl::StrCat(pages_per_cell, " a cell"));
}

// The colour of xterm's 256 that is next to "#rrggbb".
int TerminalColor(const std::string& color) {
  uint32_t rgb = 0;
  if (!absl::SimpleHexAtoi(color.substr(1), &rgb)) return 7;
  const uint32_t red = rgb >> 16, green = rgb >> 8 & 255, blue = rgb & 255;
  const uint32_t spread =
      std::max({red, green, blue}) - std::min({red, green, blue});
  if (spread < 8) {
    // The 24 greys: 8, 18, ... 238.
    return 232 +
           static_cast<int>(std::clamp<uint32_t>((green + 2) / 10, 1, 24) - 1);
  }
  // The cube's steps: 0, 95, 135, 175, 215, 255.
  const auto step = [](uint32_t value) {
    return value < 48    ? 0
           : value < 115 ? 1
                         : (static_cast<int>(value) - 35) / 40;
  };
  return 16 + 36 * step(red) + 6 * step(green) + step(blue);
}

// How a state looks in a terminal.
std::string Mark(const State& state, bool mixed, bool color) {
  std::string letter(
      1, mixed ? absl::ascii_tolower(static_cast<unsigned char>(state.letter))
               : absl::ascii_toupper(static_cast<unsigned char>(state.letter)));
  if (!color) return letter;
  // What is not there is quiet on any background.
  return absl::StrCat("\033[0;",
                      state.color == kPaper
                          ? std::string("2")
                          : absl::StrCat("38;5;", TerminalColor(state.color)),
                      "m", letter);
}

// The last state that one of the pages has.
size_t StateShown(const Cell& cell) {
  for (size_t state = cell.in_state.size(); state > 0; --state) {
    if (cell.in_state[state - 1] != 0) return state - 1;
  }
  return 0;
}

void AppendRow(const PageMapPicture& picture, const std::vector<Cell>& cells,
               size_t begin, size_t end, bool color, std::string& out) {
  std::string last;
  for (size_t i = begin; i < end; ++i) {
    const size_t state = StateShown(cells[i]);
    const bool mixed = cells[i].in_state[state] != cells[i].pages;
    std::string mark = Mark(picture.states[state], mixed, color);
    if (color) {
      // A colour holds until the next.
      const size_t length = mark.find('m') + 1;
      const std::string code = mark.substr(0, length);
      if (code == last) mark.erase(0, length);
      last = code;
    }
    out += mark;
  }
  if (color) out += "\033[0m";
  out += "\n";
}

// --- SVG -------------------------------------------------------------------

constexpr int kMargin = 16;
constexpr int kLabelWidth = 76;  // Of nine digits.
constexpr int kCell = 12;        // With a gap of one to the next.
constexpr int kHeadHeight = 52;
constexpr int kLegendLine = 20;
constexpr uint64_t kCellsPerRow = 64;

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

void AddRect(pugi::xml_node parent, const std::string& x, int y,
             const std::string& width, int height, size_t state) {
  pugi::xml_node rect = parent.append_child("rect");
  Set(rect, "x", x);
  Set(rect, "y", absl::StrCat(y));
  Set(rect, "width", width);
  Set(rect, "height", absl::StrCat(height));
  Set(rect, "class", absl::StrCat("s", state));
}

// A cell, divided among its states from left to right. None is too small to be
// seen.
void AddCell(pugi::xml_node parent, const Cell& cell, int x, int y) {
  constexpr double kWidth = kCell - 1;
  constexpr double kLeast = 1.5;
  std::vector<double> widths(cell.in_state.size());
  double sum = 0;
  for (size_t state = 0; state < widths.size(); ++state) {
    if (cell.in_state[state] == 0) continue;
    widths[state] =
        std::max(kLeast, kWidth * static_cast<double>(cell.in_state[state]) /
                             static_cast<double>(cell.pages));
    sum += widths[state];
  }
  double at = x;
  for (size_t state = 0; state < widths.size(); ++state) {
    if (widths[state] == 0) continue;
    const double width = widths[state] * kWidth / sum;
    AddRect(parent, Tenths(at), y, Tenths(width), kCell - 1, state);
    at += width;
  }
}

// `in_page`: texts of cells go to an attribute, for the page's script, which is
// quicker than a title.
void Draw(const PageMapPicture& picture, bool in_page, pugi::xml_node parent) {
  const uint64_t pages_per_cell = PagesPerCell(picture.pages, kMostCells);
  const std::vector<Cell> cells = Cells(picture, pages_per_cell);
  const std::vector<uint64_t> counts = CountsOf(picture);
  const size_t rows = (cells.size() + kCellsPerRow - 1) / kCellsPerRow;
  const int left = kMargin + kLabelWidth;
  const int width = left + int{kCellsPerRow} * kCell + kMargin;
  const int legend_y = kHeadHeight + static_cast<int>(rows) * kCell + kMargin;
  const int height = legend_y +
                     static_cast<int>(picture.states.size()) * kLegendLine +
                     kMargin / 2;

  pugi::xml_node svg = parent.append_child("svg");
  Set(svg, "xmlns", "http://www.w3.org/2000/svg");
  Set(svg, "width", absl::StrCat(width));
  Set(svg, "height", absl::StrCat(height));
  Set(svg, "viewBox", absl::StrCat("0 0 ", width, " ", height));
  Set(svg, "role", "img");
  Set(svg, "aria-label", Printable(picture.title));
  std::string style =
      "text{font:12px sans-serif;fill:#303030}"
      ".head{font-size:16px;font-weight:bold}"
      ".row{text-anchor:end;fill:#707070;font-size:10px}"
      ".ground{fill:#ffffff}.cell:hover{opacity:.6}";
  for (size_t state = 0; state < picture.states.size(); ++state) {
    absl::StrAppend(&style, ".s", state, "{fill:", picture.states[state].color,
                    "}");
  }
  svg.append_child("style").text().set(style.c_str());
  pugi::xml_node ground = svg.append_child("rect");
  Set(ground, "width", absl::StrCat(width));
  Set(ground, "height", absl::StrCat(height));
  Set(ground, "class", "ground");

  AddText(svg, kMargin, 24, "head", Printable(picture.title));
  AddText(svg, kMargin, 42, "scale", ScaleText(picture, pages_per_cell));
  for (size_t i = 0; i < cells.size(); ++i) {
    const int y = kHeadHeight + static_cast<int>(i / kCellsPerRow) * kCell;
    if (i % kCellsPerRow == 0) {
      AddText(svg, left - 8, y + kCell - 3, "row",
              absl::StrCat(cells[i].first_page));
    }
    pugi::xml_node group = svg.append_child("g");
    Set(group, "class", "cell");
    const std::string text = CellText(picture, cells[i]);
    if (in_page) {
      Set(group, "data-text", text);
    } else {
      group.append_child("title").text().set(text.c_str());
    }
    AddCell(group, cells[i], left + static_cast<int>(i % kCellsPerRow) * kCell,
            y);
  }
  for (size_t state = 0; state < picture.states.size(); ++state) {
    const int y = legend_y + static_cast<int>(state) * kLegendLine;
    AddRect(svg, absl::StrCat(left), y, absl::StrCat(kCell - 1), kCell - 1,
            state);
    AddText(svg, left + kCell + 8, y + kCell - 2, "legend",
            LegendText(picture.states[state], counts[state]));
  }
}

std::string Written(const pugi::xml_document& document) {
  std::ostringstream out;
  document.save(out, "", pugi::format_indent | pugi::format_no_declaration,
                pugi::encoding_utf8);
  return out.str();
}

// Must do without the characters that XML writes otherwise: an HTML reader
// takes a script as it stands.
constexpr char kScript[] = R"(
"use strict";
const tip = document.getElementById("tip");
document.addEventListener("pointermove", function (event) {
  const cell = event.target.closest("[data-text]");
  tip.hidden = cell === null;
  if (tip.hidden) { return; }
  tip.textContent = cell.dataset.text;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(0, Math.min(event.clientX + 14, right)) + "px";
  const bottom = document.documentElement.clientHeight - tip.offsetHeight - 8;
  tip.style.top = Math.max(0, Math.min(event.clientY + 14, bottom)) + "px";
});
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
  const size_t label = absl::StrCat(picture.pages).size() + 2;
  const size_t columns =
      std::clamp(options.columns, kLeastColumns, kMostColumns);
  // Rows begin at round numbers.
  const size_t per_row = std::bit_floor(columns - label);
  const uint64_t pages_per_cell = PagesPerCell(
      picture.pages,
      per_row * std::clamp<size_t>(options.most_rows, 1, kMostRows));
  const std::vector<Cell> cells = Cells(picture, pages_per_cell);
  std::string out = absl::StrCat(Printable(picture.title), "\n",
                                 ScaleText(picture, pages_per_cell), "\n");
  for (size_t i = 0; i < cells.size(); i += per_row) {
    const std::string first = absl::StrCat(cells[i].first_page);
    absl::StrAppend(&out, std::string(label - 2 - first.size(), ' '), first,
                    "  ");
    AppendRow(picture, cells, i, std::min(i + per_row, cells.size()),
              options.color, out);
  }
  const std::vector<uint64_t> counts = CountsOf(picture);
  for (size_t state = 0; state < picture.states.size(); ++state) {
    absl::StrAppend(&out, "  ",
                    Mark(picture.states[state], false, options.color),
                    options.color ? "\033[0m  " : "  ",
                    LegendText(picture.states[state], counts[state]), "\n");
  }
  if (pages_per_cell > 1) {
    absl::StrAppend(&out, "  small letters: only some pages\n");
  }
  return out;
}

std::string Svg(const PageMapPicture& picture) {
  CheckOrDie(picture);
  pugi::xml_document document;
  Draw(picture, false, document);
  return Written(document);
}

std::string Html(const PageMapPicture& picture) {
  CheckOrDie(picture);
  pugi::xml_document document;
  document.append_child(pugi::node_doctype).set_value("html");
  pugi::xml_node html = document.append_child("html");
  Set(html, "lang", "en");
  pugi::xml_node head = html.append_child("head");
  Set(head.append_child("meta"), "charset", "utf-8");
  head.append_child("title").text().set(Printable(picture.title).c_str());
  head.append_child("style").text().set(
      "body{margin:0;background:#ffffff}"
      "#tip{position:fixed;background:#303030;color:#ffffff;padding:6px 8px;"
      "border-radius:4px;font:12px sans-serif;white-space:pre;"
      "pointer-events:none}");
  pugi::xml_node body = html.append_child("body");
  Draw(picture, true, body);
  pugi::xml_node tip = body.append_child("div");
  Set(tip, "id", "tip");
  Set(tip, "hidden", "hidden");
  // An element without contents would be written as one that HTML takes for
  // open.
  tip.text().set(" ");
  body.append_child("script").text().set(kScript);
  return Written(document);
}

}  // namespace firsttouch::picture
