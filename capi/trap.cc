#include "firsttouch/capi/trap.h"

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::capi {

static_assert(FT_READ == static_cast<int>(Access::kRead));
static_assert(FT_WRITE == static_cast<int>(Access::kWrite));
static_assert(FT_EXECUTE == static_cast<int>(Access::kExecute));
static_assert(FT_NO_MEMORY == kNoMemory);

ft_trap ToC(const TrapInfo& trap) {
  return {
      .struct_size = sizeof(ft_trap),
      .address = trap.address,
      .program_counter = trap.program_counter,
      .offset_bytes = trap.offset_bytes,
      .size_bytes = trap.size_bytes,
      .access = static_cast<int32_t>(trap.access),
      .os_error = trap.error,
      .instance = trap.instance,
      .memory_index = trap.memory,
      .leased = trap.leased ? 1U : 0U,
      .pool_id = trap.pool_id,
      .pool_name = trap.pool_name,
      .ucontext = trap.ucontext,
  };
}

TrapAction CallTrapCallback(ft_trap_callback callback, void* user,
                            const TrapInfo& trap) {
  if (callback == nullptr) return TrapAction::kUnhandled;
  const ft_trap told = ToC(trap);
  return callback(&told, user) == FT_TRAP_RESUME ? TrapAction::kResume
                                                 : TrapAction::kUnhandled;
}

}  // namespace firsttouch::capi
