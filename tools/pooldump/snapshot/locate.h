// What an address is, by arithmetic on a layout, with nothing else known: for a
// pool that exists only as a configuration. LiveProcess::Locate and
// CoreFile::Locate add what is known of the slot and the page.
//
// Pure. Thread-safe.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LOCATE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LOCATE_H_

#include <cstdint>

#include "firsttouch/pool/layout.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// `base` is where the reservation begins; 0 makes addresses offsets into it.
// Fields up to `page` of the Location are set, but for the pool's name.
Location LocateInLayout(const PoolLayout& layout, uint64_t base,
                        uint64_t address);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LOCATE_H_
