// One start of a process that serves from an image: what bench:images measures
// in a process of its own for each sample.

#ifndef FIRSTTOUCH_BENCH_IMAGE_STARTS_H_
#define FIRSTTOUCH_BENCH_IMAGE_STARTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "firsttouch/bench/report.pb.h"

namespace firsttouch::bench {

// How SQLite's memory comes from a file.
inline constexpr char kWithSetName[] = "working set";
inline constexpr char kWithoutSetName[] = "no working set";
inline constexpr char kReadFileName[] = "read into memory";
inline constexpr char kPrivateFileName[] = "plain private mapping";
const std::vector<std::string>& AllStartStrategies();

// Makes the two image files: SQLite's memory after its set-up with `rows` rows,
// with what tenants have taught, and without.
void WriteSqliteFiles(uint32_t rows, const std::string& with_set,
                      const std::string& without_set);

// In this process, which should have done nothing else yet: SQLite from `file`
// by one strategy. Before anything is measured, the same request is made to
// another database, in other memory: what is measured is memory, not the
// program's own pages. Ends the program when an answer is wrong. `query`:
// "same", the rows that the working set was taught with, or "other".
StartRow StartSqlite(const std::string& strategy, const std::string& file,
                     uint32_t rows, const std::string& query);

// The same without a guest: open, bind, and a read of the last byte.
SizeRow StartPlain(const std::string& file);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_IMAGE_STARTS_H_
