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
// Bytes go in and out by functions of the guest's that give an address, and by
// the host's loads and stores:
//
//   Outcome<u32> at = guest->Call(&Z_sqZ_allocate, size);
//   absl::StatusOr<std::span<std::byte>> bytes = guest->Bytes(*at, size);
//   memcpy(bytes->data(), request, size);
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

// What came of running guest code: a value, a trap, an exit by way of WASI, or
// an error of the host's.
template <typename R>
class Outcome {
 public:
  explicit Outcome(R value) : end_(RunEnd::kReturned), value_(value) {}
  // An exit where the trap says so.
  explicit Outcome(const Trap& trap)
      : end_(trap.exited ? RunEnd::kExited : RunEnd::kTrapped), trap_(trap) {}
  explicit Outcome(absl::Status host_error)
      : end_(RunEnd::kHostError), host_error_(std::move(host_error)) {}

  bool ok() const { return end_ == RunEnd::kReturned; }
  bool trapped() const { return end_ == RunEnd::kTrapped; }
  // The guest called exit(): there is no value, whatever the code is.
  bool exited() const { return end_ == RunEnd::kExited; }

  // Only if ok().
  const R& operator*() const { return value_; }
  const R& value() const { return value_; }
  // Only if trapped().
  const Trap& trap() const { return trap_; }
  // Only if exited().
  uint32_t exit_code() const { return trap_.exit_code; }

  // OK; Aborted with the trap or the exit code in words; or the host's error.
  absl::Status status() const {
    if (ok()) return absl::OkStatus();
    if (trapped() || exited()) return absl::AbortedError(trap_.Message());
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
    .import_pointers = Module<Instance>::kImportPointers,
    .imported_memories = Module<Instance>::kImportedMemories,
    .imported_funcref_tables = Module<Instance>::kImportedFuncrefTables,
    .imported_externref_tables = Module<Instance>::kImportedExternrefTables,
    .imported_funcref_globals = Module<Instance>::kImportedFuncrefGlobals,
    .imported_globals = Module<Instance>::kImportedGlobals,
};

// What an instance is linked with, found in its imports.
template <typename Instance>
class InstanceLinkage {
 public:
  using Imports = typename Module<Instance>::Imports;

  explicit InstanceLinkage(const Imports& imports)
      : imports_(std::apply(
            [](auto*... import) {
              return std::array<void*, sizeof...(import)>{
                  static_cast<void*>(import)...};
            },
            imports)),
        memories_(Module<Instance>::ImportedMemories(imports)),
        funcref_tables_(Module<Instance>::ImportedFuncrefTables(imports)),
        externref_tables_(Module<Instance>::ImportedExternrefTables(imports)),
        funcref_globals_(Module<Instance>::ImportedFuncrefGlobals(imports)),
        globals_(Module<Instance>::ImportedGlobals(imports)) {}

  // Valid as long as this.
  Linkage view() const {
    return {.imports = imports_,
            .memories = memories_,
            .funcref_tables = funcref_tables_,
            .externref_tables = externref_tables_,
            .funcref_globals = funcref_globals_,
            .globals = globals_};
  }

 private:
  using M = Module<Instance>;
  std::array<void*, std::tuple_size_v<Imports>> imports_;
  std::array<wasm_rt_memory_t*, M::kImportedMemories.size()> memories_;
  std::array<wasm_rt_funcref_table_t*, M::kImportedFuncrefTables.size()>
      funcref_tables_;
  std::array<wasm_rt_externref_table_t*, M::kImportedExternrefTables.size()>
      externref_tables_;
  std::array<wasm_rt_funcref_t*, M::kImportedFuncrefGlobals.size()>
      funcref_globals_;
  std::array<void*, M::kImportedGlobals.size()> globals_;
};

// Frees what an instance has and is.
template <typename Instance>
void FreeInstance(Instance* instance, FilledImports* filled) {
  FreeInstanceParts(kLayout<Instance>, instance);
  filled->Free();
  delete instance;
}

// The same, for a guest: its functions disappear from the tables of others.
template <typename Instance>
struct InstanceDeleter {
  void operator()(Instance* instance) {
    if constexpr (Module<Instance>::kImportedFuncrefTables.size() > 0 ||
                  Module<Instance>::kImportedFuncrefGlobals.size() > 0) {
      DropReferences(InstanceLinkage<Instance>(imports).view(), filled,
                     instance);
    }
    FreeInstance(instance, &filled);
  }

  typename Module<Instance>::Imports imports;
  FilledImports filled;
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

// The i-th memory of the module: imported ones come first.
template <typename Instance>
wasm_rt_memory_t* MemoryOf(Instance* instance,
                           const typename Module<Instance>::Imports& imports,
                           size_t i) {
  using M = Module<Instance>;
  if constexpr (M::kImportedMemories.size() > 0) {
    if (i < M::kImportedMemories.size()) return M::ImportedMemories(imports)[i];
  }
  return reinterpret_cast<wasm_rt_memory_t*>(
      reinterpret_cast<std::byte*>(instance) +
      M::kMemories[i - M::kImportedMemories.size()]);
}

template <typename Instance>
inline constexpr size_t kMemoryCount =
    Module<Instance>::kImportedMemories.size() + Module<Instance>::kMemories
                                                     .size();

// Imported modules that work on the guest's memory (WASI) are told which it is:
// the first one.
template <typename Instance>
void AttachImports(Instance* instance,
                   const typename Module<Instance>::Imports& imports) {
  if constexpr (kMemoryCount < Instance >> 0) {
    [[maybe_unused]] const wasm_rt_memory_t* memory =
        MemoryOf(instance, imports, 0);
    std::apply(
        [memory](auto*... import) { (AttachImport(import, memory), ...); },
        imports);
  }
}

}  // namespace internal

template <typename Instance>
class GuestTemplate;

// An instance of a module, with its memories. Movable. Belongs to one thread at
// a time; may be created, used and destroyed on different ones. Imports, the
// source and, of course, the source's service must outlive it.
//
// IMPORTED MEMORIES AND TABLES that are empty (wasm_rt_memory_t{}) when the
// guest is made are the guest's own: it makes them as large as the module asks
// for, from `source`, snapshots and resets them, and leaves them empty again.
// One that is not empty stays whose it is: a guest can be created with it, and
// be snapshotted if a MemorySource made it, but not be made from a template.
// Tables that the module writes to, and mutable globals, are part of snapshots
// in any case, and are overwritten by Instantiate and Reset. So a guest that
// imports one of these needs imports of its own.
template <typename Instance>
class Guest {
 public:
  using Imports = typename Module<Instance>::Imports;

  // Instantiates the module: globals, tables, data segments, start function.
  // `imports`: a pointer for each module it imports, in the order of
  // Z_<name>_instantiate. (A reactor's _initialize is for the caller to call.)
  //
  // Errors: the source's (ResourceExhausted: no free slot; OutOfRange: more
  // memory than the pool allows), FailedPrecondition for an imported memory or
  // table that is smaller than the module asks for or may grow further than it
  // allows, Aborted when the start function traps. An instance that fails, and
  // whose functions are in a table of somebody else's already, lives on as long
  // as the table has them.
  template <typename... Import>
  static absl::StatusOr<Guest> Create(MemorySource* source,
                                      Import*... imports) {
    if constexpr (Module<Instance>::template CheckImports<Import*...>()) {
      return CreateLinked(source, Imports(imports...));
    } else {
      return absl::InvalidArgumentError("other imports than the module's");
    }
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
      case RunEnd::kExited:
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

  // The guest's memories, in the module's order: imported ones come first.
  static constexpr size_t memories() {
    return internal::kMemoryCount<Instance>;
  }
  const wasm_rt_memory_t& memory(size_t i = 0) const {
    return *internal::MemoryOf(instance_.get(), imports(), i);
  }

  // `bytes` bytes at the address `at` of a memory, for the host to read and
  // write while the guest does not run. Valid until the memory grows, is reset
  // or given back. OutOfRange, naming both, where they do not end within the
  // memory's size: addresses come from the guest.
  absl::StatusOr<std::span<std::byte>> Bytes(uint32_t at, uint64_t bytes,
                                             size_t i = 0) const {
    const wasm_rt_memory_t& in = memory(i);
    if (bytes > in.size || at > in.size - bytes) {
      return absl::OutOfRangeError(absl::StrCat(
          bytes, " bytes at address ", at, " do not end within memory ", i,
          " of module ", Module<Instance>::kName, ", which has ", in.size,
          " bytes"));
    }
    return std::span<std::byte>(reinterpret_cast<std::byte*>(in.data) + at,
                                bytes);
  }

  // Makes such bytes ready for a system call: read(2) writes them (kWrite),
  // write(2) reads them (kRead). Without that, a system call gives EFAULT or a
  // short count where pages of a pool were not touched yet. OutOfRange as
  // above; FailedPrecondition for an imported memory that no MemorySource made.
  absl::Status MakeReady(uint32_t at, uint64_t bytes, Access access,
                         size_t i = 0) const {
    if (HostOf(memory(i)) == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("memory ", i, " of module ", Module<Instance>::kName,
                       " is none of a MemorySource"));
    }
    return HostOf(memory(i))->MakeReady(at, bytes, access);
  }

  // The whole state as something to start others from. The guest must not be
  // running, and goes on as it was. What imports keep for themselves is not
  // part of it. FailedPrecondition, naming what, for a state that no snapshot
  // can hold: see InstanceState::Capture.
  absl::StatusOr<std::shared_ptr<const GuestTemplate<Instance>>> Snapshot(
      std::string_view name) const {
    absl::StatusOr<std::unique_ptr<const InstanceState>> state =
        InstanceState::Capture(internal::kLayout<Instance>, Linked().view(),
                               instance_.get(), name);
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
    absl::Status restored =
        state_->RestoreInPlace(Linked().view(), instance_.get());
    if (restored.ok()) Module<Instance>::Relink(instance_.get(), imports());
    return restored;
  }

 private:
  friend class GuestTemplate<Instance>;

  explicit Guest(const Imports& imports)
      : instance_(new Instance(), {.imports = imports, .filled = {}}) {
    internal::AttachImports<Instance>(instance_.get(), imports);
  }

  static absl::StatusOr<Guest> CreateLinked(MemorySource* source,
                                            const Imports& imports) {
    static const bool initialized = (Module<Instance>::Init(), true);
    (void)initialized;
    Guest guest(imports);
    const auto linked = guest.Linked();
    ScopedMemorySource scope(source, Module<Instance>::kMemories.size() +
                                         CountEmptyMemories(linked.view()));
    absl::Status status = guest.instance_.get_deleter().filled.Fill(
        internal::kLayout<Instance>, linked.view(), /*memories=*/true);
    if (status.ok()) {
      status = guest
                   .Run([&guest](Instance* instance) {
                     Module<Instance>::Instantiate(instance, guest.imports());
                   })
                   .status();
    }
    if (status.ok()) return guest;
    guest.KeepWhatIsReferenced(linked.view());
    return absl::Status(
        status.code(),
        absl::StrCat("cannot instantiate module ", Module<Instance>::kName,
                     ": ", status.message()));
  }

  // For a guest that cannot be given to anybody.
  void KeepWhatIsReferenced(const Linkage& linkage) {
    FilledImports& filled = instance_.get_deleter().filled;
    Instance* const instance = instance_.get();
    const bool kept = KeepIfReferenced(linkage, filled, instance, [&] {
      auto parts = std::make_shared<FilledImports>(std::move(filled));
      return std::shared_ptr<void>(instance, [parts](void* it) {
        internal::FreeInstance(static_cast<Instance*>(it), parts.get());
      });
    });
    if (kept) (void)instance_.release();
  }

  const Imports& imports() const { return instance_.get_deleter().imports; }
  internal::InstanceLinkage<Instance> Linked() const {
    return internal::InstanceLinkage<Instance>(imports());
  }

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
  // of the guest runs. `imports` as for Guest::Create; an imported memory must
  // be empty (FailedPrecondition). Errors: the source's.
  template <typename... Import>
  absl::StatusOr<Guest<Instance>> Instantiate(MemorySource* source,
                                              Import*... imports) const {
    using M = Module<Instance>;
    if constexpr (M::template CheckImports<Import*...>()) {
      Guest<Instance> guest{typename M::Imports(imports...)};
      absl::Status restored =
          state_->Restore(source, guest.Linked().view(), guest.instance_.get(),
                          &guest.instance_.get_deleter().filled);
      if (!restored.ok()) return restored;
      M::Relink(guest.instance_.get(), guest.imports());
      guest.state_ = state_;
      return guest;
    } else {
      return absl::InvalidArgumentError("other imports than the module's");
    }
  }

  // What its memories hold, in the module's order: imported ones come first.
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
