// The columns of pooldump's tables. docs/pooldump.md explains each; a test
// holds it to these lists.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// Made once; the same in all threads.
const cli::Columns<LayoutReport::Range>& RangeColumns();
const cli::Columns<Slot>& SlotColumns();
// The same with rates beside the slot, for a process that was looked at more
// than once. What is watched for comes first.
const cli::Columns<Slot>& RatedSlotColumns();
const cli::Columns<Image>& ImageColumns();
const cli::Columns<PsReport::Process>& PsColumns();
const cli::Columns<DiffReport::Change>& DiffColumns();
const cli::Columns<LocateReport::Found>& FoundColumns();
const cli::Columns<PageRun>& PageRunColumns();
const cli::Columns<imagetool::MapReport::Run>& ImageRunColumns();

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_
