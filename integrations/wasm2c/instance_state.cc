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

absl::StatusOr<InstanceState::Function> InstanceState::Detach(
    const InstanceLayout& layout, const void* instance,
    const wasm_rt_funcref_t& reference) {
  Function function = {
      .type = reference.func_type, .target = kNull, .function = reference.func};
  if (reference.module_instance == nullptr) return function;
  if (reference.module_instance == instance) {
    function.target = kSelf;
    return function;
  }
  for (size_t i = 0; i < layout.imports.size(); ++i) {
    if (reference.module_instance ==
        *Field<void*>(instance, layout.imports[i])) {
      function.target = kFirstImport + static_cast<uint32_t>(i);
      return function;
    }
  }
  return absl::FailedPreconditionError(
      "holds a function of another module's instance, which a snapshot of this "
      "one alone cannot keep");
}

absl::StatusOr<std::unique_ptr<const InstanceState>> InstanceState::Capture(
    const InstanceLayout& layout, const void* instance, std::string_view name) {
  std::unique_ptr<InstanceState> state(new InstanceState(layout));
  const auto where = [&](const char* part, size_t index) {
    return absl::StrCat("snapshot '", std::string(name), "' of module ",
                        std::string(layout.name), ": ", part, " ", index);
  };
  const auto annotate = [](const absl::Status& status,
                           const std::string& prefix) {
    return absl::Status(status.code(),
                        absl::StrCat(prefix, " ", status.message()));
  };

  // Tables and globals first: they can be refused, and are cheap.
  for (size_t i = 0; i < layout.funcref_tables.size(); ++i) {
    const auto* table =
        Field<wasm_rt_funcref_table_t>(instance, layout.funcref_tables[i]);
    FuncrefTable& copy = state->funcref_tables_.emplace_back();
    copy.max_size = table->max_size;
    copy.elements.reserve(table->size);
    for (uint32_t k = 0; k < table->size; ++k) {
      absl::StatusOr<Function> function =
          Detach(layout, instance, table->data[k]);
      if (!function.ok()) {
        return annotate(
            function.status(),
            absl::StrCat(where("funcref table", i), " element ", k));
      }
      copy.elements.push_back(*function);
    }
  }
  for (size_t i = 0; i < layout.externref_tables.size(); ++i) {
    const auto* table =
        Field<wasm_rt_externref_table_t>(instance, layout.externref_tables[i]);
    ExternrefTable& copy = state->externref_tables_.emplace_back();
    copy.max_size = table->max_size;
    copy.elements.assign(table->data, table->data + table->size);
  }
  for (size_t i = 0; i < layout.funcref_globals.size(); ++i) {
    absl::StatusOr<Function> function =
        Detach(layout, instance,
               *Field<wasm_rt_funcref_t>(instance, layout.funcref_globals[i]));
    if (!function.ok()) {
      return annotate(function.status(), where("funcref global", i));
    }
    state->funcref_globals_.push_back(*function);
  }
  for (size_t i = 0; i < layout.memories.size(); ++i) {
    const auto* memory = Field<wasm_rt_memory_t>(instance, layout.memories[i]);
    absl::StatusOr<ImageRef> image = HostOf(*memory)->Snapshot(
        i == 0 ? std::string(name) : absl::StrCat(std::string(name), ".", i));
    if (!image.ok()) return annotate(image.status(), where("memory", i));
    state->memories_.push_back(
        {.image = *std::move(image), .size_bytes = memory->size});
    state->max_pages_.push_back(memory->max_pages);
  }

  const auto* bytes = static_cast<const std::byte*>(instance);
  state->bytes_.assign(bytes, bytes + layout.instance_bytes);
  void* const copy = state->bytes_.data();
  for (size_t offset : layout.memories)
    *Field<wasm_rt_memory_t>(copy, offset) = {};
  for (size_t offset : layout.funcref_tables) {
    *Field<wasm_rt_funcref_table_t>(copy, offset) = {};
  }
  for (size_t offset : layout.externref_tables) {
    *Field<wasm_rt_externref_table_t>(copy, offset) = {};
  }
  for (size_t offset : layout.imports) *Field<void*>(copy, offset) = nullptr;
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
         funcref_globals_ == other.funcref_globals_;
}

absl::Status InstanceState::RestoreTablesAndGlobals(
    std::span<void* const> imports, void* instance) const {
  const auto attach = [&](const Function& function) {
    wasm_rt_funcref_t reference = {.func_type = function.type,
                                   .func = function.function,
                                   .module_instance = nullptr};
    if (function.target == kSelf) {
      reference.module_instance = instance;
    } else if (function.target != kNull) {
      reference.module_instance = imports[function.target - kFirstImport];
    }
    return reference;
  };
  for (size_t i = 0; i < funcref_tables_.size(); ++i) {
    auto* table =
        Field<wasm_rt_funcref_table_t>(instance, layout_.funcref_tables[i]);
    const FuncrefTable& saved = funcref_tables_[i];
    absl::Status sized = Resize<wasm_rt_funcref_table_t, wasm_rt_funcref_t>(
        table, static_cast<uint32_t>(saved.elements.size()), saved.max_size);
    if (!sized.ok()) return sized;
    std::transform(saved.elements.begin(), saved.elements.end(), table->data,
                   attach);
  }
  for (size_t i = 0; i < externref_tables_.size(); ++i) {
    auto* table =
        Field<wasm_rt_externref_table_t>(instance, layout_.externref_tables[i]);
    const ExternrefTable& saved = externref_tables_[i];
    absl::Status sized = Resize<wasm_rt_externref_table_t, wasm_rt_externref_t>(
        table, static_cast<uint32_t>(saved.elements.size()), saved.max_size);
    if (!sized.ok()) return sized;
    std::copy(saved.elements.begin(), saved.elements.end(), table->data);
  }
  for (size_t i = 0; i < funcref_globals_.size(); ++i) {
    *Field<wasm_rt_funcref_t>(instance, layout_.funcref_globals[i]) =
        attach(funcref_globals_[i]);
  }
  return absl::OkStatus();
}

absl::Status InstanceState::Restore(MemorySource* source,
                                    std::span<void* const> imports,
                                    void* instance) const {
  std::vector<std::unique_ptr<GuestMemory>> memories;
  if (!memories_.empty()) {
    absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> acquired =
        source->Acquire(memories_);
    if (!acquired.ok()) return acquired.status();
    memories = *std::move(acquired);
  }
  memcpy(instance, bytes_.data(), bytes_.size());
  for (size_t i = 0; i < memories.size(); ++i) {
    AttachMemory(Field<wasm_rt_memory_t>(instance, layout_.memories[i]),
                 std::move(memories[i]), max_pages_[i]);
  }
  absl::Status restored = RestoreTablesAndGlobals(imports, instance);
  if (!restored.ok()) FreeInstanceParts(layout_, instance);
  return restored;
}

absl::Status InstanceState::RestoreInPlace(std::span<void* const> imports,
                                           void* instance) const {
  // What owns something is kept over the copy of the struct.
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
  for (const wasm_rt_memory_t& memory : memories) {
    if (absl::Status reset = HostOf(memory)->Reset(); !reset.ok()) return reset;
  }
  memcpy(instance, bytes_.data(), bytes_.size());
  put_back(layout_.memories, memories);
  put_back(layout_.funcref_tables, funcref_tables);
  put_back(layout_.externref_tables, externref_tables);
  for (size_t i = 0; i < memories.size(); ++i) {
    auto* memory = Field<wasm_rt_memory_t>(instance, layout_.memories[i]);
    memory->size = static_cast<uint32_t>(memories_[i].size_bytes);
    memory->pages = static_cast<uint32_t>(memory->size / kWasmPageBytes);
  }
  return RestoreTablesAndGlobals(imports, instance);
}

}  // namespace firsttouch::wasm2c
