#include "firsttouch/tools/picture/picture.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/picture/drawing.h"

namespace firsttouch::picture {
namespace {

constexpr size_t kMostNotes = 4;

bool IsColor(const std::string& color) {
  return color.size() == 7 && color[0] == '#' &&
         std::all_of(color.begin() + 1, color.end(),
                     [](char c) { return absl::ascii_isxdigit(c); });
}

// "pages 16-31"; "page 16" of one.
std::string PagesText(uint64_t first, uint64_t pages) {
  if (pages == 1) return absl::StrCat("page ", first);
  return absl::StrCat("pages ", first, "-", first + pages - 1);
}

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

}  // namespace firsttouch::picture
