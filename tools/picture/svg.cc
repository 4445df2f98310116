// Pictures as SVG, by itself and in an HTML page.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/picture/drawing.h"
#include "firsttouch/tools/picture/picture.h"
#include "pugixml.hpp"

namespace firsttouch::picture {
namespace {

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
