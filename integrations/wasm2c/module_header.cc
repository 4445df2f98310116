#include "firsttouch/integrations/wasm2c/module_header.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "re2/re2.h"

namespace firsttouch::wasm2c {
namespace {

// The type of an instance without what surrounds it: "Z_env_instance_t".
constexpr char kInstanceType[] = R"((Z_\w+_instance_t))";

// Finds which import an "Z_<module>Z_<name>" comes from: the header declares
// the function that finds it, with the import's type.
std::optional<size_t> ImportOf(const std::string& text, const std::string& name,
                               const std::vector<std::string>& imports) {
  std::string type;
  if (!RE2::PartialMatch(
          text, absl::StrCat(R"(\b)", name, R"(\(struct )", kInstanceType),
          &type)) {
    return std::nullopt;
  }
  const auto found = std::find(imports.begin(), imports.end(), type);
  if (found == imports.end()) return std::nullopt;
  return found - imports.begin();
}

// One line of the instance's struct.
absl::Status ParseField(const std::string& text, const std::string& line,
                        ModuleHeader* header) {
  static const RE2& comment = *new RE2(R"(\s*(/\*.*\*/)?\s*)");
  static const RE2& import = *new RE2(R"(\s*struct Z_\w+_instance_t\* \w+;)");
  static const RE2& imported = *new RE2(R"(\s*\w+ \*(Z_\w+);)");
  static const RE2& dropped =
      *new RE2(R"(\s*bool (data|elem)_segment_dropped_\w+ : 1;)");
  static const RE2& field = *new RE2(R"(\s*(\w+) (w2c_\w+);)");

  std::string type, name;
  if (RE2::FullMatch(line, comment) || RE2::FullMatch(line, dropped) ||
      RE2::FullMatch(line, import)) {
    return absl::OkStatus();
  }
  if (RE2::FullMatch(line, imported, &name)) {
    std::optional<size_t> from = ImportOf(text, name, header->imports);
    if (!from.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "field ", name, ": no import declares a function of that name"));
    }
    header->imported_fields.push_back({.name = name, .import = *from});
    return absl::OkStatus();
  }
  if (!RE2::FullMatch(line, field, &type, &name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("field not understood: '", line, "'"));
  }
  if (type == "wasm_rt_memory_t") {
    header->memories.push_back(name);
  } else if (type == "wasm_rt_funcref_table_t") {
    header->funcref_tables.push_back(name);
  } else if (type == "wasm_rt_externref_table_t") {
    header->externref_tables.push_back(name);
  } else if (type == "wasm_rt_funcref_t") {
    header->funcref_globals.push_back(name);
  }
  // Numbers, and references that are the host's own, are copied as they are.
  return absl::OkStatus();
}

// "offsetof(I, a), offsetof(I, b)".
std::string Offsets(const std::string& instance,
                    const std::vector<std::string>& fields) {
  return absl::StrJoin(
      fields, ", ", [&](std::string* out, const std::string& field) {
        absl::StrAppend(out, "offsetof(", instance, ", ", field, ")");
      });
}

}  // namespace

absl::StatusOr<ModuleHeader> ParseModuleHeader(std::string_view text_view) {
  const std::string text(text_view);
  ModuleHeader header;
  if (!RE2::PartialMatch(text, R"(\nvoid Z_(\w+)_init_module\(void\);)",
                         &header.name)) {
    return absl::InvalidArgumentError(
        "no 'void Z_<module>_init_module(void);': is this a header that wasm2c "
        "1.0.32 wrote?");
  }
  const std::string instance = absl::StrCat("Z_", header.name, "_instance_t");

  std::string arguments;
  if (!RE2::PartialMatch(text,
                         absl::StrCat(R"(\nvoid Z_)", header.name,
                                      R"(_instantiate\(([^)]*)\);)"),
                         &arguments)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no 'void Z_", header.name, "_instantiate(...);'"));
  }
  std::string type;
  for (absl::string_view argument : absl::StrSplit(arguments, ',')) {
    if (RE2::PartialMatch(absl::StrCat(argument),
                          absl::StrCat(R"(struct )", kInstanceType), &type)) {
      header.imports.push_back(type);
    }
  }

  std::string fields;
  if (!RE2::PartialMatch(text,
                         absl::StrCat(R"((?s)\ntypedef struct )", instance,
                                      R"( \{\n(.*?)\} )", instance, ";"),
                         &fields)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no 'typedef struct ", instance, " { ... }'"));
  }
  for (absl::string_view line : absl::StrSplit(fields, '\n')) {
    // An instance without any state has one member, because C wants one.
    if (absl::StrContains(line, "dummy_member")) continue;
    if (absl::Status status = ParseField(text, absl::StrCat(line), &header);
        !status.ok()) {
      return status;
    }
  }
  return header;
}

std::string WriteModuleDescription(const ModuleHeader& header,
                                   std::string_view include_view,
                                   std::string_view guard_view) {
  const std::string include(include_view);
  const std::string guard(guard_view);
  const std::string instance = absl::StrCat("::Z_", header.name, "_instance_t");
  std::vector<std::string> import_types, import_arguments, relinked;
  for (size_t i = 0; i < header.imports.size(); ++i) {
    import_types.push_back(absl::StrCat("::", header.imports[i], "*"));
    import_arguments.push_back(absl::StrCat(", std::get<", i, ">(imports)"));
    const std::string& type = header.imports[i];
    // The field is called like its type, without the _t.
    relinked.push_back(absl::StrCat("    instance->",
                                    type.substr(0, type.size() - 2),
                                    " = std::get<", i, ">(imports);\n"));
  }
  for (const ImportedField& field : header.imported_fields) {
    relinked.push_back(absl::StrCat("    instance->", field.name,
                                    " = ::", field.name, "(std::get<",
                                    field.import, ">(imports));\n"));
  }
  std::vector<std::string> import_fields;
  for (const std::string& type : header.imports) {
    import_fields.push_back(type.substr(0, type.size() - 2));
  }
  const auto array = [&](const char* name,
                         const std::vector<std::string>& fields) {
    return absl::StrCat("  static constexpr std::array<size_t, ", fields.size(),
                        "> ", name, " = {", Offsets(instance.substr(2), fields),
                        "};\n");
  };
  return absl::StrCat(
      "// Describes the wasm2c module '", header.name,
      "' to firsttouch. Written by describe_module from ", include, ".\n",
      "#ifndef ", guard, "\n#define ", guard, "\n\n",
      "#include <array>\n#include <cstddef>\n#include <tuple>\n\n",
      "#include \"firsttouch/integrations/wasm2c/module.h\"\n",
      "#include \"firsttouch/integrations/wasm2c/wasi_imports.h\"\n",
      "#include \"", include, "\"\n\n", "namespace firsttouch::wasm2c {\n\n",
      "template <>\nstruct Module<", instance, "> {\n",
      "  static constexpr char kName[] = \"", header.name, "\";\n",
      "  using Imports = std::tuple<", absl::StrJoin(import_types, ", "),
      ">;\n", array("kMemories", header.memories),
      array("kFuncrefTables", header.funcref_tables),
      array("kExternrefTables", header.externref_tables),
      array("kFuncrefGlobals", header.funcref_globals),
      array("kImports", import_fields), "  static void Init() { ::Z_",
      header.name, "_init_module(); }\n", "  static void Instantiate(",
      instance,
      "* instance,\n      [[maybe_unused]] const Imports& imports) {\n    ::Z_",
      header.name, "_instantiate(instance", absl::StrJoin(import_arguments, ""),
      ");\n  }\n", "  static void Relink([[maybe_unused]] ", instance,
      "* instance,\n      [[maybe_unused]] const Imports& imports) {\n",
      absl::StrJoin(relinked, ""), "  }\n", "};\n\n",
      "}  // namespace firsttouch::wasm2c\n\n", "#endif  // ", guard, "\n");
}

absl::StatusOr<std::string> MendGeneratedCode(std::string code) {
  // In the one function that reads element segments.
  constexpr absl::string_view kWrong =
      "(char*)module_instance + src_expr->module_offset}";
  constexpr absl::string_view kRight =
      "src_expr->module_offset == 0\n            ? module_instance\n           "
      " "
      ": *(void**)((char*)module_instance + src_expr->module_offset - 1)}";
  const size_t wrong = code.find(kWrong.data(), 0, kWrong.size());
  if (wrong == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no '", kWrong, "': is this C code that wasm2c 1.0.32 wrote?"));
  }
  code.replace(wrong, kWrong.size(), kRight.data(), kRight.size());
  // In the segments: one more than the offset, so that the first field (offset
  // zero) differs from the instance itself.
  RE2::GlobalReplace(
      &code, R"(\(wasm_rt_function_ptr_t\)(Z_\w+), offsetof\((\w+), (\w+)\)\})",
      R"((wasm_rt_function_ptr_t)\1, offsetof(\2, \3) + 1})");
  return code;
}

}  // namespace firsttouch::wasm2c
