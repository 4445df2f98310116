// What a tenant asks of the SQLite guest in every benchmark.

#ifndef FIRSTTOUCH_BENCH_SQLITE_REQUEST_H_
#define FIRSTTOUCH_BENCH_SQLITE_REQUEST_H_

#include <cstdint>

#include "firsttouch/examples/tenants.h"

namespace firsttouch::bench {

// A query for the row `found`, an insert, and an update of the row `updated`;
// both are there. Ends the program on a wrong answer.
void RequestOrDie(examples::SqliteGuest& guest, uint64_t found,
                  uint64_t updated);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SQLITE_REQUEST_H_
