#include "firsttouch/integrations/wasm2c/module_header.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
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
  static const RE2& import = *new RE2(R"(\s*struct Z_\w+_instance_t\* (\w+);)");
  static const RE2& imported = *new RE2(R"(\s*(\w+) \*(Z_\w+);)");
  static const RE2& dropped =
      *new RE2(R"(\s*bool (data|elem)_segment_dropped_\w+ : 1;)");
  static const RE2& field = *new RE2(R"(\s*(\w+) (w2c_\w+);)");

  std::string type, name;
  if (RE2::FullMatch(line, comment) || RE2::FullMatch(line, dropped)) {
    return absl::OkStatus();
  }
  if (RE2::FullMatch(line, import, &name)) {
    header->import_fields.push_back(name);
    return absl::OkStatus();
  }
  if (RE2::FullMatch(line, imported, &type, &name)) {
    std::optional<size_t> from = ImportOf(text, name, header->imports);
    if (!from.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "field ", name, ": no import declares a function of that name"));
    }
    header->imported_fields.push_back(
        {.name = name, .type = type, .import = *from});
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
      // "Z_", the name, "_instance_t".
      header.import_names.push_back(type.substr(2, type.size() - 13));
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

namespace {

// An entry of one of the description's lists of imported parts.
struct ImportedPart {
  const ImportedField* field;
  // Null for a global that nobody may change.
  const BinaryImport* import;
};

// Whether `code` writes to the imported table that the field points to. As
// wasm2c writes it, the table that a function writes to is its first argument.
bool WritesTable(const std::string& code, const std::string& field) {
  for (const char* function :
       {"funcref_table_init", "funcref_table_copy", "funcref_table_set",
        "funcref_table_fill", "wasm_rt_grow_funcref_table",
        "externref_table_init", "externref_table_copy", "externref_table_set",
        "externref_table_fill", "wasm_rt_grow_externref_table"}) {
    if (absl::StrContains(code,
                          absl::StrCat(function, "(instance->", field, ","))) {
      return true;
    }
  }
  return false;
}

// Pairs the fields of some types with what the binary says of them, in the
// binary's order.
absl::StatusOr<std::vector<ImportedPart>> PairUp(
    const ModuleHeader& header, const std::vector<BinaryImport>& imports,
    const std::vector<std::string>& types) {
  std::vector<ImportedPart> parts;
  for (const BinaryImport& import : imports) {
    const std::string name =
        MangleName(import.module) + MangleName(import.field);
    const auto found = std::find_if(
        header.imported_fields.begin(), header.imported_fields.end(),
        [&](const ImportedField& field) { return field.name == name; });
    if (found == header.imported_fields.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the module imports ", import.module, ".", import.field,
                       ", and the header has no field ", name,
                       ": are they of the same module?"));
    }
    if (std::find(types.begin(), types.end(), found->type) == types.end()) {
      continue;
    }
    // The same import twice is one field.
    const auto known = std::find_if(
        parts.begin(), parts.end(),
        [&](const ImportedPart& part) { return part.field == &*found; });
    if (known == parts.end()) {
      parts.push_back({.field = &*found, .import = &import});
    } else if (import.min > known->import->min) {
      known->import = &import;
    }
  }
  return parts;
}

// Text of the description for the imported parts of one kind: a constexpr array
// of what they are, and a function that gives their addresses.
std::string WriteImportedParts(
    const char* constant, const char* function, const char* type,
    const std::vector<ImportedPart>& parts,
    const std::function<std::string(const ImportedPart&)>& entry) {
  std::string text = absl::StrCat("  static constexpr std::array<", type, ", ",
                                  parts.size(), "> ", constant, " = {");
  if (!parts.empty()) {
    absl::StrAppend(
        &text, "{",
        absl::StrJoin(parts, ", ",
                      [&](std::string* out, const ImportedPart& part) {
                        absl::StrAppend(out, "{", entry(part), "}");
                      }),
        "}");
  }
  absl::StrAppend(
      &text, "};\n  static auto ", function,
      "([[maybe_unused]] const Imports& imports) {\n    return std::array<",
      type, "::Pointer, ", parts.size(), ">{",
      absl::StrJoin(parts, ", ",
                    [](std::string* out, const ImportedPart& part) {
                      absl::StrAppend(out, "::", part.field->name, "(std::get<",
                                      part.field->import, ">(imports))");
                    }),
      "};\n  }\n");
  return text;
}

// The name of an import in a string literal, with everything escaped that could
// end it.
std::string Quoted(const BinaryImport& import) {
  return absl::StrCat(
      "\"", absl::CEscape(absl::StrCat(import.module, ".", import.field)),
      "\"");
}

}  // namespace

absl::StatusOr<std::string> WriteModuleDescription(
    const ModuleHeader& header, const ModuleBinary& binary,
    std::string_view code_view, std::string_view include_view,
    std::string_view guard_view) {
  const std::string code(code_view);
  const std::string include(include_view);
  const std::string guard(guard_view);
  const std::string instance = absl::StrCat("::Z_", header.name, "_instance_t");
  std::vector<std::string> import_types, import_arguments, relinked;
  for (size_t i = 0; i < header.imports.size(); ++i) {
    import_types.push_back(absl::StrCat("::", header.imports[i], "*"));
    import_arguments.push_back(absl::StrCat(", std::get<", i, ">(imports)"));
    const std::string& type = header.imports[i];
    // The field is called like its type, without the _t. There is one where
    // functions are imported.
    const std::string field = type.substr(0, type.size() - 2);
    if (std::find(header.import_fields.begin(), header.import_fields.end(),
                  field) == header.import_fields.end()) {
      continue;
    }
    relinked.push_back(absl::StrCat("    instance->", field, " = std::get<", i,
                                    ">(imports);\n"));
  }
  // All pointers to imports, which no snapshot keeps.
  std::vector<std::string> pointers = header.import_fields;
  for (const ImportedField& field : header.imported_fields) {
    relinked.push_back(absl::StrCat("    instance->", field.name,
                                    " = ::", field.name, "(std::get<",
                                    field.import, ">(imports));\n"));
    pointers.push_back(field.name);
  }

  absl::StatusOr<std::vector<ImportedPart>> memories =
      PairUp(header, binary.memories, {"wasm_rt_memory_t"});
  if (!memories.ok()) return memories.status();
  absl::StatusOr<std::vector<ImportedPart>> funcref_tables =
      PairUp(header, binary.tables, {"wasm_rt_funcref_table_t"});
  if (!funcref_tables.ok()) return funcref_tables.status();
  absl::StatusOr<std::vector<ImportedPart>> externref_tables =
      PairUp(header, binary.tables, {"wasm_rt_externref_table_t"});
  if (!externref_tables.ok()) return externref_tables.status();
  std::vector<BinaryImport> mutable_globals;
  std::copy_if(binary.globals.begin(), binary.globals.end(),
               std::back_inserter(mutable_globals),
               [](const BinaryImport& import) { return import.is_mutable; });
  absl::StatusOr<std::vector<ImportedPart>> funcref_globals =
      PairUp(header, mutable_globals, {"wasm_rt_funcref_t"});
  if (!funcref_globals.ok()) return funcref_globals.status();
  absl::StatusOr<std::vector<ImportedPart>> globals =
      PairUp(header, mutable_globals,
             {"u32", "u64", "f32", "f64", "wasm_rt_externref_t"});
  if (!globals.ok()) return globals.status();

  const auto limits = [](const ImportedPart& part) {
    return absl::StrCat(Quoted(*part.import), ", ", part.import->min, "u, ",
                        part.import->max, "u");
  };
  const auto table = [&](const ImportedPart& part) {
    return absl::StrCat(limits(part), ", ",
                        WritesTable(code, part.field->name) ? "true" : "false");
  };
  const auto array = [&](const char* name,
                         const std::vector<std::string>& fields) {
    return absl::StrCat("  static constexpr std::array<size_t, ", fields.size(),
                        "> ", name, " = {", Offsets(instance.substr(2), fields),
                        "};\n");
  };
  const std::string wanted =
      header.imports.empty()
          ? absl::StrCat("module ", header.name,
                         " imports nothing: give no imports")
          : absl::StrCat("module ", header.name, " imports ",
                         header.imports.size(),
                         header.imports.size() == 1 ? " module" : " modules",
                         ": give, in this order, a pointer to ",
                         absl::StrJoin(header.imports, ", "));
  return absl::StrCat(
      "// Describes the wasm2c module '", header.name,
      "' to firsttouch. Written by describe_module from ", include, ".\n",
      "#ifndef ", guard, "\n#define ", guard, "\n\n",
      "#include <array>\n#include <cstddef>\n#include <tuple>\n",
      "#include <type_traits>\n\n",
      "#include \"firsttouch/integrations/wasm2c/module.h\"\n", "#include \"",
      include, "\"\n\n", "namespace firsttouch::wasm2c {\n\n",
      "template <>\nstruct Module<", instance, "> {\n",
      "  static constexpr char kName[] = \"", header.name, "\";\n",
      "  using Imports = std::tuple<", absl::StrJoin(import_types, ", "),
      ">;\n",
      "  // Fails to compile where the imports that a caller gives are "
      "others.\n"
      "  template <typename... Given>\n"
      "  static constexpr bool CheckImports() {\n"
      "    constexpr bool kRight =\n"
      "        sizeof...(Given) == std::tuple_size_v<Imports> &&\n"
      "        std::is_constructible_v<Imports, Given...>;\n"
      "    static_assert(kRight, \"",
      wanted, "\");\n    return kRight;\n  }\n",
      array("kMemories", header.memories),
      array("kFuncrefTables", header.funcref_tables),
      array("kExternrefTables", header.externref_tables),
      array("kFuncrefGlobals", header.funcref_globals),
      array("kImportPointers", pointers),
      WriteImportedParts("kImportedMemories", "ImportedMemories",
                         "ImportedMemory", *memories, limits),
      WriteImportedParts("kImportedFuncrefTables", "ImportedFuncrefTables",
                         "ImportedFuncrefTable", *funcref_tables, table),
      WriteImportedParts("kImportedExternrefTables", "ImportedExternrefTables",
                         "ImportedExternrefTable", *externref_tables, table),
      WriteImportedParts(
          "kImportedFuncrefGlobals", "ImportedFuncrefGlobals",
          "ImportedFuncrefGlobal", *funcref_globals,
          [](const ImportedPart& part) { return Quoted(*part.import); }),
      WriteImportedParts(
          "kImportedGlobals", "ImportedGlobals", "ImportedGlobal", *globals,
          [](const ImportedPart& part) {
            return absl::StrCat(Quoted(*part.import),
                                ", sizeof(::", part.field->type, ")");
          }),
      "  static void Init() { ::Z_", header.name, "_init_module(); }\n",
      "  static void Instantiate(", instance,
      "* instance,\n      [[maybe_unused]] const Imports& imports) {\n    ::Z_",
      header.name, "_instantiate(instance", absl::StrJoin(import_arguments, ""),
      ");\n  }\n", "  static void Relink([[maybe_unused]] ", instance,
      "* instance,\n      [[maybe_unused]] const Imports& imports) {\n",
      absl::StrJoin(relinked, ""), "  }\n", "};\n\n",
      "}  // namespace firsttouch::wasm2c\n\n", "#endif  // ", guard, "\n");
}

namespace {

constexpr char kWasi[] = "Z_wasi_snapshot_preview1";

// The functions of WASI preview 1: their parameters, i for 32 bits and l for
// 64; all but proc_exit give an i32.
const std::map<std::string, std::string>& WasiTypes() {
  static const auto& types = *new std::map<std::string, std::string>{
      {"args_get", "ii"},
      {"args_sizes_get", "ii"},
      {"clock_res_get", "ii"},
      {"clock_time_get", "ili"},
      {"environ_get", "ii"},
      {"environ_sizes_get", "ii"},
      {"fd_advise", "illi"},
      {"fd_allocate", "ill"},
      {"fd_close", "i"},
      {"fd_datasync", "i"},
      {"fd_fdstat_get", "ii"},
      {"fd_fdstat_set_flags", "ii"},
      {"fd_fdstat_set_rights", "ill"},
      {"fd_filestat_get", "ii"},
      {"fd_filestat_set_size", "il"},
      {"fd_filestat_set_times", "illi"},
      {"fd_pread", "iiili"},
      {"fd_prestat_dir_name", "iii"},
      {"fd_prestat_get", "ii"},
      {"fd_pwrite", "iiili"},
      {"fd_read", "iiii"},
      {"fd_readdir", "iiili"},
      {"fd_renumber", "ii"},
      {"fd_seek", "ilii"},
      {"fd_sync", "i"},
      {"fd_tell", "ii"},
      {"fd_write", "iiii"},
      {"path_create_directory", "iii"},
      {"path_filestat_get", "iiiii"},
      {"path_filestat_set_times", "iiiilli"},
      {"path_link", "iiiiiii"},
      {"path_open", "iiiiillii"},
      {"path_readlink", "iiiiii"},
      {"path_remove_directory", "iii"},
      {"path_rename", "iiiiii"},
      {"path_symlink", "iiiii"},
      {"path_unlink_file", "iii"},
      {"poll_oneoff", "iiii"},
      {"proc_exit", "i"},
      {"proc_raise", "i"},
      {"random_get", "ii"},
      {"sched_yield", ""},
      {"sock_accept", "iii"},
      {"sock_recv", "iiiiii"},
      {"sock_send", "iiiii"},
      {"sock_shutdown", "ii"},
  };
  return types;
}

// Each function of WASI that is imported legalized, by its name in the code.
absl::StatusOr<std::vector<std::string>> LegalizedImports(
    const std::string& header) {
  static const RE2& declaration = *new RE2(absl::StrCat(
      R"(\n(\w+) ()", kWasi,
      R"(Z_(\w+))\(struct Z_wasi_snapshot_preview1_instance_t\*([^)]*)\);)"));
  std::vector<std::string> legalized;
  re2::StringPiece rest(header);
  std::string result, symbol, name, arguments;
  while (RE2::FindAndConsume(&rest, declaration, &result, &symbol, &name,
                             &arguments)) {
    std::string given;
    for (absl::string_view argument :
         absl::StrSplit(arguments, ',', absl::SkipWhitespace())) {
      argument = absl::StripAsciiWhitespace(argument);
      given += argument == "u32"   ? "i"
               : argument == "u64" ? "l"
                                   : absl::StrCat("(", argument, ")");
    }
    const auto known = WasiTypes().find(name);
    if (known == WasiTypes().end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the module imports wasi_snapshot_preview1.", name,
                       ", which is no function of WASI preview 1"));
    }
    const std::string& wanted = known->second;
    const std::string wanted_result = name == "proc_exit" ? "void" : "u32";
    const std::string halves = absl::StrReplaceAll(wanted, {{"l", "ii"}});
    if (result == wanted_result && given == wanted) continue;
    if (result == wanted_result && given == halves) {
      legalized.push_back(symbol);
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "the module imports wasi_snapshot_preview1.", name, " with (",
        absl::StripAsciiWhitespace(absl::StripPrefix(arguments, ",")), ") -> ",
        result, "; WASI preview 1 has the parameters ", wanted, " -> ",
        wanted_result, " (i: u32, l: u64, or both halves of one as i)"));
  }
  return legalized;
}

// Gives legalized imports the names under which wasi.cc has them.
void RenameImports(const std::vector<std::string>& symbols, std::string* text) {
  for (const std::string& symbol : symbols) {
    RE2::GlobalReplace(text, absl::StrCat(R"(\b)", symbol, R"(\b)"),
                       absl::StrCat(symbol, "_legalized"));
  }
}

}  // namespace

absl::StatusOr<std::string> MendGeneratedHeader(std::string text,
                                                std::string_view guard_view) {
  const std::string guard(guard_view);
  absl::StatusOr<std::vector<std::string>> legalized = LegalizedImports(text);
  if (!legalized.ok()) return legalized.status();
  std::string old_guard;
  if (!RE2::PartialMatch(text, R"(\n#ifndef (\w+_H_GENERATED_)\n)",
                         &old_guard)) {
    return absl::InvalidArgumentError(
        "no include guard '..._H_GENERATED_': is this a header that wasm2c "
        "1.0.32 wrote?");
  }
  RE2::GlobalReplace(&text, absl::StrCat(R"(\b)", old_guard, R"(\b)"), guard);
  constexpr char kInclude[] = "#include \"wasm-rt.h\"\n";
  const size_t include = text.find(kInclude);
  if (include == std::string::npos) {
    return absl::InvalidArgumentError(
        "no '#include \"wasm-rt.h\"': is this a header that wasm2c 1.0.32 "
        "wrote?");
  }
  text.insert(include + strlen(kInclude),
              "#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_WASM_RT_H_\n"
              "#error \"this is not firsttouch's wasm-rt.h: compile with "
              "-I<firsttouch>/integrations/wasm2c/include in front\"\n"
              "#endif\n");
  RenameImports(*legalized, &text);
  return text;
}

absl::StatusOr<std::string> MendGeneratedCode(std::string code,
                                              std::string_view header,
                                              const MendOptions& options) {
  absl::StatusOr<std::vector<std::string>> legalized =
      LegalizedImports(std::string(header));
  if (!legalized.ok()) return legalized.status();
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
  RenameImports(*legalized, &code);
  if (options.interruptible) {
    // Only labels at the head of a loop have no semicolon.
    RE2::GlobalReplace(&code, R"((?m)^( *w2c_\w+): ?$)",
                       R"(\1: WASM_RT_LOOP_HEAD;)");
  }
  constexpr absl::string_view kTrap = "\n#define TRAP(x)";
  const size_t trap = code.find(kTrap.data(), 0, kTrap.size());
  if (trap == std::string::npos) {
    return absl::InvalidArgumentError(
        "no '#define TRAP(x)': is this C code that wasm2c 1.0.32 wrote?");
  }
  code.insert(trap + 1,
              absl::StrCat(
                  "#if defined(__GNUC__) && !defined(__clang__)\n"
                  "#pragma GCC diagnostic error \"-Wframe-larger-than=",
                  options.max_frame_bytes,
                  "\"\n#endif\n"
                  "#ifdef __FAST_MATH__\n"
                  "#error \"WebAssembly's arithmetic is exact: compile without "
                  "-ffast-math\"\n"
                  "#endif\n"
                  "#undef alloca\n#define alloca wasm_rt_alloca\n\n"));
  return code;
}

}  // namespace firsttouch::wasm2c
