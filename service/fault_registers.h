// What a fault's signal context says about the fault, in each machine's own
// form.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging.
//
// A port to a new machine must bring only this: a file of its own beside
// fault_registers_x86_64.h, with the same functions. Everything else has a
// portable form.

#ifndef FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_
#define FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_

#if defined(__x86_64__)
#include "firsttouch/service/fault_registers_x86_64.h"
#else
#error "firsttouch resolves faults on x86-64 only: see fault_registers.h"
#endif

#endif  // FIRSTTOUCH_SERVICE_FAULT_REGISTERS_H_
