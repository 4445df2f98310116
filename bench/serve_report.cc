#include "firsttouch/bench/serve_report.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
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
  for (std::string line; std::getline(cpuinfo, line);) {
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
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);
  return json;
}

// Those of the rounds, in "round_" + field.
std::vector<double> RoundsOf(const Message& row, const std::string& field) {
  const auto rounds = row.GetReflection()->GetRepeatedFieldRef<double>(
      row, row.GetDescriptor()->FindFieldByName(absl::StrCat("round_", field)));
  return {rounds.begin(), rounds.end()};
}

// The first line is the titles.
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

}  // namespace

void ParseFlags(int argc, char** argv, const char* usage) {
  absl::SetProgramUsageMessage(usage);
  absl::ParseCommandLine(argc, argv);
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    Die(absl::StrCat("--format=", format, " is neither text nor json"));
  }
}

Words Checked(Words words, const char* flag, const Words& known) {
  for (const std::string& word : words) {
    if (std::find(known.begin(), known.end(), word) == known.end()) {
      Die(absl::StrCat("--", flag, ": ", word, " is none of ",
                       absl::StrJoin(known, ", ")));
    }
  }
  return words;
}

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

void SetMedians(const std::vector<const Message*>& rounds, Message& row) {
  const google::protobuf::Descriptor& type = *row.GetDescriptor();
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
      const std::optional<double> value = NumberOf(*round, field->name());
      if (!value.has_value()) continue;
      values.push_back(*value);
      if (of_rounds != nullptr) {
        row.GetReflection()->AddDouble(&row, of_rounds, *value);
      }
    }
    if (!values.empty()) {
      row.GetReflection()->SetDouble(&row, field, Median(values));
    }
  }
}

std::optional<double> NumberOf(const Message& row, const std::string& field) {
  const FieldDescriptor& found = *row.GetDescriptor()->FindFieldByName(field);
  const Reflection& reflection = *row.GetReflection();
  // Those without presence are always there, if as 0.
  if (found.has_presence() && !reflection.HasField(row, &found)) {
    return std::nullopt;
  }
  return reflection.GetDouble(row, &found);
}

std::optional<double> RatioOfRounds(const Message* numerator,
                                    const Message* other,
                                    const std::string& field) {
  if (numerator == nullptr || other == nullptr) return std::nullopt;
  return MedianRatio(RoundsOf(*numerator, field), RoundsOf(*other, field));
}

void AddGoal(const std::string& name, const std::string& where,
             const std::string& other, double bound,
             std::optional<double> measured, Repeated<Goal>* goals) {
  Goal& goal = *goals->Add();
  goal.set_name(name);
  goal.set_where(where);
  goal.set_other(other);
  goal.set_bound(bound);
  if (!measured.has_value()) return;
  goal.set_measured(*measured);
  goal.set_reached(*measured <= bound);
}

std::string Short(std::optional<double> value) {
  if (!value.has_value()) return "-";
  if (*value == 0) return "0";
  if (*value < 9.995) return absl::StrFormat("%.2f", *value);
  if (*value < 99.95) return absl::StrFormat("%.1f", *value);
  if (*value < 99'999.5) return absl::StrFormat("%.0f", *value);
  return absl::StrFormat("%.0fk", *value / 1000);
}

std::string Size(uint64_t bytes) {
  return bytes >= uint64_t{1} << 30 ? absl::StrCat(bytes >> 30, " GiB")
         : bytes >= 1 << 20         ? absl::StrCat(bytes >> 20, " MiB")
                                    : absl::StrCat(bytes >> 10, " KiB");
}

std::string MachineText(const Machine& machine) {
  return absl::StrFormat(
      "%s, %d cores at %.1f GHz (TSC), %s\n%s", machine.cpu(), machine.cores(),
      machine.tsc_ghz(), machine.kernel(),
      machine.optimized() ? ""
                          : "NOT OPTIMIZED: build with -c opt, or these "
                            "numbers mean nothing\n");
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

std::string TablesText(
    const std::vector<std::pair<const Message*, Line>>& rows) {
  std::string text;
  std::vector<Words> lines;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto& [row, line] = rows[i];
    const bool compared = *line.compared != '\0';
    if (lines.empty()) {
      Words& titles = lines.emplace_back(Words{""});
      for (const Column& column : line.columns) titles.push_back(column.title);
      if (compared) titles.push_back("x");
    }
    Words& words = lines.emplace_back(Words{line.label});
    for (const Column& column : line.columns) {
      std::optional<double> value = NumberOf(*row, column.field);
      if (value.has_value()) *value /= column.unit;
      words.push_back(Short(value));
    }
    if (compared) {
      words.push_back(Short(RatioOfRounds(row, line.other, line.compared)));
    }
    if (i + 1 < rows.size() && rows[i + 1].second.title == line.title) continue;
    absl::StrAppend(&text, "\n", line.title, "\n", TableText(lines));
    lines.clear();
  }
  return text;
}

std::string GoalsText(const std::string& title, const Repeated<Goal>& goals) {
  if (goals.empty()) return "";
  std::string text = absl::StrCat("\n", title, "\n");
  int reached = 0;
  int measured = 0;
  std::string last;
  for (const Goal& goal : goals) {
    measured += goal.has_reached() ? 1 : 0;
    reached += goal.reached() ? 1 : 0;
    if (goal.name() != last) absl::StrAppend(&text, "\n", goal.name(), "\n");
    last = goal.name();
    absl::StrAppendFormat(&text, "  %-23s%-22s%7s%13s  %s\n", goal.where(),
                          goal.other(), absl::StrCat("<=", Short(goal.bound())),
                          Short(NumberOf(goal, "measured")),
                          !goal.has_reached() ? "not measured"
                          : goal.reached()    ? "ok"
                                              : "NOT REACHED");
  }
  return absl::StrCat(text, "\n", reached, " of ", measured,
                      " goals that were measured are reached\n");
}

int Print(const Message& report, const std::string& text) {
  std::cout << (absl::GetFlag(FLAGS_format) == "json" ? Json(report) : text);
  if (!std::cout.flush()) {
    std::cerr << "standard output cannot be written\n";
    return 74;  // EX_IOERR
  }
  return 0;
}

}  // namespace firsttouch::bench
