// Reads what a WebAssembly module says about itself and the header of wasm2c
// does not: the limits of imported memories and tables, which imported globals
// are mutable, and what wasm2c 1.0.32 cannot translate. A build-time tool
// (describe_module.cc) is made of this.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_BINARY_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_BINARY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace firsttouch::wasm2c {

// An imported memory, table or global.
struct BinaryImport {
  std::string module;
  std::string field;
  // Memories: pages of 65536 bytes. Tables: elements.
  uint32_t min = 0;
  uint32_t max = 0;
  // Globals.
  bool is_mutable = false;

  friend bool operator==(const BinaryImport&, const BinaryImport&) = default;
};

// The imports that are not functions, each kind in the module's order.
struct ModuleBinary {
  std::vector<BinaryImport> memories;
  std::vector<BinaryImport> tables;
  std::vector<BinaryImport> globals;
};

// InvalidArgument with the text of wabt's reader for bytes that are no module.
absl::StatusOr<ModuleBinary> ReadModuleBinary(std::span<const std::byte> bytes);

// The most parameters of a function, as in browsers: their stack is part of the
// calculation at kMaxFrameBytes.
inline constexpr size_t kMaxParameters = 1000;

// OK when wasm2c 1.0.32 knows the features that the module uses. Otherwise
// Unimplemented, naming the first such feature and where it is used: "function
// 12 uses i32x4.splat: wasm2c 1.0.32 does not translate SIMD". Function bodies
// are read.
absl::Status CheckTranslatable(std::span<const std::byte> bytes);

// How wasm2c 1.0.32 spells a name of a module or field: "a-b" is "Z_aZ2Db".
std::string MangleName(std::string_view name);

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_BINARY_H_
