// For tests: modules from their text, and the memories that wabt's interpreter
// gives them. Also for C++17, which is as far as the interpreter's headers go.

#ifndef FIRSTTOUCH_INIT_WASM_TEST_MODULES_H_
#define FIRSTTOUCH_INIT_WASM_TEST_MODULES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace firsttouch {

using Bytes = std::vector<std::byte>;

// The binary of a module in WebAssembly's text format. With `validate` false
// also of one that breaks rules which do not concern the binary's shape.
absl::StatusOr<Bytes> ModuleFromText(std::string_view text,
                                     bool validate = true);

// What an imported thing is, where that matters.
struct InterpreterImports {
  // By "<module>.<field>"; 0 where there is none.
  std::map<std::string, uint64_t> globals;
  // Nothing: what the import asks for.
  std::optional<uint64_t> memory_pages;
};

// Instantiates the module, without running its start function, and gives the
// contents of its memories, imported ones first. Imported functions are stubs
// that trap, imported memories begin with zeroes. FailedPrecondition with
// wabt's text when the module is not valid, or when instantiating it traps.
absl::StatusOr<std::vector<Bytes>> MemoriesInInterpreter(
    const Bytes& module, const InterpreterImports& imports = {});

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_WASM_TEST_MODULES_H_
