// The pages of a slot as a picture (../picture).

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SLOT_PICTURE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SLOT_PICTURE_H_

#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/picture/picture.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// A state for each of PageState, for pages above the size, and for pages of
// which only the kernel knows something. Each run's note says what is behind it
// and whose it is. `style` says how the size in the title is printed.
// InvalidArgument: a map that the picture refuses.
absl::StatusOr<picture::PageMapPicture> SlotPicture(
    const PageMap& map, const cli::TextStyle& style);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SLOT_PICTURE_H_
