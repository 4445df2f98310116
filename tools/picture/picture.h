// Maps of pages as pictures: in a terminal, as SVG, and as an HTML page that
// tells about the pages under the pointer.
//
//   PageMapPicture picture = {
//       .title = "guest.wasm",
//       .pages = 1024,
//       .states = {{"zero", '.', kPaper}, {"stored", '#', kBlue}},
//       .runs = {{.first_page = 16, .pages = 3, .state = 1, .note = "data"}}};
//   if (absl::Status status = Check(picture); !status.ok()) return status;
//   TerminalText(picture, {.columns = 80});
//   Svg(picture);
//
// A picture has cells, each for as many pages (a power of two) as it takes for
// a memory of any size to fit. In SVG and HTML a cell is divided among the
// states of its pages; in a terminal it shows the last state of the palette
// that one of its pages has, so that one page among a thousand is seen: put
// what is rare and matters last.
//
// The legend comes first. Each row of cells has the offset of its first byte in
// front. Of three or more equal rows in sequence the first is drawn, and the
// number of the others.
//
// Everything here is pure: the same picture gives the same bytes. Texts may
// hold anything; what a terminal or XML could take amiss becomes '?'. All but
// Check ends the process for a picture that Check refuses.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_PICTURE_PICTURE_H_
#define FIRSTTOUCH_TOOLS_PICTURE_PICTURE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::picture {

// Colours that are told apart also by those who do not see all of them (Okabe
// and Ito). The first two are quiet on any background: kPaper for what is not
// there, kShade for what cannot be there. On a dark background the greys are
// others.
inline constexpr char kPaper[] = "#e8e8e8";
inline constexpr char kShade[] = "#c4c4c4";
inline constexpr char kBlue[] = "#0072b2";
inline constexpr char kSky[] = "#56b4e9";
inline constexpr char kGreen[] = "#009e73";
inline constexpr char kYellow[] = "#f0e442";
inline constexpr char kOrange[] = "#e69f00";
inline constexpr char kRed[] = "#d55e00";
inline constexpr char kPink[] = "#cc79a7";
inline constexpr char kBlack[] = "#303030";

// What a page can be; an entry of the legend.
struct State {
  std::string name;
  // Without colours. A letter stands in capitals where all pages of a cell
  // are alike, small where they are not.
  char letter = '?';
  std::string color;  // "#rrggbb".
};

// Neighbouring pages of one state.
struct Run {
  uint64_t first_page = 0;
  uint64_t pages = 0;
  size_t state = 0;  // Index of PageMapPicture::states.
  // Who they belong to, or what else there is to tell; may be empty.
  std::string note;
};

struct PageMapPicture {
  std::string title;
  uint64_t pages = 0;
  uint64_t page_bytes = kPageBytes;
  // The first is that of all pages in no run.
  std::vector<State> states;
  // Ascending and apart.
  std::vector<Run> runs;
};

// The largest that can be drawn: 2^28 pages, 1 TiB.
inline constexpr uint64_t kMostPages = uint64_t{1} << 28;
inline constexpr size_t kMostStates = 16;
// Of a drawing in a file.
inline constexpr uint64_t kMostCells = 4096;

// InvalidArgument, naming the run or the state: runs that overlap, descend, end
// behind the last page or have a state that is none; no state, or more than
// kMostStates; a colour that is none; more than kMostPages.
absl::Status Check(const PageMapPicture& picture);

// One cell: some neighbouring pages.
struct Cell {
  uint64_t first_page = 0;
  uint64_t pages = 0;
  std::vector<uint64_t> in_state;  // Pages in each of the states.
  // What runs in it have to tell, each once, the first few.
  std::vector<std::string> notes;
  uint64_t notes_left_out = 0;
};

// The fewest pages a cell, a power of two, for at most `most_cells` cells.
uint64_t PagesPerCell(uint64_t pages, uint64_t most_cells);

// The cells of a picture. Takes time linear in cells and runs.
std::vector<Cell> Cells(const PageMapPicture& picture, uint64_t pages_per_cell);

// What there is to tell about a cell: lines without a line feed at the end.
std::string CellText(const PageMapPicture& picture, const Cell& cell);

struct TerminalOptions {
  size_t columns = 80;  // 32 to 1024; what is not counts as the nearest.
  // All of the picture and a prompt behind it are to fit into so many; 10 to
  // 1024.
  size_t lines = 24;
  bool color = false;  // Letters on colours. ASCII in any case.
};

// Title, scale, legend, rows of cells. No line is wider than `columns`, unless
// a word or a name is.
std::string TerminalText(const PageMapPicture& picture,
                         const TerminalOptions& options);

// A drawing of its own, with what there is to tell in its titles. Is made
// smaller where there is less room, and dark where the reader prefers that.
std::string Svg(const PageMapPicture& picture);

// A page that needs nothing else: the drawing, as wide as the window, or one
// with fewer cells in a row where the window is narrow, and a text about the
// cell under the pointer. Dark where the reader prefers that.
std::string Html(const PageMapPicture& picture);

}  // namespace firsttouch::picture

#endif  // FIRSTTOUCH_TOOLS_PICTURE_PICTURE_H_
