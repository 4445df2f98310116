// From what was asked and tried to what the doctor says of it.

#ifndef FIRSTTOUCH_TOOLS_DOCTOR_REPORT_H_
#define FIRSTTOUCH_TOOLS_DOCTOR_REPORT_H_

#include <span>

#include "firsttouch/tools/doctor.pb.h"
#include "firsttouch/tools/self_test.h"
#include "firsttouch/uffd/probe.h"

namespace firsttouch::tools {

// Judges: a pure function. `tests` are the results of RunSelfTests().
DoctorReport MakeReport(const UffdFacts& facts,
                        std::span<const SelfTestResult> tests);

// The exit code of a report: 0, 1 or 2.
int ExitCode(const DoctorReport& report);

}  // namespace firsttouch::tools

#endif  // FIRSTTOUCH_TOOLS_DOCTOR_REPORT_H_
