#include "firsttouch/tools/picture/drawing.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/table.h"

namespace firsttouch::picture {

// XML also forbids the two numbers of Unicode that are no characters.
std::string Printable(const std::string& text) {
  return absl::StrReplaceAll(cli::Printable(text),
                             {{"\xef\xbf\xbe", "?"}, {"\xef\xbf\xbf", "?"}});
}

void CheckOrDie(const PageMapPicture& picture) {
  const absl::Status status = Check(picture);
  if (status.ok()) return;
  const std::string text(status.message());
  std::fprintf(stderr, "firsttouch: %s\n", text.c_str());
  std::abort();
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

}  // namespace firsttouch::picture
