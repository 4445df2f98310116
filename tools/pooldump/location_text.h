// What pages and addresses are, in words.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_LOCATION_TEXT_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_LOCATION_TEXT_H_

#include <string>

#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// What a pool on paper is called that has no name.
inline constexpr char kUnnamed[] = "pool";

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

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_LOCATION_TEXT_H_
