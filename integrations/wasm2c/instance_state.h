// Instances of wasm2c modules as data: freeing their parts, and taking them to
// pieces and putting them together again elsewhere. guest.h is the typed face
// of this; nothing here depends on a module's type.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// Where the parts of an instance lie in its struct; see module.h.
struct InstanceLayout {
  std::string_view name;
  size_t instance_bytes = 0;
  std::span<const size_t> memories;
  std::span<const size_t> funcref_tables;
  std::span<const size_t> externref_tables;
  std::span<const size_t> funcref_globals;
  std::span<const size_t> imports;
};

// Gives memories and tables back. Right for an instance whose instantiation
// stopped half-way too, if it was zeroed first.
void FreeInstanceParts(const InstanceLayout& layout, void* instance);

// An instance taken to pieces, none of which depends on where it was.
// Immutable; shared by any number of threads.
class InstanceState {
 public:
  // Snapshots `instance`, whose imports are in its import fields. It must not
  // be running, and goes on unchanged.
  //
  // FailedPrecondition, naming table and element, when a function reference
  // belongs to neither the instance nor one of its imports: there would be no
  // telling what to make of it in another instance. References to objects of
  // the host (externref) are copied as they are.
  static absl::StatusOr<std::unique_ptr<const InstanceState>> Capture(
      const InstanceLayout& layout, const void* instance,
      std::string_view name);

  // Makes `instance` (zeroed, instance_bytes long) equal to the snapshot, with
  // memories from `source`. Its import fields are left for Module::Relink;
  // `imports` are what function references to imported modules become. On
  // failure the instance has no parts.
  absl::Status Restore(MemorySource* source, std::span<void* const> imports,
                       void* instance) const;

  // The same for an instance that came from Restore and has run since: keeps
  // its memories and resets them. After a failure the instance is only good for
  // FreeInstanceParts.
  absl::Status RestoreInPlace(std::span<void* const> imports,
                              void* instance) const;

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

  // One for each memory of the instance.
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
    uint32_t max_size;
    std::vector<Function> elements;

    friend bool operator==(const FuncrefTable&, const FuncrefTable&) = default;
  };
  struct ExternrefTable {
    uint32_t max_size;
    std::vector<wasm_rt_externref_t> elements;

    friend bool operator==(const ExternrefTable&,
                           const ExternrefTable&) = default;
  };

  explicit InstanceState(const InstanceLayout& layout) : layout_(layout) {}

  static absl::StatusOr<Function> Detach(const InstanceLayout& layout,
                                         const void* instance,
                                         const wasm_rt_funcref_t& reference);
  // Everything except memories and imports.
  absl::Status RestoreTablesAndGlobals(std::span<void* const> imports,
                                       void* instance) const;

  InstanceLayout layout_;
  // The struct as it was. What is restored apart is zero.
  std::vector<std::byte> bytes_;
  std::vector<MemoryRequest> memories_;
  std::vector<uint32_t> max_pages_;
  std::vector<FuncrefTable> funcref_tables_;
  std::vector<ExternrefTable> externref_tables_;
  std::vector<Function> funcref_globals_;
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_INSTANCE_STATE_H_
