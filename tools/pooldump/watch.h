// `live --watch`: paints what WatchView gives on the terminal, by ncurses.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_H_

#include "absl/status/status.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// Until the user leaves by "q", SIGINT, SIGTERM or SIGHUP; the terminal is then
// as it was. The end of the process is shown, and does not end it. Standard
// output has to be a terminal. Errors: FailedPrecondition if it is none that
// ncurses can use; as LiveProcess if the process cannot be read at first.
absl::Status Watch(const Options& options, bool color);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_H_
