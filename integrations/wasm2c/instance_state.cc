#include "firsttouch/integrations/wasm2c/instance_state.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/integrations/wasm2c/runtime.h"

namespace firsttouch::wasm2c {
namespace {

template <typename T>
T* Field(void* instance, size_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(instance) + offset);
}

template <typename T>
const T* Field(const void* instance, size_t offset) {
  return reinterpret_cast<const T*>(static_cast<const std::byte*>(instance) +
                                    offset);
}

// The i-th of the parts of one kind: first those at `offsets` in the instance,
// then the imported ones.
template <typename T>
T* OwnFirst(std::span<const size_t> offsets, std::span<T* const> imported,
            void* instance, size_t i) {
  return i < offsets.size() ? Field<T>(instance, offsets[i])
                            : imported[i - offsets.size()];
}

wasm_rt_funcref_table_t* FuncrefTableAt(const InstanceLayout& layout,
                                        const Linkage& linkage, void* instance,
                                        size_t i) {
  return OwnFirst(layout.funcref_tables, linkage.funcref_tables, instance, i);
}

wasm_rt_externref_table_t* ExternrefTableAt(const InstanceLayout& layout,
                                            const Linkage& linkage,
                                            void* instance, size_t i) {
  return OwnFirst(layout.externref_tables, linkage.externref_tables, instance,
                  i);
}

wasm_rt_funcref_t* FuncrefGlobalAt(const InstanceLayout& layout,
                                   const Linkage& linkage, void* instance,
                                   size_t i) {
  return OwnFirst(layout.funcref_globals, linkage.funcref_globals, instance, i);
}

// Memories are in the order of the module's index space: imported ones first.
wasm_rt_memory_t* MemoryAt(const InstanceLayout& layout, const Linkage& linkage,
                           void* instance, size_t i) {
  return i < linkage.memories.size()
             ? linkage.memories[i]
             : Field<wasm_rt_memory_t>(
                   instance, layout.memories[i - linkage.memories.size()]);
}

size_t CountMemories(const InstanceLayout& layout) {
  return layout.imported_memories.size() + layout.memories.size();
}

// Makes `table` hold exactly `size` elements; keeps its storage if that is
// large enough.
template <typename Table, typename Element>
absl::Status Resize(Table* table, uint32_t size, uint32_t max_size) {
  const uint32_t capacity = std::max(size, 1u);
  if (table->capacity < capacity) {
    void* data = realloc(table->data, capacity * sizeof(Element));
    if (data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a table of ", size, " elements"));
    }
    table->data = static_cast<Element*>(data);
    table->capacity = capacity;
  }
  table->size = size;
  table->max_size = max_size;
  return absl::OkStatus();
}

}  // namespace

void FreeInstanceParts(const InstanceLayout& layout, void* instance) {
  for (size_t offset : layout.memories) {
    wasm_rt_free_memory(Field<wasm_rt_memory_t>(instance, offset));
  }
  for (size_t offset : layout.funcref_tables) {
    wasm_rt_free_funcref_table(
        Field<wasm_rt_funcref_table_t>(instance, offset));
  }
  for (size_t offset : layout.externref_tables) {
    wasm_rt_free_externref_table(
        Field<wasm_rt_externref_table_t>(instance, offset));
  }
}

namespace {

// Why an import is refused, with its name.
absl::Status ImportError(const InstanceLayout& layout, const char* kind,
                         const char* name, std::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("module ", std::string(layout.name), ": imported ", kind,
                   " '", name, "' ", std::string(why)));
}

bool IsEmpty(const wasm_rt_memory_t& memory) {
  return memory.host == nullptr && memory.data == nullptr;
}

template <typename Table, typename Import, typename Allocate>
absl::Status FillTables(const InstanceLayout& layout,
                        std::span<Table* const> tables,
                        std::span<const Import> imports, Allocate allocate,
                        std::vector<Table*>* filled) {
  for (size_t i = 0; i < tables.size(); ++i) {
    if (tables[i]->data == nullptr) {
      absl::Status allocated = allocate(tables[i], imports[i].min_size);
      if (!allocated.ok()) return allocated;
      tables[i]->max_size = imports[i].max_size;
      filled->push_back(tables[i]);
    } else if (tables[i]->size < imports[i].min_size) {
      return ImportError(
          layout, "table", imports[i].name,
          absl::StrCat("has ", tables[i]->size,
                       " elements, and the module asks for at least ",
                       imports[i].min_size));
    } else if (tables[i]->max_size > imports[i].max_size) {
      return ImportError(
          layout, "table", imports[i].name,
          absl::StrCat("may grow to ", tables[i]->max_size,
                       " elements, and the module allows at most ",
                       imports[i].max_size));
    }
  }
  return absl::OkStatus();
}

template <typename T>
bool Contains(const std::vector<T*>& all, const T* one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

}  // namespace

absl::Status FilledImports::Fill(const InstanceLayout& layout,
                                 const Linkage& linkage, bool memories) {
  absl::Status filled = FillTables(
      layout, linkage.funcref_tables, layout.imported_funcref_tables,
      [](wasm_rt_funcref_table_t* table, uint32_t size) {
        table->kept = nullptr;
        absl::Status sized = Resize<wasm_rt_funcref_table_t, wasm_rt_funcref_t>(
            table, size, size);
        if (sized.ok()) std::fill_n(table->data, size, wasm_rt_funcref_t{});
        return sized;
      },
      &funcref_tables_);
  if (!filled.ok()) return filled;
  filled = FillTables(
      layout, linkage.externref_tables, layout.imported_externref_tables,
      [](wasm_rt_externref_table_t* table, uint32_t size) {
        absl::Status sized =
            Resize<wasm_rt_externref_table_t, wasm_rt_externref_t>(table, size,
                                                                   size);
        if (sized.ok()) std::fill_n(table->data, size, nullptr);
        return sized;
      },
      &externref_tables_);
  if (!filled.ok() || !memories) return filled;
  for (size_t i = 0; i < linkage.memories.size(); ++i) {
    wasm_rt_memory_t* const memory = linkage.memories[i];
    const ImportedMemory& import = layout.imported_memories[i];
    if (IsEmpty(*memory)) {
      absl::Status allocated =
          AllocateMemory(memory, import.min_pages, import.max_pages);
      if (!allocated.ok()) return allocated;
      memories_.push_back(memory);
    } else if (memory->pages < import.min_pages) {
      return ImportError(layout, "memory", import.name,
                         absl::StrCat("has ", memory->pages,
                                      " pages, and the module asks for at "
                                      "least ",
                                      import.min_pages));
    } else if (memory->max_pages > import.max_pages) {
      return ImportError(layout, "memory", import.name,
                         absl::StrCat("may grow to ", memory->max_pages,
                                      " pages, and the module allows at most ",
                                      import.max_pages));
    }
  }
  return absl::OkStatus();
}

bool FilledImports::Has(const wasm_rt_memory_t* memory) const {
  return Contains(memories_, memory);
}

bool FilledImports::Has(const wasm_rt_funcref_table_t* table) const {
  return Contains(funcref_tables_, table);
}

void FilledImports::Free() {
  for (wasm_rt_memory_t* memory : memories_) wasm_rt_free_memory(memory);
  for (wasm_rt_funcref_table_t* table : funcref_tables_) {
    wasm_rt_free_funcref_table(table);
  }
  for (wasm_rt_externref_table_t* table : externref_tables_) {
    wasm_rt_free_externref_table(table);
  }
  memories_.clear();
  funcref_tables_.clear();
  externref_tables_.clear();
}

size_t CountEmptyMemories(const Linkage& linkage) {
  return std::count_if(
      linkage.memories.begin(), linkage.memories.end(),
      [](const wasm_rt_memory_t* memory) { return IsEmpty(*memory); });
}

void DropReferences(const Linkage& linkage, const FilledImports& filled,
                    const void* instance) {
  const auto drop = [instance](wasm_rt_funcref_t& reference) {
    if (reference.module_instance == instance) reference = {};
  };
  for (wasm_rt_funcref_table_t* table : linkage.funcref_tables) {
    if (filled.Has(table)) continue;
    std::for_each(table->data, table->data + table->size, drop);
  }
  for (wasm_rt_funcref_t* global : linkage.funcref_globals) drop(*global);
}

bool KeepIfReferenced(const Linkage& linkage, const FilledImports& filled,
                      const void* instance,
                      const std::function<std::shared_ptr<void>()>& owner) {
  std::shared_ptr<void> kept;
  for (wasm_rt_funcref_table_t* table : linkage.funcref_tables) {
    if (filled.Has(table) ||
        std::none_of(table->data, table->data + table->size,
                     [instance](const wasm_rt_funcref_t& reference) {
                       return reference.module_instance == instance;
                     })) {
      continue;
    }
    if (kept == nullptr) kept = owner();
    KeepWithTable(table, instance, kept);
  }
  return kept != nullptr;
}

absl::StatusOr<InstanceState::Function> InstanceState::Detach(
    std::span<void* const> imports, const void* instance,
    const wasm_rt_funcref_t& reference) {
  Function function = {
      .type = reference.func_type, .target = kNull, .function = reference.func};
  if (reference.module_instance == nullptr) return function;
  if (reference.module_instance == instance) {
    function.target = kSelf;
    return function;
  }
  const auto found =
      std::find(imports.begin(), imports.end(), reference.module_instance);
  if (found != imports.end()) {
    function.target =
        kFirstImport + static_cast<uint32_t>(found - imports.begin());
    return function;
  }
  return absl::FailedPreconditionError(
      "holds a function of another module's instance, which a snapshot of this "
      "one alone cannot keep");
}

namespace {

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(),
                      absl::StrCat(prefix, " ", status.message()));
}

}  // namespace

absl::Status InstanceState::CaptureTablesAndGlobals(const Linkage& linkage,
                                                    void* instance,
                                                    const std::string& where) {
  const size_t own_funcref_tables = layout_.funcref_tables.size();
  for (size_t i = 0; i < own_funcref_tables + linkage.funcref_tables.size();
       ++i) {
    FuncrefTable& copy = funcref_tables_.emplace_back();
    if (i >= own_funcref_tables &&
        !layout_.imported_funcref_tables[i - own_funcref_tables].written) {
      copy.captured = false;
      continue;
    }
    const auto* table = FuncrefTableAt(layout_, linkage, instance, i);
    copy.max_size = table->max_size;
    copy.elements.reserve(table->size);
    for (uint32_t k = 0; k < table->size; ++k) {
      absl::StatusOr<Function> function =
          Detach(linkage.imports, instance, table->data[k]);
      if (!function.ok()) {
        return Annotate(function.status(), absl::StrCat(where, "funcref table ",
                                                        i, " element ", k));
      }
      copy.elements.push_back(*function);
    }
  }
  const size_t own_externref_tables = layout_.externref_tables.size();
  for (size_t i = 0; i < own_externref_tables + linkage.externref_tables.size();
       ++i) {
    ExternrefTable& copy = externref_tables_.emplace_back();
    if (i >= own_externref_tables &&
        !layout_.imported_externref_tables[i - own_externref_tables].written) {
      copy.captured = false;
      continue;
    }
    const auto* table = ExternrefTableAt(layout_, linkage, instance, i);
    copy.max_size = table->max_size;
    copy.elements.assign(table->data, table->data + table->size);
  }
  for (size_t i = 0;
       i < layout_.funcref_globals.size() + linkage.funcref_globals.size();
       ++i) {
    absl::StatusOr<Function> function =
        Detach(linkage.imports, instance,
               *FuncrefGlobalAt(layout_, linkage, instance, i));
    if (!function.ok()) {
      return Annotate(function.status(),
                      absl::StrCat(where, "funcref global ", i));
    }
    funcref_globals_.push_back(*function);
  }
  for (size_t i = 0; i < linkage.globals.size(); ++i) {
    const auto* bytes = static_cast<const std::byte*>(linkage.globals[i]);
    imported_globals_.insert(imported_globals_.end(), bytes,
                             bytes + layout_.imported_globals[i].bytes);
  }
  return absl::OkStatus();
}

absl::Status InstanceState::CaptureMemories(const Linkage& linkage,
                                            void* instance,
                                            std::string_view name,
                                            const std::string& where) {
  for (size_t i = 0; i < CountMemories(layout_); ++i) {
    const wasm_rt_memory_t& memory = *MemoryAt(layout_, linkage, instance, i);
    if (HostOf(memory) == nullptr) {
      return Annotate(
          ImportError(layout_, "memory", layout_.imported_memories[i].name,
                      "is none of a MemorySource, and a snapshot cannot keep "
                      "it: leave it empty for the guest to fill"),
          where);
    }
    absl::StatusOr<ImageRef> image = HostOf(memory)->Snapshot(
        i == 0 ? std::string(name) : absl::StrCat(std::string(name), ".", i));
    if (!image.ok()) {
      return Annotate(image.status(), absl::StrCat(where, "memory ", i));
    }
    memories_.push_back(
        {.image = *std::move(image), .size_bytes = memory.size});
    max_pages_.push_back(memory.max_pages);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<const InstanceState>> InstanceState::Capture(
    const InstanceLayout& layout, const Linkage& linkage, void* instance,
    std::string_view name) {
  std::unique_ptr<InstanceState> state(new InstanceState(layout));
  const std::string where =
      absl::StrCat("snapshot '", std::string(name), "' of module ",
                   std::string(layout.name), ": ");
  // Tables and globals first: they can be refused, and are cheap.
  absl::Status captured =
      state->CaptureTablesAndGlobals(linkage, instance, where);
  if (!captured.ok()) return captured;
  captured = state->CaptureMemories(linkage, instance, name, where);
  if (!captured.ok()) return captured;

  const auto* bytes = static_cast<const std::byte*>(instance);
  state->bytes_.assign(bytes, bytes + layout.instance_bytes);
  void* const copy = state->bytes_.data();
  for (size_t offset : layout.memories) {
    *Field<wasm_rt_memory_t>(copy, offset) = {};
  }
  for (size_t offset : layout.funcref_tables) {
    *Field<wasm_rt_funcref_table_t>(copy, offset) = {};
  }
  for (size_t offset : layout.externref_tables) {
    *Field<wasm_rt_externref_table_t>(copy, offset) = {};
  }
  for (size_t offset : layout.funcref_globals) {
    *Field<wasm_rt_funcref_t>(copy, offset) = {};
  }
  for (size_t offset : layout.import_pointers) {
    *Field<void*>(copy, offset) = nullptr;
  }
  return state;
}

absl::StatusOr<std::unique_ptr<const InstanceState>>
InstanceState::WithMemories(std::span<const MemoryRequest> memories) const {
  const std::string prefix =
      absl::StrCat("module ", std::string(layout_.name), ": ");
  if (memories.size() != memories_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(prefix, memories.size(),
                     " memories were given and it has ", memories_.size()));
  }
  for (size_t i = 0; i < memories.size(); ++i) {
    const uint64_t bytes = memories[i].size_bytes;
    const uint64_t most = max_pages_[i] * uint64_t{kWasmPageBytes};
    if (bytes % kWasmPageBytes != 0 || bytes > most) {
      return absl::InvalidArgumentError(
          absl::StrCat(prefix, "memory ", i, " of ", bytes,
                       " bytes: the size must be a multiple of ",
                       kWasmPageBytes, " and at most ", most));
    }
  }
  std::unique_ptr<InstanceState> state(new InstanceState(*this));
  state->memories_.assign(memories.begin(), memories.end());
  return state;
}

bool InstanceState::EqualsApartFromMemories(const InstanceState& other) const {
  return layout_.name == other.layout_.name && bytes_ == other.bytes_ &&
         funcref_tables_ == other.funcref_tables_ &&
         externref_tables_ == other.externref_tables_ &&
         funcref_globals_ == other.funcref_globals_ &&
         imported_globals_ == other.imported_globals_;
}

absl::Status InstanceState::RestoreTablesAndGlobals(const Linkage& linkage,
                                                    void* instance) const {
  const auto attach = [&](const Function& function) {
    wasm_rt_funcref_t reference = {.func_type = function.type,
                                   .func = function.function,
                                   .module_instance = nullptr};
    if (function.target == kSelf) {
      reference.module_instance = instance;
    } else if (function.target != kNull) {
      reference.module_instance =
          linkage.imports[function.target - kFirstImport];
    }
    return reference;
  };
  for (size_t i = 0; i < funcref_tables_.size(); ++i) {
    const FuncrefTable& saved = funcref_tables_[i];
    if (!saved.captured) continue;
    auto* table = FuncrefTableAt(layout_, linkage, instance, i);
    absl::Status sized = Resize<wasm_rt_funcref_table_t, wasm_rt_funcref_t>(
        table, static_cast<uint32_t>(saved.elements.size()), saved.max_size);
    if (!sized.ok()) return sized;
    std::transform(saved.elements.begin(), saved.elements.end(), table->data,
                   attach);
  }
  for (size_t i = 0; i < externref_tables_.size(); ++i) {
    const ExternrefTable& saved = externref_tables_[i];
    if (!saved.captured) continue;
    auto* table = ExternrefTableAt(layout_, linkage, instance, i);
    absl::Status sized = Resize<wasm_rt_externref_table_t, wasm_rt_externref_t>(
        table, static_cast<uint32_t>(saved.elements.size()), saved.max_size);
    if (!sized.ok()) return sized;
    std::copy(saved.elements.begin(), saved.elements.end(), table->data);
  }
  for (size_t i = 0; i < funcref_globals_.size(); ++i) {
    *FuncrefGlobalAt(layout_, linkage, instance, i) =
        attach(funcref_globals_[i]);
  }
  const std::byte* saved = imported_globals_.data();
  for (size_t i = 0; i < linkage.globals.size(); ++i) {
    const size_t bytes = layout_.imported_globals[i].bytes;
    memcpy(linkage.globals[i], saved, bytes);
    saved += bytes;
  }
  return absl::OkStatus();
}

absl::Status InstanceState::Restore(MemorySource* source,
                                    const Linkage& linkage, void* instance,
                                    FilledImports* filled) const {
  for (size_t i = 0; i < linkage.memories.size(); ++i) {
    if (IsEmpty(*linkage.memories[i])) continue;
    return ImportError(
        layout_, "memory", layout_.imported_memories[i].name,
        "is not empty, and a guest that is made from a template fills it: give "
        "each guest imports of its own");
  }
  absl::Status restored = filled->Fill(layout_, linkage, /*memories=*/false);
  if (!restored.ok()) return restored;
  std::vector<std::unique_ptr<GuestMemory>> memories;
  if (!memories_.empty()) {
    absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> acquired =
        source->Acquire(memories_);
    if (!acquired.ok()) return acquired.status();
    memories = *std::move(acquired);
  }
  memcpy(instance, bytes_.data(), bytes_.size());
  for (size_t i = 0; i < memories.size(); ++i) {
    wasm_rt_memory_t* const into = MemoryAt(layout_, linkage, instance, i);
    AttachMemory(into, std::move(memories[i]), max_pages_[i]);
    if (i < linkage.memories.size()) filled->Add(into);
  }
  restored = RestoreTablesAndGlobals(linkage, instance);
  if (!restored.ok()) FreeInstanceParts(layout_, instance);
  return restored;
}

absl::Status InstanceState::RestoreInPlace(const Linkage& linkage,
                                           void* instance) const {
  // What is kept over the copy of the struct.
  const auto keep = [&]<typename T>(std::span<const size_t> offsets,
                                    std::vector<T>* kept) {
    for (size_t offset : offsets) kept->push_back(*Field<T>(instance, offset));
  };
  const auto put_back = [&]<typename T>(std::span<const size_t> offsets,
                                        const std::vector<T>& kept) {
    for (size_t i = 0; i < offsets.size(); ++i) {
      *Field<T>(instance, offsets[i]) = kept[i];
    }
  };
  std::vector<wasm_rt_memory_t> memories;
  std::vector<wasm_rt_funcref_table_t> funcref_tables;
  std::vector<wasm_rt_externref_table_t> externref_tables;
  keep(layout_.memories, &memories);
  keep(layout_.funcref_tables, &funcref_tables);
  keep(layout_.externref_tables, &externref_tables);
  for (size_t i = 0; i < memories_.size(); ++i) {
    const wasm_rt_memory_t& memory = *MemoryAt(layout_, linkage, instance, i);
    if (HostOf(memory) == nullptr) {
      return ImportError(layout_, "memory", layout_.imported_memories[i].name,
                         "was taken from the guest: it is empty");
    }
    absl::Status reset = HostOf(memory)->Reset();
    if (!reset.ok()) return reset;
  }
  memcpy(instance, bytes_.data(), bytes_.size());
  put_back(layout_.memories, memories);
  put_back(layout_.funcref_tables, funcref_tables);
  put_back(layout_.externref_tables, externref_tables);
  for (size_t i = 0; i < memories_.size(); ++i) {
    wasm_rt_memory_t* const memory = MemoryAt(layout_, linkage, instance, i);
    memory->size = static_cast<uint32_t>(memories_[i].size_bytes);
    memory->pages = static_cast<uint32_t>(memory->size / kWasmPageBytes);
  }
  return RestoreTablesAndGlobals(linkage, instance);
}

}  // namespace firsttouch::wasm2c
