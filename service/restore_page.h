// Putting a page back to what it was.
//
// ON THE STEADY PATH of every hand-over: what a cycle costs is mostly this.

#ifndef FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_
#define FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_

#include <cstddef>

namespace firsttouch {

// Makes the kPageBytes at `to` equal to those at `from`, or to zeroes, and says
// whether anything was different. Both page aligned.
//
// Written is only what differs, in stretches of at most four cache lines.
// Reading both pages takes as long as copying one to the other would (the copy
// reads what it overwrites, too), and it tells for nothing which pages a tenant
// has really changed; lines that are not written stay clean and need not go
// back to memory.
//
// Any thread; async-signal-safe.
bool RestorePage(std::byte* to, const std::byte* from);
bool RestoreZeroPage(std::byte* to);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_
