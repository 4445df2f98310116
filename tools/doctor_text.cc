#include "firsttouch/tools/doctor_text.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch::tools {
namespace {

enum class Mark { kGood, kWeak, kBad, kHead };

class Printer {
 public:
  explicit Printer(bool color) : color_(color) {}

  // `text` in the mark's colour.
  std::string Marked(Mark mark, const std::string& text) const {
    if (!color_) return text;
    const char* code = mark == Mark::kGood   ? "32"
                       : mark == Mark::kWeak ? "33"
                       : mark == Mark::kBad  ? "31"
                                             : "1";
    return absl::StrCat("\033[", code, "m", text, "\033[0m");
  }

  // A word in a column of `width`; the colour does not count.
  std::string Cell(Mark mark, const std::string& word, size_t width) const {
    const size_t pad = word.size() < width ? width - word.size() : 0;
    return absl::StrCat(Marked(mark, word), std::string(pad, ' '));
  }

  void Head(const std::string& text) {
    absl::StrAppend(&out_, "\n", Marked(Mark::kHead, text), "\n");
  }
  void Line(const std::string& text) {
    // No blanks at the end of a line.
    absl::StrAppend(&out_, text.substr(0, text.find_last_not_of(' ') + 1),
                    "\n");
  }
  void Text(const std::string& first, const std::string& text) {
    absl::StrAppend(&out_, Wrapped(first, text));
  }

  const std::string& out() const { return out_; }

 private:
  const bool color_;
  std::string out_;
};

void PrintHead(const DoctorReport& report, Printer& printer) {
  const Machine& machine = report.machine();
  printer.Text(
      "machine: ",
      absl::StrCat("Linux ", machine.kernel_release(), " ",
                   machine.architecture(), ", uid ", machine.uid(),
                   machine.cap_sys_ptrace() ? " with CAP_SYS_PTRACE" : "", ", ",
                   machine.address_bits(), " address bits"));
  if (!machine.container_hints().empty()) {
    printer.Text("inside:  ", absl::StrJoin(machine.container_hints(), ", "));
  }
  switch (report.verdict()) {
    case DoctorReport::ALL_RECOMMENDED_WORKS:
      printer.Line(
          printer.Marked(Mark::kGood, "All that is recommended works here."));
      break;
    case DoctorReport::DEGRADED:
      printer.Line(
          printer.Marked(Mark::kWeak,
                         "Works with restrictions; see the end for what to "
                         "change."));
      break;
    default:
      printer.Line(printer.Marked(
          Mark::kBad,
          "No userfaultfd works here; see the end for what pools do without."));
      break;
  }
}

void PrintModes(const DoctorReport& report, Printer& printer) {
  printer.Head("Ways of supplying memory");
  for (const Mode& mode : report.modes()) {
    std::string line =
        absl::StrFormat("  %-8s %-16s", mode.backing(), mode.resolve());
    if (!mode.works()) {
      printer.Text(
          absl::StrCat(line, printer.Marked(Mark::kBad, "no"), "     "),
          absl::StrCat("needs ", absl::StrJoin(mode.missing(), ", ")));
      continue;
    }
    printer.Line(
        absl::StrCat(line, printer.Cell(Mark::kGood, "works", 7),
                     mode.serves_system_calls()
                         ? "system calls on missing pages are served"
                         : "system calls: make the range ready first"));
  }
}

void PrintWays(const DoctorReport& report, Printer& printer) {
  printer.Head("Opening a userfaultfd");
  for (const Way& way : report.ways()) {
    printer.Line(absl::StrCat(
        absl::StrFormat("  %-37s", way.name()),
        way.works() ? printer.Marked(Mark::kGood, "works")
                    : printer.Marked(Mark::kWeak, way.error_text())));
  }
}

void PrintFeatures(const DoctorReport& report, Printer& printer) {
  printer.Head("Features of this kernel (with the Linux that brought each)");
  constexpr int kAcross = 3;
  const int count = report.features_size();
  const int rows = (count + kAcross - 1) / kAcross;
  for (int row = 0; row < rows; ++row) {
    std::string line = " ";
    for (int i = row; i < count; i += rows) {
      const Feature& feature = report.features(i);
      absl::StrAppend(
          &line, " ",
          feature.offered() ? printer.Cell(Mark::kGood, "+", 2)
                            : printer.Cell(Mark::kWeak, "-", 2),
          absl::StrFormat("%-18s %-4s", feature.name(), feature.since()));
    }
    printer.Line(line);
  }
  if (!report.unknown_feature_bits().empty()) {
    printer.Text(
        "  ", absl::StrCat("and bits that this library does not know: ",
                           absl::StrJoin(report.unknown_feature_bits(), ", ")));
  }
}

void PrintMappings(const DoctorReport& report, Printer& printer) {
  printer.Head("What can be registered");
  for (const MappingKind& kind : report.mapping_kinds()) {
    const std::string modes =
        kind.modes().empty() ? "nothing" : absl::StrJoin(kind.modes(), " ");
    printer.Text(
        absl::StrFormat("  %-33s", kind.kind()),
        kind.ioctls().empty()
            ? modes
            : absl::StrCat(modes, ": ", absl::StrJoin(kind.ioctls(), " ")));
  }
}

void PrintTests(const DoctorReport& report, Printer& printer) {
  printer.Head("Tried on scratch memory");
  for (const Trial& test : report.trials()) {
    Mark mark = Mark::kBad;
    std::string word = "FAILED";
    switch (test.outcome()) {
      case Trial::WORKS:
        mark = Mark::kGood;
        word = "works";
        break;
      case Trial::MISSING:
        mark = test.recommended() ? Mark::kBad : Mark::kWeak;
        word = "missing";
        break;
      case Trial::HUNG:
        word = "HUNG";
        break;
      case Trial::CRASHED:
        word = "CRASHED";
        break;
      default:
        break;
    }
    printer.Line(absl::StrCat("  ", printer.Cell(mark, word, 8),
                              absl::StrFormat("%-28s %-35s %s", test.id(),
                                              test.what(), test.since())));
    if (test.detail().empty()) continue;
    // Of several lines the first: the others are the ways of opening again.
    const std::vector<std::string> lines = absl::StrSplit(test.detail(), '\n');
    std::string first = lines.front();
    if (lines.size() > 1 && absl::EndsWith(first, ":")) {
      first.pop_back();
      absl::StrAppend(&first, " (see Opening)");
    }
    printer.Text("          ", first);
  }
}

void PrintLimits(const DoctorReport& report, Printer& printer) {
  const Limits& limits = report.limits();
  printer.Head("Limits and settings");
  const auto line = [&printer](const char* name, const std::string& value) {
    printer.Line(absl::StrFormat("  %-31s %s", name, value));
  };
  line("vm.unprivileged_userfaultfd",
       limits.has_vm_unprivileged_userfaultfd()
           ? absl::StrCat(limits.vm_unprivileged_userfaultfd())
           : "not there");
  line("vm.overcommit_memory", limits.has_vm_overcommit_memory()
                                   ? absl::StrCat(limits.vm_overcommit_memory())
                                   : "not there");
  line("vm.max_map_count",
       limits.has_vm_max_map_count()
           ? absl::StrCat(limits.vm_max_map_count(), " (this process has ",
                          limits.mapping_count(), ")")
           : "not there");
  line("RLIMIT_AS", limits.has_rlimit_as_bytes()
                        ? absl::StrCat(limits.rlimit_as_bytes(), " bytes")
                        : "unlimited");
  line("RLIMIT_NOFILE", limits.has_rlimit_nofile()
                            ? absl::StrCat(limits.rlimit_nofile())
                            : "unlimited");
  line("transparent huge pages", limits.transparent_huge_pages().empty()
                                     ? "not there"
                                     : limits.transparent_huge_pages());
  line("... of shared memory", limits.shared_transparent_huge_pages().empty()
                                   ? "not there"
                                   : limits.shared_transparent_huge_pages());
}

void PrintAdvice(const DoctorReport& report, Printer& printer) {
  if (report.advice().empty()) return;
  printer.Head("What to change to get more");
  for (const std::string& text : report.advice()) printer.Text("  * ", text);
}

// Columns that `text` takes: without its colours.
size_t Columns(const std::string& text) {
  size_t columns = 0;
  bool escape = false;
  for (const char c : text) {
    if (c == '\033') escape = true;
    if (!escape) ++columns;
    if (c == 'm') escape = false;
  }
  return columns;
}

}  // namespace

std::string Wrapped(const std::string& first, const std::string& text) {
  const size_t indent = Columns(first);
  std::string out;
  std::string line = first;
  size_t column = indent;
  bool empty = true;
  const std::vector<std::string> words =
      absl::StrSplit(text, ' ', absl::SkipEmpty());
  for (const std::string& word : words) {
    if (!empty && column + 1 + word.size() > kTextColumns) {
      absl::StrAppend(&out, line, "\n");
      line = std::string(indent, ' ');
      column = indent;
      empty = true;
    }
    if (!empty) {
      line += ' ';
      ++column;
    }
    line += word;
    column += word.size();
    empty = false;
  }
  absl::StrAppend(&out, line, "\n");
  return out;
}

std::string ReportAsText(const DoctorReport& report, bool color) {
  Printer printer(color);
  PrintHead(report, printer);
  PrintModes(report, printer);
  PrintWays(report, printer);
  PrintFeatures(report, printer);
  PrintMappings(report, printer);
  PrintTests(report, printer);
  PrintLimits(report, printer);
  PrintAdvice(report, printer);
  return printer.out();
}

absl::StatusOr<std::string> ReportAsJson(const DoctorReport& report) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(report, &json, options);
  if (!status.ok()) {
    return absl::InternalError(
        absl::StrCat("the report as JSON: ", status.ToString()));
  }
  return json;
}

}  // namespace firsttouch::tools
