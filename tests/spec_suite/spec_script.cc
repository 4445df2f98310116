#include "tests/spec_suite/spec_script.h"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/instance_state.h"
#include "firsttouch/integrations/wasm2c/runtime.h"

namespace firsttouch::spec {

using wasm2c::InstanceState;
using wasm2c::MemorySource;
using wasm2c::RunEnd;
using wasm2c::Trap;

ScriptGuest::ScriptGuest(const ModuleFace& face, std::vector<void*> imports)
    : face_(face),
      imports_(std::move(imports)),
      parts_(face.link(imports_)),
      instance_(calloc(1, face.layout->instance_bytes)) {}

ScriptGuest::~ScriptGuest() {
  if (instance_ == nullptr) return;
  DropReferences(linkage(), filled_, instance_);
  FreeInstanceParts(*face_.layout, instance_);
  filled_.Free();
  free(instance_);
}

wasm2c::Linkage ScriptGuest::linkage() const {
  return {.imports = imports_,
          .memories = parts_.memories,
          .funcref_tables = parts_.funcref_tables,
          .externref_tables = parts_.externref_tables,
          .funcref_globals = parts_.funcref_globals,
          .globals = parts_.globals};
}

absl::StatusOr<std::unique_ptr<ScriptGuest>> ScriptGuest::Create(
    const ModuleFace& face, MemorySource* source, std::vector<void*> imports) {
  auto guest = absl::WrapUnique(new ScriptGuest(face, std::move(imports)));
  wasm2c::ScopedMemorySource scope(
      source,
      face.layout->memories.size() + CountEmptyMemories(guest->linkage()));
  absl::Status status =
      guest->filled_.Fill(*face.layout, guest->linkage(), /*memories=*/true);
  if (!status.ok()) return status;
  Trap trap;
  absl::Status host_error;
  switch (
      RunGuarded([&] { face.instantiate(guest->instance_, guest->imports_); },
                 {}, &trap, &host_error)) {
    case RunEnd::kReturned:
      return guest;
    case RunEnd::kTrapped:
    case RunEnd::kExited:
      status = absl::AbortedError(trap.Message());
      break;
    case RunEnd::kHostError:
      status = host_error;
      break;
  }
  // Others may call what it has put into their tables: it lives as long as
  // they have it.
  void* const instance = guest->instance_;
  if (KeepIfReferenced(guest->linkage(), guest->filled_, instance, [&]() {
        auto filled =
            std::make_shared<wasm2c::FilledImports>(std::move(guest->filled_));
        return std::shared_ptr<void>(instance, [&face, filled](void* it) {
          FreeInstanceParts(*face.layout, it);
          filled->Free();
          free(it);
        });
      })) {
    guest->instance_ = nullptr;
  }
  return status;
}

absl::Status ScriptGuest::Snapshot() {
  absl::StatusOr<std::unique_ptr<const InstanceState>> state =
      InstanceState::Capture(*face_.layout, linkage(), instance_, "before");
  if (!state.ok()) return state.status();
  state_ = *std::move(state);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ScriptGuest>> ScriptGuest::Copy(
    MemorySource* source, std::vector<void*> imports) const {
  auto copy = absl::WrapUnique(new ScriptGuest(face_, std::move(imports)));
  absl::Status restored =
      state_->Restore(source, copy->linkage(), copy->instance_, &copy->filled_);
  if (!restored.ok()) return restored;
  face_.relink(copy->instance_, copy->imports_);
  copy->state_ = state_;
  return copy;
}

absl::Status ScriptGuest::Reset() {
  absl::Status restored = state_->RestoreInPlace(linkage(), instance_);
  if (restored.ok()) face_.relink(instance_, imports_);
  return restored;
}

RunEnd ScriptGuest::Run(Thunk call, const uint64_t* in, uint64_t* out,
                        Trap* trap, absl::Status* host_error) {
  return RunGuarded([&] { call(instance_, in, out); }, {}, trap, host_error);
}

}  // namespace firsttouch::spec
