#include "firsttouch/uffd/fake_kernel.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace firsttouch {

FakeKernel::FakeKernel() : FakeKernel(RealKernel()) {}
FakeKernel::FakeKernel(Kernel& real) : real_(&real) {}
FakeKernel::FakeKernel(Scripted) : real_(nullptr) {}

void FakeKernel::Add(Op op, uint64_t nth, int64_t value, int error,
                     bool shorten) {
  PerOp& of = Of(op);
  const size_t count = of.script_count.load(std::memory_order_relaxed);
  if (count == kMaxScripts) {
    std::fprintf(stderr, "FakeKernel: more than %zu scripts for operation %d\n",
                 kMaxScripts, static_cast<int>(op));
    std::abort();
  }
  const uint64_t calls = of.calls.load(std::memory_order_relaxed);
  of.scripts[count] = {.nth = nth == kEvery ? kEvery : calls + nth,
                       .from = calls + 1,
                       .value = value,
                       .error = error,
                       .shorten = shorten};
  of.script_count.store(count + 1, std::memory_order_release);
}

void FakeKernel::Fail(Op op, uint64_t nth, RangeResult result) {
  Add(op, nth, result.bytes_done, result.error, false);
}

void FakeKernel::Fail(Op op, uint64_t nth, CallResult result) {
  Add(op, nth, result.value, result.error, false);
}

void FakeKernel::Shorten(Op op, uint64_t nth, size_t bytes, int error) {
  Add(op, nth, static_cast<int64_t>(bytes), error, true);
}

void FakeKernel::Clear(Op op) {
  Of(op).script_count.store(0, std::memory_order_release);
}

void FakeKernel::WithholdMode(Op op, uint64_t bits) {
  Of(op).withheld_mode = bits;
}

void FakeKernel::Hook(Op op, CallHook hook) { Of(op).before = std::move(hook); }

void FakeKernel::HookAfter(Op op, CallHook hook) {
  Of(op).after = std::move(hook);
}

void FakeKernel::SetApiReply(uint64_t features, uint64_t ioctls) {
  api_features_ = features;
  api_ioctls_ = ioctls;
  has_api_reply_ = true;
}

void FakeKernel::SetRegisterIoctls(uint64_t ioctls) {
  register_ioctls_ = ioctls;
  has_register_ioctls_ = true;
}

void FakeKernel::QueueEvents(std::vector<uffd_msg> messages) {
  events_ = std::move(messages);
  next_event_.store(0, std::memory_order_release);
}

void FakeKernel::SetPagemap(std::vector<PageRegion> regions) {
  pagemap_ = std::move(regions);
}

uint64_t FakeKernel::Calls(Op op) const {
  return ops_[static_cast<size_t>(op)].calls.load(std::memory_order_relaxed);
}

uint64_t FakeKernel::TotalCalls() const {
  uint64_t total = 0;
  for (const PerOp& of : ops_) {
    total += of.calls.load(std::memory_order_relaxed);
  }
  return total;
}

void FakeKernel::ResetCalls() {
  for (PerOp& of : ops_) of.calls.store(0, std::memory_order_relaxed);
}

const FakeKernel::Script* FakeKernel::Begin(Call& call) noexcept {
  PerOp& of = Of(call.op);
  call.nth = of.calls.fetch_add(1, std::memory_order_relaxed) + 1;
  if (of.before) of.before(call);
  const size_t count = of.script_count.load(std::memory_order_acquire);
  const Script* every = nullptr;
  for (size_t i = 0; i < count; ++i) {
    const Script& script = of.scripts[i];
    if (script.nth == call.nth) return &script;
    if (script.nth == kEvery && call.nth >= script.from) every = &script;
  }
  return every;
}

void FakeKernel::End(const Call& call) noexcept {
  PerOp& of = Of(call.op);
  if (of.after) of.after(call);
}

template <typename Forward>
RangeResult FakeKernel::Range(Call call, Forward forward) noexcept {
  const Script* script = Begin(call);
  RangeResult result{static_cast<int64_t>(call.bytes), 0};
  if (script == nullptr) {
    if (real_ != nullptr) result = forward(call.bytes);
  } else if (script->shorten) {
    const size_t bytes =
        std::min<size_t>(static_cast<size_t>(script->value), call.bytes);
    if (real_ != nullptr && bytes > 0) {
      result = forward(bytes);
      if (result.ok()) result.error = script->error;
    } else {
      result = {static_cast<int64_t>(bytes), script->error};
    }
  } else {
    result = {script->value, script->error};
  }
  End(call);
  return result;
}

template <typename Forward>
CallResult FakeKernel::Plain(Call call, CallResult unscripted,
                             Forward forward) noexcept {
  const Script* script = Begin(call);
  CallResult result = unscripted;
  if (script != nullptr) {
    result = {script->value, script->error};
  } else if (real_ != nullptr) {
    result = forward();
  }
  End(call);
  return result;
}

CallResult FakeKernel::OpenUserfaultfdDevice(int flags) noexcept {
  return Plain(
      {.op = Op::kOpenUserfaultfdDevice, .mode = static_cast<uint64_t>(flags)},
      {0, ENOSYS}, [&] { return real_->OpenUserfaultfdDevice(flags); });
}

CallResult FakeKernel::OpenUserfaultfdSyscall(int flags) noexcept {
  return Plain(
      {.op = Op::kOpenUserfaultfdSyscall, .mode = static_cast<uint64_t>(flags)},
      {0, ENOSYS}, [&] { return real_->OpenUserfaultfdSyscall(flags); });
}

CallResult FakeKernel::Api(int fd, uint64_t features,
                           uffdio_api* reply) noexcept {
  Call call{.op = Op::kApi, .fd = fd, .mode = features};
  const Script* script = Begin(call);
  CallResult result;
  *reply = {};
  if (script != nullptr) {
    result = {script->value, script->error};
  } else if (has_api_reply_ && (features & ~api_features_) != 0) {
    result = {0, EINVAL};
  } else if (!has_api_reply_) {
    if (real_ != nullptr) result = real_->Api(fd, features, reply);
  } else {
    if (real_ != nullptr) {
      // The real kernel answers EINVAL to bits that only the script knows, so
      // only the bits that the kernel has are requested. A handshake on a
      // separate descriptor finds them.
      uint64_t known = 0;
      const CallResult probe = real_->OpenUserfaultfdSyscall(kUffdUserModeOnly);
      const CallResult probe_or_device =
          probe.ok() ? probe : real_->OpenUserfaultfdDevice(kUffdUserModeOnly);
      if (probe_or_device.ok()) {
        uffdio_api real_reply{};
        const int probe_fd = static_cast<int>(probe_or_device.value);
        if (real_->Api(probe_fd, 0, &real_reply).ok()) {
          known = real_reply.features;
        }
        real_->Close(probe_fd);
      }
      result = real_->Api(fd, features & known, reply);
    }
    if (result.ok()) {
      reply->api = kUffdApi;
      reply->features = api_features_;
      reply->ioctls = api_ioctls_;
    }
  }
  End(call);
  return result;
}

CallResult FakeKernel::Register(int fd, uintptr_t start, size_t bytes,
                                uint64_t mode, uint64_t* ioctls) noexcept {
  if (ioctls != nullptr) *ioctls = 0;
  const CallResult result = Plain(
      {.op = Op::kRegister,
       .fd = fd,
       .start = start,
       .bytes = bytes,
       .mode = mode},
      {0, 0}, [&] { return real_->Register(fd, start, bytes, mode, ioctls); });
  if (result.ok() && has_register_ioctls_ && ioctls != nullptr) {
    *ioctls = register_ioctls_;
  }
  return result;
}

CallResult FakeKernel::Unregister(int fd, uintptr_t start,
                                  size_t bytes) noexcept {
  return Plain(
      {.op = Op::kUnregister, .fd = fd, .start = start, .bytes = bytes}, {0, 0},
      [&] { return real_->Unregister(fd, start, bytes); });
}

RangeResult FakeKernel::Copy(int fd, uintptr_t dst, uintptr_t src, size_t bytes,
                             uint64_t mode) noexcept {
  return Range({.op = Op::kCopy,
                .fd = fd,
                .start = dst,
                .source = src,
                .bytes = bytes,
                .mode = mode},
               [&](size_t part) {
                 return real_->Copy(fd, dst, src, part,
                                    ModeToldOf(Op::kCopy, mode));
               });
}

RangeResult FakeKernel::ZeroPage(int fd, uintptr_t start, size_t bytes,
                                 uint64_t mode) noexcept {
  return Range(
      {.op = Op::kZeroPage,
       .fd = fd,
       .start = start,
       .bytes = bytes,
       .mode = mode},
      [&](size_t part) { return real_->ZeroPage(fd, start, part, mode); });
}

RangeResult FakeKernel::Continue(int fd, uintptr_t start, size_t bytes,
                                 uint64_t mode) noexcept {
  return Range({.op = Op::kContinue,
                .fd = fd,
                .start = start,
                .bytes = bytes,
                .mode = mode},
               [&](size_t part) {
                 return real_->Continue(fd, start, part,
                                        ModeToldOf(Op::kContinue, mode));
               });
}

RangeResult FakeKernel::Poison(int fd, uintptr_t start, size_t bytes,
                               uint64_t mode) noexcept {
  return Range(
      {.op = Op::kPoison,
       .fd = fd,
       .start = start,
       .bytes = bytes,
       .mode = mode},
      [&](size_t part) { return real_->Poison(fd, start, part, mode); });
}

RangeResult FakeKernel::WriteProtect(int fd, uintptr_t start, size_t bytes,
                                     uint64_t mode) noexcept {
  return Range(
      {.op = Op::kWriteProtect,
       .fd = fd,
       .start = start,
       .bytes = bytes,
       .mode = mode},
      [&](size_t part) { return real_->WriteProtect(fd, start, part, mode); });
}

CallResult FakeKernel::Wake(int fd, uintptr_t start, size_t bytes) noexcept {
  return Plain({.op = Op::kWake, .fd = fd, .start = start, .bytes = bytes},
               {0, 0}, [&] { return real_->Wake(fd, start, bytes); });
}

CallResult FakeKernel::ReadEvents(int fd, uffd_msg* messages,
                                  size_t capacity) noexcept {
  Call call{.op = Op::kReadEvents, .fd = fd};
  const Script* script = Begin(call);
  CallResult result{0, EAGAIN};
  if (script != nullptr) {
    result = {script->value, script->error};
  } else {
    size_t count = 0;
    while (count < capacity) {
      const size_t next = next_event_.fetch_add(1, std::memory_order_acq_rel);
      if (next >= events_.size()) {
        next_event_.store(events_.size(), std::memory_order_release);
        break;
      }
      messages[count++] = events_[next];
    }
    if (count > 0) {
      result = {static_cast<int64_t>(count), 0};
    } else if (real_ != nullptr) {
      result = real_->ReadEvents(fd, messages, capacity);
    }
  }
  End(call);
  return result;
}

CallResult FakeKernel::Poll(pollfd* fds, size_t count,
                            int timeout_ms) noexcept {
  return Plain({.op = Op::kPoll, .bytes = count, .timeout_ms = timeout_ms},
               {0, 0}, [&] { return real_->Poll(fds, count, timeout_ms); });
}

CallResult FakeKernel::ScanSetPagemap(PmScanArg* arg) const noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the kernel takes a number.
  auto* const found = reinterpret_cast<PageRegion*>(arg->vec);
  uint64_t count = 0;
  arg->walk_end = arg->end;
  for (const PageRegion& region : *pagemap_) {
    const uint64_t start = std::max(region.start, arg->start);
    const uint64_t end = std::min(region.end, arg->end);
    const uint64_t bits = region.categories ^ arg->category_inverted;
    if (start >= end || (bits & arg->category_mask) != arg->category_mask ||
        (arg->category_anyof_mask != 0 &&
         (bits & arg->category_anyof_mask) == 0)) {
      continue;
    }
    if (arg->vec == 0) continue;  // Only protects.
    if (count == arg->vec_len) {
      arg->walk_end = start;
      break;
    }
    found[count++] = {start, end, region.categories & arg->return_mask};
  }
  return {static_cast<int64_t>(count), 0};
}

CallResult FakeKernel::PagemapScan(int pagemap_fd, PmScanArg* arg) noexcept {
  Call call{.op = Op::kPagemapScan,
            .fd = pagemap_fd,
            .start = static_cast<uintptr_t>(arg->start),
            .bytes = static_cast<size_t>(arg->end - arg->start),
            .mode = arg->flags};
  if (pagemap_.has_value()) {
    const Script* script = Begin(call);
    const CallResult result = script != nullptr
                                  ? CallResult{script->value, script->error}
                                  : ScanSetPagemap(arg);
    End(call);
    return result;
  }
  return Plain(call, {0, ENOTTY}, [&] {
    PmScanArg told = *arg;
    told.flags = ModeToldOf(Op::kPagemapScan, arg->flags);
    const CallResult result = real_->PagemapScan(pagemap_fd, &told);
    arg->walk_end = told.walk_end;
    return result;
  });
}

CallResult FakeKernel::Mmap(uintptr_t addr, size_t bytes, int prot, int flags,
                            int fd, uint64_t offset) noexcept {
  return Plain({.op = Op::kMmap,
                .fd = fd,
                .start = addr,
                .bytes = bytes,
                .mode = static_cast<uint64_t>(flags)},
               {0, ENOSYS}, [&] {
                 return real_->Mmap(addr, bytes, prot, flags, fd, offset);
               });
}

CallResult FakeKernel::Munmap(uintptr_t start, size_t bytes) noexcept {
  return Plain({.op = Op::kMunmap, .start = start, .bytes = bytes}, {0, 0},
               [&] { return real_->Munmap(start, bytes); });
}

CallResult FakeKernel::Mprotect(uintptr_t start, size_t bytes,
                                int prot) noexcept {
  return Plain({.op = Op::kMprotect,
                .start = start,
                .bytes = bytes,
                .mode = static_cast<uint64_t>(prot)},
               {0, 0}, [&] { return real_->Mprotect(start, bytes, prot); });
}

CallResult FakeKernel::Madvise(uintptr_t start, size_t bytes,
                               int advice) noexcept {
  return Plain({.op = Op::kMadvise,
                .start = start,
                .bytes = bytes,
                .mode = static_cast<uint64_t>(advice)},
               {0, 0}, [&] { return real_->Madvise(start, bytes, advice); });
}

CallResult FakeKernel::Munlock(uintptr_t start, size_t bytes) noexcept {
  return Plain({.op = Op::kMunlock, .start = start, .bytes = bytes}, {0, 0},
               [&] { return real_->Munlock(start, bytes); });
}

CallResult FakeKernel::ProcessMadvise(const iovec* ranges, size_t count,
                                      int advice) noexcept {
  size_t bytes = 0;
  for (size_t i = 0; ranges != nullptr && i < count; ++i) {
    bytes += ranges[i].iov_len;
  }
  return Plain(
      {.op = Op::kProcessMadvise,
       .start =
           bytes == 0 ? 0 : reinterpret_cast<uintptr_t>(ranges[0].iov_base),
       .bytes = bytes,
       .mode = static_cast<uint64_t>(advice)},
      {static_cast<int64_t>(bytes), 0},
      [&] { return real_->ProcessMadvise(ranges, count, advice); });
}

CallResult FakeKernel::Close(int fd) noexcept {
  return Plain({.op = Op::kClose, .fd = fd}, {0, 0},
               [&] { return real_->Close(fd); });
}

CallResult FakeKernel::DupCloexec(int fd, int minimum) noexcept {
  return Plain({.op = Op::kDupCloexec, .fd = fd}, {0, ENOSYS},
               [&] { return real_->DupCloexec(fd, minimum); });
}

CallResult FakeKernel::EventFd() noexcept {
  return Plain({.op = Op::kEventFd}, {0, ENOSYS},
               [&] { return real_->EventFd(); });
}

CallResult FakeKernel::Membarrier(int command) noexcept {
  return Plain({.op = Op::kMembarrier, .mode = static_cast<uint64_t>(command)},
               {0, ENOSYS}, [&] { return real_->Membarrier(command); });
}

CallResult FakeKernel::OpenPagemap() noexcept {
  return Plain({.op = Op::kOpenPagemap}, {0, ENOSYS},
               [&] { return real_->OpenPagemap(); });
}

}  // namespace firsttouch
