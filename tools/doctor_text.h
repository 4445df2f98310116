// A report as text of at most 80 columns, and as JSON.

#ifndef FIRSTTOUCH_TOOLS_DOCTOR_TEXT_H_
#define FIRSTTOUCH_TOOLS_DOCTOR_TEXT_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/doctor.pb.h"

namespace firsttouch::tools {

inline constexpr int kTextColumns = 80;

// For people. With `color`, ANSI colours mark what works and what does not;
// they say nothing that the words do not.
std::string ReportAsText(const DoctorReport& report, bool color);

// For programs: the message of doctor.proto in protobuf's JSON, field names as
// in the file, fields without a value included.
absl::StatusOr<std::string> ReportAsJson(const DoctorReport& report);

// `text` broken at blanks into lines of at most kTextColumns columns; the first
// starts with `first`, the others with as many blanks.
std::string Wrapped(const std::string& first, const std::string& text);

}  // namespace firsttouch::tools

#endif  // FIRSTTOUCH_TOOLS_DOCTOR_TEXT_H_
