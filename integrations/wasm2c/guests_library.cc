// Names what libfirsttouch_guests.so is for, so that the linker, which takes
// from static libraries what is asked for, puts it there.
#include <tuple>

#include "firsttouch/integrations/wasm2c/instance_state.h"
#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/service/service.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

[[gnu::used]] const auto kGuestsLibrary =
    std::make_tuple(&InstanceState::Capture, &PlainMemorySource::Create,
                    &PoolMemorySource::Create, &Service::Create, &wasm_rt_trap,
                    &Z_wasi_snapshot_preview1Z_proc_exit);

}  // namespace firsttouch::wasm2c
