// The module "spectest", which scripts of WebAssembly's test suite import from
// their host, as wasm2c's C sees it. translate.py reads the declarations.

#ifndef FIRSTTOUCH_TESTS_SPEC_SUITE_SPECTEST_H_
#define FIRSTTOUCH_TESTS_SPEC_SUITE_SPECTEST_H_

#include <cstdint>

#include "wasm-rt.h"

#ifndef WASM_RT_CORE_TYPES_DEFINED
#define WASM_RT_CORE_TYPES_DEFINED
using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
#endif

struct Z_spectest_instance_t {
  wasm_rt_memory_t memory = {};
  wasm_rt_funcref_table_t table = {};
  u32 global_i32 = 666;
  u64 global_i64 = 666;
  f32 global_f32 = 666.6F;
  f64 global_f64 = 666.6;
};

extern "C" {
// clang-format off: one declaration a line.
wasm_rt_memory_t* Z_spectestZ_memory(struct Z_spectest_instance_t*);
wasm_rt_funcref_table_t* Z_spectestZ_table(struct Z_spectest_instance_t*);
u32* Z_spectestZ_global_i32(struct Z_spectest_instance_t*);
u64* Z_spectestZ_global_i64(struct Z_spectest_instance_t*);
f32* Z_spectestZ_global_f32(struct Z_spectest_instance_t*);
f64* Z_spectestZ_global_f64(struct Z_spectest_instance_t*);
void Z_spectestZ_print(struct Z_spectest_instance_t*);
void Z_spectestZ_print_i32(struct Z_spectest_instance_t*, u32);
void Z_spectestZ_print_i64(struct Z_spectest_instance_t*, u64);
void Z_spectestZ_print_f32(struct Z_spectest_instance_t*, f32);
void Z_spectestZ_print_f64(struct Z_spectest_instance_t*, f64);
void Z_spectestZ_print_i32_f32(struct Z_spectest_instance_t*, u32, f32);
void Z_spectestZ_print_f64_f64(struct Z_spectest_instance_t*, f64, f64);
// clang-format on
}

#endif  // FIRSTTOUCH_TESTS_SPEC_SUITE_SPECTEST_H_
