// The columns of pooldump's tables. docs/pooldump.md explains each; a test
// holds it to these lists.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_

#include <string>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// What a pool on paper is called that has no name.
inline constexpr char kUnnamed[] = "pool";

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

// "minor", "read", ...: faults of all kinds.
uint64_t Faults(const Counters& counters);

// "missing", "hot", ...; "unknown" where it is not known.
std::string PageStateText(PageState state);
// What the kernel says of a page whose state is not known: "resident, private".
std::string ResidencyText(int resident);
// "zeroes", "image", "outside"; "unknown".
std::string PageSourceText(PageSource source);

// Where an address lies, in one line without a full stop: "pool tenants, slot
// 7, offset 69636 (0x11004), page 17 (hot): in bounds".
std::string LocationText(const Location& location);

// What ended a process: "SIGBUS at 0x7f0000011004: " and LocationText.
std::string CrashText(const Crash& crash);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_COLUMNS_H_
