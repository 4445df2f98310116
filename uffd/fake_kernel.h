// A kernel that fails, stops half-way or waits on command. For tests only.
//
//   FakeKernel kernel;                          // forwards to the real kernel
//   kernel.Fail(FakeKernel::Op::kCopy, 3, RangeResult{0, EAGAIN});  // 3rd Copy
//   kernel.Shorten(FakeKernel::Op::kCopy, 4, 8192, EAGAIN);  // 4th: 2 pages
//   kernel.Hook(FakeKernel::Op::kContinue, [&](const auto& call) { ... });
//   ... EXPECT_EQ(kernel.Calls(FakeKernel::Op::kCopy), 5);
//
// With FakeKernel(FakeKernel::kScripted) nothing reaches the machine: every
// call that no script answers succeeds without doing anything (a range call
// reports its whole range as done, a call that makes a descriptor or a mapping
// fails with ENOSYS), so that policy can be tested on memory that does not
// exist.
//
// Set up scripts and hooks before the calls that they are for. After that,
// calls may come from any threads and, unless a hook of the operation does what
// a handler must not do, from signal handlers.

#ifndef FIRSTTOUCH_UFFD_FAKE_KERNEL_H_
#define FIRSTTOUCH_UFFD_FAKE_KERNEL_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

class FakeKernel final : public Kernel {
 public:
  // One per method of Kernel.
  enum class Op {
    kOpenUserfaultfdDevice,
    kOpenUserfaultfdSyscall,
    kApi,
    kRegister,
    kUnregister,
    kCopy,
    kZeroPage,
    kContinue,
    kPoison,
    kWriteProtect,
    kWake,
    kReadEvents,
    kPoll,
    kPagemapScan,
    kMmap,
    kMunmap,
    kMprotect,
    kMadvise,
    kMunlock,
    kProcessMadvise,
    kClose,
    kDupCloexec,
    kEventFd,
    kMembarrier,
    kOpenPagemap,
  };
  static constexpr size_t kOps = static_cast<size_t>(Op::kOpenPagemap) + 1;

  // A call, as a hook sees it. Fields that the operation lacks are 0.
  struct Call {
    Op op;
    uint64_t nth;  // 1 for the first call of this operation, and so on
    int fd = -1;
    uintptr_t start = 0;  // destination, range or address
    uintptr_t source = 0;
    size_t bytes = 0;
    uint64_t mode = 0;   // mode, features, flags or advice
    int timeout_ms = 0;  // Poll
  };
  using CallHook = std::function<void(const Call&)>;

  struct Scripted {};
  static constexpr Scripted kScripted{};
  // As `nth`: this call and all later calls of the operation.
  static constexpr uint64_t kEvery = 0;

  // Forwards calls that no script answers to the real kernel.
  FakeKernel();
  // Forwards to `real`, which must outlive this.
  explicit FakeKernel(Kernel& real);
  // Forwards nothing.
  explicit FakeKernel(Scripted);

  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;

  // The `nth` call of `op`, counted from the next one (1), or every call from
  // the next one on (kEvery), answers `result` and does nothing else. At most
  // kMaxScripts per operation at a time (checked); an `nth` script takes
  // precedence over an "every" script.
  void Fail(Op op, uint64_t nth, RangeResult result);
  void Fail(Op op, uint64_t nth, CallResult result);

  // As Fail, but the first `bytes` bytes are really done (forwarded) before
  // `error` is reported with the count. Range operations only.
  void Shorten(Op op, uint64_t nth, size_t bytes, int error);

  // Drops every script of `op`.
  void Clear(Op op);

  // Withholds these bits of the mode (for PagemapScan: of the flags) from the
  // real kernel from now on: the kernel does less than it was asked for, and
  // says that all is done. Copy, Continue and PagemapScan only.
  void WithholdMode(Op op, uint64_t bits);

  // Runs `hook` before (HookAfter: after) each call of `op`, in the calling
  // thread: it may block (a slow kernel), make other calls (re-entry), or
  // change memory (a lost race). An empty function removes the hook.
  void Hook(Op op, CallHook hook);
  void HookAfter(Op op, CallHook hook);

  // Api: replies with these features and ioctls instead of the kernel's, like a
  // kernel with exactly these: a request for another one is EINVAL and an
  // all-zero reply. The real handshake uses the features that both know.
  void SetApiReply(uint64_t features, uint64_t ioctls);
  // Register: `*ioctls` gets this mask instead of the kernel's.
  void SetRegisterIoctls(uint64_t ioctls);
  // ReadEvents: these come first, before the kernel's events.
  void QueueEvents(std::vector<uffd_msg> messages);

  // PagemapScan: these regions, ascending and apart, are all that is there, in
  // these categories; what a scan asks for is looked up in them, and a scan
  // that protects changes nothing. A script goes before them.
  void SetPagemap(std::vector<PageRegion> regions);

  // Calls of `op` so far, scripted ones included; and of all operations.
  uint64_t Calls(Op op) const;
  uint64_t TotalCalls() const;
  void ResetCalls();

  // ---- Kernel ----
  CallResult OpenUserfaultfdDevice(int flags) noexcept override;
  CallResult OpenUserfaultfdSyscall(int flags) noexcept override;
  CallResult Api(int fd, uint64_t features,
                 uffdio_api* reply) noexcept override;
  CallResult Register(int fd, uintptr_t start, size_t bytes, uint64_t mode,
                      uint64_t* ioctls) noexcept override;
  CallResult Unregister(int fd, uintptr_t start,
                        size_t bytes) noexcept override;
  RangeResult Copy(int fd, uintptr_t dst, uintptr_t src, size_t bytes,
                   uint64_t mode) noexcept override;
  RangeResult ZeroPage(int fd, uintptr_t start, size_t bytes,
                       uint64_t mode) noexcept override;
  RangeResult Continue(int fd, uintptr_t start, size_t bytes,
                       uint64_t mode) noexcept override;
  RangeResult Poison(int fd, uintptr_t start, size_t bytes,
                     uint64_t mode) noexcept override;
  RangeResult WriteProtect(int fd, uintptr_t start, size_t bytes,
                           uint64_t mode) noexcept override;
  CallResult Wake(int fd, uintptr_t start, size_t bytes) noexcept override;
  CallResult ReadEvents(int fd, uffd_msg* messages,
                        size_t capacity) noexcept override;
  CallResult Poll(pollfd* fds, size_t count, int timeout_ms) noexcept override;
  CallResult PagemapScan(int pagemap_fd, PmScanArg* arg) noexcept override;
  CallResult Mmap(uintptr_t addr, size_t bytes, int prot, int flags, int fd,
                  uint64_t offset) noexcept override;
  CallResult Munmap(uintptr_t start, size_t bytes) noexcept override;
  CallResult Mprotect(uintptr_t start, size_t bytes,
                      int prot) noexcept override;
  CallResult Madvise(uintptr_t start, size_t bytes,
                     int advice) noexcept override;
  CallResult Munlock(uintptr_t start, size_t bytes) noexcept override;
  CallResult ProcessMadvise(const iovec* ranges, size_t count,
                            int advice) noexcept override;
  CallResult Close(int fd) noexcept override;
  CallResult DupCloexec(int fd, int minimum) noexcept override;
  CallResult EventFd() noexcept override;
  CallResult Membarrier(int command) noexcept override;
  CallResult OpenPagemap() noexcept override;

  // Scripts that one operation can hold.
  static constexpr size_t kMaxScripts = 32;

 private:
  struct Script {
    uint64_t nth = 0;  // absolute; kEvery: all from `from` on
    uint64_t from = 0;
    int64_t value = 0;  // CallResult::value or RangeResult::bytes_done
    int error = 0;
    bool shorten = false;
  };
  struct PerOp {
    std::atomic<uint64_t> calls{0};
    std::atomic<size_t> script_count{0};
    std::array<Script, kMaxScripts> scripts;
    CallHook before;
    CallHook after;
    uint64_t withheld_mode = 0;
  };

  PerOp& Of(Op op) { return ops_[static_cast<size_t>(op)]; }
  uint64_t ModeToldOf(Op op, uint64_t mode) {
    return mode & ~Of(op).withheld_mode;
  }
  void Add(Op op, uint64_t nth, int64_t value, int error, bool shorten);
  // Counts the call, runs the hook, and returns the script for it, or null.
  const Script* Begin(Call& call) noexcept;
  void End(const Call& call) noexcept;
  template <typename Forward>
  RangeResult Range(Call call, Forward forward) noexcept;
  template <typename Forward>
  CallResult Plain(Call call, CallResult unscripted, Forward forward) noexcept;
  // Answers a scan from `pagemap_`.
  CallResult ScanSetPagemap(PmScanArg* arg) const noexcept;

  Kernel* const real_;  // null: forwards nothing
  std::array<PerOp, kOps> ops_;

  bool has_api_reply_ = false;
  uint64_t api_features_ = 0;
  uint64_t api_ioctls_ = 0;
  bool has_register_ioctls_ = false;
  uint64_t register_ioctls_ = 0;
  std::optional<std::vector<PageRegion>> pagemap_;
  std::vector<uffd_msg> events_;
  std::atomic<size_t> next_event_{0};
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_FAKE_KERNEL_H_
