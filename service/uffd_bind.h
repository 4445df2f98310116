// Making a slot the memory of an image, for pools with a userfaultfd.
//
// By the slot's owner, while no guest code runs in it. These functions may
// allocate and take no lock.

#ifndef FIRSTTOUCH_SERVICE_UFFD_BIND_H_
#define FIRSTTOUCH_SERVICE_UFFD_BIND_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"

namespace firsttouch {

// Makes the slot's memory that of `image` (null: zeroes), whatever it was
// before. Only pages whose contents are known, and that can be given those of
// `image`, stay resident. Every property
// of the range (registration, DONTFORK, DONTDUMP, NOHUGEPAGE) is as before. An
// error that leaves the slot's `remap_wanted` false has changed nothing.
absl::Status BindImage(const UffdContext& context, SlotState& slot,
                       const ImageRef& image);

// If the slot was bound or emptied since the last call: makes the pages private
// that guests of its image are known to write, and maps those that they read.
// What fails is left to the first touch.
void FillWorkingSet(const UffdContext& context, SlotState& slot,
                    uint64_t size_pages, uint64_t most_pages);

// Maps and registers all of the memory of an abandoned slot (slot_record.h) as
// if it had never been used. The kernel drops every page of it, so that the
// memory is known to be clean.
absl::Status MapAllAnew(const UffdContext& context, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_BIND_H_
