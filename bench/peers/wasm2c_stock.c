// SQLite on wasm2c's own runtime, as wabt ships it: each request makes an
// instance, for which the runtime maps a memory and copies the module's data
// into it.
//
//   wasm2c_stock stock
//
// Answers the requests `round work=sqlite` and `check` of README.md. build.sh
// makes sqlite.c and sqlite.h with wasm2c, and wasi_stubs.c of the header's
// declarations.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

#include "sqlite.h"
#include "wasm-rt-impl.h"

struct Z_wasi_snapshot_preview1_instance_t {
  int none;
};

static int64_t rows = 20000;

static uint64_t Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int64_t Faults(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

static void Must(int right, const char* what) {
  if (right) return;
  fprintf(stderr, "wasm2c_stock: SQLite's answer is wrong: %s\n", what);
  exit(1);
}

static void Serve(int64_t number) {
  static struct Z_wasi_snapshot_preview1_instance_t wasi;
  const int64_t found = (number == 0 ? rows / 8 : number * 7919 % rows) + 1;
  const int64_t updated = (number == 0 ? 7 : number * 104729) % rows + 1;
  Z_sqlite_instance_t instance;
  Z_sqlite_instantiate(&instance, &wasi);
  Must((int64_t)Z_sqliteZ_find(&instance, found) == found, "find");
  Must(Z_sqliteZ_insert(&instance, 4711, 1) == 0, "insert");
  Must(Z_sqliteZ_update(&instance, updated, 4711) == 0, "update");
  Z_sqlite_free(&instance);
}

static int Compare(const void* a, const void* b) {
  const uint64_t x = *(const uint64_t*)a;
  const uint64_t y = *(const uint64_t*)b;
  return (x > y) - (x < y);
}

static long NumberOf(const char* line, const char* name, long otherwise) {
  const char* const found = strstr(line, name);
  return found == NULL ? otherwise : atol(found + strlen(name));
}

int main(void) {
  wasm_rt_init();
  Z_sqlite_init_module();
  int64_t next = 0;
  for (char line[256]; fgets(line, sizeof line, stdin) != NULL;) {
    if (strncmp(line, "check", 5) == 0) {
      puts("{\"clean\":\"yes\",\"supply\":\"an instance for each request\"}");
      fflush(stdout);
      continue;
    }
    enum { kMost = 10000 };
    static uint64_t ns[kMost];
    const int same = strstr(line, "pages=same") != NULL;
    const int marked = strstr(line, "marked=1") != NULL;
    const long cycles = NumberOf(line, " cycles=", 40);
    if (cycles < 1 || cycles > kMost) return 1;
    if (next == 0) {
      for (int i = 0; i < 20; ++i) Serve(same ? 0 : ++next);
    }
    const int64_t faults = Faults();
    if (marked) prctl(0x66740001, 0, 0, 0, 0);
    for (long i = 0; i < cycles; ++i) {
      const uint64_t begun = Now();
      Serve(same ? 0 : ++next);
      ns[i] = Now() - begun;
    }
    if (marked) prctl(0x66740002, 0, 0, 0, 0);
    qsort(ns, (size_t)cycles, sizeof ns[0], Compare);
    // Without cycles in which another program ran, as readings.cc has it.
    const uint64_t medians = 10 * ns[cycles / 2];
    const uint64_t longest = medians > 500000 ? medians : 500000;
    uint64_t sum = 0;
    uint64_t own = 0;
    while (own < (uint64_t)cycles && ns[own] <= longest) sum += ns[own++];
    printf("{\"cycles\":%ld,\"faults\":%ld,\"mean_ns\":%lu}\n", cycles,
           (long)(Faults() - faults), sum / own);
    fflush(stdout);
  }
  return 0;
}
