// Guests: instances of wasm2c modules whose memories come from a pool.
//
//   #include "sq.firsttouch.h"   // made by wasm2c_guest beside sq.h
//
//   PoolMemorySource source(service.get());
//   Wasi wasi;
//   absl::StatusOr<Guest<Z_sq_instance_t>> guest =
//       Guest<Z_sq_instance_t>::Create(&source, &wasi);
//   Outcome<u32> answer = guest->Call(&Z_sqZ_query, 2501u);
//   if (!answer.ok()) std::cerr << answer.status();     // a trap, in words
//
// A guest that has been set up can be snapshotted, and others started from
// there, in any thread and as often as one likes:
//
//   auto prepared = guest->Snapshot("prepared");
//   Wasi tenant_wasi;
//   auto tenant = (*prepared)->Instantiate(&source, &tenant_wasi);
//   tenant->Call(...);
//   tenant->Reset();          // the next tenant, in the same slot
//
// After a trap a guest is in the middle of what it was doing: Reset or destroy
// it. (WebAssembly allows calling into it; its C code may not expect that.)

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/instance_state.h"
#include "firsttouch/integrations/wasm2c/module.h"
#include "firsttouch/integrations/wasm2c/runtime.h"

namespace firsttouch::wasm2c {

// The result of a call that has none.
struct Nothing {};

// What came of running guest code: a value, a trap, or an error of the host's.
template <typename R>
class Outcome {
 public:
  explicit Outcome(R value) : end_(RunEnd::kReturned), value_(value) {}
  explicit Outcome(const Trap& trap) : end_(RunEnd::kTrapped), trap_(trap) {}
  explicit Outcome(absl::Status host_error)
      : end_(RunEnd::kHostError), host_error_(std::move(host_error)) {}

  bool ok() const { return end_ == RunEnd::kReturned; }
  bool trapped() const { return end_ == RunEnd::kTrapped; }

  // Only if ok().
  const R& operator*() const { return value_; }
  const R& value() const { return value_; }
  // Only if trapped().
  const Trap& trap() const { return trap_; }

  // OK; Aborted with the trap in words; or the host's error.
  absl::Status status() const {
    if (ok()) return absl::OkStatus();
    if (trapped()) return absl::AbortedError(trap_.Message());
    return host_error_;
  }

 private:
  RunEnd end_;
  R value_ = {};
  Trap trap_;
  absl::Status host_error_;
};

namespace internal {

template <typename Instance>
inline constexpr InstanceLayout kLayout = {
    .name = Module<Instance>::kName,
    .instance_bytes = sizeof(Instance),
    .memories = Module<Instance>::kMemories,
    .funcref_tables = Module<Instance>::kFuncrefTables,
    .externref_tables = Module<Instance>::kExternrefTables,
    .funcref_globals = Module<Instance>::kFuncrefGlobals,
    .imports = Module<Instance>::kImports,
};

// Frees the instance's parts and then itself.
template <typename Instance>
struct InstanceDeleter {
  void operator()(Instance* instance) const {
    FreeInstanceParts(kLayout<Instance>, instance);
    delete instance;
  }
};

template <typename Instance>
using InstancePtr = std::unique_ptr<Instance, InstanceDeleter<Instance>>;

template <typename Import>
concept WantsMemory = requires(Import* import, const wasm_rt_memory_t* memory) {
  import->Attach(memory);
};

template <typename Import>
void AttachImport(Import* import, const wasm_rt_memory_t* memory) {
  if constexpr (WantsMemory<Import>) import->Attach(memory);
}

// Imported modules that work on the guest's memory (WASI) are told which it is.
template <typename Instance>
void AttachImports(Instance* instance,
                   const typename Module<Instance>::Imports& imports) {
  if constexpr (Module<Instance>::kMemories.size() > 0) {
    [[maybe_unused]] const auto* memory =
        reinterpret_cast<const wasm_rt_memory_t*>(
            reinterpret_cast<const std::byte*>(instance) +
            Module<Instance>::kMemories[0]);
    std::apply(
        [memory](auto*... import) { (AttachImport(import, memory), ...); },
        imports);
  }
}

template <typename Instance>
auto ImportPointers(const typename Module<Instance>::Imports& imports) {
  return std::apply(
      [](auto*... import) {
        return std::array<void*, sizeof...(import)>{
            static_cast<void*>(import)...};
      },
      imports);
}

}  // namespace internal

template <typename Instance>
class GuestTemplate;

// An instance of a module, with its memories. Movable. Belongs to one thread at
// a time; may be created, used and destroyed on different ones. Imports, the
// source and, of course, the source's service must outlive it.
template <typename Instance>
class Guest {
 public:
  using Imports = typename Module<Instance>::Imports;

  // Instantiates the module: globals, tables, data segments, start function.
  // `imports`: a pointer for each module it imports, in the order of
  // Z_<name>_instantiate. (A reactor's _initialize is for the caller to call.)
  //
  // Errors: the source's (ResourceExhausted: no free slot; OutOfRange: more
  // memory than the pool allows), Aborted when the start function traps.
  template <typename... Import>
  static absl::StatusOr<Guest> Create(MemorySource* source,
                                      Import*... imports) {
    static const bool initialized = (Module<Instance>::Init(), true);
    (void)initialized;
    Guest guest{Imports(imports...)};
    ScopedMemorySource scope(source, Module<Instance>::kMemories.size());
    Outcome<Nothing> outcome = guest.Run([&guest](Instance* instance) {
      Module<Instance>::Instantiate(instance, guest.imports_);
    });
    if (!outcome.ok()) {
      return absl::Status(
          outcome.status().code(),
          absl::StrCat("cannot instantiate module ", Module<Instance>::kName,
                       ": ", outcome.status().message()));
    }
    return guest;
  }

  Guest(Guest&&) noexcept = default;
  Guest& operator=(Guest&&) noexcept = default;

  // The instance, for calling its exports under Run.
  Instance* get() const { return instance_.get(); }

  // Calls `body`(instance), which may call any of the instance's exports, and
  // gives what it returns, or how it ended instead. What is true of RunGuarded
  // is true of `body`: no object with a destructor may be alive in it while the
  // guest runs. Its result is copied bytewise.
  template <typename Body>
  auto Run(Body&& body, const RunOptions& options = {}) {
    using R = std::invoke_result_t<Body, Instance*>;
    using Value = std::conditional_t<std::is_void_v<R>, Nothing, R>;
    static_assert(std::is_trivially_copyable_v<Value>);
    Value value = {};
    Trap trap;
    absl::Status host_error;
    const RunEnd end = RunGuarded(
        [&] {
          if constexpr (std::is_void_v<R>) {
            body(instance_.get());
          } else {
            value = body(instance_.get());
          }
        },
        options, &trap, &host_error);
    switch (end) {
      case RunEnd::kReturned:
        return Outcome<Value>(value);
      case RunEnd::kTrapped:
        return Outcome<Value>(trap);
      case RunEnd::kHostError:
        break;
    }
    return Outcome<Value>(std::move(host_error));
  }

  // Calls one export: guest.Call(&Z_addZ_add, 1u, 2u).
  template <typename R, typename... Parameters, typename... Arguments>
  auto Call(R (*exported)(Instance*, Parameters...), Arguments... arguments) {
    return Run([=](Instance* instance) {
      return exported(instance, static_cast<Parameters>(arguments)...);
    });
  }

  // The guest's own memories, in the module's order.
  static constexpr size_t memories() {
    return Module<Instance>::kMemories.size();
  }
  const wasm_rt_memory_t& memory(size_t i = 0) const {
    return *reinterpret_cast<const wasm_rt_memory_t*>(
        reinterpret_cast<const std::byte*>(instance_.get()) +
        Module<Instance>::kMemories[i]);
  }

  // The whole state as something to start others from. The guest must not be
  // running, and goes on as it was. Tables that belong to other modules, and
  // what imports keep for themselves, are not part of it.
  absl::StatusOr<std::shared_ptr<const GuestTemplate<Instance>>> Snapshot(
      std::string_view name) const {
    absl::StatusOr<std::unique_ptr<const InstanceState>> state =
        InstanceState::Capture(internal::kLayout<Instance>, instance_.get(),
                               name);
    if (!state.ok()) return state.status();
    return std::make_shared<const GuestTemplate<Instance>>(*std::move(state));
  }

  // Back to what the template says, for the next tenant: same slot, same
  // imports (whose own state is not touched). FailedPrecondition for a guest
  // that did not come from a template. After another error the guest can only
  // be destroyed.
  absl::Status Reset() {
    if (state_ == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "Reset: this guest of module ", Module<Instance>::kName,
          " was not made from a template; call Snapshot, then Instantiate"));
    }
    absl::Status restored = state_->RestoreInPlace(
        internal::ImportPointers<Instance>(imports_), instance_.get());
    if (restored.ok()) {
      Module<Instance>::Relink(instance_.get(), imports_);
    }
    return restored;
  }

 private:
  friend class GuestTemplate<Instance>;

  explicit Guest(const Imports& imports)
      : imports_(imports), instance_(new Instance()) {
    internal::AttachImports<Instance>(instance_.get(), imports_);
  }

  Imports imports_;
  internal::InstancePtr<Instance> instance_;
  // Where it came from; null if it was instantiated by its own code.
  std::shared_ptr<const InstanceState> state_;
};

// A set-up instance as data. Immutable; thread-safe.
template <typename Instance>
class GuestTemplate {
 public:
  explicit GuestTemplate(std::unique_ptr<const InstanceState> state)
      : state_(std::move(state)) {}

  // A new guest that goes on from the snapshot, in a slot of `source`. No code
  // of the guest runs. Errors: the source's.
  template <typename... Import>
  absl::StatusOr<Guest<Instance>> Instantiate(MemorySource* source,
                                              Import*... imports) const {
    Guest<Instance> guest{typename Module<Instance>::Imports(imports...)};
    absl::Status restored = state_->Restore(
        source, internal::ImportPointers<Instance>(guest.imports_),
        guest.instance_.get());
    if (!restored.ok()) return restored;
    Module<Instance>::Relink(guest.instance_.get(), guest.imports_);
    guest.state_ = state_;
    return guest;
  }

  // What its memories hold, in the module's order.
  const std::vector<MemoryRequest>& memories() const {
    return state_->memories();
  }

  // The same with other memories: those of an equal guest that were kept in
  // files (init/image_file.h), in a process that has not run its set-up.
  // Errors: InvalidArgument, when they cannot be memories of this module.
  absl::StatusOr<std::shared_ptr<const GuestTemplate>> WithMemories(
      std::span<const MemoryRequest> memories) const {
    absl::StatusOr<std::unique_ptr<const InstanceState>> state =
        state_->WithMemories(memories);
    if (!state.ok()) return state.status();
    return std::make_shared<const GuestTemplate>(*std::move(state));
  }

  // Whether globals and tables are equal: then files of this one's memories are
  // all that `other` lacks to be this one.
  bool EqualsApartFromMemories(const GuestTemplate& other) const {
    return state_->EqualsApartFromMemories(*other.state_);
  }

 private:
  std::shared_ptr<const InstanceState> state_;
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_H_
