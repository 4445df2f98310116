// What host.py writes of a module: what it imports, and what to call.

#ifndef FIRSTTOUCH_TESTS_NPM_GUESTS_NPM_GUEST_H_
#define FIRSTTOUCH_TESTS_NPM_GUESTS_NPM_GUEST_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "firsttouch/integrations/wasm2c/any_guest.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "wasm-rt.h"

namespace firsttouch::npm {

// What one instance is linked with.
class Imports {
 public:
  virtual ~Imports() = default;
  virtual std::vector<void*> get() = 0;
};

// A number, or the result of an earlier step (counted from 1) plus one.
struct Value {
  size_t result = 0;
  uint64_t number = 0;
};

// A call where it has one, a write where it has bytes, and a read otherwise.
struct Step {
  // The export that is called, or the table that has the function: then the
  // first argument is the element.
  const char* name = "";
  wasm2c::Thunk call = nullptr;
  bool in_table = false;
  std::vector<Value> in;
  Value at;
  std::vector<uint8_t> bytes;
  bool has_wanted = false;
  uint64_t wanted = 0;
};

struct Plan {
  std::unique_ptr<wasm2c::AnyGuest> (*make)();
  // Imported globals by "<module>.<field>".
  std::map<std::string, uint64_t> globals;
  // What imported functions give, the same way; others give 0.
  std::map<std::string, uint64_t> returned;
  // The imported functions of WASI, for the interpreter.
  std::map<std::string, uint64_t (*)(wasm2c::Wasi* wasi, const uint64_t* in)>
      wasi;
  // How many steps come before the snapshot.
  size_t ready = 0;
  std::vector<Step> steps;
};

// Written by host.py.
Plan ThePlan();
std::unique_ptr<Imports> NewImports();

// The same for the guest and for the interpreter.
inline wasm2c::WasiOptions WhatWasiSays() {
  return {.random_seed = 1, .fixed_clock_ns = 1};
}

// The function in an element of a table; traps where there is none.
inline wasm_rt_funcref_t Element(const wasm_rt_funcref_table_t& table,
                                 uint64_t element) {
  if (element >= table.size || table.data[element].func == nullptr) {
    wasm_rt_trap(WASM_RT_TRAP_CALL_INDIRECT);
  }
  return table.data[element];
}

// Writes down that the guest called a function of its host.
void Note(const char* symbol, std::initializer_list<uint64_t> arguments);

template <typename T>
uint64_t Bits(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

}  // namespace firsttouch::npm

#endif  // FIRSTTOUCH_TESTS_NPM_GUESTS_NPM_GUEST_H_
