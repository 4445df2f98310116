#include "firsttouch/bench/machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <cstddef>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/bench/clock.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch::bench {
namespace {

std::string CpuName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace

Machine ThisMachine() {
  Machine machine;
  machine.set_cpu(CpuName());
  machine.set_cores(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  utsname name;
  if (uname(&name) == 0) {
    machine.set_kernel(absl::StrCat(name.sysname, " ", name.release));
  }
#ifdef __OPTIMIZE__
  machine.set_optimized(true);
#endif
  machine.set_tsc_ghz(TicksPerNs());
  return machine;
}

std::string MachineText(const Machine& machine) {
  std::string text =
      absl::StrFormat("%s, %d cores at %.1f GHz (TSC), %s\n", machine.cpu(),
                      machine.cores(), machine.tsc_ghz(), machine.kernel());
  if (!machine.optimized()) {
    absl::StrAppend(&text,
                    "NOT OPTIMIZED: build with -c opt, or these numbers mean "
                    "nothing\n");
  }
  return text;
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails for messages that hold an Any of an unknown type only.
  if (!google::protobuf::util::MessageToJsonString(message, &json, options)
           .ok()) {
    return "";
  }
  return json;
}

std::string Short(double value) {
  if (value == 0) return "0";
  if (value < 9.995) return absl::StrFormat("%.2f", value);
  if (value < 99.95) return absl::StrFormat("%.1f", value);
  if (value < 99'999.5) return absl::StrFormat("%.0f", value);
  return absl::StrFormat("%.0fk", value / 1000);
}

}  // namespace firsttouch::bench
