#include "firsttouch/integrations/wasm2c/runtime.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::wasm2c {
namespace {

// One call of RunGuarded, on its stack.
struct Run {
  jmp_buf target;
  Run* outer;
  uintptr_t outer_stack_limit;
  jmp_buf* outer_unwind_target;
  // Of this run; null for none.
  Interrupt* interrupt;
  Trap trap;
  // Set by FailGuest, read by RunGuarded.
  bool failed = false;
  absl::Status* host_error;
};

// An exception's values are at most this long.
constexpr uint32_t kMaxExceptionBytes = 65536;

struct Thrown {
  uint32_t tag = 0;
  uint32_t size = 0;
  alignas(16) uint8_t values[kMaxExceptionBytes];
};

}  // namespace

// One instance that a table keeps; wasm_rt_funcref_table_t::kept is a list.
struct KeptInstance {
  const void* instance;
  std::shared_ptr<void> owner;
  KeptInstance* next;
};

// All of a thread's state. Trivial and in static TLS, so that a signal handler
// may use it.
struct ThreadState {
  Run* run;
  // How many runs of this thread can be interrupted.
  uint32_t interruptible_runs;
  jmp_buf* unwind_target;
  Thrown* exception;  // made at the first throw
  ScopedMemorySource* source;
  // The thread's own stack; zeroes until the first run.
  uintptr_t stack_low;
  uintptr_t stack_high;
};

// With external linkage, and in the same model everywhere: the gold linker
// mixes up local variables that are used in two.
#define FIRSTTOUCH_STATIC_TLS __attribute__((tls_model("initial-exec")))
extern thread_local constinit ThreadState wasm2c_thread FIRSTTOUCH_STATIC_TLS;
thread_local constinit ThreadState wasm2c_thread FIRSTTOUCH_STATIC_TLS = {};

namespace {

// Frees what a thread's state points to, at its end.
struct ThreadEnd {
  ~ThreadEnd() {
    delete wasm2c_thread.exception;
    wasm2c_thread.exception = nullptr;
  }
};

// Says why on stderr and aborts. Async-signal-safe.
[[noreturn]] void Die(const char* what) {
  constexpr char kPrefix[] = "firsttouch wasm2c: ";
  (void)!write(STDERR_FILENO, kPrefix, sizeof(kPrefix) - 1);
  (void)!write(STDERR_FILENO, what, strlen(what));
  (void)!write(STDERR_FILENO, "\n", 1);
  abort();
}

// Looks up where the calling thread's stack lies.
void PrepareThread() {
  // Where this fails, so does delivering an overflow of the host's own stack;
  // traps of guests in a pool need no alternate stack of ours. HandleFault
  // works on whichever stack the signal came.
  (void)EnsureAlternateStack();
  pthread_attr_t attributes;
  void* low = nullptr;
  size_t bytes = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
    Die("pthread_getattr_np failed: cannot tell where the stack ends");
  }
  pthread_attr_getstack(&attributes, &low, &bytes);
  pthread_attr_destroy(&attributes);
  wasm2c_thread.stack_low = reinterpret_cast<uintptr_t>(low);
  wasm2c_thread.stack_high = wasm2c_thread.stack_low + bytes;
}

// The lowest address that a guest may use, called from a frame at `here`.
uintptr_t StackLimit(uintptr_t here, size_t stack_bytes) {
  uintptr_t wanted = here > stack_bytes ? here - stack_bytes : 0;
  if (here < wasm2c_thread.stack_low || here >= wasm2c_thread.stack_high)
    return wanted;
  // The guest's own first frame must fit, even at the very end of the stack.
  return std::max(wanted, wasm2c_thread.stack_low + kStackReserveBytes);
}

// Guards all Interrupt::limits_, and writing to limits of threads that have an
// interruptible run.
Mutex& InterruptMutex() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}

uintptr_t CurrentStackLimit() {
  return __atomic_load_n(&wasm_rt_stack_limit, __ATOMIC_RELAXED);
}

// Sets this thread's limit for the runs from `run` outwards. Where one of them
// is to be interrupted, that is what the limit says.
void SetStackLimit(const Run* run, uintptr_t limit) {
  if (wasm2c_thread.interruptible_runs == 0) {
    wasm_rt_stack_limit = limit;
    return;
  }
  MutexLock lock(&InterruptMutex());
  for (; run != nullptr; run = run->outer) {
    if (run->interrupt != nullptr && run->interrupt->requested()) {
      limit = WASM_RT_STACK_LIMIT_INTERRUPTED;
    }
  }
  __atomic_store_n(&wasm_rt_stack_limit, limit, __ATOMIC_RELAXED);
}

}  // namespace

void Interrupt::Request() {
  MutexLock lock(&InterruptMutex());
  requested_.store(true, std::memory_order_relaxed);
  for (uintptr_t* limit : limits_) {
    __atomic_store_n(limit, WASM_RT_STACK_LIMIT_INTERRUPTED, __ATOMIC_RELAXED);
  }
}

void Interrupt::Clear() {
  MutexLock lock(&InterruptMutex());
  requested_.store(false, std::memory_order_relaxed);
}

std::string Trap::Message() const {
  if (interrupted) return "interrupted by the host";
  if (exited) return absl::StrCat("the guest exited with code ", exit_code);
  if (!has_touch) return wasm_rt_strerror(code);
  return absl::StrFormat(
      "%s: %s at offset %d of memory %d of instance %d, size %d bytes",
      touch.error == 0
          ? std::string("out of bounds")
          : absl::StrCat("the page could not be had, errno ", touch.error),
      touch.write ? "write" : "read", touch.offset_bytes, touch.memory,
      touch.instance, touch.size_bytes);
}

RunEnd RunGuarded(absl::FunctionRef<void()> body, const RunOptions& options,
                  Trap* trap, absl::Status* host_error) {
  if (wasm2c_thread.stack_high == 0) PrepareThread();
  Run run;
  run.outer = wasm2c_thread.run;
  run.outer_stack_limit = CurrentStackLimit();
  run.outer_unwind_target = wasm2c_thread.unwind_target;
  run.interrupt = options.interrupt;
  run.host_error = host_error;
  if (run.interrupt != nullptr) {
    MutexLock lock(&InterruptMutex());
    run.interrupt->limits_.push_back(&wasm_rt_stack_limit);
    ++wasm2c_thread.interruptible_runs;
  }
  const uintptr_t limit =
      StackLimit(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)),
                 options.stack_bytes);
  // An inner run gets no more than the outer one has left.
  const uintptr_t bounded = std::max(limit, run.outer_stack_limit);

  const int value = sigsetjmp(run.target, /*savemask=*/0);
  if (value == 0) {
    wasm2c_thread.run = &run;
    wasm2c_thread.unwind_target = &run.target;
    SetStackLimit(&run, bounded);
    body();
  }
  if (run.interrupt != nullptr) {
    MutexLock lock(&InterruptMutex());
    std::vector<uintptr_t*>& limits = run.interrupt->limits_;
    limits.erase(std::find(limits.begin(), limits.end(), &wasm_rt_stack_limit));
    --wasm2c_thread.interruptible_runs;
  }
  wasm2c_thread.run = run.outer;
  wasm2c_thread.unwind_target = run.outer_unwind_target;
  SetStackLimit(run.outer, run.outer_stack_limit);
  if (value == 0) return RunEnd::kReturned;
  if (run.failed) return RunEnd::kHostError;
  if (!run.trap.exited && run.trap.code == WASM_RT_TRAP_NONE) {
    // From wasm_rt_throw, which knows only the jump buffer.
    run.trap.code = static_cast<wasm_rt_trap_t>(value);
  }
  *trap = run.trap;
  return run.trap.exited ? RunEnd::kExited : RunEnd::kTrapped;
}

bool GuestIsRunning() noexcept { return wasm2c_thread.run != nullptr; }

void TrapOutOfBounds(const BadTouch& touch) noexcept {
  Run* const run = wasm2c_thread.run;
  if (run == nullptr) return;
  run->trap.code = WASM_RT_TRAP_OOB;
  run->trap.has_touch = true;
  run->trap.touch = touch;
  siglongjmp(run->target, WASM_RT_TRAP_OOB);
}

void ExitGuest(uint32_t exit_code) {
  Run* const run = wasm2c_thread.run;
  if (run == nullptr) Die("ExitGuest outside of a run");
  run->trap.exited = true;
  run->trap.exit_code = exit_code;
  siglongjmp(run->target, 1);
}

namespace {

// Keeps the error where the run's caller finds it. Apart from FailGuest so
// that nothing with a destructor is alive when that one jumps.
void KeepHostError(absl::Status& status) {
  if (wasm2c_thread.run == nullptr) {
    Die(absl::StrCat("outside of a run: ", status.ToString()).c_str());
  }
  *wasm2c_thread.run->host_error = std::move(status);
  wasm2c_thread.run->failed = true;
}

}  // namespace

void FailGuest(absl::Status status) {
  KeepHostError(status);
  // `status` was moved from: it owns nothing that its destructor would free.
  siglongjmp(wasm2c_thread.run->target, 1);
}

ScopedMemorySource::ScopedMemorySource(MemorySource* source, size_t memories)
    : source_(source), memories_(memories), outer_(wasm2c_thread.source) {
  wasm2c_thread.source = this;
}

ScopedMemorySource::~ScopedMemorySource() { wasm2c_thread.source = outer_; }

absl::StatusOr<std::unique_ptr<GuestMemory>> ScopedMemorySource::TakeNext() {
  if (acquired_.empty()) {
    std::vector<MemoryRequest> requests(memories_);
    absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> acquired =
        source_->Acquire(requests);
    if (!acquired.ok()) return acquired.status();
    acquired_ = *std::move(acquired);
  }
  if (taken_ == acquired_.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the module asks for memory ", taken_,
        " but ScopedMemorySource was told it has ", memories_, " of its own"));
  }
  return std::move(acquired_[taken_++]);
}

void AttachMemory(wasm_rt_memory_t* memory, std::unique_ptr<GuestMemory> host,
                  uint32_t max_pages) {
  memory->data = reinterpret_cast<uint8_t*>(host->base());
  memory->size = static_cast<uint32_t>(host->size_bytes());
  memory->pages = static_cast<uint32_t>(host->size_bytes() / kWasmPageBytes);
  memory->max_pages = max_pages;
  memory->host = host.release();
}

void KeepWithTable(wasm_rt_funcref_table_t* table, const void* instance,
                   std::shared_ptr<void> owner) {
  const auto is_used = [table](const KeptInstance& kept) {
    return std::any_of(table->data, table->data + table->size,
                       [&](const wasm_rt_funcref_t& function) {
                         return function.module_instance == kept.instance;
                       });
  };
  auto* list = static_cast<KeptInstance*>(table->kept);
  KeptInstance* used = new KeptInstance{
      .instance = instance, .owner = std::move(owner), .next = nullptr};
  while (list != nullptr) {
    KeptInstance* const next = list->next;
    if (is_used(*list)) {
      list->next = used;
      used = list;
    } else {
      delete list;
    }
    list = next;
  }
  table->kept = used;
}

namespace {

// The signatures known so far. Their numbers are kept in generated code for the
// life of the process, so they are never dropped.
class FunctionTypes {
 public:
  uint32_t NumberOf(std::string signature) {
    MutexLock lock(&mutex_);
    return numbers_
        .try_emplace(std::move(signature),
                     static_cast<uint32_t>(numbers_.size() + 1))
        .first->second;
  }

 private:
  Mutex mutex_;
  // A byte for each parameter, a comma, a byte for each result.
  std::map<std::string, uint32_t> numbers_ ABSL_GUARDED_BY(mutex_);
};

FunctionTypes& GlobalFunctionTypes() {
  static FunctionTypes* const types = new FunctionTypes;
  return *types;
}

}  // namespace

absl::Status AllocateMemory(wasm_rt_memory_t* memory, uint32_t initial_pages,
                            uint32_t max_pages) {
  if (wasm2c_thread.source == nullptr) {
    return absl::FailedPreconditionError(
        "wasm_rt_allocate_memory: no MemorySource is bound to this thread; "
        "instantiate with Guest::Create, or under a ScopedMemorySource");
  }
  const uint64_t size_bytes = initial_pages * kWasmPageBytes;
  if (size_bytes > kMaxGuestMemoryBytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "the module's memory has ", initial_pages, " pages of ", kWasmPageBytes,
        " bytes at first; at most ", kMaxGuestMemoryBytes / kWasmPageBytes,
        " pages are possible with wasm2c, whose sizes have 32 bits"));
  }
  absl::StatusOr<std::unique_ptr<GuestMemory>> host =
      wasm2c_thread.source->TakeNext();
  if (!host.ok()) return host.status();
  if (size_bytes > 0) {
    if (absl::Status grown = (*host)->Grow(size_bytes); !grown.ok()) {
      return absl::Status(
          grown.code(),
          absl::StrCat("the module's memory has ", initial_pages, " pages (",
                       size_bytes, " bytes) at first: ", grown.message()));
    }
  }
  AttachMemory(memory, *std::move(host), max_pages);
  return absl::OkStatus();
}

namespace {

// Grows the storage of a table and fills the new elements.
template <typename Table, typename Element>
uint32_t GrowTable(Table* table, uint32_t delta, Element init) {
  const uint32_t old_size = table->size;
  const uint64_t new_size = uint64_t{old_size} + delta;
  if (new_size > table->max_size) return UINT32_MAX;
  if (new_size > table->capacity) {
    // At least doubling, so that growing one by one is linear.
    const uint64_t capacity = std::min<uint64_t>(
        std::max(new_size, uint64_t{2} * table->capacity), table->max_size);
    void* data = realloc(table->data, capacity * sizeof(Element));
    if (data == nullptr) return UINT32_MAX;
    table->data = static_cast<Element*>(data);
    table->capacity = static_cast<uint32_t>(capacity);
  }
  std::fill(table->data + old_size, table->data + new_size, init);
  table->size = static_cast<uint32_t>(new_size);
  return old_size;
}

template <typename Element, typename Table>
void AllocateTable(Table* table, uint32_t elements, uint32_t max_elements) {
  table->data =
      static_cast<Element*>(calloc(std::max(elements, 1u), sizeof(Element)));
  if (table->data == nullptr) {
    FailGuest(absl::ResourceExhaustedError(
        absl::StrCat("no memory for a table of ", elements, " elements")));
  }
  table->max_size = max_elements;
  table->size = elements;
  table->capacity = std::max(elements, 1u);
}

}  // namespace
}  // namespace firsttouch::wasm2c

using firsttouch::wasm2c::wasm2c_thread;

extern "C" {

__thread uintptr_t wasm_rt_stack_limit FIRSTTOUCH_STATIC_TLS = 0;

void wasm_rt_init(void) {}
bool wasm_rt_is_initialized(void) { return true; }
void wasm_rt_free(void) {}

void wasm_rt_trap(wasm_rt_trap_t code) {
  firsttouch::wasm2c::Run* const run = wasm2c_thread.run;
  if (run == nullptr) {
    firsttouch::wasm2c::Die(wasm_rt_strerror(code));
  }
  run->trap.code = code;
  run->trap.interrupted = code == WASM_RT_TRAP_EXHAUSTION &&
                          firsttouch::wasm2c::CurrentStackLimit() ==
                              WASM_RT_STACK_LIMIT_INTERRUPTED;
  siglongjmp(run->target, code);
}

const char* wasm_rt_strerror(wasm_rt_trap_t code) {
  switch (code) {
    case WASM_RT_TRAP_NONE:
      return "no error";
    case WASM_RT_TRAP_OOB:
      return "out-of-bounds access in linear memory or a table";
    case WASM_RT_TRAP_INT_OVERFLOW:
      return "integer overflow on divide or truncation";
    case WASM_RT_TRAP_DIV_BY_ZERO:
      return "integer divide by zero";
    case WASM_RT_TRAP_INVALID_CONVERSION:
      return "conversion from NaN to integer";
    case WASM_RT_TRAP_UNREACHABLE:
      return "unreachable instruction executed";
    case WASM_RT_TRAP_CALL_INDIRECT:
      return "invalid call_indirect";
    case WASM_RT_TRAP_UNCAUGHT_EXCEPTION:
      return "uncaught exception";
    case WASM_RT_TRAP_EXHAUSTION:
      return "call stack exhausted";
  }
  return "invalid trap code";
}

uint32_t wasm_rt_register_func_type(uint32_t params, uint32_t results, ...) {
  std::string signature;
  va_list types;
  va_start(types, results);
  for (uint32_t i = 0; i < params + results; ++i) {
    if (i == params) signature.push_back(',');
    // Enumerators are passed as unsigned int.
    signature.push_back(static_cast<char>('0' + va_arg(types, unsigned)));
  }
  if (results == 0) signature.push_back(',');
  va_end(types);
  return firsttouch::wasm2c::GlobalFunctionTypes().NumberOf(
      std::move(signature));
}

uint32_t wasm_rt_register_tag(uint32_t size) {
  static std::atomic<uint32_t> next{0};
  if (size > firsttouch::wasm2c::kMaxExceptionBytes) {
    wasm_rt_trap(WASM_RT_TRAP_EXHAUSTION);
  }
  return next.fetch_add(1, std::memory_order_relaxed);
}

void wasm_rt_load_exception(uint32_t tag, uint32_t size, const void* values) {
  if (size > firsttouch::wasm2c::kMaxExceptionBytes) {
    wasm_rt_trap(WASM_RT_TRAP_EXHAUSTION);
  }
  if (wasm2c_thread.exception == nullptr) {
    static thread_local firsttouch::wasm2c::ThreadEnd at_end;
    (void)at_end;
    wasm2c_thread.exception = new firsttouch::wasm2c::Thrown;
  }
  wasm2c_thread.exception->tag = tag;
  wasm2c_thread.exception->size = size;
  if (size > 0) memcpy(wasm2c_thread.exception->values, values, size);
}

void wasm_rt_throw(void) {
  if (wasm2c_thread.unwind_target == nullptr) {
    firsttouch::wasm2c::Die("wasm_rt_throw outside of a run");
  }
  siglongjmp(*wasm2c_thread.unwind_target, WASM_RT_TRAP_UNCAUGHT_EXCEPTION);
}

WASM_RT_UNWIND_TARGET* wasm_rt_get_unwind_target(void) {
  return wasm2c_thread.unwind_target;
}

void wasm_rt_set_unwind_target(WASM_RT_UNWIND_TARGET* target) {
  wasm2c_thread.unwind_target = target;
}

uint32_t wasm_rt_exception_tag(void) {
  return wasm2c_thread.exception == nullptr ? 0 : wasm2c_thread.exception->tag;
}

uint32_t wasm_rt_exception_size(void) {
  return wasm2c_thread.exception == nullptr ? 0 : wasm2c_thread.exception->size;
}

void* wasm_rt_exception(void) {
  return wasm2c_thread.exception == nullptr ? nullptr
                                            : wasm2c_thread.exception->values;
}

void wasm_rt_allocate_memory(wasm_rt_memory_t* memory, uint32_t initial_pages,
                             uint32_t max_pages) {
  absl::Status status =
      firsttouch::wasm2c::AllocateMemory(memory, initial_pages, max_pages);
  if (!status.ok()) firsttouch::wasm2c::FailGuest(std::move(status));
}

uint32_t wasm_rt_grow_memory(wasm_rt_memory_t* memory, uint32_t pages) {
  using firsttouch::wasm2c::kMaxGuestMemoryBytes;
  using firsttouch::wasm2c::kWasmPageBytes;
  const uint32_t old_pages = memory->pages;
  if (pages == 0) return old_pages;
  const uint64_t new_pages = uint64_t{old_pages} + pages;
  const uint64_t new_bytes = new_pages * kWasmPageBytes;
  if (new_pages > memory->max_pages || new_bytes > kMaxGuestMemoryBytes) {
    return UINT32_MAX;
  }
  if (!firsttouch::wasm2c::HostOf(*memory)->Grow(new_bytes).ok()) {
    return UINT32_MAX;
  }
  memory->pages = static_cast<uint32_t>(new_pages);
  memory->size = static_cast<uint32_t>(new_bytes);
  return old_pages;
}

void wasm_rt_free_memory(wasm_rt_memory_t* memory) {
  delete firsttouch::wasm2c::HostOf(*memory);
  *memory = {};
}

void wasm_rt_allocate_funcref_table(wasm_rt_funcref_table_t* table,
                                    uint32_t elements, uint32_t max_elements) {
  table->kept = nullptr;
  firsttouch::wasm2c::AllocateTable<wasm_rt_funcref_t>(table, elements,
                                                       max_elements);
}

void wasm_rt_free_funcref_table(wasm_rt_funcref_table_t* table) {
  auto* kept = static_cast<firsttouch::wasm2c::KeptInstance*>(table->kept);
  free(table->data);
  *table = {};
  while (kept != nullptr) {
    firsttouch::wasm2c::KeptInstance* const next = kept->next;
    delete kept;
    kept = next;
  }
}

uint32_t wasm_rt_grow_funcref_table(wasm_rt_funcref_table_t* table,
                                    uint32_t delta, wasm_rt_funcref_t init) {
  return firsttouch::wasm2c::GrowTable(table, delta, init);
}

void wasm_rt_allocate_externref_table(wasm_rt_externref_table_t* table,
                                      uint32_t elements,
                                      uint32_t max_elements) {
  firsttouch::wasm2c::AllocateTable<wasm_rt_externref_t>(table, elements,
                                                         max_elements);
}

void wasm_rt_free_externref_table(wasm_rt_externref_table_t* table) {
  free(table->data);
  *table = {};
}

uint32_t wasm_rt_grow_externref_table(wasm_rt_externref_table_t* table,
                                      uint32_t delta,
                                      wasm_rt_externref_t init) {
  return firsttouch::wasm2c::GrowTable(table, delta, init);
}

}  // extern "C"
