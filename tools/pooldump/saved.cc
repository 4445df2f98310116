#include "firsttouch/tools/pooldump/saved.h"

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch::pooldump {
namespace {

constexpr size_t kMostReportBytes = size_t{1} << 30;

bool LooksLikeText(const std::string& contents) {
  for (const char c : contents.substr(0, 4096)) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c)) &&
        !absl::ascii_isspace(static_cast<unsigned char>(c)) &&
        static_cast<unsigned char>(c) < 0x80) {
      return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<Report> ReadReport(const std::string& path) {
  absl::StatusOr<std::string> contents = cli::ReadFile(path, kMostReportBytes);
  if (!contents.ok()) return contents.status();
  const std::string name =
      path == "-" ? std::string("standard input") : cli::Printable(path);
  if (contents->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is empty"));
  }
  Report report;
  if (absl::StartsWith(absl::StripLeadingAsciiWhitespace(*contents), "{")) {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;  // Of a later pooldump.
    const auto parsed = google::protobuf::util::JsonStringToMessage(
        *contents, &report, options);
    if (parsed.ok() && report.of_case() != Report::OF_NOT_SET) return report;
    return absl::InvalidArgumentError(absl::StrCat(
        name,
        " is JSON, but no report of pooldump: save what a command prints "
        "with --format=json, of --count one line",
        parsed.ok()
            ? ""
            : absl::StrCat(" (", cli::Printable(parsed.message().ToString()),
                           ")")));
  }
  if (report.ParseFromString(*contents) &&
      report.of_case() != Report::OF_NOT_SET) {
    return report;
  }
  if (!LooksLikeText(*contents)) {
    return absl::InvalidArgumentError(absl::StrCat(
        name,
        " is no report of pooldump, or is cut: save what a command "
        "prints with --format=proto"));
  }
  report.Clear();
  if (absl::Status status = cli::ParseText(name, *contents, &report, nullptr);
      !status.ok()) {
    return status;
  }
  if (report.of_case() == Report::OF_NOT_SET) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is an empty report of pooldump"));
  }
  return report;
}

}  // namespace firsttouch::pooldump
