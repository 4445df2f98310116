// A crash reporter, as Crashpad is one: it has handlers for SIGSEGV and SIGBUS
// and alternate stacks of its own, and writes a file about the first crash of a
// process, which then ends by that signal. It knows nothing of pools.

#ifndef FIRSTTOUCH_EXAMPLES_CRASH_REPORT_H_
#define FIRSTTOUCH_EXAMPLES_CRASH_REPORT_H_

#include <signal.h>

namespace firsttouch::examples {

// Asked first, in signal context, with the handler's arguments; true: this was
// no crash, and the code goes on.
using FirstChance = bool (*)(int signal, siginfo_t* info, void* context);

// Installs the handlers. At the first crash, text is added to the file: signal,
// address, thread, registers, the words on the stack, and the mappings of the
// process. `first_chance` may be null. `mask` is blocked while a handler runs.
// False, with errno: a path that is too long (ENAMETOOLONG), or the error of
// sigaction(2). Once a process.
bool InstallCrashReporter(const char* path, FirstChance first_chance,
                          const sigset_t& mask);

// Gives the calling thread an alternate stack of the reporter's, until the
// process ends. False, with errno, where there is no memory.
bool GiveCrashStack();

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_CRASH_REPORT_H_
