// The rows of bench/report.py that are parts of a cycle, or what bounds it: a
// first touch, a trap, a lookup, the making of a pool, and the machine.

#ifndef FIRSTTOUCH_BENCH_PEERS_PARTS_H_
#define FIRSTTOUCH_BENCH_PEERS_PARTS_H_

#include <memory>
#include <string>

#include "firsttouch/bench/peers/guest.h"

namespace firsttouch::bench {

// What answers the rounds of one row.
class Row {
 public:
  virtual ~Row() = default;
  virtual void Round(Answer& answer) = 0;
  // Whether the next guest finds the image and zeroes.
  virtual bool FindsClean() { return true; }
};

// By the word `work`; null where it is none of these. Besides the ways of
// ways.h there are
//
//   touch   "anonymous", without an image; "fresh-copy", memcpy into fresh
//           memory 64 KiB at a time; "unmasked", this library with a fault
//           handler that blocks no signal
//   traps   "segv", mprotect(2) and SIGSEGV; "segv-mask", the same with the
//           mask of the interrupted code put back
//   floor   "machine"
std::unique_ptr<Row> MakePartRow(const std::string& way,
                                 const Request& request);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_PARTS_H_
