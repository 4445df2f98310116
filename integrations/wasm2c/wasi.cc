#include "firsttouch/integrations/wasm2c/wasi.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firsttouch/integrations/wasm2c/runtime.h"

using firsttouch::wasm2c::HostOf;
using firsttouch::wasm2c::kMaxWriteBytes;
using firsttouch::wasm2c::kWasiBadf;
using firsttouch::wasm2c::kWasiFault;
using firsttouch::wasm2c::kWasiInval;
using firsttouch::wasm2c::kWasiIo;
using firsttouch::wasm2c::kWasiNosys;
using firsttouch::wasm2c::kWasiSpipe;
using firsttouch::wasm2c::kWasiSuccess;
using firsttouch::wasm2c::Wasi;

namespace {

// Everything in WASI is little-endian, and so is every host this runs on.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

// Standard input, output and error.
constexpr uint32_t kDescriptors = 3;

constexpr uint8_t kFiletypeCharacterDevice = 2;

// fdstat and filestat of WASI.
struct Fdstat {
  uint8_t filetype = kFiletypeCharacterDevice;
  uint16_t flags = 0;
  uint32_t padding = 0;
  uint64_t rights_base = (1 << 1) | (1 << 6);  // fd_read, fd_write
  uint64_t rights_inheriting = 0;
};
static_assert(sizeof(Fdstat) == 24);

struct Filestat {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t filetype = kFiletypeCharacterDevice;
  uint64_t links = 1;
  uint64_t size = 0;
  uint64_t accessed = 0;
  uint64_t modified = 0;
  uint64_t changed = 0;
};
static_assert(sizeof(Filestat) == 64);

struct Iovec {
  uint32_t buffer;
  uint32_t bytes;
};

// A generator whose whole state is one number (Steele, Lea and Flood).
uint64_t SplitMix64(uint64_t* state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// WASI's clocks 0 to 3 in the kernel's numbering; -1 for any other.
int KernelClock(uint32_t clock) {
  constexpr std::array<int, 4> kClocks = {CLOCK_REALTIME, CLOCK_MONOTONIC,
                                          CLOCK_PROCESS_CPUTIME_ID,
                                          CLOCK_THREAD_CPUTIME_ID};
  return clock < kClocks.size() ? kClocks[clock] : -1;
}

uint64_t Nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(time.tv_nsec);
}

}  // namespace

Z_wasi_snapshot_preview1_instance_t::Z_wasi_snapshot_preview1_instance_t(
    std::shared_ptr<const WasiOptions> options)
    : options_(std::move(options)) {
  Reset();
}

Z_wasi_snapshot_preview1_instance_t::Z_wasi_snapshot_preview1_instance_t(
    WasiOptions options)
    : Z_wasi_snapshot_preview1_instance_t(
          std::make_shared<const WasiOptions>(std::move(options))) {}

void Wasi::Reset() {
  random_state_ = options_->random_seed.value_or(0);
  unimplemented_calls_ = 0;
}

bool Wasi::Contains(uint32_t at, uint64_t bytes) const {
  return memory_ != nullptr && at + bytes <= memory_->size;
}

void Wasi::Store(uint32_t at, const void* from, size_t bytes) const {
  if (bytes > 0) memcpy(memory_->data + at, from, bytes);
}

void Wasi::Load(uint32_t at, void* into, size_t bytes) const {
  if (bytes > 0) memcpy(into, memory_->data + at, bytes);
}

uint32_t Wasi::StoreStrings(const std::vector<std::string>& strings,
                            uint32_t pointers, uint32_t buffer) const {
  uint64_t bytes = 0;
  for (const std::string& text : strings) bytes += text.size() + 1;
  if (!Contains(pointers, strings.size() * uint64_t{4}) ||
      !Contains(buffer, bytes)) {
    return kWasiFault;
  }
  for (const std::string& text : strings) {
    Store(pointers, &buffer, sizeof(buffer));
    Store(buffer, text.c_str(), text.size() + 1);
    pointers += sizeof(buffer);
    buffer += static_cast<uint32_t>(text.size() + 1);
  }
  return kWasiSuccess;
}

uint32_t Wasi::StoreSizes(const std::vector<std::string>& strings,
                          uint32_t count, uint32_t bytes) const {
  if (!Contains(count, 4) || !Contains(bytes, 4)) return kWasiFault;
  const auto strings_count = static_cast<uint32_t>(strings.size());
  uint32_t strings_bytes = 0;
  for (const std::string& text : strings) {
    strings_bytes += static_cast<uint32_t>(text.size() + 1);
  }
  Store(count, &strings_count, 4);
  Store(bytes, &strings_bytes, 4);
  return kWasiSuccess;
}

uint32_t Wasi::ArgsGet(uint32_t argv, uint32_t argv_buf) {
  return StoreStrings(options_->arguments, argv, argv_buf);
}

uint32_t Wasi::ArgsSizesGet(uint32_t argc, uint32_t argv_buf_size) {
  return StoreSizes(options_->arguments, argc, argv_buf_size);
}

uint32_t Wasi::EnvironGet(uint32_t environ, uint32_t environ_buf) {
  return StoreStrings(options_->environment, environ, environ_buf);
}

uint32_t Wasi::EnvironSizesGet(uint32_t environc, uint32_t environ_buf_size) {
  return StoreSizes(options_->environment, environc, environ_buf_size);
}

uint32_t Wasi::ClockResGet(uint32_t clock, uint32_t resolution) {
  const int kernel_clock = KernelClock(clock);
  if (kernel_clock < 0) return kWasiInval;
  if (!Contains(resolution, 8)) return kWasiFault;
  timespec time = {};
  if (clock_getres(kernel_clock, &time) != 0) return kWasiInval;
  const uint64_t nanoseconds = Nanoseconds(time);
  Store(resolution, &nanoseconds, 8);
  return kWasiSuccess;
}

uint32_t Wasi::ClockTimeGet(uint32_t clock, uint32_t at) {
  const int kernel_clock = KernelClock(clock);
  if (kernel_clock < 0) return kWasiInval;
  if (!Contains(at, 8)) return kWasiFault;
  uint64_t nanoseconds;
  if (options_->fixed_clock_ns.has_value()) {
    nanoseconds = *options_->fixed_clock_ns;
  } else {
    timespec time = {};
    if (clock_gettime(kernel_clock, &time) != 0) return kWasiInval;
    nanoseconds = Nanoseconds(time);
  }
  Store(at, &nanoseconds, 8);
  return kWasiSuccess;
}

uint32_t Wasi::FdClose(uint32_t fd) {
  return fd < kDescriptors ? kWasiSuccess : kWasiBadf;
}

uint32_t Wasi::FdFdstatGet(uint32_t fd, uint32_t at) {
  if (fd >= kDescriptors) return kWasiBadf;
  const Fdstat stat;
  if (!Contains(at, sizeof(stat))) return kWasiFault;
  Store(at, &stat, sizeof(stat));
  return kWasiSuccess;
}

uint32_t Wasi::FdFilestatGet(uint32_t fd, uint32_t at) {
  if (fd >= kDescriptors) return kWasiBadf;
  const Filestat stat;
  if (!Contains(at, sizeof(stat))) return kWasiFault;
  Store(at, &stat, sizeof(stat));
  return kWasiSuccess;
}

uint32_t Wasi::FdRead(uint32_t fd, uint32_t iovs, uint32_t iovs_len,
                      uint32_t nread) {
  if (fd != 0) return kWasiBadf;
  if (!Contains(iovs, iovs_len * uint64_t{sizeof(Iovec)}) ||
      !Contains(nread, 4)) {
    return kWasiFault;
  }
  uint64_t total = 0;
  for (uint32_t i = 0; i < iovs_len && options_->on_input; ++i) {
    Iovec iovec;
    Load(iovs + i * uint32_t{sizeof(Iovec)}, &iovec, sizeof(iovec));
    if (!Contains(iovec.buffer, iovec.bytes)) return kWasiFault;
    // What was read has to fit `nread`.
    iovec.bytes = static_cast<uint32_t>(
        std::min<uint64_t>(iovec.bytes, UINT32_MAX - total));
    if (iovec.bytes == 0) continue;
    if (HostOf(*memory_) != nullptr &&
        !HostOf(*memory_)
             ->MakeReady(iovec.buffer, iovec.bytes, firsttouch::Access::kWrite)
             .ok()) {
      return kWasiIo;
    }
    const size_t got = options_->on_input(
        {reinterpret_cast<char*>(memory_->data + iovec.buffer), iovec.bytes});
    if (got > iovec.bytes) return kWasiIo;
    total += got;
    if (got < iovec.bytes) break;
  }
  const auto read = static_cast<uint32_t>(total);
  Store(nread, &read, 4);
  return kWasiSuccess;
}

uint32_t Wasi::FdSeek(uint32_t fd) {
  return fd < kDescriptors ? kWasiSpipe : kWasiBadf;
}

uint32_t Wasi::FdSync(uint32_t fd) {
  return fd < kDescriptors ? kWasiInval : kWasiBadf;
}

uint32_t Wasi::FdWrite(uint32_t fd, uint32_t iovs, uint32_t iovs_len,
                       uint32_t nwritten) {
  if (fd != 1 && fd != 2) return kWasiBadf;
  if (!Contains(iovs, iovs_len * uint64_t{sizeof(Iovec)}) ||
      !Contains(nwritten, 4)) {
    return kWasiFault;
  }
  uint64_t total = 0;
  const auto at = [&](uint32_t i) {
    Iovec iovec;
    Load(iovs + i * uint32_t{sizeof(Iovec)}, &iovec, sizeof(iovec));
    return iovec;
  };
  for (uint32_t i = 0; i < iovs_len; ++i) {
    const Iovec iovec = at(i);
    if (!Contains(iovec.buffer, iovec.bytes)) return kWasiFault;
    total += iovec.bytes;
  }
  // What was written has to fit `nwritten`.
  if (total > UINT32_MAX) return kWasiInval;
  // The vector is read a second time: checked again, since nothing keeps other
  // threads of the host out of the guest's memory.
  for (uint32_t i = 0; i < iovs_len && options_->on_output; ++i) {
    Iovec iovec = at(i);
    if (!Contains(iovec.buffer, iovec.bytes)) return kWasiFault;
    while (iovec.bytes > 0) {
      char piece[kMaxWriteBytes];
      const uint32_t bytes =
          std::min(iovec.bytes, static_cast<uint32_t>(sizeof(piece)));
      Load(iovec.buffer, piece, bytes);
      options_->on_output(static_cast<int>(fd), std::string_view(piece, bytes));
      iovec.buffer += bytes;
      iovec.bytes -= bytes;
    }
  }
  const auto written = static_cast<uint32_t>(total);
  Store(nwritten, &written, 4);
  return kWasiSuccess;
}

uint32_t Wasi::RandomGet(uint32_t buf, uint32_t len) {
  if (!Contains(buf, len)) return kWasiFault;
  while (len > 0) {
    // By way of the host's stack: the kernel may not write to memory whose
    // pages are still missing.
    std::array<uint64_t, 32> numbers;
    const auto bytes = std::min(len, static_cast<uint32_t>(sizeof(numbers)));
    if (options_->random_seed.has_value()) {
      for (uint64_t& number : numbers) number = SplitMix64(&random_state_);
    } else {
      ssize_t got;
      do {
        got = getrandom(numbers.data(), bytes, 0);
      } while (got < 0 && errno == EINTR);
      if (got != static_cast<ssize_t>(bytes)) return kWasiIo;
    }
    Store(buf, numbers.data(), bytes);
    buf += bytes;
    len -= bytes;
  }
  return kWasiSuccess;
}

uint32_t Wasi::Unimplemented() {
  ++unimplemented_calls_;
  return kWasiNosys;
}

uint32_t Wasi::UnimplementedFd(uint32_t fd) {
  return fd < kDescriptors ? Unimplemented() : kWasiBadf;
}
