#include "firsttouch/capi/layout.h"

#include "absl/status/statusor.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/pool/layout.h"

namespace firsttouch::capi {

ft_status FromC(const char* function, const ft_layout_options* options,
                LayoutOptions* into, ft_error* error) {
  ft_layout_options room;
  if (const ft_status status = TakeStruct(function, room, &options, error);
      status != FT_OK) {
    return status;
  }
  into->instances = options->instances;
  if (options->memories_per_instance != 0) {
    into->memories_per_instance = options->memories_per_instance;
  }
  into->max_memory_bytes = options->max_memory_bytes;
  into->guard_before_bytes = options->guard_before_bytes;
  into->guard_after_bytes = options->guard_after_bytes;
  if (options->page_bytes != 0) into->page_bytes = options->page_bytes;
  if (options->fault_around_bytes != 0) {
    into->fault_around_bytes = options->fault_around_bytes;
  }
  return FT_OK;
}

ft_layout ToC(const PoolLayout& layout) {
  return {
      .struct_size = sizeof(ft_layout),
      .reservation_bytes = layout.reservation_bytes(),
      .slot_stride_bytes = layout.slot_stride_bytes(),
      .first_memory_offset_bytes = layout.first_memory_offset_bytes(),
      .memory_bytes = layout.memory_bytes(),
      .unowned_guard_bytes = layout.unowned_guard_bytes(),
      .fault_around_bytes = layout.options().fault_around_bytes,
      .slots = layout.slots(),
      .memories_per_instance = layout.options().memories_per_instance,
  };
}

}  // namespace firsttouch::capi

using firsttouch::LayoutOptions;
using firsttouch::PoolLayout;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailNull;
using firsttouch::capi::GiveStruct;

ft_status ft_layout_wasm32(uint32_t instances, ft_layout_options* options,
                           ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  const LayoutOptions wasm32 = LayoutOptions::ForWasm32(instances);
  const ft_layout_options told = {
      .struct_size = sizeof(ft_layout_options),
      .instances = wasm32.instances,
      .memories_per_instance = wasm32.memories_per_instance,
      .max_memory_bytes = wasm32.max_memory_bytes,
      .guard_before_bytes = wasm32.guard_before_bytes,
      .guard_after_bytes = wasm32.guard_after_bytes,
      .page_bytes = wasm32.page_bytes,
      .fault_around_bytes = wasm32.fault_around_bytes,
  };
  return GiveStruct(__func__, told, options, error);
}

ft_status ft_layout_compute(const ft_layout_options* options, ft_layout* layout,
                            ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  if (layout == nullptr) return FailNull(error, __func__, "layout");
  const char* const function = __func__;
  return Call(error, [&] {
    LayoutOptions asked;
    if (const ft_status status =
            firsttouch::capi::FromC(function, options, &asked, error);
        status != FT_OK) {
      return status;
    }
    const absl::StatusOr<PoolLayout> computed = PoolLayout::Compute(asked);
    if (!computed.ok()) return Fail(error, computed.status());
    return GiveStruct(function, firsttouch::capi::ToC(*computed), layout,
                      error);
  });
}
