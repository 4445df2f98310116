// `live --interval --count`: looks at a process again and again, and prints
// each time, as top -b does.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_BATCH_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_BATCH_H_

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/stream.h"

namespace firsttouch::pooldump {

// Looks options.count() times; for 0, until the process ends, or nothing can be
// printed any more. Each look is printed with rates: the first comes one
// interval after the call, since a rate needs two looks. While the process has
// no pool nothing is printed, one line on standard error says so, and the look
// counts. The answer has no report. That the process ends before the last look
// is an error.
Answer Batch(const Options& options, const cli::TextStyle& style,
             const Sink& sink);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_BATCH_H_
