#include "tests/spec_suite/spectest.h"

// Nobody looks at what scripts print.
extern "C" {
wasm_rt_memory_t* Z_spectestZ_memory(Z_spectest_instance_t* it) {
  return &it->memory;
}
wasm_rt_funcref_table_t* Z_spectestZ_table(Z_spectest_instance_t* it) {
  return &it->table;
}
u32* Z_spectestZ_global_i32(Z_spectest_instance_t* it) {
  return &it->global_i32;
}
u64* Z_spectestZ_global_i64(Z_spectest_instance_t* it) {
  return &it->global_i64;
}
f32* Z_spectestZ_global_f32(Z_spectest_instance_t* it) {
  return &it->global_f32;
}
f64* Z_spectestZ_global_f64(Z_spectest_instance_t* it) {
  return &it->global_f64;
}
void Z_spectestZ_print(Z_spectest_instance_t*) {}
void Z_spectestZ_print_i32(Z_spectest_instance_t*, u32) {}
void Z_spectestZ_print_i64(Z_spectest_instance_t*, u64) {}
void Z_spectestZ_print_f32(Z_spectest_instance_t*, f32) {}
void Z_spectestZ_print_f64(Z_spectest_instance_t*, f64) {}
void Z_spectestZ_print_i32_f32(Z_spectest_instance_t*, u32, f32) {}
void Z_spectestZ_print_f64_f64(Z_spectest_instance_t*, f64, f64) {}
}
