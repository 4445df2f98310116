// Pictures as letters, on colours if wanted.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/picture/drawing.h"
#include "firsttouch/tools/picture/picture.h"

namespace firsttouch::picture {
namespace {

constexpr size_t kLeastColumns = 32;
constexpr size_t kMostColumns = 1024;
constexpr size_t kLeastLines = 10;
constexpr size_t kMostLines = 1024;

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

}  // namespace

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

}  // namespace firsttouch::picture
