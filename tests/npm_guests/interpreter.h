// A module in wabt's interpreter. Also for C++17, which is as far as the
// interpreter's headers go.

#ifndef FIRSTTOUCH_TESTS_NPM_GUESTS_INTERPRETER_H_
#define FIRSTTOUCH_TESTS_NPM_GUESTS_INTERPRETER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace firsttouch::npm {

// Called for each call of an imported function.
class ImportObserver {
 public:
  virtual ~ImportObserver() = default;
  // `memory`: the first one; null during the instantiation. Returns the
  // function's result.
  virtual uint64_t OnCall(const std::string& module, const std::string& field,
                          const std::vector<uint64_t>& arguments,
                          uint8_t* memory, size_t memory_bytes) = 0;
};

class Interpreter {
 public:
  virtual ~Interpreter() = default;
  // Calls an export. Its result, 0 if it has none.
  virtual absl::StatusOr<uint64_t> Call(
      std::string_view name, const std::vector<uint64_t>& arguments) = 0;
  // The same with the function in an element of an exported table.
  virtual absl::StatusOr<uint64_t> CallInTable(
      std::string_view table, uint32_t element,
      const std::vector<uint64_t>& arguments) = 0;
  // A memory, imported ones first. Valid until the next call.
  virtual uint8_t* memory(size_t i) = 0;
  virtual size_t memory_bytes(size_t i) = 0;
  virtual size_t memories() = 0;
};

// Instantiates a module, its start function included. Imported memories and
// tables are as large as it asks for, and globals are what `globals` says, or
// 0.
absl::StatusOr<std::unique_ptr<Interpreter>> Interpret(
    const std::string& module, const std::map<std::string, uint64_t>& globals,
    ImportObserver* observer);

}  // namespace firsttouch::npm

#endif  // FIRSTTOUCH_TESTS_NPM_GUESTS_INTERPRETER_H_
