// What pictures in a terminal, in SVG and in HTML have in common: their texts,
// and rows of which those that are alike are drawn once. Internal to this
// folder.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_PICTURE_DRAWING_H_
#define FIRSTTOUCH_TOOLS_PICTURE_DRAWING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "firsttouch/tools/picture/picture.h"

namespace firsttouch::picture {

// Fit for a terminal and for XML: '?' for what either could take amiss.
std::string Printable(const std::string& text);

// Ends the process for a picture that Check refuses.
void CheckOrDie(const PageMapPicture& picture);

// Pages in each of the states.
std::vector<uint64_t> CountsOf(const PageMapPicture& picture);

// "stored: 4"
std::string LegendText(const State& state, uint64_t pages);
// "1024 pages of 4 KiB, one a cell"
std::string ScaleText(const PageMapPicture& picture, uint64_t pages_per_cell);
// The offset of a page's first byte: "0x1000".
std::string OffsetText(const PageMapPicture& picture, uint64_t page);

// Some cells in sequence, of which `alike` further rows are a copy.
struct Row {
  size_t begin = 0;
  size_t end = 0;
  size_t alike = 0;
};

// Breaks cells into rows. `equal` compares two cells by their index.
std::vector<Row> RowsOf(size_t cells, size_t per_row,
                        const std::function<bool(size_t, size_t)>& equal);

// What stands for the rows that are alike: how many, and where they end.
std::string AlikeText(const PageMapPicture& picture,
                      const std::vector<Cell>& cells, const Row& row);

}  // namespace firsttouch::picture

#endif  // FIRSTTOUCH_TOOLS_PICTURE_DRAWING_H_
