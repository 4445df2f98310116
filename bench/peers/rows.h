// The rows of bench/report.py that keep nothing from one round to the next;
// README.md says what each asks for.

#ifndef FIRSTTOUCH_BENCH_PEERS_ROWS_H_
#define FIRSTTOUCH_BENCH_PEERS_ROWS_H_

#include <string>

#include "bench/peers/guest.h"

namespace firsttouch::bench {

// Does in that way what is requested, and answers what it took.
using Round = void(const std::string& way, const Request& request,
                   Answer& answer);

// Parts of a cycle, and what bounds it. Besides the ways of ways.h there are
//
//   touch   "anonymous", without an image; "fresh-copy", memcpy into fresh
//           memory 64 KiB at a time; "unmasked", this library with a fault
//           handler that blocks no signal
//   traps   "segv", mprotect(2) and SIGSEGV; "segv-mask", the same with the
//           mask of the interrupted code put back
//   floor   "machine"
Round TouchRound;
Round TrapRound;
Round LookupRound;
Round CreateRound;
Round SlotsRound;
Round FloorRound;

// Image files, made in `directory` unless they are there.
//
//   start   Ways: "firsttouch", with the working set that ten tenants have
//           taught; "no-set", without; "read-file", read into memory;
//           "map-file", a plain private mapping of the file
Round StartRound;
Round OpenRound;
Round StoreRound;
Round BuildRound;

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_ROWS_H_
