// All but installing runs in a signal handler: system calls and arithmetic
// only, no lock, no allocation, no stream.

#include "firsttouch/examples/crash_report.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firsttouch/service/raw_text.h"

namespace firsttouch::examples {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackWords = 64;

struct Reporter {
  char path[4096] = {};
  FirstChance first_chance = nullptr;
  // The thread that reports; 0: nobody has crashed yet.
  std::atomic<pid_t> reporting{0};
};
Reporter g_reporter;

pid_t ThisThread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

uint64_t StackPointerOf(const ucontext_t& context) {
#if defined(__x86_64__)
  return static_cast<uint64_t>(context.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  return context.uc_mcontext.sp;
#endif
}

void WriteRegisters(int file, const ucontext_t& context) {
#if defined(__x86_64__)
  constexpr const char* kNames[] = {"r8",  "r9",  "r10", "r11", "r12", "r13",
                                    "r14", "r15", "rdi", "rsi", "rbp", "rbx",
                                    "rdx", "rax", "rcx", "rsp", "rip"};
  const auto* const registers = context.uc_mcontext.gregs;
#elif defined(__aarch64__)
  constexpr const char* kNames[] = {
      "x0",  "x1",  "x2",  "x3",  "x4",  "x5",  "x6",  "x7",  "x8",
      "x9",  "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
      "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26",
      "x27", "x28", "x29", "x30", "sp",  "pc"};
  // Followed by the stack pointer and the program counter.
  const auto* const registers = context.uc_mcontext.regs;
#endif
  for (size_t i = 0; i < sizeof kNames / sizeof kNames[0]; ++i) {
    RawText()
        .Text("register ")
        .Text(kNames[i])
        .Text(": ")
        .Hex(static_cast<uint64_t>(registers[i]))
        .WriteLine(file);
  }
}

// By the kernel, since a stack that overflowed ends where it is read.
void WriteStack(int file, uint64_t stack_pointer) {
  uint64_t words[kStackWords];
  const iovec here = {.iov_base = words, .iov_len = sizeof words};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): it is a register.
  void* const top = reinterpret_cast<void*>(stack_pointer);
  const iovec there = {.iov_base = top, .iov_len = sizeof words};
  const ssize_t count = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
  if (count <= 0) {
    RawText().Text("stack: cannot be read").WriteLine(file);
    return;
  }
  for (size_t i = 0; i < static_cast<size_t>(count) / sizeof words[0]; ++i) {
    RawText()
        .Text("stack ")
        .Hex(stack_pointer + i * sizeof words[0])
        .Text(": ")
        .Hex(words[i])
        .WriteLine(file);
  }
}

void WriteMappings(int file) {
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return;
  char text[4096];
  for (ssize_t count; (count = read(maps, text, sizeof text)) > 0;) {
    // What cannot be written is lost: a crash has nobody to tell.
    if (write(file, text, static_cast<size_t>(count)) != count) break;
  }
  close(maps);
}

void WriteReport(int signal, const siginfo_t& info, const ucontext_t& context) {
  const int file =
      open(g_reporter.path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file < 0) return;
  RawText().Text("crash report").WriteLine(file);
  RawText()
      .Text("signal: ")
      .Text(signal == SIGBUS ? "SIGBUS" : "SIGSEGV")
      .WriteLine(file);
  RawText().Text("code: ").Signed(info.si_code).WriteLine(file);
  RawText()
      .Text("address: ")
      .Hex(reinterpret_cast<uintptr_t>(info.si_addr))
      .WriteLine(file);
  RawText()
      .Text("process: ")
      .Number(static_cast<uint64_t>(getpid()))
      .WriteLine(file);
  RawText()
      .Text("thread: ")
      .Number(static_cast<uint64_t>(ThisThread()))
      .WriteLine(file);
  WriteRegisters(file, context);
  WriteStack(file, StackPointerOf(context));
  RawText().Text("mappings:").WriteLine(file);
  WriteMappings(file);
  RawText().Text("end of report").WriteLine(file);
  close(file);
}

void Handle(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (g_reporter.first_chance != nullptr &&
      g_reporter.first_chance(signal, info, context)) {
    errno = saved_errno;
    return;
  }
  pid_t reporting = 0;
  const pid_t self = ThisThread();
  if (g_reporter.reporting.compare_exchange_strong(reporting, self)) {
    WriteReport(signal, *info, *static_cast<const ucontext_t*>(context));
  } else if (reporting != self) {
    // Another thread has crashed before, and ends the process in a moment.
    for (;;) pause();
  }
  // Only this signal: until the process has ended, other threads go on, and
  // what their guests touch may come by the other one.
  struct sigaction end = {};
  end.sa_handler = SIG_DFL;
  sigaction(signal, &end, nullptr);
  // An instruction that faulted faults again. A signal that was sent does not
  // come again by itself.
  if (info->si_code <= 0) raise(signal);
}

}  // namespace

bool InstallCrashReporter(const char* path, FirstChance first_chance,
                          const sigset_t& mask) {
  const size_t length = strlen(path);
  if (length >= sizeof g_reporter.path) {
    errno = ENAMETOOLONG;
    return false;
  }
  memcpy(g_reporter.path, path, length + 1);
  g_reporter.first_chance = first_chance;
  struct sigaction action = {};
  action.sa_sigaction = Handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  action.sa_mask = mask;
  return sigaction(SIGSEGV, &action, nullptr) == 0 &&
         sigaction(SIGBUS, &action, nullptr) == 0;
}

bool GiveCrashStack() {
  void* const memory =
      mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) return false;
  if (mprotect(memory, kGuardBytes, PROT_NONE) != 0) return false;
  stack_t stack = {};
  stack.ss_sp = static_cast<std::byte*>(memory) + kGuardBytes;
  stack.ss_size = kStackBytes;
  return sigaltstack(&stack, nullptr) == 0;
}

}  // namespace firsttouch::examples
