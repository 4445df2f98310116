// Reads the header that wasm2c writes beside the C code, as far as guest.h
// needs to know a module: which of its instance's fields are memories, tables,
// references and imports. And mends the C code. A build-time tool
// (describe_module.cc) is made of this.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace firsttouch::wasm2c {

// A field of the instance that is a pointer into an import: a global, a memory
// or a table.
struct ImportedField {
  // Its name, which is also that of the function that finds it.
  std::string name;
  // Which of ModuleHeader::imports it comes from.
  size_t import = 0;

  friend bool operator==(const ImportedField&, const ImportedField&) = default;
};

// What the header says.
struct ModuleHeader {
  // As given to wasm2c with --module-name, mangled: "sq" in Z_sq_instance_t.
  std::string name;
  // Instance types of the imported modules, in the order of
  // Z_<name>_instantiate's arguments: "Z_wasi_snapshot_preview1_instance_t".
  std::vector<std::string> imports;
  std::vector<ImportedField> imported_fields;
  // Fields of the instance, by kind.
  std::vector<std::string> memories;
  std::vector<std::string> funcref_tables;
  std::vector<std::string> externref_tables;
  std::vector<std::string> funcref_globals;

  friend bool operator==(const ModuleHeader&, const ModuleHeader&) = default;
};

// Takes a header apart. InvalidArgument, naming what is missing or the line
// that is not understood, where it is not one of wasm2c 1.0.32.
absl::StatusOr<ModuleHeader> ParseModuleHeader(std::string_view text);

// The C++ header that specializes Module<> (module.h) for this module.
// `include`: how it includes wasm2c's header. `guard`: its include guard.
std::string WriteModuleDescription(const ModuleHeader& header,
                                   std::string_view include,
                                   std::string_view guard);

// The generated C code with one error of wasm2c 1.0.32 put right. A function of
// an imported module that stands in an element segment gets, as its instance,
// the address of a field of the importing instance instead of that field's
// value: called through the table, a function of the host would take the
// guest's instance for its own.
//
// InvalidArgument where the code is not what wasm2c 1.0.32 writes.
absl::StatusOr<std::string> MendGeneratedCode(std::string code);

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_
