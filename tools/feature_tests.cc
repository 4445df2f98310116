#include "firsttouch/tools/feature_tests.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr size_t kPage = kPageBytes;
constexpr size_t kPages = 16;
constexpr size_t kBytes = kPages * kPage;

Tried Works() { return {}; }
Tried Failed(std::string detail) {
  return {Verdict::kFailed, std::move(detail)};
}
Tried Missing(const absl::Status& status) {
  std::string detail(status.message());
  return {Verdict::kMissing, std::move(detail)};
}
Tried Unexpected(const char* call, int error) {
  return Failed(absl::StrCat(call, ": ", ErrnoText(error)));
}

// The value of all bytes of page `page`; never zero.
constexpr char Letter(size_t page) {
  return static_cast<char>('a' + static_cast<char>(page));
}

// Resolves a fault at a page. Returns 0, or an errno.
using Resolve = int (*)(struct Bench& bench, uintptr_t page, uint64_t flags);

// Scratch memory, its userfaultfd, and a thread or handler that resolves its
// faults.
struct Bench {
  Kernel& kernel;
  std::unique_ptr<Uffd> uffd;
  UniqueFd file;           // a memfd with Letter() pages; page 5 is a hole
  char* source = nullptr;  // a view of it
  char* memory = nullptr;
  Resolve resolve = nullptr;
  std::atomic<int> faults{0};
  std::atomic<int> resolve_error{0};
  sigjmp_buf trap;
  std::thread handler;
  UniqueFd stop;

  explicit Bench(Kernel& kernel) : kernel(kernel) {}
  ~Bench() {
    if (handler.joinable()) {
      const uint64_t one = 1;
      (void)!write(stop.get(), &one, sizeof(one));
      handler.join();
    }
  }

  int fd() const { return uffd->fd(); }
  uintptr_t address(size_t page) const {
    return reinterpret_cast<uintptr_t>(memory) + page * kPage;
  }

  absl::Status Open(uint64_t features, bool kernel_faults = false) {
    absl::StatusOr<Uffd> opened = Uffd::Open(
        kernel,
        {.required_features = features, .kernel_faults = kernel_faults});
    if (!opened.ok()) return opened.status();
    uffd = std::make_unique<Uffd>(*std::move(opened));
    return absl::OkStatus();
  }

  // Makes the source and the memory; the memory is anonymous, or a private
  // mapping of the file.
  absl::Status Map(bool of_file, uint64_t mode, uint64_t ioctls) {
    file = UniqueFd(memfd_create("firsttouch-self-test", MFD_CLOEXEC));
    if (!file || ftruncate(file.get(), kBytes) != 0) {
      return absl::ErrnoToStatus(errno, "a memfd");
    }
    char page[kPage];
    for (size_t i = 0; i < kPages; ++i) {
      if (i == 5) continue;
      std::memset(page, Letter(i), kPage);
      if (pwrite(file.get(), page, kPage, static_cast<off_t>(i * kPage)) !=
          static_cast<ssize_t>(kPage)) {
        return absl::ErrnoToStatus(errno, "writing a memfd");
      }
    }
    void* view = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, file.get(), 0);
    void* mapped =
        of_file ? mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                       file.get(), 0)
                : mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (view == MAP_FAILED || mapped == MAP_FAILED) {
      return absl::ErrnoToStatus(errno, "mapping scratch memory");
    }
    source = static_cast<char*>(view);
    memory = static_cast<char*>(mapped);
    madvise(memory, kBytes, MADV_NOHUGEPAGE);
    return uffd->Register(address(0), kBytes, mode, ioctls);
  }

  void ResolveInThread(Resolve how);
  void ResolveInHandler(Resolve how);
};

Bench* current = nullptr;

void OnSigbus(int, siginfo_t* info, void*) {
  Bench& bench = *current;
  bench.faults.fetch_add(1);
  if (bench.resolve != nullptr) {
    const uintptr_t page =
        RoundDownToPage(reinterpret_cast<uintptr_t>(info->si_addr));
    bench.resolve_error = bench.resolve(bench, page, 0);
    if (bench.resolve_error == 0) return;
  }
  siglongjmp(bench.trap, 1);
}

void Bench::ResolveInThread(Resolve how) {
  resolve = how;
  current = this;
  struct sigaction action = {};
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGBUS, &action, nullptr);
}

void Bench::ResolveInHandler(Resolve how) {
  resolve = how;
  const CallResult eventfd = kernel.EventFd();
  stop = UniqueFd(eventfd.ok() ? static_cast<int>(eventfd.value) : -1);
  handler = std::thread([this] {
    EventReader reader(kernel, fd());
    for (;;) {
      pollfd fds[] = {{fd(), POLLIN, 0}, {stop.get(), POLLIN, 0}};
      kernel.Poll(fds, 2, -1);
      if ((fds[1].revents & POLLIN) != 0) return;
      for (const Event& event : reader.Read().events) {
        if (event.kind != Event::Kind::kPagefault) continue;
        faults.fetch_add(1);
        resolve_error =
            resolve(*this, RoundDownToPage(event.address), event.flags);
        if (resolve_error != 0) {
          // The touching thread would wait forever: end for it.
          const std::string text =
              absl::StrCat("resolving a fault: ", ErrnoText(resolve_error));
          (void)!write(STDOUT_FILENO, text.data(), text.size());
          _exit(static_cast<int>(Verdict::kFailed));
        }
      }
    }
  });
}

size_t PageOf(const Bench& bench, uintptr_t address) {
  return (address - bench.address(0)) / kPage;
}

int CopyOne(Bench& bench, uintptr_t page, uint64_t) {
  return CopyRange(bench.kernel, bench.fd(), page,
                   reinterpret_cast<uintptr_t>(bench.source) +
                       PageOf(bench, page) * kPage,
                   kPage, 0, {.wake_present = true})
      .error;
}

int ZeroOne(Bench& bench, uintptr_t page, uint64_t) {
  return ZeroRange(bench.kernel, bench.fd(), page, kPage, 0,
                   {.wake_present = true})
      .error;
}

// Maps a page of the file, or a zero page where the file has a hole.
int ContinueOne(Bench& bench, uintptr_t page, uint64_t) {
  if (PageOf(bench, page) == 5) return ZeroOne(bench, page, 0);
  return ContinueRange(bench.kernel, bench.fd(), page, kPage, 0,
                       {.wake_present = true})
      .error;
}

int UnprotectOne(Bench& bench, uintptr_t page, uint64_t) {
  return WriteProtectRange(bench.kernel, bench.fd(), page, kPage, 0, {}).error;
}

// Reads every page and compares; expects one fault per page.
Tried CheckReads(Bench& bench, bool zero) {
  if (sigsetjmp(bench.trap, 1) != 0) {
    return Failed(absl::StrCat("a fault could not be resolved: ",
                               ErrnoText(bench.resolve_error)));
  }
  for (size_t page = 0; page < kPages; ++page) {
    const char expected = zero || page == 5 ? '\0' : Letter(page);
    for (const size_t offset : {size_t{0}, kPage - 1}) {
      const char got =
          *const_cast<volatile char*>(bench.memory + page * kPage + offset);
      if (got != expected) {
        return Failed(absl::StrCat("page ", page, " reads ", int{got},
                                   " where it should read ", int{expected}));
      }
    }
  }
  if (bench.faults != static_cast<int>(kPages)) {
    return Failed(
        absl::StrCat(bench.faults.load(), " faults for ", kPages, " pages"));
  }
  return Works();
}

// Fills missing (or minor) pages as they are touched.
Tried TryFill(Kernel& kernel, bool in_thread, bool of_file, Resolve resolve,
              bool zero) {
  Bench bench(kernel);
  uint64_t features = in_thread ? kUffdFeatureSigbus : 0;
  if (of_file) features |= kUffdFeatureMinorShmem;
  absl::Status ready = bench.Open(features);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(of_file,
                    kUffdRegisterMissing | (of_file ? kUffdRegisterMinor : 0),
                    of_file ? kUffdIoctlContinue : kUffdIoctlCopy);
  if (!ready.ok()) return Missing(ready);
  if (in_thread) {
    bench.ResolveInThread(resolve);
  } else {
    bench.ResolveInHandler(resolve);
  }
  return CheckReads(bench, zero);
}

// Maps a page of the file write-protected by one call, as the service does:
// with two calls, a write between them would not be seen.
int ContinueProtected(Bench& bench, uintptr_t page) {
  if (PageOf(bench, page) == 5) return ZeroOne(bench, page, 0);
  return ContinueRange(bench.kernel, bench.fd(), page, kPage, kUffdContinueWp,
                       {})
      .error;
}

// Checks that protected pages fault once when written, and keep their contents.
Tried TryWriteProtect(Kernel& kernel, bool in_thread, bool of_file) {
  Bench bench(kernel);
  uint64_t features = kUffdFeaturePagefaultFlagWp;
  if (in_thread) features |= kUffdFeatureSigbus;
  if (of_file)
    features |= kUffdFeatureMinorShmem | kUffdFeatureWpHugetlbfsShmem;
  absl::Status ready = bench.Open(features);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(of_file,
                    kUffdRegisterMissing | kUffdRegisterWp |
                        (of_file ? kUffdRegisterMinor : 0),
                    kUffdIoctlWriteProtect);
  if (!ready.ok()) return Missing(ready);
  for (size_t page = 0; page < kPages; ++page) {
    const int error = of_file ? ContinueProtected(bench, bench.address(page))
                              : CopyOne(bench, bench.address(page), 0);
    if (of_file && error == EINVAL) {
      return Missing(absl::FailedPreconditionError(
          "UFFDIO_CONTINUE does not protect the page that it maps"));
    }
    if (error != 0) return Unexpected("filling a page", error);
  }
  if (!of_file) {
    const RangeResult on = kernel.WriteProtect(bench.fd(), bench.address(0),
                                               kBytes, kUffdWriteProtectWp);
    if (!on.ok()) return Unexpected("UFFDIO_WRITEPROTECT", on.error);
  }
  if (in_thread) {
    bench.ResolveInThread(UnprotectOne);
  } else {
    bench.ResolveInHandler(UnprotectOne);
  }
  if (sigsetjmp(bench.trap, 1) != 0) {
    return Unexpected("taking protection off", bench.resolve_error);
  }
  volatile char* memory = bench.memory;
  for (size_t page = 0; page < kPages; page += 2) {
    const char before = memory[page * kPage + 1];
    memory[page * kPage] = '!';
    memory[page * kPage] = '?';  // no second fault
    if (memory[page * kPage] != '?' || memory[page * kPage + 1] != before) {
      return Failed(absl::StrCat("page ", page, " lost what was in it"));
    }
  }
  if (bench.faults != static_cast<int>(kPages / 2)) {
    return Failed(absl::StrCat(bench.faults.load(), " faults for ", kPages / 2,
                               " protected pages"));
  }
  if (of_file && bench.source[1] != Letter(0)) {
    return Failed("a write to a private page reached the file");
  }
  return Works();
}

// Writes to `address`; returns whether that raised a signal that nothing
// resolved.
bool Traps(Bench& bench, volatile char* address) {
  if (sigsetjmp(bench.trap, 1) != 0) return true;
  *address = 1;
  return false;
}

Tried TryTrap(Kernel& kernel) {
  Bench bench(kernel);
  absl::Status ready = bench.Open(kUffdFeatureSigbus);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(false, kUffdRegisterMissing, kUffdIoctlCopy);
  if (!ready.ok()) return Missing(ready);
  bench.ResolveInThread(nullptr);
  for (const size_t page : {0, 1, 1}) {
    if (!Traps(bench, bench.memory + page * kPage)) {
      return Failed("a touch out of bounds went through");
    }
  }
  return Works();
}

// Calls read(2) into missing memory, then into memory that was made ready.
Tried TrySystemCall(Kernel& kernel) {
  Bench bench(kernel);
  absl::Status ready = bench.Open(kUffdFeatureSigbus);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(false, kUffdRegisterMissing, kUffdIoctlZeroPage);
  if (!ready.ok()) return Missing(ready);
  bench.ResolveInThread(ZeroOne);
  const ssize_t cold = pread(bench.file.get(), bench.memory, kPage, 0);
  if (cold != -1 || errno != EFAULT) {
    return Failed(absl::StrCat("read(2) into a missing page gave ", cold,
                               " where EFAULT is due"));
  }
  if (ZeroOne(bench, bench.address(0), 0) != 0 ||
      ZeroOne(bench, bench.address(1), 0) != 0) {
    return Failed("the range could not be made ready");
  }
  const ssize_t warm = pread(bench.file.get(), bench.memory, 2 * kPage, 0);
  if (warm != static_cast<ssize_t>(2 * kPage) ||
      bench.memory[kPage] != Letter(1)) {
    return Failed(absl::StrCat("read(2) into a range made ready gave ", warm));
  }
  return Works();
}

Tried TryKernelFault(Kernel& kernel) {
  Bench bench(kernel);
  absl::Status ready = bench.Open(0, /*kernel_faults=*/true);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(false, kUffdRegisterMissing, kUffdIoctlZeroPage);
  if (!ready.ok()) return Missing(ready);
  bench.ResolveInHandler(ZeroOne);
  const ssize_t got = pread(bench.file.get(), bench.memory, 2 * kPage, 0);
  if (got != static_cast<ssize_t>(2 * kPage) ||
      bench.memory[kPage] != Letter(1)) {
    return Failed(absl::StrCat("read(2) into missing pages gave ", got));
  }
  return Works();
}

// The pages that a scan finds written, as bits.
struct Found {
  uint64_t pages = 0;
  int error = 0;
};
Found WrittenPages(Bench& bench, const Pagemap& pagemap, bool protect) {
  Found found;
  PageRegion buffer[4];
  const uintptr_t start = bench.address(0);
  const ScanResult scan = ScanPages(
      bench.kernel, pagemap.fd(),
      protect ? ScanRequest::WrittenAndProtect(start, start + kBytes)
              : ScanRequest::Written(start, start + kBytes),
      buffer, 4, [&](const PageRegion& region) {
        for (uintptr_t at = region.start; at < region.end; at += kPage) {
          found.pages |= uint64_t{1} << PageOf(bench, at);
        }
        return true;
      });
  found.error = scan.error;
  return found;
}

Tried TryAsyncScan(Kernel& kernel) {
  Bench bench(kernel);
  absl::Status ready =
      bench.Open(kUffdFeatureWpAsync | kUffdFeaturePagefaultFlagWp);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(false, kUffdRegisterWp, kUffdIoctlWriteProtect);
  if (!ready.ok()) return Missing(ready);
  const absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel);
  if (!pagemap.ok()) return Missing(pagemap.status());
  std::memset(bench.memory, 'm', kBytes / 2);  // the other half: never touched
  const Found first = WrittenPages(bench, *pagemap, true);
  if (first.error != 0) return Unexpected("PAGEMAP_SCAN", first.error);
  if (first.pages != 0xff) {
    return Failed(absl::StrCat("written pages ", absl::Hex(first.pages),
                               " where ff is due"));
  }
  bench.memory[1 * kPage] = 1;
  bench.memory[3 * kPage] = 1;
  bench.memory[12 * kPage] = 1;
  const Found second = WrittenPages(bench, *pagemap, false);
  if (second.error != 0) return Unexpected("PAGEMAP_SCAN", second.error);
  if (second.pages != ((1u << 1) | (1u << 3) | (1u << 12))) {
    return Failed(absl::StrCat("written pages ", absl::Hex(second.pages),
                               " where 100a is due"));
  }
  return Works();
}

Tried TryPoison(Kernel& kernel) {
  Bench bench(kernel);
  absl::Status ready = bench.Open(kUffdFeaturePoison);
  if (!ready.ok()) return Missing(ready);
  ready = bench.Map(false, kUffdRegisterMissing, kUffdIoctlPoison);
  if (!ready.ok()) return Missing(ready);
  const FillResult poisoned =
      PoisonRange(kernel, bench.fd(), bench.address(0), kPage, 0, {});
  if (!poisoned.ok()) return Unexpected("UFFDIO_POISON", poisoned.error);
  bench.ResolveInThread(nullptr);
  if (!Traps(bench, bench.memory)) {
    return Failed("a touch of a poisoned page went through");
  }
  if (CopyOne(bench, bench.address(0), 0) != 0 ||
      bench.memory[0] != Letter(0)) {
    return Failed("a poisoned page could not be filled again");
  }
  return Works();
}

Tried TryProcessMadvise(Kernel& kernel) {
  Bench bench(kernel);
  void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return Unexpected("mmap", errno);
  char* memory = static_cast<char*>(mapped);
  std::memset(memory, 'x', kBytes);
  const iovec ranges[] = {{memory, kPage}, {memory + 2 * kPage, kPage}};
  const CallResult dropped = kernel.ProcessMadvise(ranges, 2, kMadvDontNeed);
  if (!dropped.ok()) {
    return {Verdict::kMissing, absl::StrCat("process_madvise(MADV_DONTNEED): ",
                                            ErrnoText(dropped.error))};
  }
  return memory[0] == 0 && memory[kPage] == 'x' && memory[2 * kPage] == 0
             ? Works()
             : Failed("other pages were dropped than asked for");
}

Tried TryGuard(Kernel& kernel) {
  void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return Unexpected("mmap", errno);
  const CallResult guarded = kernel.Madvise(reinterpret_cast<uintptr_t>(mapped),
                                            kPage, kMadvGuardInstall);
  if (!guarded.ok()) {
    return {Verdict::kMissing, absl::StrCat("madvise(MADV_GUARD_INSTALL): ",
                                            ErrnoText(guarded.error))};
  }
  Bench bench(kernel);
  bench.ResolveInThread(nullptr);
  struct sigaction action = {};
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  if (!Traps(bench, static_cast<char*>(mapped))) {
    return Failed("a touch of a guard page went through");
  }
  return Works();
}

constexpr FeatureTest kTests[] = {
    {{"in-thread.copy", "missing page filled by COPY", "4.14"},
     [](Kernel& k) { return TryFill(k, true, false, CopyOne, false); }},
    {{"in-thread.zero", "missing page filled by ZEROPAGE", "4.14"},
     [](Kernel& k) { return TryFill(k, true, false, ZeroOne, true); }},
    {{"in-thread.minor", "memfd page mapped by CONTINUE", "5.14"},
     [](Kernel& k) { return TryFill(k, true, true, ContinueOne, false); }},
    {{"in-thread.protect", "first write to anonymous page seen", "5.7"},
     [](Kernel& k) { return TryWriteProtect(k, true, false); }},
    {{"in-thread.protect-memfd", "first write to memfd page seen", "6.4"},
     [](Kernel& k) { return TryWriteProtect(k, true, true); }},
    {{"in-thread.trap", "touch out of bounds trapped", "4.14"}, TryTrap},
    {{"in-thread.system-call", "read(2) after making ready", "4.14"},
     TrySystemCall},
    {{"handler-thread.copy", "missing page filled by COPY", "4.3"},
     [](Kernel& k) { return TryFill(k, false, false, CopyOne, false); }},
    {{"handler-thread.zero", "missing page filled by ZEROPAGE", "4.3"},
     [](Kernel& k) { return TryFill(k, false, false, ZeroOne, true); }},
    {{"handler-thread.minor", "memfd page mapped by CONTINUE", "5.14"},
     [](Kernel& k) { return TryFill(k, false, true, ContinueOne, false); }},
    {{"handler-thread.protect", "first write to anonymous page seen", "5.7"},
     [](Kernel& k) { return TryWriteProtect(k, false, false); }},
    {{"handler-thread.protect-memfd", "first write to memfd page seen", "6.4"},
     [](Kernel& k) { return TryWriteProtect(k, false, true); }},
    {{"handler-thread.system-call", "read(2) into missing pages", "4.3"},
     TryKernelFault},
    {{"poison", "touch of a POISONed page trapped", "6.6"}, TryPoison},
    {{"scan", "written pages found (WP_ASYNC)", "6.7"}, TryAsyncScan},
    {{"process-madvise", "many ranges dropped at once", "6.13"},
     TryProcessMadvise},
    {{"guard", "guard page without a mapping", "6.13"}, TryGuard},
};

}  // namespace

std::span<const FeatureTest> FeatureTests() { return kTests; }

void HangAtAFault(Kernel& kernel) {
  Bench bench(kernel);
  if (bench.Open(0).ok() &&
      bench.Map(false, kUffdRegisterMissing, kUffdIoctlCopy).ok()) {
    *const_cast<volatile char*>(bench.memory);
  }
  for (;;) pause();
}

}  // namespace firsttouch
