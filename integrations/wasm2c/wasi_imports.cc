#include "firsttouch/integrations/wasm2c/wasi_imports.h"

#include <sched.h>

#include <cstdint>

#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/integrations/wasm2c/wasi.h"

using firsttouch::wasm2c::kWasiBadf;
using firsttouch::wasm2c::kWasiSuccess;
using firsttouch::wasm2c::Wasi;

namespace {

using U32 = uint32_t;
using U64 = uint64_t;

}  // namespace

// What generated code calls.
extern "C" {

uint32_t Z_wasi_snapshot_preview1Z_args_get(Wasi* wasi, uint32_t a0,
                                            uint32_t a1) {
  return wasi->ArgsGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_args_sizes_get(Wasi* wasi, uint32_t a0,
                                                  uint32_t a1) {
  return wasi->ArgsSizesGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_clock_res_get(Wasi* wasi, uint32_t a0,
                                                 uint32_t a1) {
  return wasi->ClockResGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_clock_time_get(Wasi* wasi, uint32_t a0,
                                                  uint64_t, uint32_t a2) {
  return wasi->ClockTimeGet(a0, a2);
}

uint32_t Z_wasi_snapshot_preview1Z_environ_get(Wasi* wasi, uint32_t a0,
                                               uint32_t a1) {
  return wasi->EnvironGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_environ_sizes_get(Wasi* wasi, uint32_t a0,
                                                     uint32_t a1) {
  return wasi->EnvironSizesGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_close(Wasi* wasi, uint32_t a0) {
  return wasi->FdClose(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_datasync(Wasi* wasi, uint32_t a0) {
  return wasi->FdSync(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_fdstat_get(Wasi* wasi, uint32_t a0,
                                                 uint32_t a1) {
  return wasi->FdFdstatGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_get(Wasi* wasi, uint32_t a0,
                                                   uint32_t a1) {
  return wasi->FdFilestatGet(a0, a1);
}

// There are no directories that were opened beforehand.
uint32_t Z_wasi_snapshot_preview1Z_fd_prestat_dir_name(Wasi*, uint32_t,
                                                       uint32_t, uint32_t) {
  return kWasiBadf;
}

// There are no directories that were opened beforehand.
uint32_t Z_wasi_snapshot_preview1Z_fd_prestat_get(Wasi*, uint32_t, uint32_t) {
  return kWasiBadf;
}

uint32_t Z_wasi_snapshot_preview1Z_fd_read(Wasi* wasi, uint32_t a0, uint32_t a1,
                                           uint32_t a2, uint32_t a3) {
  return wasi->FdRead(a0, a1, a2, a3);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_seek(Wasi* wasi, uint32_t a0, uint64_t,
                                           uint32_t, uint32_t) {
  return wasi->FdSeek(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_sync(Wasi* wasi, uint32_t a0) {
  return wasi->FdSync(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_tell(Wasi* wasi, uint32_t a0, uint32_t) {
  return wasi->FdSeek(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_write(Wasi* wasi, uint32_t a0,
                                            uint32_t a1, uint32_t a2,
                                            uint32_t a3) {
  return wasi->FdWrite(a0, a1, a2, a3);
}

void Z_wasi_snapshot_preview1Z_proc_exit(Wasi*, uint32_t code) {
  firsttouch::wasm2c::ExitGuest(code);
}

uint32_t Z_wasi_snapshot_preview1Z_random_get(Wasi* wasi, uint32_t a0,
                                              uint32_t a1) {
  return wasi->RandomGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_sched_yield(Wasi*) {
  sched_yield();
  return kWasiSuccess;
}

// The same, legalized.

uint32_t Z_wasi_snapshot_preview1Z_clock_time_get_legalized(Wasi* wasi,
                                                            uint32_t a0,
                                                            uint32_t, uint32_t,
                                                            uint32_t a3) {
  return wasi->ClockTimeGet(a0, a3);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_seek_legalized(Wasi* wasi, uint32_t a0,
                                                     uint32_t, uint32_t,
                                                     uint32_t, uint32_t) {
  return wasi->FdSeek(a0);
}

// What is not implemented, by name and types behind the first argument; of
// calls that take a descriptor, behind that.

#define UNIMPLEMENTED(name, ...)                                       \
  uint32_t Z_wasi_snapshot_preview1Z_##name(Wasi* wasi, __VA_ARGS__) { \
    return wasi->Unimplemented();                                      \
  }
#define UNIMPLEMENTED_FD(name, ...)                                  \
  uint32_t Z_wasi_snapshot_preview1Z_##name(Wasi* wasi, uint32_t fd, \
                                            __VA_ARGS__) {           \
    return wasi->UnimplementedFd(fd);                                \
  }

UNIMPLEMENTED_FD(fd_advise, U64, U64, U32)
UNIMPLEMENTED_FD(fd_allocate, U64, U64)
UNIMPLEMENTED_FD(fd_fdstat_set_flags, U32)
UNIMPLEMENTED_FD(fd_fdstat_set_rights, U64, U64)
UNIMPLEMENTED_FD(fd_filestat_set_size, U64)
UNIMPLEMENTED_FD(fd_filestat_set_times, U64, U64, U32)
UNIMPLEMENTED_FD(fd_pread, U32, U32, U64, U32)
UNIMPLEMENTED_FD(fd_pwrite, U32, U32, U64, U32)
UNIMPLEMENTED_FD(fd_readdir, U32, U32, U64, U32)
UNIMPLEMENTED_FD(fd_renumber, U32)
UNIMPLEMENTED(path_create_directory, U32, U32, U32)
UNIMPLEMENTED(path_filestat_get, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_filestat_set_times, U32, U32, U32, U32, U64, U64, U32)
UNIMPLEMENTED(path_link, U32, U32, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_open, U32, U32, U32, U32, U32, U64, U64, U32, U32)
UNIMPLEMENTED(path_readlink, U32, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_remove_directory, U32, U32, U32)
UNIMPLEMENTED(path_rename, U32, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_symlink, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_unlink_file, U32, U32, U32)
UNIMPLEMENTED(poll_oneoff, U32, U32, U32, U32)
UNIMPLEMENTED(proc_raise, U32)
UNIMPLEMENTED(sock_accept, U32, U32, U32)
UNIMPLEMENTED(sock_recv, U32, U32, U32, U32, U32, U32)
UNIMPLEMENTED(sock_send, U32, U32, U32, U32, U32)
UNIMPLEMENTED(sock_shutdown, U32, U32)

// The same, legalized.

UNIMPLEMENTED_FD(fd_advise_legalized, U32, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_allocate_legalized, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_fdstat_set_rights_legalized, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_filestat_set_size_legalized, U32, U32)
UNIMPLEMENTED_FD(fd_filestat_set_times_legalized, U32, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_pread_legalized, U32, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_pwrite_legalized, U32, U32, U32, U32, U32)
UNIMPLEMENTED_FD(fd_readdir_legalized, U32, U32, U32, U32, U32)
UNIMPLEMENTED(path_filestat_set_times_legalized, U32, U32, U32, U32, U32, U32,
              U32, U32, U32)
UNIMPLEMENTED(path_open_legalized, U32, U32, U32, U32, U32, U32, U32, U32, U32,
              U32, U32)

#undef UNIMPLEMENTED
#undef UNIMPLEMENTED_FD

}  // extern "C"
