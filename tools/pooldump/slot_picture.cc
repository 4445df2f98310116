#include "firsttouch/tools/pooldump/slot_picture.h"

#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/layout_report.h"

namespace firsttouch::pooldump {
namespace {

// In the order of the palette: what is rare and matters is last, so that it is
// seen among many others.
enum PictureState : size_t {
  kMissing,
  kOutside,
  kClean,
  kShared,
  kUntracked,
  kPrivate,
  kHot,
  kDirty,
  kStates,
};

PictureState StateOf(const PageRun& run) {
  switch (run.state()) {
    case PAGE_CLEAN:
      return kClean;
    case PAGE_UNTRACKED:
      return kUntracked;
    case PAGE_DIRTY:
      return kDirty;
    case PAGE_HOT:
      return kHot;
    default:
      break;
  }
  // What the service has not heard of, the kernel may know.
  if (run.state() == PAGE_STATE_UNSPECIFIED && run.resident() == 1) {
    return kShared;
  }
  if (run.state() == PAGE_STATE_UNSPECIFIED && run.resident() == 2) {
    return kPrivate;
  }
  return run.source() == PAGE_OUTSIDE ? kOutside : kMissing;
}

std::string NoteOf(const PageMap& map, const PageRun& run) {
  std::string note;
  switch (run.source()) {
    case PAGE_OF_IMAGE:
      note = absl::StrCat("image ", map.slot().image_name());
      break;
    case PAGE_OF_ZEROES:
      note = "zeroes at first";
      break;
    case PAGE_OUTSIDE:
      return "above the size: a touch traps";
    default:
      break;
  }
  const char* separator = note.empty() ? "" : "; ";
  if (run.resident() == 1) {
    absl::StrAppend(&note, separator, "the image's own page, shared");
  } else if (run.resident() == 2) {
    absl::StrAppend(&note, separator, "a page of the slot's own");
  }
  return note;
}

}  // namespace

absl::StatusOr<picture::PageMapPicture> SlotPicture(
    const PageMap& map, const cli::TextStyle& style) {
  picture::PageMapPicture picture;
  picture.title =
      absl::StrCat(SlotName(map.pool().name(), map.slot().slot()), ", ",
                   map.slot().state_name(), ", ",
                   map.slot().image_name().empty()
                       ? std::string("no image")
                       : absl::StrCat("image ", map.slot().image_name()),
                   ", size ", cli::BytesText(map.slot().size_bytes(), style));
  const picture::State palette[kStates] = {
      {"missing", '.', picture::kPaper},
      {"above the size", '-', picture::kShade},
      {"clean", 'c', picture::kBlue},
      {"shared", 's', picture::kSky},
      {"untracked", 'u', picture::kYellow},
      {"private", 'p', picture::kPink},
      {"hot", 'h', picture::kOrange},
      {"dirty", 'd', picture::kRed},
  };
  // The legend has those that occur; the first stands for what no run tells of.
  bool used[kStates] = {true};
  for (const PageRun& run : map.runs()) used[StateOf(run)] = true;
  size_t index[kStates] = {};
  for (size_t i = 0; i < kStates; ++i) {
    if (!used[i]) continue;
    index[i] = picture.states.size();
    picture.states.push_back(palette[i]);
  }
  for (const PageRun& run : map.runs()) {
    picture.runs.push_back({.first_page = run.first_page(),
                            .pages = run.pages(),
                            .state = index[StateOf(run)],
                            .note = NoteOf(map, run)});
    picture.pages = run.first_page() + run.pages();
  }
  absl::Status status = picture::Check(picture);
  if (!status.ok()) return status;
  return picture;
}

}  // namespace firsttouch::pooldump
