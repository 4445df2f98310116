#include "firsttouch/examples/report_text.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace firsttouch::examples {
namespace {

using sqlite_tenants::Report;
using sqlite_tenants::Skipped;
using sqlite_tenants::Way;

// Six columns and the labels fit into a terminal's 80 characters.
constexpr size_t kColumnWidth = 8;
constexpr size_t kHeadLines = 3;

// Line `line` of a column's head: "handler-thread" takes two lines.
std::string HeadOf(const Way& way, size_t line) {
  const std::vector<std::string> lines = absl::StrSplit(
      absl::StrReplaceAll(way.name(), {{"/", "\n"}, {"-", "-\n"}}), '\n');
  return line < lines.size() ? lines[line] : "";
}

// A number with as many decimals as are useful.
std::string Number(double value) {
  if (value == 0) return "0";
  if (value < 10) return absl::StrFormat("%.2f", value);
  if (value < 100) return absl::StrFormat("%.1f", value);
  return absl::StrFormat("%.0f", value);
}

std::string Kib(uint64_t bytes) {
  return absl::StrFormat("%.0f KiB", static_cast<double>(bytes) / 1024);
}

// One line of the table.
struct Line {
  std::string label;
  std::function<std::string(const Way&)> value;
};

std::vector<Line> Lines() {
  return {
      {"tenants per second",
       [](const Way& way) { return Number(way.tenants_per_second()); }},
      {"recycle, median",
       [](const Way& way) {
         return absl::StrCat(Number(way.handover_median_us()), " us");
       }},
      {"recycle, 99 %",
       [](const Way& way) {
         return absl::StrCat(Number(way.handover_p99_us()), " us");
       }},
      {"per tenant: minor faults",
       [](const Way& way) { return Number(way.minor_faults()); }},
      {"  first reads",
       [](const Way& way) { return Number(way.missing_read_faults()); }},
      {"  first writes",
       [](const Way& way) { return Number(way.missing_write_faults()); }},
      {"  write-protect faults",
       [](const Way& way) { return Number(way.write_protect_faults()); }},
      {"  the kernel's own faults",
       [](const Way& way) { return Number(way.kernel_page_faults()); }},
      {"  traps", [](const Way& way) { return Number(way.traps()); }},
      {"  system calls for memory",
       [](const Way& way) { return Number(way.supply_calls()); }},
      {"  system calls, all",
       [](const Way& way) {
         return way.has_system_calls() ? Number(way.system_calls())
                                       : std::string("?");
       }},
      {"private memory per slot",
       [](const Way& way) { return Kib(way.private_bytes_per_slot()); }},
      {"  if copied eagerly",
       [](const Way& way) { return Kib(way.eager_copy_bytes_per_slot()); }},
      {"answers, all right",
       [](const Way& way) {
         return absl::StrCat(way.answers() - way.wrong_answers());
       }},
      {"  wrong",
       [](const Way& way) { return absl::StrCat(way.wrong_answers()); }},
      {"  rows of others seen",
       [](const Way& way) { return absl::StrCat(way.foreign_rows()); }},
      {"tenants trapped",
       [](const Way& way) { return absl::StrCat(way.trapped()); }},
      {"bytes left by others",
       [](const Way& way) { return absl::StrCat(way.differing_bytes()); }},
  };
}

}  // namespace

std::string ReportAsText(const Report& report) {
  std::string text = absl::StrFormat(
      "SQLite in %d slots: %d tenants, %d %s, seed %d.\n"
      "Image of %s (%s stored), made in %s ms.\n\n",
      report.slots(), report.tenants(), report.threads(),
      report.threads() == 1 ? "thread" : "threads", report.seed(),
      Kib(report.image_bytes()), Kib(report.image_stored_bytes()),
      Number(report.setup_ms()));

  size_t label_width = 0;
  for (const Line& line : Lines()) {
    label_width = std::max(label_width, line.label.size());
  }
  const auto row = [&](const std::string& label, auto cell) {
    std::string line = absl::StrFormat("%-*s", label_width, label);
    for (const Way& way : report.ways()) {
      absl::StrAppend(&line, " ",
                      absl::StrFormat("%*s", kColumnWidth, cell(way)));
    }
    absl::StrAppend(&text, line, "\n");
  };
  for (size_t i = 0; i < kHeadLines; ++i) {
    row("", [i](const Way& way) { return HeadOf(way, i); });
  }
  for (const Line& line : Lines()) row(line.label, line.value);
  if (!report.skipped().empty()) absl::StrAppend(&text, "\n");
  for (const Skipped& skipped : report.skipped()) {
    absl::StrAppend(&text, "Not possible here: ", skipped.name(), ": ",
                    skipped.reason(), "\n");
  }
  return text;
}

}  // namespace firsttouch::examples
