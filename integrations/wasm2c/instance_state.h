// Instances of wasm2c modules as data: freeing their parts, and taking them to
// pieces and putting them together again elsewhere. guest.h is the typed face
// of this; nothing here depends on a module's type.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/module.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// Where the parts of an instance lie in its struct, and what it imports; see
// module.h.
struct InstanceLayout {
  std::string_view name;
  size_t instance_bytes = 0;
  std::span<const size_t> memories;
  std::span<const size_t> funcref_tables;
  std::span<const size_t> externref_tables;
  std::span<const size_t> funcref_globals;
  std::span<const size_t> import_pointers;
  std::span<const ImportedMemory> imported_memories;
  std::span<const ImportedFuncrefTable> imported_funcref_tables;
  std::span<const ImportedExternrefTable> imported_externref_tables;
  std::span<const ImportedFuncrefGlobal> imported_funcref_globals;
  std::span<const ImportedGlobal> imported_globals;
};

// What one instance is linked with: the imported modules' instances, and where
// the parts are that InstanceLayout lists as imported, in the same order.
struct Linkage {
  std::span<void* const> imports;
  std::span<wasm_rt_memory_t* const> memories;
  std::span<wasm_rt_funcref_table_t* const> funcref_tables;
  std::span<wasm_rt_externref_table_t* const> externref_tables;
  std::span<wasm_rt_funcref_t* const> funcref_globals;
  std::span<void* const> globals;
};

// Imported memories and tables that were empty when a guest was made, so that
// they are the guest's: it gave them their contents, and frees them.
class FilledImports {
 public:
  FilledImports() = default;
  FilledImports(FilledImports&&) noexcept = default;
  // Only onto one that has nothing.
  FilledImports& operator=(FilledImports&&) noexcept = default;
  ~FilledImports() { Free(); }

  // Gives each empty imported table its least size, and, if `memories`, each
  // empty imported memory its least size too, from the source that the calling
  // thread is bound to. Checks the sizes of those that are not empty.
  //
  // FailedPrecondition, naming the import, for one that is smaller than what
  // the module asks for, or that may grow further than it allows; the errors of
  // AllocateMemory.
  absl::Status Fill(const InstanceLayout& layout, const Linkage& linkage,
                    bool memories);

  void Add(wasm_rt_memory_t* memory) { memories_.push_back(memory); }
  bool Has(const wasm_rt_memory_t* memory) const;
  bool Has(const wasm_rt_funcref_table_t* table) const;

  // Frees them and forgets them: the imports are empty again.
  void Free();

 private:
  std::vector<wasm_rt_memory_t*> memories_;
  std::vector<wasm_rt_funcref_table_t*> funcref_tables_;
  std::vector<wasm_rt_externref_table_t*> externref_tables_;
};

// How many of the imported memories are empty.
size_t CountEmptyMemories(const Linkage& linkage);

// Gives memories and tables back. Right for an instance whose instantiation
// stopped half-way too, if it was zeroed first.
void FreeInstanceParts(const InstanceLayout& layout, void* instance);

// Makes references to functions of `instance` null, in imported tables and
// globals that are not the guest's own: nobody calls it once it is gone.
void DropReferences(const Linkage& linkage, const FilledImports& filled,
                    const void* instance);

// Whether such a table has a function of `instance`. If so, each of them keeps
// `owner` (KeepWithTable in runtime.h).
bool KeepIfReferenced(const Linkage& linkage, const FilledImports& filled,
                      const void* instance,
                      const std::function<std::shared_ptr<void>()>& owner);

// An instance taken to pieces, none of which depends on where it was.
// Immutable; shared by any number of threads.
class InstanceState {
 public:
  // Snapshots `instance`. It must not be running, and goes on unchanged.
  //
  // Imported memories, tables that the module writes, and mutable globals are
  // part of the snapshot.
  //
  // FailedPrecondition, naming table and element, when a function reference
  // belongs to neither the instance nor one of its imports: there would be no
  // telling what to make of it in another instance. The same, naming the
  // import, for an imported memory that no MemorySource made. References to
  // objects of the host (externref) are copied as they are.
  static absl::StatusOr<std::unique_ptr<const InstanceState>> Capture(
      const InstanceLayout& layout, const Linkage& linkage, void* instance,
      std::string_view name);

  // Makes `instance` (zeroed, instance_bytes long) equal to the snapshot, with
  // memories from `source`. Its pointers to imports are left for
  // Module::Relink. Imported memories and tables that it fills are added to
  // `filled`. On failure the instance has no parts.
  //
  // FailedPrecondition, naming the import, for an imported memory that is not
  // empty: it is somebody else's, and would have to be overwritten.
  absl::Status Restore(MemorySource* source, const Linkage& linkage,
                       void* instance, FilledImports* filled) const;

  // The same for an instance that came from Restore and has run since: keeps
  // its memories and resets them. After a failure the instance is only good for
  // FreeInstanceParts.
  absl::Status RestoreInPlace(const Linkage& linkage, void* instance) const;

  // The same with other memories, one for each that the instance has: what the
  // snapshot of an equal instance's memories was, kept in files. Whether they
  // belong to the rest is up to the caller; see EqualsApartFromMemories.
  //
  // InvalidArgument for another number of memories, and for a size that is no
  // multiple of a WebAssembly page or more than the memory's maximum.
  absl::StatusOr<std::unique_ptr<const InstanceState>> WithMemories(
      std::span<const MemoryRequest> memories) const;

  // Whether globals and tables of two instances of one module are equal, so
  // that the memories of one go with the rest of the other.
  bool EqualsApartFromMemories(const InstanceState& other) const;

  // One for each memory of the instance, imported ones first.
  const std::vector<MemoryRequest>& memories() const { return memories_; }

 private:
  // What a function reference's module_instance is: null, the instance itself,
  // or kFirstImport + the import's number.
  enum Target : uint32_t { kNull = 0, kSelf = 1, kFirstImport = 2 };
  struct Function {
    uint32_t type;
    uint32_t target;
    wasm_rt_function_ptr_t function;

    friend bool operator==(const Function&, const Function&) = default;
  };
  struct FuncrefTable {
    // False for an imported table that the module only reads: the host's.
    bool captured = true;
    uint32_t max_size = 0;
    std::vector<Function> elements;

    friend bool operator==(const FuncrefTable&, const FuncrefTable&) = default;
  };
  struct ExternrefTable {
    bool captured = true;
    uint32_t max_size = 0;
    std::vector<wasm_rt_externref_t> elements;

    friend bool operator==(const ExternrefTable&,
                           const ExternrefTable&) = default;
  };

  explicit InstanceState(const InstanceLayout& layout) : layout_(layout) {}

  static absl::StatusOr<Function> Detach(std::span<void* const> imports,
                                         const void* instance,
                                         const wasm_rt_funcref_t& reference);
  absl::Status CaptureTablesAndGlobals(const Linkage& linkage, void* instance,
                                       const std::string& where);
  absl::Status CaptureMemories(const Linkage& linkage, void* instance,
                               std::string_view name, const std::string& where);
  // Everything except memories and pointers to imports.
  absl::Status RestoreTablesAndGlobals(const Linkage& linkage,
                                       void* instance) const;

  InstanceLayout layout_;
  // The struct as it was. What is restored apart is zero.
  std::vector<std::byte> bytes_;
  std::vector<MemoryRequest> memories_;
  std::vector<uint32_t> max_pages_;
  // The instance's own, then imported ones.
  std::vector<FuncrefTable> funcref_tables_;
  std::vector<ExternrefTable> externref_tables_;
  std::vector<Function> funcref_globals_;
  // Of imported mutable globals, one after the other.
  std::vector<std::byte> imported_globals_;
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_
