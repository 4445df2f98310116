// Reads the header that wasm2c writes beside the C code, as far as guest.h
// needs to know a module: which of its instance's fields are memories, tables,
// references and imports. And mends the header and the C code. A build-time
// tool (describe_module.cc) is made of this.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/module_binary.h"

namespace firsttouch::wasm2c {

// A field of the instance that is a pointer into an import: a global, a memory
// or a table.
struct ImportedField {
  // Its name, which is also that of the function that finds it.
  std::string name;
  // What it points to: "wasm_rt_memory_t", "u32".
  std::string type;
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
  // The names that wasm2c was given for them, mangled: "env".
  std::vector<std::string> import_names;
  // Fields of the instance that point to one of them: those of which a function
  // is imported have one.
  std::vector<std::string> import_fields;
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
// `binary`: the module itself, for what the header does not say of imports.
// `code`: the C code, which shows to which imported tables the module writes.
// `include`: how it includes wasm2c's header. `guard`: its include guard.
//
// InvalidArgument where binary and header do not belong together.
absl::StatusOr<std::string> WriteModuleDescription(const ModuleHeader& header,
                                                   const ModuleBinary& binary,
                                                   std::string_view code,
                                                   std::string_view include,
                                                   std::string_view guard);

// The generated header with three changes. Its include guard is `guard`: by
// default it is made of the file's name alone, and two modules of one file name
// exclude each other. It does not compile with another wasm-rt.h than the one
// of this runtime. And functions of WASI that emscripten imports with 64-bit
// arguments cut in halves ("legalized") have names of their own, since the
// names of WASI stand for functions of WASI's types.
//
// InvalidArgument for a function of WASI that is imported with types that are
// neither WASI's nor legalized, naming it and them.
absl::StatusOr<std::string> MendGeneratedHeader(std::string text,
                                                std::string_view guard);

// The largest frame of a generated function. A function compares the stack
// pointer with the guest's limit when its frame is there already, and a wrapper
// of an export does not compare at all: two frames and the arguments of two
// calls (at most kMaxParameters each) fit into the 64 KiB that the runtime
// keeps free below the limit, with 16 KiB to spare for the trap.
inline constexpr size_t kMaxFrameBytes = 16384;

// What MendGeneratedCode adds to the code beside mending it.
struct MendOptions {
  // Each loop looks whether the host wants the guest to end (Interrupt in
  // runtime.h).
  bool interruptible = false;
  // gcc refuses functions with a larger frame (unless -w silences it); see
  // kStackReserveBytes in runtime.h.
  size_t max_frame_bytes = kMaxFrameBytes;
};

// The generated C code with one error of wasm2c 1.0.32 put right. A function of
// an imported module that stands in an element segment gets, as its instance,
// the address of a field of the importing instance instead of that field's
// value: called through the table, a function of the host would take the
// guest's instance for its own. And with what belongs to the mended `header`
// (as wasm2c wrote it) and to the options.
//
// InvalidArgument where the code is not what wasm2c 1.0.32 writes.
absl::StatusOr<std::string> MendGeneratedCode(std::string code,
                                              std::string_view header,
                                              const MendOptions& options);

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_HEADER_H_
