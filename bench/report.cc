#include "firsttouch/bench/report.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iostream>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/timing.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/reflection.h"
#include "google/protobuf/util/json_util.h"

ABSL_FLAG(std::string, format, "text", "text or json");

namespace firsttouch::bench {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kColumns = 80;

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

std::string Json(const Message& message) {
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

void CheckFormat() {
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    Die(absl::StrCat("--format=", format, " is neither text nor json"));
  }
}

int Print(const Message& report, const std::string& text) {
  std::cout << (absl::GetFlag(FLAGS_format) == "json" ? Json(report) : text);
  if (!std::cout.flush()) {
    std::cerr << "standard output cannot be written\n";
    return 74;  // EX_IOERR
  }
  return 0;
}

void SetMedians(const std::vector<const Message*>& rounds, Message& row) {
  const google::protobuf::Descriptor& type = *row.GetDescriptor();
  const Reflection& reflection = *row.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* const field = type.field(i);
    if (field->is_repeated() ||
        field->cpp_type() != FieldDescriptor::CPPTYPE_DOUBLE) {
      continue;
    }
    const FieldDescriptor* const of_rounds =
        type.FindFieldByName(absl::StrCat("round_", field->name()));
    std::vector<double> values;
    for (const Message* const round : rounds) {
      // Those without presence are always there, if as 0.
      if (field->has_presence() && !reflection.HasField(*round, field)) {
        continue;
      }
      values.push_back(reflection.GetDouble(*round, field));
      if (of_rounds != nullptr) {
        reflection.AddDouble(&row, of_rounds, values.back());
      }
    }
    if (!values.empty()) reflection.SetDouble(&row, field, Median(values));
  }
}

std::optional<double> NumberOf(const Message& row, const std::string& field) {
  const FieldDescriptor& found = *row.GetDescriptor()->FindFieldByName(field);
  const Reflection& reflection = *row.GetReflection();
  if (found.has_presence() && !reflection.HasField(row, &found)) {
    return std::nullopt;
  }
  return reflection.GetDouble(row, &found);
}

std::vector<double> RoundsOf(const Message& row, const std::string& field) {
  const auto rounds = row.GetReflection()->GetRepeatedFieldRef<double>(
      row, row.GetDescriptor()->FindFieldByName(absl::StrCat("round_", field)));
  return {rounds.begin(), rounds.end()};
}

std::optional<double> RatioOfRounds(const Message* numerator,
                                    const Message* other,
                                    const std::string& field) {
  if (numerator == nullptr || other == nullptr) return std::nullopt;
  return MedianRatio(RoundsOf(*numerator, field), RoundsOf(*other, field));
}

void Judge(Goal& goal, std::optional<double> measured,
           std::optional<double> measured_by_mean) {
  if (!measured.has_value()) return;
  goal.set_measured(*measured);
  if (measured_by_mean.has_value()) {
    goal.set_measured_by_mean(*measured_by_mean);
  }
  const double other = measured_by_mean.value_or(*measured);
  goal.set_reached(goal.at_least()
                       ? std::min(*measured, other) >= goal.bound()
                       : std::max(*measured, other) <= goal.bound());
}

std::string Short(std::optional<double> value) {
  if (!value.has_value()) return "-";
  if (*value == 0) return "0";
  if (*value < 9.995) return absl::StrFormat("%.2f", *value);
  if (*value < 99.95) return absl::StrFormat("%.1f", *value);
  if (*value < 99'999.5) return absl::StrFormat("%.0f", *value);
  return absl::StrFormat("%.0fk", *value / 1000);
}

std::string Thousandths(const Message& row, const std::string& field) {
  std::optional<double> value = NumberOf(row, field);
  if (value.has_value()) *value /= 1000;
  return Short(value);
}

std::string TableText(const std::vector<Words>& lines) {
  std::vector<size_t> widths(lines.front().size());
  size_t total = 0;
  for (size_t column = 0; column < widths.size(); ++column) {
    for (const Words& line : lines) {
      widths[column] = std::max(widths[column], line[column].size());
    }
    total += widths[column] + 2;
  }
  const char* const between = total - 2 > kColumns ? " " : "  ";
  std::string text;
  for (const Words& line : lines) {
    absl::StrAppendFormat(&text, "%-*s", static_cast<int>(widths[0]), line[0]);
    for (size_t column = 1; column < widths.size(); ++column) {
      absl::StrAppendFormat(&text, "%s%*s", between,
                            static_cast<int>(widths[column]), line[column]);
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

std::string GoalsText(const google::protobuf::RepeatedPtrField<Goal>& goals) {
  std::string text;
  int reached = 0;
  int measured = 0;
  std::string last;
  for (const Goal& goal : goals) {
    measured += goal.has_reached() ? 1 : 0;
    reached += goal.reached() ? 1 : 0;
    if (goal.name() != last) absl::StrAppend(&text, "\n", goal.name(), "\n");
    last = goal.name();
    std::string value = Short(NumberOf(goal, "measured"));
    if (goal.has_measured_by_mean()) {
      absl::StrAppend(&value, " ", Short(goal.measured_by_mean()));
    }
    absl::StrAppendFormat(
        &text, "  %-21s%-22s%7s%13s  %s\n", goal.where(), goal.other(),
        absl::StrCat(goal.at_least() ? ">=" : "<=", Short(goal.bound())), value,
        !goal.has_reached() ? "not measured"
        : goal.reached()    ? "ok"
                            : "NOT REACHED");
  }
  absl::StrAppend(&text, "\n", reached, " of ", measured,
                  " goals that were measured are reached\n");
  return text;
}

std::string Wrapped(const std::string& words) {
  std::string text;
  size_t column = 0;
  for (const auto word : absl::StrSplit(words, absl::ByAnyChar(" \n"))) {
    if (column > 0 && column + 1 + word.size() > kColumns) {
      absl::StrAppend(&text, "\n  ");
      column = 2;
    } else if (column > 0) {
      absl::StrAppend(&text, " ");
      ++column;
    }
    absl::StrAppend(&text, word.substr(0, kColumns - 2));
    column += word.size();
  }
  return absl::StrCat(text, "\n");
}

}  // namespace firsttouch::bench
