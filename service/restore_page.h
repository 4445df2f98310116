// Restoring a page in place.
//
// ON THE STEADY PATH of every cycle: most of a cycle's time is spent here.

#ifndef FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_
#define FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_

#include <cstddef>
#include <cstdint>

namespace firsttouch {

// Makes the kPageBytes at `to` equal to those at `from`, or to zeroes, and says
// whether anything was different. Both page aligned.
//
// Writes only what differs, in stretches of at most four cache lines. Reading
// both pages takes as long as copying one to the other would (the copy reads
// what it overwrites, too), and it tells at no cost which pages a guest has
// really changed; lines that are not written stay clean and need not go back to
// memory. Nothing is faster than reading both, and what has been read last is
// still in the cache: so a caller goes in the opposite direction to its last
// time. `downwards`: from the end of the pages to their start.
//
// Sets `*unreadable` where `from` cannot be read (see EndOfGuardedRead()), and
// otherwise leaves it alone; `to` has unspecified bytes then.
//
// Any thread; async-signal-safe.
bool RestorePage(std::byte* to, const std::byte* from, bool downwards,
                 bool* unreadable);
bool RestoreZeroPage(std::byte* to, bool downwards);

// Copies `bytes` bytes. False where they cannot all be read or written; what is
// at `to` is unspecified then. Any thread; async-signal-safe.
bool CopyGuarded(std::byte* to, const std::byte* from, size_t bytes);

// Whether the kPageBytes at `page` differ from those at `initial`; true also
// where the latter cannot be read. Any thread; async-signal-safe.
bool DiffersFrom(const std::byte* page, const std::byte* initial);

// The pages of an image may be those of a file, and a file can be cut short at
// any time: reading them is a SIGBUS then. The instructions by which the
// functions above read (and, in CopyGuarded(), write) are guarded: a fault
// handler that finds one of them interrupted, by a fault that it cannot
// resolve, makes the read fail (FailGuardedRead() of fault_registers.h) and
// continue at the end of its block, whose address this function returns.
// Returns 0 for any other instruction.
//
// Any thread; async-signal-safe.
uintptr_t EndOfGuardedRead(uintptr_t instruction) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RESTORE_PAGE_H_
