// What of this machine decides about a pool, as a message: so that an answer is
// a pure function of it, and any machine can be asked about on another one.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_MACHINE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_MACHINE_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/probe.h"

namespace firsttouch::pooldump {

Machine MachineOf(const LimitFacts& limits, const UffdFacts& facts);

// Asks the machine. Allocates; touches no page of a pool.
Machine ThisMachine(Kernel& kernel);

// A file of a Machine in protobuf's text format, or of the report that `layout
// --format=textproto` prints there. Errors as ReadPoolConfig.
absl::StatusOr<Machine> ReadMachine(const std::string& path);

// For pool/limits.h.
LimitFacts LimitsOf(const Machine& machine);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_MACHINE_H_
