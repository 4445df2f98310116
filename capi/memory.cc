// Memories in C. Acquire and release are thin: what they do in a steady cycle
// beside service/steady_path.cc is to look two handles up, and to fill an
// entry of the registry. No system call, lock or allocation, and no atomic
// instruction that is more than a load or a store.

#include "firsttouch/service/memory.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/registry.h"
#include "firsttouch/capi/stats_json.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/trap.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/capi/wait.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/leases.h"
#include "firsttouch/service/memory_pages.h"
#include "firsttouch/service/run_trapped.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/steady_acquire.h"
#include "firsttouch/service/steady_path.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::capi {
namespace {

constexpr ft_memory_options kNoOptions = FT_MEMORY_OPTIONS_INIT;

[[gnu::cold]] ft_status FailImage(ft_error* error, const char* function,
                                  ft_image image) {
  return FailHandle(error, function, "image", image.entry, image.serial);
}

// The image that is asked for, as the handle has it, or none. False for a
// handle that is not valid. (A slot that keeps the image makes a reference of
// its own.)
[[gnu::always_inline]] inline bool ImageOf(const ft_memory_options& options,
                                           const Image** image) {
  *image = nullptr;
  if ((options.image.entry | options.image.serial) == 0) return true;
  const ImageRef* const found = FindImage(options.image);
  if (found == nullptr) [[unlikely]] {
    return false;
  }
  *image = found->get();
  return true;
}

// What the steady path is asked for.
[[gnu::always_inline]] inline LeaseTerms TermsOf(
    const ft_memory_options& options, const Image* image,
    const PoolPlace& place) {
  return {.image = image,
          .initial_bytes = options.size_bytes != 0 ? options.size_bytes
                           : image != nullptr      ? image->size_bytes()
                                                   : 0,
          .trap_callback = options.trap_callback != nullptr
                               ? &PoolRecord::OnMemoryTrap
                               : nullptr,
          .trap_user = place.record.load(std::memory_order_relaxed)};
}

// What a service is asked for. Borrows the image: a reference with a share in
// the count would be two locked instructions, and the handle keeps the image
// during the call.
MemoryOptions ToCpp(const ft_memory_options& options, const Image* image,
                    const PoolPlace& place) {
  const LeaseTerms terms = TermsOf(options, image, place);
  MemoryOptions asked = {
      .image = ImageRef(ImageRef(), image),
      .size_bytes = terms.initial_bytes,
      .trap_callback = terms.trap_callback,
      .trap_user = terms.trap_user,
  };
  if (options.wait_ns != 0) asked.deadline = DeadlineAfter(options.wait_ns);
  return asked;
}

// Where the steady path cannot lease `own`, the slot that this thread had
// parked, if any.
[[gnu::noinline]] ft_status AcquireSlowly(const PoolPlace& place,
                                          const ft_memory_options& options,
                                          const Image* image, SlotState* own,
                                          ft_memory* memory, void** base,
                                          ft_error* error) {
  absl::StatusOr<Memory> acquired =
      AcquireAny(*place.pool, ToCpp(options, image, place), own);
  if (!acquired.ok()) return Fail(error, acquired.status());
  if (base != nullptr) *base = acquired->base();
  const uint32_t slot = acquired->instance();  // of one memory each
  new (&place.entries[slot].place) Memory(*std::move(acquired));
  HoldMemory(place, slot, options, memory);
  return FT_OK;
}

// `options` has this library's size.
[[gnu::always_inline]] inline ft_status Acquire(
    const PoolPlace& place, const ft_memory_options& options, ft_memory* memory,
    void** base, ft_error* error) {
  const Image* image = nullptr;
  if (!ImageOf(options, &image)) [[unlikely]] {
    return FailImage(error, "ft_memory_acquire", options.image);
  }
  const OwnSlot own = LeaseOwn(*place.pool, TermsOf(options, image, place));
  if (!own.is_leased) [[unlikely]] {
    return AcquireSlowly(place, options, image, own.slot, memory, base, error);
  }
  const auto slot = static_cast<uint32_t>(own.slot - place.first_slot);
  const auto* const held =
      new (&place.entries[slot].place) Memory(place.pool->MemoryOf(*own.slot));
  if (base != nullptr) *base = held->base();
  HoldMemory(place, slot, options, memory);
  return FT_OK;
}

// With options of another version, or none.
[[gnu::noinline]] ft_status AcquireOther(const PoolPlace& place,
                                         const ft_memory_options* options,
                                         ft_memory* memory, void** base,
                                         ft_error* error) {
  if (options == nullptr) options = &kNoOptions;
  ft_memory_options room;
  const ft_status status =
      TakeStruct("ft_memory_acquire", room, &options, error);
  if (status != FT_OK) return status;
  return Acquire(place, *options, memory, base, error);
}

ft_status AcquireInstance(const PoolPlace& place,
                          const ft_memory_options* const* options, size_t count,
                          ft_memory* memories, ft_error* error) {
  constexpr const char* kFunction = "ft_memory_acquire_instance";
  std::vector<ft_memory_options> rooms(count);
  std::vector<const ft_memory_options*> known(options, options + count);
  std::vector<MemoryOptions> asked;
  asked.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (known[i] == nullptr) known[i] = &kNoOptions;
    const ft_status status = TakeStruct(kFunction, rooms[i], &known[i], error);
    if (status != FT_OK) return status;
    const Image* image = nullptr;
    if (!ImageOf(*known[i], &image)) {
      return FailImage(error, kFunction, known[i]->image);
    }
    asked.push_back(ToCpp(*known[i], image, place));
  }
  absl::StatusOr<std::vector<Memory>> acquired =
      firsttouch::AcquireInstance(*place.pool, asked);
  if (!acquired.ok()) return Fail(error, acquired.status());
  for (size_t i = 0; i < count; ++i) {
    Memory& held = (*acquired)[i];
    const auto slot =
        static_cast<uint32_t>(held.instance() * count + held.memory_index());
    new (&place.entries[slot].place) Memory(std::move(held));
    HoldMemory(place, slot, *known[i], &memories[i]);
  }
  return FT_OK;
}

[[gnu::cold]] ft_status FailMemory(ft_error* error, const char* function,
                                   ft_memory memory) {
  return FailHandle(error, function, "memory", memory.entry, memory.serial);
}

// Calls body(Memory&) with the memory of a handle.
template <typename Body>
ft_status WithMemory(const char* function, ft_memory memory, ft_error* error,
                     Body body) {
  MemoryEntry* const entry = FindMemory(memory);
  if (entry == nullptr) return FailMemory(error, function, memory);
  return Call(error, [&] { return body(entry->memory()); });
}

[[gnu::noinline]] ft_status ReleaseOrphan(ft_memory memory, ft_error* error) {
  return Call(error, [&] {
    bool found = false;
    const absl::Status status = ReleaseOfOrphan(memory, &found);
    if (!found) return FailMemory(error, "ft_memory_release", memory);
    return Finish(error, status);
  });
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::ImageRef;
using firsttouch::Memory;
using firsttouch::ServicePool;
using firsttouch::SlotState;
using firsttouch::TrapInfo;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailHandle;
using firsttouch::capi::FailMemory;
using firsttouch::capi::FailNull;
using firsttouch::capi::FindMemory;
using firsttouch::capi::FindPlace;
using firsttouch::capi::Finish;
using firsttouch::capi::FoundMemory;
using firsttouch::capi::GiveStruct;
using firsttouch::capi::GiveText;
using firsttouch::capi::LetGoOfEntry;
using firsttouch::capi::LocateMemory;
using firsttouch::capi::MemoryEntry;
using firsttouch::capi::PoolPlace;
using firsttouch::capi::ToJson;
using firsttouch::capi::WithMemory;

ft_status ft_memory_acquire(ft_pool pool, const ft_memory_options* options,
                            ft_memory* memory, void** base,
                            ft_error* error) noexcept {
  if (memory == nullptr) [[unlikely]] {
    return FailNull(error, __func__, "memory");
  }
  const PoolPlace* const place = FindPlace(pool);
  if (place == nullptr) [[unlikely]] {
    return FailHandle(error, __func__, "pool", pool.entry, pool.serial);
  }
  return Call(error, [&]() -> ft_status {
    if (options == nullptr || options->struct_size != sizeof *options)
        [[unlikely]] {
      return firsttouch::capi::AcquireOther(*place, options, memory, base,
                                            error);
    }
    return firsttouch::capi::Acquire(*place, *options, memory, base, error);
  });
}

ft_status ft_memory_acquire_instance(ft_pool pool,
                                     const ft_memory_options* const* options,
                                     size_t count, ft_memory* memories,
                                     ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  if (memories == nullptr) return FailNull(error, __func__, "memories");
  const PoolPlace* const place = FindPlace(pool);
  if (place == nullptr) {
    return FailHandle(error, __func__, "pool", pool.entry, pool.serial);
  }
  // Before `count` is believed; Service says the rest.
  const uint32_t per_instance =
      place->pool->layout.options().memories_per_instance;
  if (count != per_instance) {
    return Call(error, [&] {
      return Fail(error, FT_ERROR_INVALID_ARGUMENT,
                  absl::StrCat("ft_memory_acquire_instance: count is ", count,
                               " and memories_per_instance of the pool is ",
                               per_instance, ": give as many options"));
    });
  }
  return Call(error, [&] {
    return firsttouch::capi::AcquireInstance(*place, options, count, memories,
                                             error);
  });
}

ft_status ft_memory_release(ft_memory memory, ft_error* error) noexcept {
  const FoundMemory found = LocateMemory(memory);
  if (found.entry == nullptr) [[unlikely]] {
    return FailMemory(error, __func__, memory);
  }
  const PoolPlace& place = *found.place;
  if ((place.serial.load(std::memory_order_relaxed) & 1) == 0) [[unlikely]] {
    return firsttouch::capi::ReleaseOrphan(memory, error);
  }
  ServicePool& pool = *place.pool;
  SlotState& slot = place.first_slot[static_cast<uint32_t>(memory.entry)];
  LetGoOfEntry(*found.entry);
  return Call(error, [&] { return Finish(error, ReleaseSlot(pool, slot)); });
}

ft_status ft_memory_reset(ft_memory memory, ft_error* error) noexcept {
  return WithMemory(__func__, memory, error,
                    [&](Memory& held) { return Finish(error, held.Reset()); });
}

void* ft_memory_base(ft_memory memory) noexcept {
  MemoryEntry* const entry = FindMemory(memory);
  return entry == nullptr ? nullptr : entry->memory().base();
}

uint64_t ft_memory_size(ft_memory memory) noexcept {
  MemoryEntry* const entry = FindMemory(memory);
  return entry == nullptr ? 0 : entry->memory().size_bytes();
}

ft_status ft_memory_get_info(ft_memory memory, ft_memory_info* info,
                             ft_error* error) noexcept {
  if (info == nullptr) return FailNull(error, __func__, "info");
  const char* const function = __func__;
  return WithMemory(function, memory, error, [&](const Memory& held) {
    const ft_memory_info told = {
        .struct_size = sizeof(ft_memory_info),
        .base = reinterpret_cast<uintptr_t>(held.base()),
        .size_bytes = held.size_bytes(),
        .max_bytes = held.max_bytes(),
        .instance = held.instance(),
        .memory_index = held.memory_index(),
    };
    return GiveStruct(function, told, info, error);
  });
}

ft_status ft_memory_grow(ft_memory memory, uint64_t size_bytes,
                         ft_error* error) noexcept {
  return WithMemory(__func__, memory, error, [&](Memory& held) {
    return Finish(error, held.Grow(size_bytes));
  });
}

ft_status ft_memory_grow_by(ft_memory memory, uint64_t delta_bytes,
                            uint64_t* size_before, ft_error* error) noexcept {
  return WithMemory(__func__, memory, error, [&](Memory& held) {
    const absl::StatusOr<uint64_t> before = held.GrowBy(delta_bytes);
    if (!before.ok()) return Fail(error, before.status());
    if (size_before != nullptr) *size_before = *before;
    return ft_status{FT_OK};
  });
}

ft_status ft_memory_make_ready(ft_memory memory, uint64_t offset_bytes,
                               uint64_t length, int32_t access,
                               ft_error* error) noexcept {
  return WithMemory(__func__, memory, error, [&](const Memory& held) {
    if (access != FT_READ && access != FT_WRITE) {
      return Fail(error, FT_ERROR_INVALID_ARGUMENT,
                  absl::StrCat("ft_memory_make_ready: access is ", access,
                               " and must be FT_READ or FT_WRITE"));
    }
    return Finish(error,
                  held.MakeReady(offset_bytes, length,
                                 static_cast<firsttouch::Access>(access)));
  });
}

ft_status ft_memory_snapshot(ft_memory memory, const char* name, uint64_t flags,
                             ft_image* image, ft_error* error) noexcept {
  if (image == nullptr) return FailNull(error, __func__, "image");
  return WithMemory(__func__, memory, error, [&](const Memory& held) {
    if ((flags & ~uint64_t{FT_SNAPSHOT_DELTA}) != 0) {
      return Fail(error, FT_ERROR_INVALID_ARGUMENT,
                  absl::StrCat("ft_memory_snapshot: flags has bits ",
                               absl::Hex(flags & ~uint64_t{FT_SNAPSHOT_DELTA}),
                               " that this library does not know"));
    }
    std::string called = name == nullptr ? "" : name;
    absl::StatusOr<ImageRef> taken = (flags & FT_SNAPSHOT_DELTA) != 0
                                         ? held.SnapshotDelta(std::move(called))
                                         : held.Snapshot(std::move(called));
    if (!taken.ok()) return Fail(error, taken.status());
    const absl::StatusOr<ft_image> added =
        firsttouch::capi::AddImage(*std::move(taken));
    if (!added.ok()) return Fail(error, added.status());
    *image = *added;
    return ft_status{FT_OK};
  });
}

ft_status ft_memory_drop_at_release(ft_memory memory,
                                    ft_error* error) noexcept {
  return WithMemory(__func__, memory, error, [&](Memory& held) {
    held.DropAtRelease();
    return ft_status{FT_OK};
  });
}

ft_status ft_memory_count_pages(ft_memory memory, ft_memory_pages* pages,
                                ft_error* error) noexcept {
  if (pages == nullptr) return FailNull(error, __func__, "pages");
  const char* const function = __func__;
  return WithMemory(function, memory, error, [&](const Memory& held) {
    const firsttouch::MemoryPages counted = held.CountPages();
    const ft_memory_pages told = {
        .struct_size = sizeof(ft_memory_pages),
        .touched = counted.touched,
        .writable = counted.writable,
        .changed = counted.changed,
    };
    return GiveStruct(function, told, pages, error);
  });
}

ft_status ft_memory_stats_json(ft_memory memory, char* buffer, size_t capacity,
                               size_t* length, ft_error* error) noexcept {
  const char* const function = __func__;
  return WithMemory(function, memory, error, [&](const Memory& held) {
    return GiveText(error, function, ToJson(held.stats()), buffer, capacity,
                    length);
  });
}

ft_status ft_run_guarded(ft_memory memory, void (*run)(void* argument),
                         void* argument, ft_trap* trap,
                         ft_error* error) noexcept {
  if (run == nullptr) return FailNull(error, __func__, "run");
  if (trap != nullptr && !firsttouch::capi::CanGiveStruct(*trap)) {
    return firsttouch::capi::FailSize(error, __func__, trap->struct_size,
                                      sizeof(ft_trap));
  }
  return WithMemory(__func__, memory, error, [&](const Memory& held) {
    TrapInfo told = {};
    const absl::Status ended = RunTrapped(
        held, [&] { run(argument); }, &told);
    if (ended.ok()) return ft_status{FT_OK};
    // Only a trap has an address.
    if (told.address == 0) return Fail(error, ended);
    if (trap != nullptr) {
      firsttouch::capi::CopyStruct(firsttouch::capi::ToC(told), trap);
    }
    return Fail(error, FT_ERROR_TRAPPED,
                {ended.message().data(), ended.message().size()});
  });
}
