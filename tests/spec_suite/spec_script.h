// Scripts of WebAssembly's test suite as data. translate.py writes files that
// include this.

#ifndef FIRSTTOUCH_TESTS_SPEC_SUITE_SPEC_SCRIPT_H_
#define FIRSTTOUCH_TESTS_SPEC_SUITE_SPEC_SCRIPT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/any_guest.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/instance_state.h"
#include "firsttouch/integrations/wasm2c/module.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "tests/spec_suite/spectest.h"

namespace firsttouch::spec {

using wasm2c::Get;
using wasm2c::Put;
using wasm2c::Thunk;

// More results than any function of the suite has.
inline constexpr size_t kMaxResults = 32;

// How a result is compared.
enum class Match { kBits, kCanonicalNan, kArithmeticNan, kNotNull };

// A result that a script expects. `type`: i, l (i64), f, d (f64), r (funcref)
// or x (externref).
struct Wanted {
  char type;
  Match match;
  uint64_t bits;
};

enum class StepKind {
  kModule,          // instantiates it
  kUninstantiable,  // the same, which traps
  kUnlinkable,      // the same, which is refused
  kAction,          // calls or reads an export
  kReturns,         // the same, with certain results
  kTraps,           // the same, with a certain trap
  kUntranslated,    // one of these with a module that wabt 1.0.32 refuses
};

// A command of a script.
struct Step {
  int line;
  StepKind kind;
  int module;
  Thunk call;
  const uint64_t* in;
  const Wanted* wanted;
  size_t wanted_count;
  wasm_rt_trap_t trap;
};

// What one instance is linked with.
struct LinkedParts {
  std::vector<wasm_rt_memory_t*> memories;
  std::vector<wasm_rt_funcref_table_t*> funcref_tables;
  std::vector<wasm_rt_externref_table_t*> externref_tables;
  std::vector<wasm_rt_funcref_t*> funcref_globals;
  std::vector<void*> globals;
};

// What is compiled for each module. A Guest<> of each would take minutes.
struct ModuleFace {
  const wasm2c::InstanceLayout* layout;
  void (*instantiate)(void* instance, std::span<void* const> imports);
  void (*relink)(void* instance, std::span<void* const> imports);
  // Comes first, and also initializes the module.
  LinkedParts (*link)(std::span<void* const> imports);
};

template <typename Instance>
class FaceOf {
  using M = wasm2c::Module<Instance>;
  using Imports = typename M::Imports;

  template <size_t... I>
  static Imports ToTuple([[maybe_unused]] std::span<void* const> imports,
                         std::index_sequence<I...>) {
    return Imports(
        static_cast<std::tuple_element_t<I, Imports>>(imports[I])...);
  }
  static Imports ToTuple(std::span<void* const> imports) {
    return ToTuple(imports,
                   std::make_index_sequence<std::tuple_size_v<Imports>>());
  }
  static void Instantiate(void* instance, std::span<void* const> imports) {
    M::Instantiate(static_cast<Instance*>(instance), ToTuple(imports));
  }
  static void Relink(void* instance, std::span<void* const> imports) {
    M::Relink(static_cast<Instance*>(instance), ToTuple(imports));
  }
  static LinkedParts Link(std::span<void* const> imports) {
    M::Init();
    const Imports tuple = ToTuple(imports);
    const auto to_vector = [](const auto& parts) {
      return std::vector(parts.begin(), parts.end());
    };
    return {.memories = to_vector(M::ImportedMemories(tuple)),
            .funcref_tables = to_vector(M::ImportedFuncrefTables(tuple)),
            .externref_tables = to_vector(M::ImportedExternrefTables(tuple)),
            .funcref_globals = to_vector(M::ImportedFuncrefGlobals(tuple)),
            .globals = to_vector(M::ImportedGlobals(tuple))};
  }

 public:
  static constexpr ModuleFace kFace = {&wasm2c::internal::kLayout<Instance>,
                                       &Instantiate, &Relink, &Link};
};

// An instance of such a module, as guest.h has it with a type.
class ScriptGuest {
 public:
  // `imports`: instances of what the module imports, in its order.
  static absl::StatusOr<std::unique_ptr<ScriptGuest>> Create(
      const ModuleFace& face, wasm2c::MemorySource* source,
      std::vector<void*> imports);
  ~ScriptGuest();
  ScriptGuest(const ScriptGuest&) = delete;
  ScriptGuest& operator=(const ScriptGuest&) = delete;

  // Snapshots the instance, and changes nothing else.
  absl::Status Snapshot();
  // Another that goes on from the last snapshot, with imports of its own.
  absl::StatusOr<std::unique_ptr<ScriptGuest>> Copy(
      wasm2c::MemorySource* source, std::vector<void*> imports) const;
  // Back to the last snapshot. Only for a copy.
  absl::Status Reset();
  // Calls `call`; how the run ended, with what goes with it.
  wasm2c::RunEnd Run(Thunk call, const uint64_t* in, uint64_t* out,
                     wasm2c::Trap* trap, absl::Status* host_error);

  // What others import from.
  void* instance() const { return instance_; }

 private:
  ScriptGuest(const ModuleFace& face, std::vector<void*> imports);
  wasm2c::Linkage linkage() const;

  const ModuleFace& face_;
  std::vector<void*> imports_;
  LinkedParts parts_;
  void* instance_;  // of calloc
  wasm2c::FilledImports filled_;
  std::shared_ptr<const wasm2c::InstanceState> state_;
};

// A module of a script.
struct ScriptModule {
  const char* name;
  const ModuleFace* face;
  // What it imports from: modules of the script by number, -1 for spectest.
  int providers[4];
  int provider_count;
  // Whether it imports a memory, a table or a global from another module of the
  // script. Both go on with the same one, so neither can be replaced.
  bool shares;
};

struct Script {
  const char* name;
  std::span<const ScriptModule> modules;
  std::span<const Step> steps;
  // Modules that must not link, and whose C the compiler or linker refuses.
  int refused_by_compiler;
};

// In the order in which they were given to translate.py.
std::vector<const Script*> AllScripts();

}  // namespace firsttouch::spec

#endif  // FIRSTTOUCH_TESTS_SPEC_SUITE_SPEC_SCRIPT_H_
