#include "firsttouch/tools/imagetool/map_picture.h"

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::imagetool {
namespace {

// States in the order of the palette: what is rare and matters comes last.
struct Shown {
  MapReport::State state;
  picture::State palette;
};

absl::StatusOr<picture::PageMapPicture> PictureOf(const MapReport& report,
                                                  const cli::TextStyle& style) {
  const std::vector<Shown> palette = {
      {MapReport::ABSENT,
       {report.is_delta() ? "as in the parent" : "zero", '.', picture::kPaper}},
      {MapReport::ABSENT_READ,
       {report.is_delta() ? "read, as in the parent" : "read, zero", 'a',
        picture::kYellow}},
      {MapReport::STORED, {"stored", 's', picture::kBlue}},
      {MapReport::STORED_READ, {"stored and read", 'r', picture::kSky}},
      {MapReport::ABSENT_WRITTEN,
       {report.is_delta() ? "written, as in the parent" : "written, zero", 'h',
        picture::kOrange}},
      {MapReport::STORED_WRITTEN, {"stored and written", 'w', picture::kRed}},
      {MapReport::ZEROED, {"made zero", 'z', picture::kBlack}},
  };
  picture::PageMapPicture result;
  result.title =
      absl::StrCat(report.name().empty() ? report.path() : report.name(), ": ",
                   cli::BytesText(report.pages() * kPageBytes, style),
                   report.is_delta() ? ", a delta" : "");
  result.page_bytes = kPageBytes;
  std::vector<size_t> index(MapReport::State_ARRAYSIZE);
  // A legend of what there is.
  std::vector<bool> used(MapReport::State_ARRAYSIZE);
  used[MapReport::ABSENT] = true;
  for (const MapReport::Run& run : report.runs()) used[run.state()] = true;
  for (const Shown& shown : palette) {
    if (!used[shown.state]) continue;
    index[shown.state] = result.states.size();
    result.states.push_back(shown.palette);
  }
  result.pages = report.pages();
  for (const MapReport::Run& run : report.runs()) {
    const uint64_t end = run.range().first_page() + run.range().pages();
    if (end > result.pages) result.pages = end;
    if (run.state() == MapReport::ABSENT) continue;
    result.runs.push_back({.first_page = run.range().first_page(),
                           .pages = run.range().pages(),
                           .state = index[run.state()]});
  }
  absl::Status fine = picture::Check(result);
  if (!fine.ok()) return fine;
  return result;
}

}  // namespace

absl::StatusOr<std::string> TerminalPictureOf(
    const MapReport& report, const picture::TerminalOptions& options,
    const cli::TextStyle& style) {
  const absl::StatusOr<picture::PageMapPicture> picture =
      PictureOf(report, style);
  if (!picture.ok()) return picture.status();
  return picture::TerminalText(*picture, options);
}

absl::StatusOr<std::string> SvgOf(const MapReport& report,
                                  const cli::TextStyle& style) {
  const absl::StatusOr<picture::PageMapPicture> picture =
      PictureOf(report, style);
  if (!picture.ok()) return picture.status();
  return picture::Svg(*picture);
}

absl::StatusOr<std::string> HtmlOf(const MapReport& report,
                                   const cli::TextStyle& style) {
  const absl::StatusOr<picture::PageMapPicture> picture =
      PictureOf(report, style);
  if (!picture.ok()) return picture.status();
  return picture::Html(*picture);
}

}  // namespace firsttouch::imagetool
