// Signals in C.

#include "firsttouch/service/signals.h"

#include <signal.h>

#include <cstdint>

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/handle_fault.h"

using firsttouch::FaultOutcome;
using firsttouch::Location;
using firsttouch::Place;
using firsttouch::capi::Call;
using firsttouch::capi::Finish;

static_assert(FT_FAULT_NOT_MINE == static_cast<int>(FaultOutcome::kNotMine));
static_assert(FT_FAULT_RESOLVED == static_cast<int>(FaultOutcome::kResolved));
static_assert(FT_FAULT_UNHANDLED_TRAP ==
              static_cast<int>(FaultOutcome::kUnhandledTrap));
static_assert(FT_PLACE_NO_POOL == static_cast<int>(Place::kNoPool));
static_assert(FT_PLACE_GUARD_BEFORE == static_cast<int>(Place::kGuardBefore));
static_assert(FT_PLACE_MEMORY == static_cast<int>(Place::kMemory));
static_assert(FT_PLACE_GUARD_AFTER == static_cast<int>(Place::kGuardAfter));
static_assert(FT_PLACE_GUARD_UNOWNED == static_cast<int>(Place::kGuardUnowned));

ft_fault_outcome ft_handle_signal(int signal, void* info,
                                  void* context) noexcept {
  if (info == nullptr || context == nullptr) return FT_FAULT_NOT_MINE;
  return static_cast<ft_fault_outcome>(
      firsttouch::HandleFault(signal, static_cast<siginfo_t*>(info), context));
}

void ft_signals_fill_mask(void* mask) noexcept {
  if (mask == nullptr) return;
  firsttouch::FillFaultHandlerMask(static_cast<sigset_t*>(mask));
}

ft_status ft_signals_install(ft_error* error) noexcept {
  return Call(error,
              [&] { return Finish(error, firsttouch::InstallFaultHandler()); });
}

ft_status ft_signals_uninstall(ft_error* error) noexcept {
  return Call(error, [&] {
    return Finish(error, firsttouch::UninstallFaultHandler());
  });
}

ft_status ft_signals_check(ft_error* error) noexcept {
  return Call(error,
              [&] { return Finish(error, firsttouch::CheckFaultHandler()); });
}

ft_status ft_thread_prepare(ft_error* error) noexcept {
  return Call(error,
              [&] { return Finish(error, firsttouch::PrepareGuestThread()); });
}

ft_status ft_thread_check(ft_error* error) noexcept {
  return Call(error, [&] {
    const ft_status status = Finish(error, firsttouch::CheckAlternateStack());
    if (status != FT_OK) return status;
    return Finish(error, firsttouch::CheckSignalsUnblocked());
  });
}

ft_status ft_locate(const void* address, ft_location* location) noexcept {
  if (location == nullptr) return FT_ERROR_INVALID_ARGUMENT;
  if (!firsttouch::capi::CanGiveStruct(*location)) return FT_ERROR_STRUCT_SIZE;
  const Location at = firsttouch::Locate(reinterpret_cast<uintptr_t>(address));
  firsttouch::capi::CopyStruct(
      ft_location{
          .struct_size = sizeof(ft_location),
          .place = static_cast<int32_t>(at.place),
          .in_bounds = at.in_bounds ? 1U : 0U,
          .pool_id = at.pool == nullptr ? 0 : at.pool->pool_id,
          .slot = at.slot,
          .instance = at.instance,
          .memory_index = at.memory,
          .offset_bytes = at.offset_bytes,
          .size_bytes = at.size_bytes,
      },
      location);
  return FT_OK;
}
