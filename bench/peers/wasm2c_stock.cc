// SQLite on wasm2c's own runtime, as wabt ships it: each request makes an
// instance, for which the runtime maps a memory and copies the module's data
// into it.
//
//   wasm2c_stock stock
//
// Answers the requests `round work=sqlite` and `check` of README.md. build.sh
// makes sqlite.c and sqlite.h with wasm2c, and wasi_stubs.c of the header's
// declarations.

#include <sys/prctl.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "firsttouch/bench/readings.h"
#include "sqlite.h"

struct Z_wasi_snapshot_preview1_instance_t {};

namespace {

using firsttouch::bench::Faults;
using firsttouch::bench::NowTicks;

constexpr uint64_t kRows = 20000;

void Must(bool right, const char* what) {
  if (right) return;
  std::cerr << "wasm2c_stock: SQLite's answer is wrong: " << what << "\n";
  std::exit(1);
}

void Serve(uint64_t number) {
  static Z_wasi_snapshot_preview1_instance_t wasi;
  const uint64_t found = (number == 0 ? kRows / 8 : number * 7919 % kRows) + 1;
  const uint64_t updated = (number == 0 ? 7 : number * 104729) % kRows + 1;
  Z_sqlite_instance_t instance;
  Z_sqlite_instantiate(&instance, &wasi);
  Must(Z_sqliteZ_find(&instance, found) == found, "find");
  Must(Z_sqliteZ_insert(&instance, 4711, 1) == 0, "insert");
  Must(Z_sqliteZ_update(&instance, updated, 4711) == 0, "update");
  Z_sqlite_free(&instance);
}

}  // namespace

int main() {
  wasm_rt_init();
  Z_sqlite_init_module();
  uint64_t next = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "check") {
      std::puts(R"({"clean":"yes","supply":"an instance for each request"})");
      std::fflush(stdout);
      continue;
    }
    const bool same = line.find("pages=same") != std::string::npos;
    const bool marked = line.find("marked=1") != std::string::npos;
    const auto at = line.find(" cycles=");
    const int cycles =
        at == std::string::npos ? 40 : std::atoi(line.c_str() + at + 8);
    for (int i = 0; next == 0 && i < 20; ++i) Serve(same ? 0 : i + 1);
    firsttouch::bench::Ticks ticks;
    const uint64_t faults = Faults();
    if (marked) prctl(0x66740001, 0, 0, 0, 0);
    for (int i = 0; i < cycles; ++i) {
      const uint64_t begun = NowTicks();
      ++next;
      Serve(same ? 0 : next);
      ticks.push_back(NowTicks() - begun);
    }
    if (marked) prctl(0x66740002, 0, 0, 0, 0);
    std::printf(R"({"cycles":%d,"faults":%lu,"ns":[)", cycles,
                Faults() - faults);
    for (size_t i = 0; i < ticks.size(); ++i) {
      std::printf("%s%.1f", i == 0 ? "" : ",",
                  firsttouch::bench::TicksToNs(ticks[i]));
    }
    std::puts("]}");
    std::fflush(stdout);
  }
  return 0;
}
