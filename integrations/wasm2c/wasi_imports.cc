#include "firsttouch/integrations/wasm2c/wasi_imports.h"

#include <sched.h>

#include <cstdint>

#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/integrations/wasm2c/wasi.h"

using firsttouch::wasm2c::kWasiBadf;
using firsttouch::wasm2c::kWasiSuccess;
using firsttouch::wasm2c::Wasi;

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

uint32_t Z_wasi_snapshot_preview1Z_fd_advise(Wasi* wasi, uint32_t a0, uint64_t,
                                             uint64_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_allocate(Wasi* wasi, uint32_t a0,
                                               uint64_t, uint64_t) {
  return wasi->UnimplementedFd(a0);
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

uint32_t Z_wasi_snapshot_preview1Z_fd_fdstat_set_flags(Wasi* wasi, uint32_t a0,
                                                       uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_fdstat_set_rights(Wasi* wasi, uint32_t a0,
                                                        uint64_t, uint64_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_get(Wasi* wasi, uint32_t a0,
                                                   uint32_t a1) {
  return wasi->FdFilestatGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_set_size(Wasi* wasi, uint32_t a0,
                                                        uint64_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_set_times(Wasi* wasi,
                                                         uint32_t a0, uint64_t,
                                                         uint64_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_pread(Wasi* wasi, uint32_t a0, uint32_t,
                                            uint32_t, uint64_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
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

uint32_t Z_wasi_snapshot_preview1Z_fd_pwrite(Wasi* wasi, uint32_t a0, uint32_t,
                                             uint32_t, uint64_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_read(Wasi* wasi, uint32_t a0, uint32_t a1,
                                           uint32_t a2, uint32_t a3) {
  return wasi->FdRead(a0, a1, a2, a3);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_readdir(Wasi* wasi, uint32_t a0, uint32_t,
                                              uint32_t, uint64_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_renumber(Wasi* wasi, uint32_t a0,
                                               uint32_t) {
  return wasi->UnimplementedFd(a0);
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

uint32_t Z_wasi_snapshot_preview1Z_path_create_directory(Wasi* wasi, uint32_t,
                                                         uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_filestat_get(Wasi* wasi, uint32_t,
                                                     uint32_t, uint32_t,
                                                     uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_filestat_set_times(Wasi* wasi, uint32_t,
                                                           uint32_t, uint32_t,
                                                           uint32_t, uint64_t,
                                                           uint64_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_link(Wasi* wasi, uint32_t, uint32_t,
                                             uint32_t, uint32_t, uint32_t,
                                             uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_open(Wasi* wasi, uint32_t, uint32_t,
                                             uint32_t, uint32_t, uint32_t,
                                             uint64_t, uint64_t, uint32_t,
                                             uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_readlink(Wasi* wasi, uint32_t, uint32_t,
                                                 uint32_t, uint32_t, uint32_t,
                                                 uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_remove_directory(Wasi* wasi, uint32_t,
                                                         uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_rename(Wasi* wasi, uint32_t, uint32_t,
                                               uint32_t, uint32_t, uint32_t,
                                               uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_symlink(Wasi* wasi, uint32_t, uint32_t,
                                                uint32_t, uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_unlink_file(Wasi* wasi, uint32_t,
                                                    uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_poll_oneoff(Wasi* wasi, uint32_t, uint32_t,
                                               uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

void Z_wasi_snapshot_preview1Z_proc_exit(Wasi*, uint32_t code) {
  firsttouch::wasm2c::ExitGuest(code);
}

uint32_t Z_wasi_snapshot_preview1Z_proc_raise(Wasi* wasi, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_random_get(Wasi* wasi, uint32_t a0,
                                              uint32_t a1) {
  return wasi->RandomGet(a0, a1);
}

uint32_t Z_wasi_snapshot_preview1Z_sched_yield(Wasi*) {
  sched_yield();
  return kWasiSuccess;
}

uint32_t Z_wasi_snapshot_preview1Z_sock_accept(Wasi* wasi, uint32_t, uint32_t,
                                               uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_sock_recv(Wasi* wasi, uint32_t, uint32_t,
                                             uint32_t, uint32_t, uint32_t,
                                             uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_sock_send(Wasi* wasi, uint32_t, uint32_t,
                                             uint32_t, uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_sock_shutdown(Wasi* wasi, uint32_t,
                                                 uint32_t) {
  return wasi->Unimplemented();
}

// The same, legalized.

uint32_t Z_wasi_snapshot_preview1Z_clock_time_get_legalized(Wasi* wasi,
                                                            uint32_t a0,
                                                            uint32_t, uint32_t,
                                                            uint32_t a3) {
  return wasi->ClockTimeGet(a0, a3);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_advise_legalized(Wasi* wasi, uint32_t a0,
                                                       uint32_t, uint32_t,
                                                       uint32_t, uint32_t,
                                                       uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_allocate_legalized(Wasi* wasi,
                                                         uint32_t a0, uint32_t,
                                                         uint32_t, uint32_t,
                                                         uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_fdstat_set_rights_legalized(
    Wasi* wasi, uint32_t a0, uint32_t, uint32_t, uint32_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_set_size_legalized(Wasi* wasi,
                                                                  uint32_t a0,
                                                                  uint32_t,
                                                                  uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_filestat_set_times_legalized(
    Wasi* wasi, uint32_t a0, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_pread_legalized(Wasi* wasi, uint32_t a0,
                                                      uint32_t, uint32_t,
                                                      uint32_t, uint32_t,
                                                      uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_pwrite_legalized(Wasi* wasi, uint32_t a0,
                                                       uint32_t, uint32_t,
                                                       uint32_t, uint32_t,
                                                       uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_readdir_legalized(Wasi* wasi, uint32_t a0,
                                                        uint32_t, uint32_t,
                                                        uint32_t, uint32_t,
                                                        uint32_t) {
  return wasi->UnimplementedFd(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_fd_seek_legalized(Wasi* wasi, uint32_t a0,
                                                     uint32_t, uint32_t,
                                                     uint32_t, uint32_t) {
  return wasi->FdSeek(a0);
}

uint32_t Z_wasi_snapshot_preview1Z_path_filestat_set_times_legalized(
    Wasi* wasi, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
    uint32_t, uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

uint32_t Z_wasi_snapshot_preview1Z_path_open_legalized(
    Wasi* wasi, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
    uint32_t, uint32_t, uint32_t, uint32_t, uint32_t) {
  return wasi->Unimplemented();
}

}  // extern "C"
