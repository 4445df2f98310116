// WASI preview 1 for guests that are to touch nothing but their own memory.
//
// Real: arguments, environment, clocks, random numbers, standard input, output
// and error (by functions of the host's), exit.
// There are no files: descriptors other than 0 to 2 do not exist (EBADF), and
// paths, sockets and polling are not implemented (ENOSYS).
//
// Every pointer from the guest is checked against its memory's present size; a
// range that does not lie in it is EFAULT, and nothing of the call happens.
// Guest memory is touched by ordinary loads and stores, so that missing pages
// are supplied as for the guest itself; what on_input may hand to a system call
// was made ready for it.
//
//   Wasi wasi({.on_output = [](int fd, std::string_view text) { ... }});
//   auto guest = Guest<Z_app_instance_t>::Create(&source, &wasi);
//
// One object per guest: it knows the guest's memory and counts its calls. Not
// thread-safe, like the guest.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_WASI_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_WASI_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firsttouch/integrations/wasm2c/wasi_imports.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// What a guest gets to see. May be shared by any number of guests.
struct WasiOptions {
  std::vector<std::string> arguments;
  // "NAME=value".
  std::vector<std::string> environment;
  // Called with what the guest writes to descriptor 1 or 2, one call for each
  // piece it writes, of at most kMaxWriteBytes. Empty: it is dropped. Runs
  // under the guest: see RunGuarded about leaving.
  std::function<void(int descriptor, std::string_view text)> on_output;
  // Called when the guest reads descriptor 0, with the guest's own buffer:
  // writes at its start what is read and says how many bytes that is; 0 is the
  // end of the input. read(2) may write to the buffer. Empty: the end, at once.
  // Runs under the guest, as on_output.
  std::function<size_t(std::span<char> buffer)> on_input;
  // Random numbers: from the kernel, or, with a seed, the same each time.
  std::optional<uint64_t> random_seed;
  // Clocks: the kernel's, or, if set, standing still at so many nanoseconds.
  std::optional<uint64_t> fixed_clock_ns;
};

// The longest piece that on_output gets at once.
inline constexpr size_t kMaxWriteBytes = 4096;

// Error numbers of WASI that are used here.
enum WasiErrno : uint32_t {
  kWasiSuccess = 0,
  kWasiBadf = 8,
  kWasiFault = 21,
  kWasiInval = 28,
  kWasiIo = 29,
  kWasiNosys = 52,
  kWasiSpipe = 70,
};

}  // namespace firsttouch::wasm2c

// The type that generated headers declare. It also has the functions that
// emscripten imports with 64-bit arguments cut in halves ("legalized");
// describe_module gives those names of their own. Use it as wasm2c::Wasi.
struct Z_wasi_snapshot_preview1_instance_t {
 public:
  using WasiOptions = firsttouch::wasm2c::WasiOptions;

  explicit Z_wasi_snapshot_preview1_instance_t(
      std::shared_ptr<const WasiOptions> options);
  explicit Z_wasi_snapshot_preview1_instance_t(WasiOptions options = {});

  // Says which memory pointers point into. Guest does this, with the module's
  // first memory. Without one, every pointer is a bad one.
  void Attach(const wasm_rt_memory_t* memory) { memory_ = memory; }

  // As at the start: for another guest with the same options.
  void Reset();

  // How often functions were called that are not implemented.
  uint64_t unimplemented_calls() const { return unimplemented_calls_; }

  // The functions, named as in WASI. Pointers are offsets in the guest.
  uint32_t ArgsGet(uint32_t argv, uint32_t argv_buf);
  uint32_t ArgsSizesGet(uint32_t argc, uint32_t argv_buf_size);
  uint32_t EnvironGet(uint32_t environ, uint32_t environ_buf);
  uint32_t EnvironSizesGet(uint32_t environc, uint32_t environ_buf_size);
  uint32_t ClockResGet(uint32_t clock, uint32_t resolution);
  uint32_t ClockTimeGet(uint32_t clock, uint32_t at);
  uint32_t FdClose(uint32_t fd);
  uint32_t FdFdstatGet(uint32_t fd, uint32_t stat);
  uint32_t FdFilestatGet(uint32_t fd, uint32_t stat);
  uint32_t FdRead(uint32_t fd, uint32_t iovs, uint32_t iovs_len,
                  uint32_t nread);
  uint32_t FdSeek(uint32_t fd);
  uint32_t FdSync(uint32_t fd);
  uint32_t FdWrite(uint32_t fd, uint32_t iovs, uint32_t iovs_len,
                   uint32_t nwritten);
  uint32_t RandomGet(uint32_t buf, uint32_t len);
  uint32_t Unimplemented();
  // For calls that take a descriptor and make no sense for 0 to 2.
  uint32_t UnimplementedFd(uint32_t fd);

 private:
  // Whether [at, at + bytes) lies in the guest's memory.
  bool Contains(uint32_t at, uint64_t bytes) const;
  // Only after Contains().
  void Store(uint32_t at, const void* from, size_t bytes) const;
  void Load(uint32_t at, void* into, size_t bytes) const;
  uint32_t StoreStrings(const std::vector<std::string>& strings,
                        uint32_t pointers, uint32_t buffer) const;
  uint32_t StoreSizes(const std::vector<std::string>& strings, uint32_t count,
                      uint32_t bytes) const;

  std::shared_ptr<const WasiOptions> options_;
  const wasm_rt_memory_t* memory_ = nullptr;
  uint64_t random_state_ = 0;
  uint64_t unimplemented_calls_ = 0;
};

namespace firsttouch::wasm2c {

using Wasi = ::Z_wasi_snapshot_preview1_instance_t;

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_WASI_H_
