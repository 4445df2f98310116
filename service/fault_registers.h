// What a fault's signal context says of it, which each machine says in its own
// way.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging.
//
// This is the one thing that a new machine must bring: a file of its own beside
// fault_registers_x86_64.h, with the same functions. All else has a portable
// form.

#ifndef FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_
#define FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_

#if defined(__x86_64__)
#include "firsttouch/service/fault_registers_x86_64.h"
#else
#error "firsttouch resolves faults on x86-64 only: see fault_registers.h"
#endif

#endif  // FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_
