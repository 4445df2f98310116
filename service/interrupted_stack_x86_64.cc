// On the fault path: see interrupted_stack.h.

#if defined(__x86_64__)

#include <errno.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firsttouch/service/interrupted_stack.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr size_t kKernelSigsetBytes = 8;

// The kernel's frame (struct rt_sigframe): the return address of the handler, a
// ucontext with the kernel's short signal mask, the siginfo. The state of the
// vector registers lies above, where uc_mcontext.fpregs points.
constexpr size_t kReturnBytes = sizeof(void*);
constexpr size_t kKernelUcontextBytes =
    offsetof(ucontext_t, uc_sigmask) + kKernelSigsetBytes;

// More than any frame of today; a larger one is left alone.
constexpr size_t kMostFrameBytes = 64 * 1024;
// XSAVE areas need this alignment, and it is a multiple of the stack's.
constexpr uintptr_t kFrameAlignment = 64;
// The interrupted code may use this many bytes below its stack pointer.
constexpr uintptr_t kRedZoneBytes = 128;

// The end of the vector registers' state (struct _fpx_sw_bytes in
// <asm/sigcontext.h>).
uintptr_t EndOfFloatState(const ucontext_t& context) {
  constexpr size_t kLegacyBytes = 512;
  constexpr size_t kSoftwareBytesOffset = 464;
  constexpr uint32_t kMagic = 0x46505853;
  const auto* const state =
      reinterpret_cast<const char*>(context.uc_mcontext.fpregs);
  uint32_t software[2];  // magic1, extended_size
  memcpy(software, state + kSoftwareBytesOffset, sizeof(software));
  return reinterpret_cast<uintptr_t>(state) +
         (software[0] == kMagic ? software[1] : kLegacyBytes);
}

bool HasShadowStack() {
  uint64_t pointer = 0;
  // rdsspq %rax: does nothing where there is no shadow stack.
  asm volatile(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8" : "+a"(pointer));
  return pointer != 0;
}

// Asks the kernel whether each page of [begin, end) can be written to, by a
// call that writes the present signal mask there. The old contents are lost.
bool IsWritable(uintptr_t begin, uintptr_t end) {
  for (uintptr_t page = RoundDownToPage(begin); page < end;
       page += kPageBytes) {
    const uintptr_t at = page < begin ? begin : page;
    if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, nullptr, at,
                kKernelSigsetBytes) != 0) {
      return false;
    }
  }
  return true;
}

// Not memcpy(3): sanitizers replace it by one that checks what they know of
// both stacks.
void Copy(uintptr_t to, uintptr_t from, size_t bytes) {
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

// Continues in `handler` as if the kernel had built the frame at `frame`.
[[noreturn]] __attribute__((noinline)) void Enter(uintptr_t frame,
                                                  SignalFunction handler,
                                                  int signal, siginfo_t* info,
                                                  ucontext_t* context) {
  asm volatile(
      "movq %[frame], %%rsp\n\t"
      "movq %[frame_pointer], %%rbp\n\t"
      "xorl %%eax, %%eax\n\t"
      "cld\n\t"
      "jmpq *%[handler]"
      :
      : [frame] "c"(frame),
        [frame_pointer] "a"(context->uc_mcontext.gregs[REG_RBP]),
        [handler] "b"(handler), "D"(signal), "S"(info), "d"(context)
      : "memory");
  __builtin_unreachable();
}

}  // namespace

void CallOnInterruptedStack(SignalFunction handler, int signal, siginfo_t* info,
                            void* ucontext) {
  const auto& context = *static_cast<const ucontext_t*>(ucontext);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(ucontext) - kReturnBytes;
  const auto siginfo = reinterpret_cast<uintptr_t>(info);
  if (siginfo != begin + kReturnBytes + kKernelUcontextBytes) return;
  const auto low = reinterpret_cast<uintptr_t>(context.uc_stack.ss_sp);
  const uintptr_t size = context.uc_stack.ss_size;
  const auto interrupted =
      static_cast<uintptr_t>(context.uc_mcontext.gregs[REG_RSP]);
  if (begin - low >= size || interrupted - low < size) return;
  const uintptr_t end = context.uc_mcontext.fpregs == nullptr
                            ? siginfo + sizeof(siginfo_t)
                            : EndOfFloatState(context);
  if (end <= begin || end - begin > kMostFrameBytes ||
      interrupted < kMostFrameBytes || HasShadowStack()) {
    return;
  }
  // The copy has the same distance from a multiple of the alignment as the
  // kernel's frame.
  uintptr_t copy = interrupted - kRedZoneBytes - (end - begin);
  copy -= (copy - begin) % kFrameAlignment;
  // The handler itself needs some stack as well.
  const int saved_errno = errno;
  const bool writable =
      IsWritable(copy - kPageBytes, interrupted - kRedZoneBytes);
  errno = saved_errno;
  if (!writable) return;
  Copy(copy, begin, end - begin);
  const uintptr_t moved_by = copy - begin;  // wraps around where it is lower
  auto* const copied = reinterpret_cast<ucontext_t*>(
      reinterpret_cast<uintptr_t>(ucontext) + moved_by);
  if (context.uc_mcontext.fpregs != nullptr) {
    copied->uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(
        reinterpret_cast<uintptr_t>(context.uc_mcontext.fpregs) + moved_by);
  }
  Enter(copy, handler, signal, reinterpret_cast<siginfo_t*>(siginfo + moved_by),
        copied);
}

}  // namespace firsttouch

#endif  // __x86_64__
