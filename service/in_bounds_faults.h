// What a signal for a touch in bounds means, and how it is resolved: one
// function for each way in which pages come. A supply (memory_supply.h) puts
// its own into FaultPool::resolve_signal.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#ifndef FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_
#define FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_

#include "firsttouch/service/fault_pool.h"

namespace firsttouch {

// For pools whose pages this library places (userfaultfd): ResolveFault, after
// undoing what handler threads made inaccessible by mprotect(2).
FaultResult ResolveSignalByFilling(FaultPool& fault_pool,
                                   const SignalFault& fault) noexcept;

// For pools whose pages the kernel places by itself, so that a signal in bounds
// is an exception. kGone: the touch was out of bounds, and another thread has
// grown the memory since. kNoContents: the kernel could not supply the page,
// for example since the image's file has been cut short. kNotOurs: the page was
// made inaccessible by something other than this library, or the touch was an
// instruction fetch.
FaultResult ResolveSignalOfKernelsPage(FaultPool& fault_pool,
                                       const SignalFault& fault) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_
