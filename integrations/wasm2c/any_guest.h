// Guests of modules that a test does not know when it is compiled, behind one
// interface. For tests.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_ANY_GUEST_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_ANY_GUEST_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// Does one action with an instance. `in`: the arguments' bits; `out`: the
// results'.
using Thunk = void (*)(void* instance, const uint64_t* in, uint64_t* out);

// A guest of any module.
class AnyGuest {
 public:
  virtual ~AnyGuest() = default;
  // `imports`: instances of what the module imports, in its order.
  virtual absl::Status Create(MemorySource* source,
                              std::span<void* const> imports) = 0;
  // Snapshots the instance, and changes nothing.
  virtual absl::Status Snapshot() = 0;
  // Goes on in a new instance, made from the last snapshot.
  virtual absl::Status Replace(MemorySource* source,
                               std::span<void* const> imports) = 0;
  // Back to the last snapshot. Only after Replace.
  virtual absl::Status Reset() = 0;
  virtual Outcome<Nothing> Run(Thunk call, const uint64_t* in,
                               uint64_t* out) = 0;
  // What others import from.
  virtual void* instance() = 0;
  // The bytes of a memory; imported ones come first.
  virtual std::span<const uint8_t> memory(size_t i) = 0;
  virtual size_t memories() = 0;
};

// Values as bits. References of the host are addresses; a function is null or
// not.
template <typename T>
T Get(uint64_t bits) {
  static_assert(std::is_arithmetic_v<T>);
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline wasm_rt_externref_t Get(uint64_t bits) {
  return reinterpret_cast<wasm_rt_externref_t>(bits);  // NOLINT
}
template <>
inline wasm_rt_funcref_t Get(uint64_t) {
  return wasm_rt_funcref_null_value;
}

template <typename T>
void Put(T value, uint64_t* bits) {
  *bits = 0;
  memcpy(bits, &value, sizeof value);
}
inline void Put(wasm_rt_funcref_t value, uint64_t* bits) {
  *bits = value.func == nullptr ? 0 : 1;
}

template <typename Instance>
class AnyGuestOf : public AnyGuest {
 public:
  absl::Status Create(MemorySource* source,
                      std::span<void* const> imports) override {
    return Keep(Linked(imports, kIndices, [&](auto*... import) {
      return Typed::Create(source, import ...);
    }));
  }
  absl::Status Snapshot() override {
    auto snapshot = guest_->Snapshot("before");
    if (!snapshot.ok()) return snapshot.status();
    snapshot_ = *std::move(snapshot);
    return absl::OkStatus();
  }
  absl::Status Replace(MemorySource* source,
                       std::span<void* const> imports) override {
    return Keep(Linked(imports, kIndices, [&](auto*... import) {
      return snapshot_->Instantiate(source, import ...);
    }));
  }
  absl::Status Reset() override { return guest_->Reset(); }
  Outcome<Nothing> Run(Thunk call, const uint64_t* in, uint64_t* out) override {
    return guest_->Run([=](Instance* it) { call(it, in, out); });
  }
  void* instance() override { return guest_->get(); }
  std::span<const uint8_t> memory(size_t i) override {
    if constexpr (Typed::memories() > 0) {
      return {guest_->memory(i).data, guest_->memory(i).size};
    }
    return {};
  }
  size_t memories() override { return Typed::memories(); }

 private:
  using Typed = Guest<Instance>;
  using Imports = typename Typed::Imports;
  static constexpr auto kIndices =
      std::make_index_sequence<std::tuple_size_v<Imports>>();

  template <size_t... I, typename Make>
  static absl::StatusOr<Typed> Linked(
      [[maybe_unused]] std::span<void* const> imports,
      std::index_sequence<I...>, Make make) {
    return make(static_cast<std::tuple_element_t<I, Imports>>(imports[I])...);
  }
  absl::Status Keep(absl::StatusOr<Typed> guest) {
    if (!guest.ok()) return guest.status();
    guest_.emplace(*std::move(guest));
    return absl::OkStatus();
  }

  std::optional<Typed> guest_;
  std::shared_ptr<const GuestTemplate<Instance>> snapshot_;
};

template <typename Instance>
std::unique_ptr<AnyGuest> NewGuest() {
  return std::make_unique<AnyGuestOf<Instance>>();
}

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_ANY_GUEST_H_
