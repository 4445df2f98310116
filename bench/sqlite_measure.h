// SQLite as the tenant of bench:cycle: the guest of examples:sqlite_tenants.

#ifndef FIRSTTOUCH_BENCH_SQLITE_MEASURE_H_
#define FIRSTTOUCH_BENCH_SQLITE_MEASURE_H_

#include <string>
#include <string_view>

#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// Each cycle is a tenant: an instance of one snapshot with a database of
// `rows` rows, a query, an insert and an update, and the release of its memory.
// `pages`: "same", all tenants ask for the same rows, or "churning", each for
// others. Every answer is looked at; a wrong one, or a byte that was passed on,
// ends the program. Only strategies whose name contains `only`; of the
// settings, `strategies` plays no part.
void MeasureSqlite(const CycleSettings& settings, const std::string& pages,
                   std::string_view only, uint32_t rows, CycleReport& report);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SQLITE_MEASURE_H_
