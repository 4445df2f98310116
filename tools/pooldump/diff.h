// What changed in the pools of a process between two looks.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_DIFF_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_DIFF_H_

#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// Pools are those of the same number; slots that only one look has (a filter or
// a limit left them out of the other) are not compared, and a warning says so.
// All slots are in the result, whether they changed or not. What one look does
// not know is unset. A counter that fell is a warning: the pools are of two
// processes. Pure. Thread-safe.
DiffReport Diff(const ProcessSnapshot& before, const ProcessSnapshot& after);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_DIFF_H_
