// What a touch in the bounds of a memory comes to when it is a signal: one
// function for each way in which pages come. A supply (memory_supply.h) names
// its own in FaultPool::resolve_signal.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#ifndef FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_
#define FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_

#include "firsttouch/service/fault_pool.h"

namespace firsttouch {

// For pools whose pages this library places (userfaultfd): ResolveFault, and
// what comes before it where handler threads make pages trap by mprotect(2).
FaultResult ResolveSignalByFilling(FaultPool& fault_pool,
                                   const SignalFault& fault) noexcept;

// For pools whose pages the kernel places by itself, so that a signal in bounds
// is an exception. kGone: it lay outside when it was touched, and another
// thread has grown the memory since. kNoContents: the kernel could not supply
// it, as where the image's file has been cut short. kNotOurs: somebody else
// made it inaccessible, or it was never to be executed.
FaultResult ResolveSignalOfKernelsPage(FaultPool& fault_pool,
                                       const SignalFault& fault) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_IN_BOUNDS_FAULTS_H_
