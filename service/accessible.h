// Asking the kernel whether a page can be touched.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_ACCESSIBLE_H_
#define FIRSTTOUCH_SERVICE_ACCESSIBLE_H_

#include <cstdint>

#include "firsttouch/service/trap.h"

namespace firsttouch {

// Whether a touch of the address by this process would succeed now. Asks the
// kernel by one system call, which changes no byte but may make the kernel
// break copy-on-write, as a write would.
bool IsAccessible(uintptr_t address, Access access) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_ACCESSIBLE_H_
