// What the host has to know about a wasm2c module beyond its generated header.
//
// Module<Z_<name>_instance_t> is specialized by a header that describe_module
// writes; wasm2c_guest does that in Bazel. It has
//
//   kName                  "sq"
//   Imports                std::tuple of a pointer for each imported module
//   CheckImports<Given...> a static_assert that names the imports
//   kMemories, kFuncrefTables, kExternrefTables, kFuncrefGlobals
//                          offsets in the instance of what is its own
//   kImportPointers        offsets of all pointers to imports
//   kImported...           what is imported of each kind, see below
//   Imported...(imports)   where that is
//   Init()                 Z_sq_init_module
//   Instantiate(instance, imports)   Z_sq_instantiate
//   Relink(instance, imports)        the pointers to imports alone

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_

#include <cstddef>
#include <cstdint>

#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// Parts that a module imports and can change. `name`: "<module>.<field>".
struct ImportedMemory {
  using Pointer = wasm_rt_memory_t*;
  const char* name;
  uint32_t min_pages, max_pages;  // of 65536 bytes
};

struct ImportedFuncrefTable {
  using Pointer = wasm_rt_funcref_table_t*;
  const char* name;
  uint32_t min_size, max_size;  // in elements
  // Whether the module's code has an instruction or a segment that writes it.
  bool written;
};

struct ImportedExternrefTable {
  using Pointer = wasm_rt_externref_table_t*;
  const char* name;
  uint32_t min_size, max_size;
  bool written;
};

// Of mutable ones only.
struct ImportedFuncrefGlobal {
  using Pointer = wasm_rt_funcref_t*;
  const char* name;
};

struct ImportedGlobal {
  using Pointer = void*;
  const char* name;
  size_t bytes;
};

// Only specializations exist.
template <typename Instance>
struct Module;

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_MODULE_H_
