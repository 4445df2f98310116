// Where a number comes from: it travels with every table.

#ifndef FIRSTTOUCH_BENCH_MACHINE_H_
#define FIRSTTOUCH_BENCH_MACHINE_H_

#include <string>

#include "firsttouch/bench/report.pb.h"
#include "google/protobuf/message.h"

namespace firsttouch::bench {

Machine ThisMachine();

// One or two lines of at most 80 columns, each ended.
std::string MachineText(const Machine& machine);

// The message as JSON, ended by a newline.
std::string ToJson(const google::protobuf::Message& message);

// A number in at most seven columns: "0", "0.25", "61.5", "1363", "220.1k".
std::string Short(double value);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_MACHINE_H_
