#include "firsttouch/integrations/wasm2c/module_header.h"

#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::wasm2c {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// As wasm2c 1.0.32 writes it, without what nobody reads.
constexpr char kHeader[] = R"(
extern "C" {
#endif

struct Z_env_instance_t;
struct Z_wasi_snapshot_preview1_instance_t;
extern u32* Z_envZ_g(struct Z_env_instance_t*);
extern wasm_rt_memory_t* Z_envZ_mem(struct Z_env_instance_t*);

typedef struct Z_m_instance_t {
  struct Z_env_instance_t* Z_env_instance;
  struct Z_wasi_snapshot_preview1_instance_t* Z_wasi_snapshot_preview1_instance;
  /* import: 'env' 'g' */
  u32 *Z_envZ_g;
  /* import: 'env' 'mem' */
  wasm_rt_memory_t *Z_envZ_mem;
  u32 w2c___stack_pointer;
  f64 w2c_ratio;
  wasm_rt_funcref_t w2c_g0;
  wasm_rt_externref_t w2c_g1;
  wasm_rt_memory_t w2c_memory;
  wasm_rt_funcref_table_t w2c_T0;
  wasm_rt_externref_table_t w2c_T1;
  bool data_segment_dropped_w2c_d : 1;
  bool elem_segment_dropped_w2c_p : 1;
} Z_m_instance_t;

void Z_m_init_module(void);
void Z_m_instantiate(Z_m_instance_t*, struct Z_env_instance_t*, struct Z_wasi_snapshot_preview1_instance_t*);
void Z_m_free(Z_m_instance_t*);
)";

TEST(ParseModuleHeaderTest, FindsEachKindOfField) {
  absl::StatusOr<ModuleHeader> header = ParseModuleHeader(kHeader);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->name, "m");
  EXPECT_THAT(
      header->imports,
      ElementsAre("Z_env_instance_t", "Z_wasi_snapshot_preview1_instance_t"));
  EXPECT_THAT(header->import_names,
              ElementsAre("env", "wasi_snapshot_preview1"));
  EXPECT_THAT(
      header->import_fields,
      ElementsAre("Z_env_instance", "Z_wasi_snapshot_preview1_instance"));
  EXPECT_THAT(header->imported_fields,
              ElementsAre(ImportedField{"Z_envZ_g", "u32", 0},
                          ImportedField{"Z_envZ_mem", "wasm_rt_memory_t", 0}));
  EXPECT_THAT(header->memories, ElementsAre("w2c_memory"));
  EXPECT_THAT(header->funcref_tables, ElementsAre("w2c_T0"));
  EXPECT_THAT(header->externref_tables, ElementsAre("w2c_T1"));
  EXPECT_THAT(header->funcref_globals, ElementsAre("w2c_g0"));
}

TEST(ParseModuleHeaderTest, AnInstanceWithoutState) {
  absl::StatusOr<ModuleHeader> header = ParseModuleHeader(R"(
typedef struct Z_n_instance_t {
  char dummy_member;
} Z_n_instance_t;

void Z_n_init_module(void);
void Z_n_instantiate(Z_n_instance_t*);
)");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_THAT(header->imports, IsEmpty());
  EXPECT_THAT(header->memories, IsEmpty());
}

// What is wrong with `text`.
std::string Error(const std::string& text) {
  absl::StatusOr<ModuleHeader> header = ParseModuleHeader(text);
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(header.status().message());
}

TEST(ParseModuleHeaderTest, SaysWhatItDoesNotUnderstand) {
  EXPECT_EQ(Error(""),
            "no 'void Z_<module>_init_module(void);': is this a header that "
            "wasm2c 1.0.32 wrote?");
  EXPECT_EQ(Error("\nvoid Z_m_init_module(void);\n"),
            "no 'void Z_m_instantiate(...);'");
  std::string text = kHeader;
  text.replace(text.find("f64 w2c_ratio;"), 14, "f64 w2c_ratio[2];");
  EXPECT_EQ(Error(text), "field not understood: '  f64 w2c_ratio[2];'");
  text = kHeader;
  text.erase(text.find("extern u32*"), 12);
  text.replace(text.find("Z_envZ_g("), 9, "Z_envZ_h(");
  EXPECT_EQ(Error(text),
            "field Z_envZ_g: no import declares a function of that name");
  text = kHeader;
  text.replace(text.find("typedef struct"), 14, "typedef union ");
  EXPECT_EQ(Error(text), "no 'typedef struct Z_m_instance_t { ... }'");
}

TEST(WriteModuleDescriptionTest, RelinksEachImport) {
  absl::StatusOr<ModuleHeader> header = ParseModuleHeader(kHeader);
  ASSERT_TRUE(header.ok()) << header.status();
  const ModuleBinary binary = {
      .memories = {{.module = "env", .field = "mem", .min = 2, .max = 5}},
      .globals = {{.module = "env", .field = "g", .is_mutable = true}}};
  const absl::StatusOr<std::string> description =
      WriteModuleDescription(*header, binary, "", "a/m.h", "GUARD_H_");
  ASSERT_TRUE(description.ok()) << description.status();
  const std::string& text = *description;
  EXPECT_THAT(text, HasSubstr("#ifndef GUARD_H_\n#define GUARD_H_\n"));
  EXPECT_THAT(text, HasSubstr("#include \"a/m.h\"\n"));
  EXPECT_THAT(text, HasSubstr("struct Module<::Z_m_instance_t> {"));
  EXPECT_THAT(text, HasSubstr("std::tuple<::Z_env_instance_t*, "
                              "::Z_wasi_snapshot_preview1_instance_t*>"));
  EXPECT_THAT(text, HasSubstr("kMemories = {offsetof(Z_m_instance_t, "
                              "w2c_memory)};"));
  EXPECT_THAT(text, HasSubstr("instance->Z_wasi_snapshot_preview1_instance = "
                              "std::get<1>(imports);"));
  EXPECT_THAT(text, HasSubstr("instance->Z_envZ_g = "
                              "::Z_envZ_g(std::get<0>(imports));"));
  EXPECT_THAT(text, HasSubstr("kImportedMemories = "
                              "{{{\"env.mem\", 2u, 5u}}};"));
  EXPECT_THAT(text, HasSubstr("kImportedGlobals = "
                              "{{{\"env.g\", sizeof(::u32)}}};"));
  EXPECT_THAT(
      text,
      HasSubstr("static_assert(kRight, \"module m imports 2 modules: give, in "
                "this order, a pointer to Z_env_instance_t, "
                "Z_wasi_snapshot_preview1_instance_t\");"));
}

TEST(WriteModuleDescriptionTest, AnImportThatTheHeaderLacksIsAnError) {
  absl::StatusOr<ModuleHeader> header = ParseModuleHeader(kHeader);
  ASSERT_TRUE(header.ok()) << header.status();
  const ModuleBinary binary = {
      .memories = {{.module = "env", .field = "other"}}};
  EXPECT_EQ(WriteModuleDescription(*header, binary, "", "m.h", "G").status(),
            absl::InvalidArgumentError(
                "the module imports env.other, and the header has no field "
                "Z_envZ_other: are they of the same module?"));
}

// A header with one imported function of WASI.
std::string WasiHeader(const std::string& declaration) {
  return "\n#ifndef M_H_GENERATED_\n#define M_H_GENERATED_\n"
         "#include \"wasm-rt.h\"\n" +
         declaration + "\n#endif  /* M_H_GENERATED_ */\n";
}

TEST(MendGeneratedHeaderTest, LegalizedFunctionsOfWasiGetTheirOwnNames) {
  absl::StatusOr<std::string> header = MendGeneratedHeader(
      WasiHeader("u32 Z_wasi_snapshot_preview1Z_fd_seek(struct "
                 "Z_wasi_snapshot_preview1_instance_t*, u32, u32, u32, u32, "
                 "u32);\n"
                 "u32 Z_wasi_snapshot_preview1Z_fd_tell(struct "
                 "Z_wasi_snapshot_preview1_instance_t*, u32, u32);"),
      "GUARD_H_");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_THAT(*header, HasSubstr("Z_fd_seek_legalized(struct"));
  EXPECT_THAT(*header, HasSubstr("Z_fd_tell(struct"));
  EXPECT_THAT(*header, HasSubstr("\n#ifndef GUARD_H_\n#define GUARD_H_\n"));
  EXPECT_THAT(*header,
              HasSubstr("#error \"this is not firsttouch's wasm-rt.h"));
}

TEST(MendGeneratedHeaderTest, WasisOwnTypesKeepTheirNames) {
  absl::StatusOr<std::string> header = MendGeneratedHeader(
      WasiHeader("u32 Z_wasi_snapshot_preview1Z_fd_seek(struct "
                 "Z_wasi_snapshot_preview1_instance_t*, u32, u64, u32, u32);"),
      "GUARD_H_");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_THAT(*header, HasSubstr("Z_fd_seek(struct"));
}

TEST(MendGeneratedHeaderTest, OtherTypesAndOtherFunctionsAreErrors) {
  EXPECT_EQ(
      MendGeneratedHeader(
          WasiHeader("u32 Z_wasi_snapshot_preview1Z_fd_close(struct "
                     "Z_wasi_snapshot_preview1_instance_t*, f64);"),
          "G")
          .status(),
      absl::InvalidArgumentError(
          "the module imports wasi_snapshot_preview1.fd_close with (f64) -> "
          "u32; WASI preview 1 has the parameters i -> u32 (i: u32, l: u64, or "
          "both halves of one as i)"));
  EXPECT_EQ(MendGeneratedHeader(
                WasiHeader("u32 Z_wasi_snapshot_preview1Z_dance(struct "
                           "Z_wasi_snapshot_preview1_instance_t*);"),
                "G")
                .status(),
            absl::InvalidArgumentError(
                "the module imports wasi_snapshot_preview1.dance, which is no "
                "function of WASI preview 1"));
}

// The parts of generated code that are mended.
constexpr char kCode[] = R"(
#define TRAP(x) (wasm_rt_trap(WASM_RT_TRAP_##x), 0)
    dest->data[dest_addr + i] = (wasm_rt_funcref_t){
        func_types[src_expr->func_type_index], src_expr->func,
        (char*)module_instance + src_expr->module_offset};
  {0, (wasm_rt_function_ptr_t)Z_envZ_log, offsetof(Z_m_instance_t, Z_env_instance)},
  {0, (wasm_rt_function_ptr_t)&w2c_f1, 0},
  w2c_L1: 
    goto w2c_L1;
  w2c_B0:;
)";

TEST(MendGeneratedCodeTest, ImportedFunctionsGetTheirOwnInstance) {
  absl::StatusOr<std::string> code = MendGeneratedCode(kCode, "", {});
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_THAT(*code, HasSubstr(R"(
    dest->data[dest_addr + i] = (wasm_rt_funcref_t){
        func_types[src_expr->func_type_index], src_expr->func,
        src_expr->module_offset == 0
            ? module_instance
            : *(void**)((char*)module_instance + src_expr->module_offset - 1)};
  {0, (wasm_rt_function_ptr_t)Z_envZ_log, offsetof(Z_m_instance_t, Z_env_instance) + 1},
  {0, (wasm_rt_function_ptr_t)&w2c_f1, 0},
  w2c_L1: 
    goto w2c_L1;
  w2c_B0:;
)"));
  EXPECT_THAT(*code, HasSubstr("diagnostic error \"-Wframe-larger-than=16384"));
}

TEST(MendGeneratedCodeTest, LoopsOfInterruptibleGuestsLook) {
  absl::StatusOr<std::string> code =
      MendGeneratedCode(kCode, "", {.interruptible = true});
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_THAT(*code, HasSubstr("\n  w2c_L1: WASM_RT_LOOP_HEAD;\n"
                               "    goto w2c_L1;\n  w2c_B0:;\n"));
}

TEST(MendGeneratedCodeTest, RefusesOtherCode) {
  EXPECT_EQ(MendGeneratedCode("int main() {}", "", {}).status(),
            absl::InvalidArgumentError(
                "no '(char*)module_instance + src_expr->module_offset}': is "
                "this C code that wasm2c 1.0.32 wrote?"));
}

}  // namespace
}  // namespace firsttouch::wasm2c
