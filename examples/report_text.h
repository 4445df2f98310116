// A report as a table for people.

#ifndef FIRSTTOUCH_EXAMPLES_REPORT_TEXT_H_
#define FIRSTTOUCH_EXAMPLES_REPORT_TEXT_H_

#include <string>

#include "examples/report.pb.h"

namespace firsttouch::examples {

// One column for each way, one line for each measurement, and a line for each
// way that was left out.
std::string ReportAsText(const sqlite_tenants::Report& report);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_REPORT_TEXT_H_
