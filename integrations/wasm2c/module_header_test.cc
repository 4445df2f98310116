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
  EXPECT_THAT(header->imported_fields,
              ElementsAre(ImportedField{"Z_envZ_g", 0},
                          ImportedField{"Z_envZ_mem", 0}));
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
  const std::string text = WriteModuleDescription(*header, "a/m.h", "GUARD_H_");
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
}

TEST(MendGeneratedCodeTest, ImportedFunctionsGetTheirOwnInstance) {
  absl::StatusOr<std::string> code = MendGeneratedCode(R"(
    dest->data[dest_addr + i] = (wasm_rt_funcref_t){
        func_types[src_expr->func_type_index], src_expr->func,
        (char*)module_instance + src_expr->module_offset};
  {0, (wasm_rt_function_ptr_t)Z_envZ_log, offsetof(Z_m_instance_t, Z_env_instance)},
  {0, (wasm_rt_function_ptr_t)&w2c_f1, 0},
)");
  ASSERT_TRUE(code.ok()) << code.status();
  EXPECT_EQ(*code, R"(
    dest->data[dest_addr + i] = (wasm_rt_funcref_t){
        func_types[src_expr->func_type_index], src_expr->func,
        src_expr->module_offset == 0
            ? module_instance
            : *(void**)((char*)module_instance + src_expr->module_offset - 1)};
  {0, (wasm_rt_function_ptr_t)Z_envZ_log, offsetof(Z_m_instance_t, Z_env_instance) + 1},
  {0, (wasm_rt_function_ptr_t)&w2c_f1, 0},
)");
}

TEST(MendGeneratedCodeTest, RefusesOtherCode) {
  EXPECT_EQ(MendGeneratedCode("int main() {}").status(),
            absl::InvalidArgumentError(
                "no '(char*)module_instance + src_expr->module_offset}': is "
                "this C code that wasm2c 1.0.32 wrote?"));
}

}  // namespace
}  // namespace firsttouch::wasm2c
