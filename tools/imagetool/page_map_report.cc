#include "firsttouch/tools/imagetool/page_map_report.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/opening.h"

namespace firsttouch::imagetool {
namespace {

using cli::Printable;

// Adds a run's pages to a set.
void Insert(const PageRun& run, WorkingSet::Words* words) {
  const uint64_t end = run.end().value();
  if (words->size() * 64 < end) words->resize((end + 63) / 64);
  for (uint64_t page = run.first.value(); page < end; ++page) {
    (*words)[page / 64] |= uint64_t{1} << (page % 64);
  }
}

uint64_t WordAt(const WorkingSet::Words& words, uint64_t index) {
  return index < words.size() ? words[index] : 0;
}

// Where the last page of a set ends.
uint64_t EndOf(const WorkingSet::Words& words) {
  for (size_t i = words.size(); i > 0; --i) {
    if (words[i - 1] == 0) continue;
    return i * 64 - static_cast<uint64_t>(std::countl_zero(words[i - 1]));
  }
  return 0;
}

void AppendRun(uint64_t first, uint64_t pages, MapReport::State state,
               MapReport* report) {
  if (report->runs_size() > 0) {
    MapReport::Run& last = *report->mutable_runs()->rbegin();
    if (last.state() == state) {
      last.mutable_range()->set_pages(last.range().pages() + pages);
      return;
    }
  }
  MapReport::Run& run = *report->add_runs();
  run.mutable_range()->set_first_page(first);
  run.mutable_range()->set_pages(pages);
  run.set_state(state);
}

}  // namespace

absl::StatusOr<MapReport> Map(const std::string& path,
                              const std::vector<std::string>& outputs) {
  for (const std::string& out : outputs) {
    absl::Status fits = CheckOutput(path, out);
    if (!fits.ok()) return fits;
  }
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  MapReport report;
  report.set_path(Printable(path));
  report.set_name(Printable(info->name));
  report.set_pages(PagesOf(info->size_bytes));
  report.set_is_delta(info->parent.has_value());
  WorkingSet::Words stored, zeroed;
  for (const ImageExtent& extent : info->extents) {
    Insert(extent.pages, &stored);
  }
  for (const PageRun& run : info->zeroed) Insert(run, &zeroed);

  const uint64_t end =
      std::max({report.pages(), EndOf(info->written), EndOf(info->read)});
  for (uint64_t page = 0; page < end;) {
    const uint64_t stored_word = WordAt(stored, page / 64);
    const uint64_t zeroed_word = WordAt(zeroed, page / 64);
    const uint64_t written_word = WordAt(info->written, page / 64);
    const uint64_t read_word = WordAt(info->read, page / 64);
    // A memory of 1 TiB is mostly nothing.
    if (page % 64 == 0 && end - page >= 64 &&
        (stored_word | zeroed_word | written_word | read_word) == 0) {
      AppendRun(page, 64, MapReport::ABSENT, &report);
      page += 64;
      continue;
    }
    const auto has = [page](uint64_t word) {
      return ((word >> (page % 64)) & 1) != 0;
    };
    const bool is_stored = has(stored_word);
    const MapReport::State state =
        has(written_word) ? (is_stored ? MapReport::STORED_WRITTEN
                                       : MapReport::ABSENT_WRITTEN)
        : has(read_word)
            ? (is_stored ? MapReport::STORED_READ : MapReport::ABSENT_READ)
        : is_stored        ? MapReport::STORED
        : has(zeroed_word) ? MapReport::ZEROED
                           : MapReport::ABSENT;
    AppendRun(page, 1, state, &report);
    ++page;
  }
  return report;
}

}  // namespace firsttouch::imagetool
