// Text that others wrote, fit for a terminal.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PRINTABLE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PRINTABLE_H_

#include <string>
#include <string_view>

namespace firsttouch::pooldump {

// `text` up to its first zero, with '?' for what is not UTF-8 or would move a
// terminal's cursor; line ends are kept if `lines`.
std::string Printable(std::string_view text, bool lines = false);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PRINTABLE_H_
