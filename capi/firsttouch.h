// firsttouch in C: linear memories for short-lived sandboxes, each supplied
// page by page at first touch, and clean again for the next one.
//
//   #include <firsttouch.h>
//
//   ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
//   ft_layout_wasm32(1000, &layout, NULL);
//   ft_pool_options options = FT_POOL_OPTIONS_INIT;
//   options.layout = &layout;
//   ft_pool pool;
//   ft_error error = FT_ERROR_INIT;
//   if (ft_pool_create(&options, &pool, &error) != FT_OK) {
//     fprintf(stderr, "%s\n", error.message);
//   }
//   ft_memory memory;
//   void* base;
//   ft_memory_acquire(pool, NULL, &memory, &base, NULL);
//   ...
//   ft_memory_release(memory, NULL);
//   ft_pool_destroy(pool, NULL);
//
// Link with -lfirsttouch, or as `pkg-config firsttouch` says. One file because
// a program in C includes one: this is the whole of the interface, C99 with the
// C library's types, and no other header of ours.
//
// HANDLES name a pool, an image or a memory. They are plain values: copy them,
// compare them byte by byte, hand them to other threads. All zeroes is none. A
// handle that is wrong, that names what was released, or that was never given
// out is FT_ERROR_INVALID_HANDLE in every function, also after the place of
// what it named has been given to another. What cannot be known is a call that
// uses a handle at the very moment at which another thread releases it, or a
// released one of a destroyed pool at that at which the pool's last memory is
// released: that is a race of the caller's, as it is for free(3).
//
// STRUCTS of options, and those that a function fills, begin with their size,
// which the macro *_INIT sets (all else is zero, which is the default of every
// field). A library that is newer than the caller takes the fields that are
// missing as zero, and writes no more than the caller has room for. A library
// that is older refuses a field that it does not know with
// FT_ERROR_STRUCT_SIZE, unless it is zero. Flags that it does not know are
// FT_ERROR_INVALID_ARGUMENT.
//
// ERRORS are the value that a function returns: FT_OK or one of the codes
// below. What went wrong, with which value, and the way out, is put as text
// into an ft_error that the caller owns and may leave out (NULL). Results are
// written only with FT_OK, unless a function says otherwise.
//
// TEXTS that a function gives go into the caller's buffer, as with snprintf(3):
// what does not fit is cut, there is always a NUL where there is room for one,
// and *length is what the whole text needs without the NUL.
//
// NOTHING PASSES THE BORDER: no exception, no longjmp but where ft_run_guarded
// and ft_trap_callback say so, no allocation that the caller would have to
// free, no reference to memory of the caller's after a call has returned, but
// for the functions and their arguments that it hands over. A callback must not
// throw; where it does, the process ends. A thread that is in a call must not
// be cancelled (pthread_cancel(3)), nor must it leave the call by longjmp from
// a signal handler.
//
// THREADS AND SIGNALS. Each function says from which threads it may be called,
// and whether in a signal handler. "Alone" means: while no other thread is in a
// call with the same handle.
//
// FORK. A pool is not inherited: in a child every call with it fails with
// FT_ERROR_FAILED_PRECONDITION, and a touch of its memories is SIGSEGV. Images
// are, but for those with a source.
//
// STABILITY. What is declared here stays: functions, values, and the places of
// the fields. New functions come with a new symbol version, new fields at the
// ends of structs, in place of nothing.

#ifndef FIRSTTOUCH_CAPI_FIRSTTOUCH_H_
#define FIRSTTOUCH_CAPI_FIRSTTOUCH_H_

#include <stddef.h>
#include <stdint.h>

// NOLINTBEGIN(readability-identifier-naming): the names are C's.

#ifdef __cplusplus
extern "C" {
#define FT_NOEXCEPT noexcept
#else
#define FT_NOEXCEPT
#endif

#define FT_API __attribute__((visibility("default")))

// --- Version: ft_version -----------------------------------------------------

// The version that this header came with.
#define FT_VERSION_MAJOR 0
#define FT_VERSION_MINOR 1
#define FT_VERSION_PATCH 0
#define FT_VERSION_STRING "0.1.0"

// The library's version, as FT_VERSION_STRING has the header's. A static
// string. Any thread; async-signal-safe.
FT_API const char* ft_version(void) FT_NOEXCEPT;

// The same as a number: major * 1,000,000 + minor * 1,000 + patch. Any thread;
// async-signal-safe.
FT_API uint32_t ft_version_number(void) FT_NOEXCEPT;

// --- Errors: ft_error --------------------------------------------------------

// What a function returns. The codes below 32 are those of absl::Status and of
// gRPC, with their values.
typedef int32_t ft_status;

enum {
  FT_OK = 0,
  // A callback gave up.
  FT_ERROR_CANCELLED = 1,
  FT_ERROR_UNKNOWN = 2,
  // What was asked for can never work: mend the call.
  FT_ERROR_INVALID_ARGUMENT = 3,
  FT_ERROR_DEADLINE_EXCEEDED = 4,
  FT_ERROR_NOT_FOUND = 5,
  FT_ERROR_ALREADY_EXISTS = 6,
  // The kernel, or who runs it, refuses: the text says what to change.
  FT_ERROR_PERMISSION_DENIED = 7,
  // It could work at another time, or with a higher limit, which the text
  // names.
  FT_ERROR_RESOURCE_EXHAUSTED = 8,
  // Not in this state, process, or kernel.
  FT_ERROR_FAILED_PRECONDITION = 9,
  FT_ERROR_ABORTED = 10,
  FT_ERROR_OUT_OF_RANGE = 11,
  FT_ERROR_UNIMPLEMENTED = 12,
  FT_ERROR_INTERNAL = 13,
  FT_ERROR_UNAVAILABLE = 14,
  // A file that is cut short, or does not match its digests.
  FT_ERROR_DATA_LOSS = 15,
  FT_ERROR_UNAUTHENTICATED = 16,
  // A handle that names nothing: never given out, or released.
  FT_ERROR_INVALID_HANDLE = 32,
  // A struct whose size is of no version that this library knows.
  FT_ERROR_STRUCT_SIZE = 33,
  // ft_run_guarded: the function touched what it must not. See ft_trap.
  FT_ERROR_TRAPPED = 34
};

// What went wrong, in the caller's memory. A function writes it only when it
// fails. Other languages may have a longer `message`, and a struct_size that
// says so: it is the capacity.
typedef struct ft_error {
  size_t struct_size;
  ft_status status;
  // Of the whole text, without the NUL; more than `message` holds if it was
  // cut.
  uint32_t message_length;
  // UTF-8, ends with a NUL.
  char message[2032];
} ft_error;
#define FT_ERROR_INIT             \
  {                               \
    sizeof(ft_error), 0, 0, { 0 } \
  }

// "OK", "INVALID_ARGUMENT", "TRAPPED" and so on, or "UNKNOWN" for a number that
// is none of the above. A static string. Any thread; async-signal-safe.
FT_API const char* ft_status_name(ft_status status) FT_NOEXCEPT;

// --- Handles: ft_handles -----------------------------------------------------

// The fields are the library's: all zero is none, nothing else is promised.

// A pool: see ft_pool_create.
typedef struct ft_pool {
  uint64_t entry;
  uint64_t serial;
} ft_pool;

// An image: what a memory holds at first.
typedef struct ft_image {
  uint64_t entry;
  uint64_t serial;
} ft_image;

// A memory that is held, from ft_memory_acquire to ft_memory_release.
typedef struct ft_memory {
  uint64_t entry;
  uint64_t serial;
} ft_memory;

// Where a choice may be left to the library.
enum { FT_UNSET = 0, FT_NO = 1, FT_YES = 2 };

// --- Traps: ft_trap ----------------------------------------------------------

// How memory was touched, or is about to be.
enum { FT_READ = 0, FT_WRITE = 1, FT_EXECUTE = 2 };

// ft_trap::instance and ft_trap::memory_index of a touch that belongs to no
// memory.
#define FT_NO_MEMORY UINT32_MAX

// One touch outside a memory's bounds, or of a page whose contents cannot be
// had. The library sets struct_size when it calls a callback: a callback that
// reads a field of a later version looks at it first.
typedef struct ft_trap {
  size_t struct_size;
  // The touched address, and the instruction that touched it.
  uint64_t address;
  uint64_t program_counter;
  // Bytes from the memory's start to the touched byte; may be negative.
  int64_t offset_bytes;
  // The memory's size when it was touched.
  uint64_t size_bytes;
  // FT_READ, FT_WRITE or FT_EXECUTE.
  int32_t access;
  // 0: outside the bounds. Otherwise the errno that says why the contents of a
  // page inside the bounds cannot be had.
  int32_t os_error;
  // Which memory of which instance of the pool; both FT_NO_MEMORY in the part
  // of a guard that two memories can reach. `leased` is 0 for a touch after the
  // release.
  uint32_t instance;
  uint32_t memory_index;
  uint32_t leased;
  // The pool's number in this process, and its name, valid as long as the pool.
  uint32_t pool_id;
  const char* pool_name;
  // The ucontext_t of the interrupted code, in a callback only: a callback may
  // edit it and return FT_TRAP_RESUME.
  void* ucontext;
} ft_trap;
#define FT_TRAP_INIT \
  { sizeof(ft_trap), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL }

// What a trap callback answers.
typedef int32_t ft_trap_action;
enum {
  // Not handled: the pool's callback is asked after the memory's, then whoever
  // handled the signal before, and in the end the process dies by it.
  FT_TRAP_UNHANDLED = 0,
  // The context was edited, or the touch made legal: go on from there.
  FT_TRAP_RESUME = 1
};

// Called in signal context, on the thread that touched, on its alternate stack,
// with the signal mask of the interrupted code. It may call async-signal-safe
// functions only, and may leave by siglongjmp to a sigsetjmp(env, 0) of its
// thread outside of every call of this library. `trap` is valid until it
// returns. See ft_run_guarded for the simple way.
typedef ft_trap_action (*ft_trap_callback)(const ft_trap* trap, void* user);

// --- Layout: ft_layout -------------------------------------------------------

// What a pool is to hold. Sizes are bytes, and multiples of 4096.
typedef struct ft_layout_options {
  size_t struct_size;
  // How many sandboxes at once. At least 1: there is no default.
  uint32_t instances;
  // Memories of each. 0: 1.
  uint32_t memories_per_instance;
  // The most that a memory can grow to; at least a page.
  uint64_t max_memory_bytes;
  // Address space at which nothing ever appears, in front of the first memory
  // and behind each: what code can reach without a check of its own. 0 for
  // none. guard_after_bytes is not smaller than guard_before_bytes.
  uint64_t guard_before_bytes;
  uint64_t guard_after_bytes;
  // The host's page. 0: 4096.
  uint64_t page_bytes;
  // What one fault fills at most. A power of two. 0: 65536.
  uint64_t fault_around_bytes;
} ft_layout_options;
#define FT_LAYOUT_OPTIONS_INIT \
  { sizeof(ft_layout_options), 0, 0, 0, 0, 0, 0, 0 }

// Where each memory of a pool lies: slot i begins at
// first_memory_offset_bytes + i * slot_stride_bytes from the pool's base. Slot
// i is memory i % memories_per_instance of instance i / memories_per_instance.
typedef struct ft_layout {
  size_t struct_size;
  // Address space of the whole pool.
  uint64_t reservation_bytes;
  uint64_t slot_stride_bytes;
  uint64_t first_memory_offset_bytes;
  // Of each memory, at most.
  uint64_t memory_bytes;
  // How much of the guard between two memories, at its upper end, can be
  // reached from both: a touch there belongs to neither.
  uint64_t unowned_guard_bytes;
  uint64_t fault_around_bytes;
  uint32_t slots;
  uint32_t memories_per_instance;
} ft_layout;
#define FT_LAYOUT_INIT \
  { sizeof(ft_layout), 0, 0, 0, 0, 0, 0, 0, 0 }

// Sets `options` to what fits WebAssembly guests with 32-bit addresses whose
// code checks nothing: a memory of up to 4 GiB each, and guards that end an
// access at any address with any offset. Any thread; not in a signal handler.
FT_API ft_status ft_layout_wasm32(uint32_t instances,
                                  ft_layout_options* options,
                                  ft_error* error) FT_NOEXCEPT;

// Works out where the memories would lie, without making a pool.
// INVALID_ARGUMENT names the option, its value, the rule and a way out. Any
// thread; not in a signal handler.
FT_API ft_status ft_layout_compute(const ft_layout_options* options,
                                   ft_layout* layout,
                                   ft_error* error) FT_NOEXCEPT;

// --- Pools: ft_pool ----------------------------------------------------------

// What supplies memory.
enum {
  // userfaultfd where kernel and permissions allow it, else the kernel's
  // mappings; or what FIRSTTOUCH_SUPPLY in the environment names.
  FT_SUPPLY_ANY = 0,
  // userfaultfd, or an error.
  FT_SUPPLY_USERFAULTFD = 1,
  // The kernel's mappings.
  FT_SUPPLY_MAPPINGS = 2
};

// How a page gets its contents, with userfaultfd.
enum {
  FT_BACKING_ANY = 0,
  // Clean pages are shared with the image; two mappings a slot.
  FT_BACKING_SHARED = 1,
  // Pages are copied at first touch; no mapping a slot.
  FT_BACKING_COPIED = 2
};

// Where faults are resolved, with userfaultfd.
enum {
  // In the thread that took them, in a signal handler.
  FT_FAULTS_IN_THREAD = 0,
  // By threads of the pool's own.
  FT_FAULTS_IN_HANDLER_THREADS = 1
};

// How first writes to clean pages are found, with userfaultfd.
enum {
  // Chosen for each image from what its leases do.
  FT_TRACKING_ANY = 0,
  FT_TRACKING_SIGNAL = 1,
  // Needs Linux 6.7 and the shared backing.
  FT_TRACKING_ASYNC = 2
};

// Which free slot an acquire takes.
enum {
  // One that held the same image.
  FT_STRATEGY_AFFINITY = 0,
  // The one released last.
  FT_STRATEGY_NEXT_AVAILABLE = 1,
  // Any: a guest cannot foresee its neighbours.
  FT_STRATEGY_RANDOM = 2
};

// Who handles SIGBUS and SIGSEGV.
enum {
  // The library installs its handlers in front of what is there, passes on what
  // is not its own, and takes them out at the pool's end.
  FT_SIGNALS_INSTALL = 0,
  // The host's own handlers call ft_handle_signal.
  FT_SIGNALS_HOST = 1
};

// ft_pool_options::flags.
enum {
  // retained_pages_limit counts.
  FT_POOL_RETAINED_PAGES_LIMIT = 1,
  // resident_budget_bytes counts.
  FT_POOL_RESIDENT_BUDGET = 2,
  // pooldump may not read the pool's records.
  FT_POOL_UNPUBLISHED = 4,
  // A core dump includes the pool.
  FT_POOL_IN_CORE_DUMP = 8,
  // retained_bytes_per_us counts.
  FT_POOL_RETAINED_BYTES_PER_US = 16
};

// What a pool is asked for.
typedef struct ft_pool_options {
  size_t struct_size;
  uint64_t flags;
  // For people: in errors, traps, mappings, and where pooldump finds the pool.
  // 1 to 128 bytes, no control characters. NULL: "pool".
  const char* name;
  // Must not be NULL.
  const ft_layout_options* layout;
  // FT_SUPPLY_*. The fields up to `tracking` are of userfaultfd.
  int32_t supply;
  // FT_BACKING_*.
  int32_t backing;
  // FT_FAULTS_*.
  int32_t faults;
  // How many, 1 to 64. 0: 1.
  uint32_t handler_threads;
  // With handler threads: FT_YES where system calls on pool memory must be
  // served, which needs a privilege; FT_UNSET: where that is allowed.
  int32_t kernel_faults;
  // FT_TRACKING_*.
  int32_t tracking;
  // With FT_SUPPLY_MAPPINGS: FT_YES asks the kernel at a release which pages
  // have changed (Linux 6.7), FT_NO drops all. FT_UNSET: the former where it
  // can.
  int32_t scan;
  // FT_STRATEGY_*.
  int32_t strategy;
  // FT_SIGNALS_*.
  int32_t signals;
  // A page that no guest has changed in about so many cycles stops being kept
  // private. 0: 60.
  uint32_t retained_cycles;
  // At most this many pages of a slot stay private from one lease to the next.
  // Without FT_POOL_RETAINED_PAGES_LIMIT: a half of the memory's initial size,
  // at least 1024.
  uint64_t retained_pages_limit;
  // Idle slots keep private pages up to this many bytes, all together. Without
  // FT_POOL_RESIDENT_BUDGET: no limit.
  uint64_t resident_budget_bytes;
  // Called for touches that the memory's own callback did not take. May be
  // NULL.
  ft_trap_callback trap_callback;
  void* trap_user;
  // What memory is worth: the private bytes that all slots together may keep
  // for each microsecond by which that shortens a cycle. With 0 memory is free,
  // and every page is kept that a guest has changed in the last
  // retained_cycles. Without FT_POOL_RETAINED_BYTES_PER_US: 524288.
  uint64_t retained_bytes_per_us;
} ft_pool_options;
#define FT_POOL_OPTIONS_INIT                                                 \
  {                                                                          \
    sizeof(ft_pool_options), 0, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
        0, NULL, NULL, 0                                                     \
  }

// What a pool has become.
typedef struct ft_pool_info {
  size_t struct_size;
  // The pool's first address, and its number in this process.
  uint64_t base;
  uint32_t pool_id;
  // FT_SUPPLY_USERFAULTFD or FT_SUPPLY_MAPPINGS.
  int32_t supply;
  // FT_BACKING_SHARED or FT_BACKING_COPIED.
  int32_t backing;
  // With FT_SUPPLY_MAPPINGS: whether a release scans (FT_YES) or drops (FT_NO).
  int32_t scan;
  // Not 0 where system calls work on any page, without ft_memory_make_ready.
  uint32_t serves_kernel_faults;
  // 0.
  uint32_t reserved;
} ft_pool_info;
#define FT_POOL_INFO_INIT \
  { sizeof(ft_pool_info), 0, 0, 0, 0, 0, 0, 0 }

// Reserves a pool and starts what serves it. INVALID_ARGUMENT for options;
// RESOURCE_EXHAUSTED for a limit of this process or machine; PERMISSION_DENIED
// or UNIMPLEMENTED where userfaultfd is refused and `supply` asks for it, with
// each way that was tried; FAILED_PRECONDITION where the kernel lacks a feature
// that an option needs, or SIGBUS or SIGSEGV is blocked in this thread. A
// process has at most 4096 pools. Any thread; not in a signal handler.
FT_API ft_status ft_pool_create(const ft_pool_options* options, ft_pool* pool,
                                ft_error* error) FT_NOEXCEPT;

// Gives the pool up. Memories that are held stay valid, and the pool stays
// mapped, until the last of them is released. Alone; not in a signal handler.
FT_API ft_status ft_pool_destroy(ft_pool pool, ft_error* error) FT_NOEXCEPT;

// What was picked and why, some lines for people. See TEXTS. Any thread; not in
// a signal handler.
FT_API ft_status ft_pool_describe(ft_pool pool, char* buffer, size_t capacity,
                                  size_t* length, ft_error* error) FT_NOEXCEPT;

// The statistics as one JSON object: a number for each name that
// docs/statistics.md has, and "fault_latency", an array whose element i counts
// the faults that took 2^i to 2^(i+1) ns. Names may be added. Any thread; not
// in a signal handler.
FT_API ft_status ft_pool_stats_json(ft_pool pool, char* buffer, size_t capacity,
                                    size_t* length,
                                    ft_error* error) FT_NOEXCEPT;

// In how many ns the given part (0 to 1) of all faults was resolved, at most; 0
// without faults. Any thread; not in a signal handler.
FT_API ft_status ft_pool_fault_latency_ns(ft_pool pool, double part,
                                          uint64_t* ns,
                                          ft_error* error) FT_NOEXCEPT;

// Gives back the private pages of free slots, the longest free first, down to
// resident_budget_bytes (without it, all). `freed_bytes` may be NULL. Any
// thread; not in a signal handler.
FT_API ft_status ft_pool_trim(ft_pool pool, uint64_t* freed_bytes,
                              ft_error* error) FT_NOEXCEPT;

// What the pool has become, and where its memories lie. Any thread; not in a
// signal handler.
FT_API ft_status ft_pool_get_info(ft_pool pool, ft_pool_info* info,
                                  ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_pool_get_layout(ft_pool pool, ft_layout* layout,
                                    ft_error* error) FT_NOEXCEPT;

// --- Images: ft_image --------------------------------------------------------

// An image is what memories hold at first: sparse, immutable, and shared by any
// number of memories and threads. Make one for each program and keep it: when
// the last handle of an image has been released, no slot stays ready for the
// next lease of it.

// A page, everywhere in this header.
#define FT_PAGE_BYTES 4096

typedef struct ft_image_options {
  size_t struct_size;
  // For people: in errors, /proc/PID/maps and statistics. NULL: "".
  const char* name;
  // From offset 0, at most 1 TiB. What nothing is given for is zero.
  uint64_t size_bytes;
} ft_image_options;
#define FT_IMAGE_OPTIONS_INIT \
  { sizeof(ft_image_options), NULL, 0 }

// Bytes and where they go. Has no size, and never changes.
typedef struct ft_segment {
  uint64_t offset_bytes;
  const void* bytes;
  size_t length;
} ft_segment;

// A page and its FT_PAGE_BYTES bytes; NULL for zeroes. Never changes.
typedef struct ft_page {
  uint64_t page;
  const void* bytes;
} ft_page;

// Neighbouring pages. Never changes.
typedef struct ft_page_run {
  uint64_t first;
  uint64_t length;
} ft_page_run;

// `bytes` from offset 0, zeroes behind them. OUT_OF_RANGE when there are more
// than size_bytes. All functions that make images: INVALID_ARGUMENT above 1
// TiB, RESOURCE_EXHAUSTED without descriptors, memory or address space, others
// with the errno of memfd_create(2). Any thread; not in a signal handler.
FT_API ft_status ft_image_from_bytes(const ft_image_options* options,
                                     const void* bytes, size_t length,
                                     ft_image* image,
                                     ft_error* error) FT_NOEXCEPT;

// Segments in the order given: where they overlap, later ones win. OUT_OF_RANGE
// for one that does not end within size_bytes, INVALID_ARGUMENT for more than
// 100,000. Any thread; not in a signal handler.
FT_API ft_status ft_image_from_segments(const ft_image_options* options,
                                        const ft_segment* segments,
                                        size_t count, ft_image* image,
                                        ft_error* error) FT_NOEXCEPT;

// Writes one page, FT_PAGE_BYTES zeroes, into `bytes`. Anything but FT_OK ends
// the build with that code.
typedef ft_status (*ft_fill_page)(void* user, uint64_t page, void* bytes);

// Calls `fill` once for each page, ascending, in the calling thread. Takes time
// with size_bytes. Any thread; not in a signal handler.
FT_API ft_status ft_image_from_callback(const ft_image_options* options,
                                        ft_fill_page fill, void* user,
                                        ft_image* image,
                                        ft_error* error) FT_NOEXCEPT;

// `base` (all zero: zeroes) with some pages replaced. A page that comes twice
// is as given last. INVALID_ARGUMENT when the base is larger than size_bytes;
// OUT_OF_RANGE for a page behind the end. Any thread; not in a signal handler.
FT_API ft_status ft_image_with_pages(const ft_image_options* options,
                                     ft_image base, const ft_page* pages,
                                     size_t count, ft_image* image,
                                     ft_error* error) FT_NOEXCEPT;

// Writes `pages` whole pages from `first` on, zeroes, into `bytes`. Must always
// give the same. Called on threads of the image's own; must not touch memories
// that start from the image. Anything but FT_OK is a trap for those who wait,
// with an errno that belongs to the code; whoever needs the pages later asks
// again.
typedef ft_status (*ft_fetch_pages)(void* user, uint64_t first, uint64_t pages,
                                    void* bytes);

// Contents that are made when a guest touches them: computed, decompressed,
// fetched.
typedef struct ft_source_options {
  size_t struct_size;
  ft_fetch_pages fetch;
  // Called once, when `fetch` will not be called any more: with the last handle
  // of the image and the last lease of it, in whichever thread that is, or when
  // ft_image_from_source has failed. May be NULL.
  void (*destroy)(void* user);
  void* user;
  // How many pages are asked for at a time. 0: 16.
  uint64_t chunk_pages;
  // Fetches that run at once, 1 to 64. 0: 1.
  uint32_t threads;
  // Not 0: all pages are fetched at once, in the calling thread.
  uint32_t all_at_once;
  // Pages that may be other than zero; NULL: all.
  const ft_page_run* stored;
  size_t stored_count;
} ft_source_options;
#define FT_SOURCE_OPTIONS_INIT \
  { sizeof(ft_source_options), NULL, NULL, NULL, 0, 0, 0, NULL, 0 }

// An image with a source. Where the kernel has no userfaultfd on shared memory
// all is fetched at once. Any thread; not in a signal handler.
FT_API ft_status ft_image_from_source(const ft_image_options* options,
                                      const ft_source_options* source,
                                      ft_image* image,
                                      ft_error* error) FT_NOEXCEPT;

// Told now and then of work on a file, in the calling thread.
typedef void (*ft_progress)(void* user, uint64_t done_bytes,
                            uint64_t total_bytes);

// Bytes of a digest (SHA-256).
#define FT_DIGEST_BYTES 32

// Writes the path of a file that has the image with this digest into `path`, of
// `capacity` bytes, with its NUL.
typedef ft_status (*ft_find_parent)(void* user,
                                    const uint8_t digest[FT_DIGEST_BYTES],
                                    char* path, size_t capacity);

// ft_open_options::flags.
enum {
  // Reads the file into memory of the process at once; otherwise nothing is
  // read
  // before it is touched.
  FT_OPEN_COPY = 1,
  // Every page is compared with its digest.
  FT_OPEN_VERIFY = 2
};

typedef struct ft_open_options {
  size_t struct_size;
  uint64_t flags;
  // In place of the name in the file; may be NULL.
  const char* name;
  // Of a delta: its parent, or how to find it.
  ft_image parent;
  ft_find_parent find_parent;
  ft_progress progress;
  void* user;
} ft_open_options;
#define FT_OPEN_OPTIONS_INIT \
  { sizeof(ft_open_options), 0, NULL, {0, 0}, NULL, NULL, NULL }

// Opens an image file (.ftimg). `options` may be NULL. NOT_FOUND and others
// with the kernel's errno; DATA_LOSS for a file that is damaged; UNIMPLEMENTED
// for a version that is not known; FAILED_PRECONDITION for a delta without its
// parent. A file that others may write to is opened with both flags. Any
// thread; not in a signal handler.
FT_API ft_status ft_image_open(const char* path, const ft_open_options* options,
                               ft_image* image, ft_error* error) FT_NOEXCEPT;

// ft_write_options::flags.
enum {
  // A file of that name is ALREADY_EXISTS.
  FT_WRITE_NEW = 1,
  // A symbolic link is replaced, not followed.
  FT_WRITE_NO_FOLLOW = 2,
  // Gives each stored page a checksum, for a page server: see
  // WriteImageFileOptions::page_checksums.
  FT_WRITE_PAGE_CHECKSUMS = 4
};

typedef struct ft_write_options {
  size_t struct_size;
  uint64_t flags;
  // Not none: a delta, with the pages that differ from this image only.
  ft_image parent;
  // For people, at most 4096 bytes each; may be NULL.
  const char* tool;
  const char* source;
  const char* comment;
  ft_progress progress;
  void* user;
  // When the source was made into an image, in seconds since 1970; 0: not told.
  int64_t created_unix_seconds;
  // The digest of the source's bytes, FT_DIGEST_BYTES of them; may be NULL.
  const uint8_t* source_digest;
} ft_write_options;
#define FT_WRITE_OPTIONS_INIT \
  { sizeof(ft_write_options), 0, {0, 0}, NULL, NULL, NULL, NULL, NULL, 0, NULL }

// Writes the image and its working set. The file appears whole, or not at all.
// `options` may be NULL. Any thread; not in a signal handler.
FT_API ft_status ft_image_write(ft_image image, const char* path,
                                const ft_write_options* options,
                                ft_error* error) FT_NOEXCEPT;

// A file that is written, and whose name is still to be given.
typedef struct ft_pending_file {
  uint64_t entry;
  uint64_t serial;
} ft_pending_file;

// ft_image_write without its last step: for several files of which all are to
// appear, or none. What can be known to fail has failed by then: no room, a
// folder of that name. `options` may be NULL. Any thread; not in a signal
// handler.
FT_API ft_status ft_image_prepare(ft_image image, const char* path,
                                  const ft_write_options* options,
                                  ft_pending_file* pending,
                                  ft_error* error) FT_NOEXCEPT;

// Gives the file its name. ALREADY_EXISTS with FT_WRITE_NEW where that is
// taken. Whatever it returns, the handle is used up. Any thread; not in a
// signal handler.
FT_API ft_status ft_pending_file_commit(ft_pending_file pending,
                                        ft_error* error) FT_NOEXCEPT;

// Drops the file; nothing is left of it. Any thread; not in a signal handler.
FT_API ft_status ft_pending_file_drop(ft_pending_file pending,
                                      ft_error* error) FT_NOEXCEPT;

// Pages that lie together, and the digest of their bytes. Never changes.
typedef struct ft_extent {
  uint64_t first;
  uint64_t length;
  uint8_t digest[FT_DIGEST_BYTES];
} ft_extent;

// What the header and the manifest of an image file say. The library sets
// struct_size.
typedef struct ft_file_info {
  size_t struct_size;
  // Of the format.
  uint32_t version;
  // Not 0: a delta. What it stores differs from its parent, an image with the
  // digest `parent`.
  uint32_t is_delta;
  // Of the file, with its holes; and what the file system has allocated.
  uint64_t file_bytes;
  uint64_t disk_bytes;
  // Page p is at data_offset + p * FT_PAGE_BYTES.
  uint64_t manifest_offset;
  uint64_t manifest_bytes;
  uint64_t data_offset;
  // Of the memory, and pages that the file itself stores.
  uint64_t size_bytes;
  uint64_t stored_pages;
  // Of the whole image, the parent's part included.
  uint8_t content[FT_DIGEST_BYTES];
  // All zero where there is none.
  uint8_t parent[FT_DIGEST_BYTES];
  // What it stores, ascending; and of a delta, pages that are zero here and not
  // in the parent.
  const ft_extent* extents;
  size_t extent_count;
  const ft_page_run* zeroed;
  size_t zeroed_count;
  // The working set: see ft_image_get_working_set.
  const uint64_t* written;
  size_t written_count;
  const uint64_t* read;
  size_t read_count;
  // Where the image came from; "" where that is not told. With a NUL.
  const char* name;
  const char* tool;
  const char* source;
  const char* comment;
  int64_t created_unix_seconds;
  // FT_DIGEST_BYTES; NULL where that is not told.
  const uint8_t* source_digest;
} ft_file_info;

// Told what a file says; what `info` points to is valid until it returns.
typedef void (*ft_file_visit)(void* user, const ft_file_info* info);

// Reads the header and the manifest of an image file, checked as ft_image_open
// checks them, and no page; of a delta no parent is needed. Calls `visit` once,
// in the calling thread, unless it fails. Errors: those of ft_image_open. Any
// thread; not in a signal handler.
FT_API ft_status ft_image_inspect(const char* path, ft_file_visit visit,
                                  void* user, ft_error* error) FT_NOEXCEPT;

// Whether everything in an image file matches its digests. `options` may be
// NULL. Any thread; not in a signal handler.
FT_API ft_status ft_image_verify(const char* path,
                                 const ft_open_options* options,
                                 ft_error* error) FT_NOEXCEPT;

// Joins a delta with its parents into a file that needs none. Any thread; not
// in a signal handler.
FT_API ft_status ft_image_merge(const char* path, const char* merged_path,
                                const ft_open_options* options,
                                ft_error* error) FT_NOEXCEPT;

// Packs an image file for shipping (.ftimg.zst), with zstd's level 1 to 19 (0:
// 9), and unpacks it, with every digest checked; a packed file of more than
// `max_stored_bytes` (0: 4 GiB) is refused. Any thread; not in a signal
// handler.
FT_API ft_status ft_image_pack(const char* path, const char* packed_path,
                               int32_t level, ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_image_unpack(const char* packed_path, const char* path,
                                 uint64_t max_stored_bytes,
                                 ft_error* error) FT_NOEXCEPT;

typedef struct ft_image_info {
  size_t struct_size;
  // Tells images apart in this process; never 0, never used again.
  uint64_t id;
  uint64_t size_bytes;
  // Pages with bytes other than zero, and what the image takes in memory now.
  uint64_t stored_pages;
  uint64_t memory_bytes;
  // Whether it is a view of a file or of other images; whether it has a source;
  // whether it has a parent.
  uint32_t is_file_backed;
  uint32_t has_source;
  uint32_t has_parent;
  // Whether anything is known of the pages that guests touch.
  uint32_t has_working_set;
} ft_image_info;
#define FT_IMAGE_INFO_INIT \
  { sizeof(ft_image_info), 0, 0, 0, 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_image_get_info(ft_image image, ft_image_info* info,
                                   ft_error* error) FT_NOEXCEPT;

// The name. See TEXTS. Any thread; not in a signal handler.
FT_API ft_status ft_image_get_name(ft_image image, char* buffer,
                                   size_t capacity, size_t* length,
                                   ft_error* error) FT_NOEXCEPT;

// The digest of the contents; reads all stored pages if it is not known yet.
// Any thread; not in a signal handler.
FT_API ft_status ft_image_get_digest(ft_image image,
                                     uint8_t digest[FT_DIGEST_BYTES],
                                     ft_error* error) FT_NOEXCEPT;

// Copies [offset_bytes, offset_bytes + length) out. OUT_OF_RANGE when that does
// not end within the image, and nothing is copied then. Any thread; not in a
// signal handler.
FT_API ft_status ft_image_read(ft_image image, uint64_t offset_bytes,
                               void* into, size_t length,
                               ft_error* error) FT_NOEXCEPT;

// A new handle of a delta's parent; NOT_FOUND where there is none. Any thread;
// not in a signal handler.
FT_API ft_status ft_image_get_parent(ft_image image, ft_image* parent,
                                     ft_error* error) FT_NOEXCEPT;

// A second handle of the same image, for another owner. Any thread; not in a
// signal handler.
FT_API ft_status ft_image_duplicate(ft_image image, ft_image* duplicate,
                                    ft_error* error) FT_NOEXCEPT;

// Lets a handle go. Memories and images that were made from it are not
// concerned. Alone; not in a signal handler.
FT_API ft_status ft_image_release(ft_image image, ft_error* error) FT_NOEXCEPT;

// Of an image with a source: asks for these pages, and does not wait. Any
// thread; not in a signal handler.
FT_API ft_status ft_image_fetch_early(ft_image image, uint64_t first,
                                      uint64_t pages,
                                      ft_error* error) FT_NOEXCEPT;

// Which pages the guests of an image touch, so that they are ready before the
// next one asks. It says nothing about bytes: a wrong set costs time, no more.
enum { FT_PAGES_WRITTEN = 0, FT_PAGES_READ = 1 };

// One of the sets as words: page p is bit p % 64 of word p / 64. Copies at most
// `capacity` words; *count is how many there are. Any thread; not in a signal
// handler.
FT_API ft_status ft_image_get_working_set(ft_image image, int32_t which,
                                          uint64_t* words, size_t capacity,
                                          size_t* count,
                                          ft_error* error) FT_NOEXCEPT;

// Adds pages to a set. Any thread; not in a signal handler.
FT_API ft_status ft_image_learn_working_set(ft_image image, int32_t which,
                                            const uint64_t* words, size_t count,
                                            ft_error* error) FT_NOEXCEPT;

// Puts sets in place of what was known; with two empty ones nothing is known.
// Any thread; not in a signal handler.
FT_API ft_status ft_image_replace_working_set(
    ft_image image, const uint64_t* written, size_t written_count,
    const uint64_t* read, size_t read_count, ft_error* error) FT_NOEXCEPT;

// --- Memories: ft_memory -----------------------------------------------------

typedef struct ft_memory_options {
  size_t struct_size;
  // What it holds at first; all zero for zeroes.
  ft_image image;
  // Bytes that may be touched; at least the image's size, at most the pool's
  // max_memory_bytes. 0: the image's size.
  uint64_t size_bytes;
  // How long to wait where every slot is in use, in ns. 0: not at all. Below 0:
  // for ever.
  int64_t wait_ns;
  // Called in signal context for touches outside the bounds. May be NULL.
  ft_trap_callback trap_callback;
  void* trap_user;
} ft_memory_options;
#define FT_MEMORY_OPTIONS_INIT \
  { sizeof(ft_memory_options), {0, 0}, 0, 0, NULL, NULL }

// A memory of its own, of a pool with one memory an instance. `options` may be
// NULL: no image, no bytes (ft_memory_grow gives it some). `base` may be NULL;
// it gets the first byte, which stays where it is until the release. Gives the
// calling thread an alternate signal stack if it lacks one that is large enough
// for a fault. RESOURCE_EXHAUSTED when every slot is in use, or descriptors,
// mappings or memory have run out; INVALID_ARGUMENT for a size above the pool's
// or below the image's; FAILED_PRECONDITION where this thread cannot take
// faults. In the steady cycle: no system call, no shared lock, no allocation.
// Any thread; not in a signal handler.
FT_API ft_status ft_memory_acquire(ft_pool pool,
                                   const ft_memory_options* options,
                                   ft_memory* memory, void** base,
                                   ft_error* error) FT_NOEXCEPT;

// All memories of one instance: exactly memories_per_instance options, in
// order, and as many results. How long to wait is what the first says. Each is
// released by itself; the instance is free again when the last has been. Any
// thread; not in a signal handler.
FT_API ft_status ft_memory_acquire_instance(
    ft_pool pool, const ft_memory_options* const* options, size_t count,
    ft_memory* memories, ft_error* error) FT_NOEXCEPT;

// Gives the memory back, clean for its next lease, from any thread that every
// other has left it to. Whatever it returns, the handle is used up. Other
// errors than INVALID_HANDLE mean that the slot could not be made clean: it is
// never leased again. Alone; not in a signal handler.
FT_API ft_status ft_memory_release(ft_memory memory,
                                   ft_error* error) FT_NOEXCEPT;

// Back to the initial image and size, within the same lease. After an error the
// memory must not be used, but released. Alone; not in a signal handler.
FT_API ft_status ft_memory_reset(ft_memory memory, ft_error* error) FT_NOEXCEPT;

// The first byte, a multiple of 4096; NULL for a handle that is not valid. Any
// thread; async-signal-safe.
FT_API void* ft_memory_base(ft_memory memory) FT_NOEXCEPT;

// Bytes that may be touched now; 0 for a handle that is not valid. Any thread;
// async-signal-safe.
FT_API uint64_t ft_memory_size(ft_memory memory) FT_NOEXCEPT;

// What a memory is.
typedef struct ft_memory_info {
  size_t struct_size;
  uint64_t base;
  uint64_t size_bytes;
  // What it can grow to.
  uint64_t max_bytes;
  // Which memory of which instance of the pool.
  uint32_t instance;
  uint32_t memory_index;
} ft_memory_info;
#define FT_MEMORY_INFO_INIT \
  { sizeof(ft_memory_info), 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_memory_get_info(ft_memory memory, ft_memory_info* info,
                                    ft_error* error) FT_NOEXCEPT;

// Makes the memory `size_bytes` large; what is new reads as zero.
// INVALID_ARGUMENT below the present size; RESOURCE_EXHAUSTED above the most
// that the pool has. Any thread; not in a signal handler.
FT_API ft_status ft_memory_grow(ft_memory memory, uint64_t size_bytes,
                                ft_error* error) FT_NOEXCEPT;

// The same by a difference, atomically for threads that grow one memory at
// once. `size_before` may be NULL. Any thread; not in a signal handler.
FT_API ft_status ft_memory_grow_by(ft_memory memory, uint64_t delta_bytes,
                                   uint64_t* size_before,
                                   ft_error* error) FT_NOEXCEPT;

// Makes [offset_bytes, offset_bytes + length) ready for a system call that will
// read it (FT_READ) or write it (FT_WRITE), which would give EFAULT otherwise.
// Harmless where it is not needed. If the call gives EFAULT or less than asked,
// make ready and call again. OUT_OF_RANGE when the range does not end within
// the size. Any thread; not in a signal handler.
FT_API ft_status ft_memory_make_ready(ft_memory memory, uint64_t offset_bytes,
                                      uint64_t length, int32_t access,
                                      ft_error* error) FT_NOEXCEPT;

// ft_memory_snapshot: only the pages that differ from the memory's own image,
// which is its parent.
enum { FT_SNAPSHOT_DELTA = 1 };

// The memory as it is at one moment of the call, as an image. `name` may be
// NULL. Other threads may go on: who writes meanwhile waits until the changed
// pages are copied, and a system call that would write gives EFAULT. The caller
// must not wait for a thread that is blocked writing. Any thread; not in a
// signal handler.
FT_API ft_status ft_memory_snapshot(ft_memory memory, const char* name,
                                    uint64_t flags, ft_image* image,
                                    ft_error* error) FT_NOEXCEPT;

// From now on the release and the reset give the pages back to the kernel
// instead of restoring them: for memory on which the kernel may still be at
// work then (io_uring, MSG_ZEROCOPY). Any thread; not in a signal handler.
FT_API ft_status ft_memory_drop_at_release(ft_memory memory,
                                           ft_error* error) FT_NOEXCEPT;

typedef struct ft_memory_pages {
  size_t struct_size;
  // Pages that are there; of these, not write-protected; of these, with other
  // bytes than at first.
  uint64_t touched;
  uint64_t writable;
  uint64_t changed;
} ft_memory_pages;
#define FT_MEMORY_PAGES_INIT \
  { sizeof(ft_memory_pages), 0, 0, 0 }

// Counts pages; takes time with those that are writable. Any thread; not in a
// signal handler.
FT_API ft_status ft_memory_count_pages(ft_memory memory, ft_memory_pages* pages,
                                       ft_error* error) FT_NOEXCEPT;

// What happened in the memory's slot since the pool was made, in all of its
// leases, as one JSON object of numbers. Any thread; not in a signal handler.
FT_API ft_status ft_memory_stats_json(ft_memory memory, char* buffer,
                                      size_t capacity, size_t* length,
                                      ft_error* error) FT_NOEXCEPT;

// --- Stores: ft_store --------------------------------------------------------

// A store keeps many images, and pages that are the same in several of them
// once: in this process's memory, or in a directory that many processes use. An
// image that is in use never leaves it; the others do, least recently used
// first, when it holds more than its budget.
typedef struct ft_store {
  uint64_t entry;
  uint64_t serial;
} ft_store;

// ft_store_options::flags: budget_bytes counts.
enum { FT_STORE_BUDGET = 1 };

typedef struct ft_store_options {
  size_t struct_size;
  uint64_t flags;
  // NULL: in memory. Made if it does not exist; on a local file system. Who can
  // write to it is trusted with what guests see.
  const char* directory;
  // How many bytes of pages it may hold that are not in use. Without
  // FT_STORE_BUDGET: no limit.
  uint64_t budget_bytes;
} ft_store_options;
#define FT_STORE_OPTIONS_INIT \
  { sizeof(ft_store_options), 0, NULL, 0 }

// Opens a store. `options` may be NULL. Any thread; not in a signal handler.
FT_API ft_status ft_store_open(const ft_store_options* options, ft_store* store,
                               ft_error* error) FT_NOEXCEPT;

// Lets the store go; images of it that are in use stay. Any thread; not in a
// signal handler.
FT_API ft_status ft_store_close(ft_store store, ft_error* error) FT_NOEXCEPT;

// Takes an image in under a name of 1 to 80 bytes, and gives the store's own:
// the same contents, over the store's pages. `kept` may be NULL. Any thread;
// not in a signal handler.
FT_API ft_status ft_store_put(ft_store store, const char* name, ft_image image,
                              ft_image* kept, ft_error* error) FT_NOEXCEPT;

// The image of a name, or of a digest. NOT_FOUND; of a directory also what
// ft_image_open says. Any thread; not in a signal handler.
FT_API ft_status ft_store_get(ft_store store, const char* name, ft_image* image,
                              ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_store_get_by_digest(ft_store store,
                                        const uint8_t digest[FT_DIGEST_BYTES],
                                        ft_image* image,
                                        ft_error* error) FT_NOEXCEPT;

// Takes a name away; the image stays until its room is wanted. NOT_FOUND. Any
// thread; not in a signal handler.
FT_API ft_status ft_store_remove(ft_store store, const char* name,
                                 ft_error* error) FT_NOEXCEPT;

// Lets images leave that are not in use, down to `budget_bytes`. `freed_bytes`
// may be NULL. Any thread; not in a signal handler.
FT_API ft_status ft_store_trim(ft_store store, uint64_t budget_bytes,
                               uint64_t* freed_bytes,
                               ft_error* error) FT_NOEXCEPT;

// Of a directory: writes working sets that have changed. Any thread; not in a
// signal handler.
FT_API ft_status ft_store_flush(ft_store store, ft_error* error) FT_NOEXCEPT;

// An image of a store. The library sets struct_size.
typedef struct ft_store_entry {
  size_t struct_size;
  uint8_t digest[FT_DIGEST_BYTES];
  // Ascending; valid until the callback returns.
  const char* const* names;
  size_t name_count;
  uint64_t size_bytes;
  uint64_t stored_pages;
  // Of pages that lie together.
  uint64_t runs;
  // Of a directory: by any process.
  uint32_t in_use;
  // 0.
  uint32_t reserved;
} ft_store_entry;

// Told of each image; must not call the store.
typedef void (*ft_store_visit)(void* user, const ft_store_entry* entry);

// Calls `visit` for each image, ascending by digest, in the calling thread. Any
// thread; not in a signal handler.
FT_API ft_status ft_store_list(ft_store store, ft_store_visit visit, void* user,
                               ft_error* error) FT_NOEXCEPT;

// What the store holds, as one JSON object of numbers. See TEXTS. Any thread;
// not in a signal handler.
FT_API ft_status ft_store_stats_json(ft_store store, char* buffer,
                                     size_t capacity, size_t* length,
                                     ft_error* error) FT_NOEXCEPT;

// --- Stacks and tables: ft_stack ---------------------------------------------

// What a sandbox needs beside its memories. A pool of either may be destroyed
// while some are held: it goes with the last.

// A pool of stacks, each with a guard below it; handed out with every byte
// zero.
typedef struct ft_stack_pool {
  uint64_t entry;
  uint64_t serial;
} ft_stack_pool;

// A stack that is held.
typedef struct ft_stack {
  uint64_t entry;
  uint64_t serial;
} ft_stack;

typedef struct ft_stack_pool_options {
  size_t struct_size;
  // Shown in /proc/PID/maps; may be NULL.
  const char* name;
  // At least 1.
  uint32_t stacks;
  // FT_STRATEGY_NEXT_AVAILABLE, as which FT_STRATEGY_AFFINITY counts, or
  // FT_STRATEGY_RANDOM.
  int32_t strategy;
  // Of each; a multiple of 4096.
  uint64_t stack_bytes;
  // Below each, and above the last; a multiple of 4096. 0: 65536.
  uint64_t guard_bytes;
  // So many at the top stay resident from one owner to the next, in whole pages
  // (1: none). 0: 16384.
  uint64_t keep_resident_bytes;
} ft_stack_pool_options;
#define FT_STACK_POOL_OPTIONS_INIT \
  { sizeof(ft_stack_pool_options), NULL, 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_stack_pool_create(const ft_stack_pool_options* options,
                                      ft_stack_pool* pool,
                                      ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_stack_pool_destroy(ft_stack_pool pool,
                                       ft_error* error) FT_NOEXCEPT;

// A stack from `base`, its lowest byte, to `top`, one past its highest. How
// long to wait: see ft_memory_options. RESOURCE_EXHAUSTED if none is free until
// then. Any thread; not in a signal handler.
FT_API ft_status ft_stack_acquire(ft_stack_pool pool, int64_t wait_ns,
                                  ft_stack* stack, void** base, void** top,
                                  ft_error* error) FT_NOEXCEPT;

// Cleans the stack and gives it back. Nothing may be running on it. Any thread;
// not in a signal handler.
FT_API ft_status ft_stack_release(ft_stack stack, ft_error* error) FT_NOEXCEPT;

// What keeps code off a guard.
enum {
  // Marks in the page tables (Linux 6.13): the pool is one mapping.
  FT_GUARDS_MARKERS = 0,
  // mprotect(2): two mappings a stack.
  FT_GUARDS_MPROTECT = 1
};

// What a pool of stacks has become, and how many are held.
typedef struct ft_stack_pool_info {
  size_t struct_size;
  // The pool's first address. Where each stack lies from there:
  // ft_stack_pool_get_layout.
  uint64_t base;
  uint32_t stacks;
  uint32_t in_use;
  // Stacks that could not be cleaned: they are never handed out again.
  uint32_t quarantined;
  // FT_GUARDS_*.
  int32_t guards;
} ft_stack_pool_info;
#define FT_STACK_POOL_INFO_INIT \
  { sizeof(ft_stack_pool_info), 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_stack_pool_get_info(ft_stack_pool pool,
                                        ft_stack_pool_info* info,
                                        ft_error* error) FT_NOEXCEPT;

// Where the stacks lie: memory_bytes is what a stack has. Any thread; not in a
// signal handler.
FT_API ft_status ft_stack_pool_get_layout(ft_stack_pool pool, ft_layout* layout,
                                          ft_error* error) FT_NOEXCEPT;

// A pool of tables: arrays of elements of one size, handed out with every byte
// zero. Not inherited by a child of fork(2).
typedef struct ft_table_pool {
  uint64_t entry;
  uint64_t serial;
} ft_table_pool;

// A table that is held.
typedef struct ft_table {
  uint64_t entry;
  uint64_t serial;
} ft_table;

typedef struct ft_table_pool_options {
  size_t struct_size;
  // Shown in /proc/PID/maps; may be NULL.
  const char* name;
  // At least 1.
  uint32_t tables;
  // As of stacks.
  int32_t strategy;
  // The most that a table can have.
  uint64_t max_elements;
  // Bytes of an element. 0: 8.
  uint64_t element_bytes;
  // So many at the start stay resident from one owner to the next, in whole
  // pages (1: none). 0: 65536.
  uint64_t keep_resident_bytes;
} ft_table_pool_options;
#define FT_TABLE_POOL_OPTIONS_INIT \
  { sizeof(ft_table_pool_options), NULL, 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_table_pool_create(const ft_table_pool_options* options,
                                      ft_table_pool* pool,
                                      ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_table_pool_destroy(ft_table_pool pool,
                                       ft_error* error) FT_NOEXCEPT;

// A table of `elements` (0 is legal) that begins at `data`, where it stays. How
// long to wait: see ft_memory_options. INVALID_ARGUMENT for more than
// max_elements; RESOURCE_EXHAUSTED if none is free until then. Any thread; not
// in a signal handler.
FT_API ft_status ft_table_acquire(ft_table_pool pool, uint64_t elements,
                                  int64_t wait_ns, ft_table* table, void** data,
                                  ft_error* error) FT_NOEXCEPT;

// Makes the table longer; the new elements are zero. Alone; not in a signal
// handler.
FT_API ft_status ft_table_grow(ft_table table, uint64_t elements,
                               ft_error* error) FT_NOEXCEPT;

// Sets the table to zero and gives it back. Any thread; not in a signal
// handler.
FT_API ft_status ft_table_release(ft_table table, ft_error* error) FT_NOEXCEPT;

// What a pool of tables has become, and how many are held.
typedef struct ft_table_pool_info {
  size_t struct_size;
  // The pool's first address. Where each table lies from there:
  // ft_table_pool_get_layout.
  uint64_t base;
  uint64_t max_elements;
  uint64_t element_bytes;
  uint32_t tables;
  uint32_t in_use;
  // Tables that could not be cleaned: they are never handed out again.
  uint32_t quarantined;
  // 0.
  uint32_t reserved;
} ft_table_pool_info;
#define FT_TABLE_POOL_INFO_INIT \
  { sizeof(ft_table_pool_info), 0, 0, 0, 0, 0, 0, 0 }

// Any thread; not in a signal handler.
FT_API ft_status ft_table_pool_get_info(ft_table_pool pool,
                                        ft_table_pool_info* info,
                                        ft_error* error) FT_NOEXCEPT;

// Where the tables lie: memory_bytes is what a table has at most, rounded up to
// a page. Any thread; not in a signal handler.
FT_API ft_status ft_table_pool_get_layout(ft_table_pool pool, ft_layout* layout,
                                          ft_error* error) FT_NOEXCEPT;

// --- Guarded calls: ft_run_guarded -------------------------------------------

// Calls run(argument), and returns FT_OK when that returns. When the calling
// thread touches, in `run`, what is outside of the memory's bounds, or of the
// guards beside it, or a page whose contents cannot be had, `run` is left by
// siglongjmp and FT_ERROR_TRAPPED is returned: `trap` (may be NULL) has the
// particulars, without ucontext, and `error` a text. The memory is held as
// before.
//
// `run` is left in the middle: nothing in its frames is cleaned up, no
// destructor of C++ runs, no lock is released. Let it be the guest's code, and
// of the host's only what calls it. Nothing else may leave `run` by a jump past
// this call, nor may an exception. Traps of other memories and of other threads
// go where they would go without it. Calls may be nested.
//
// FAILED_PRECONDITION where this thread cannot take traps: SIGBUS or SIGSEGV is
// blocked. Any thread; not in a signal handler.
FT_API ft_status ft_run_guarded(ft_memory memory, void (*run)(void* argument),
                                void* argument, ft_trap* trap,
                                ft_error* error) FT_NOEXCEPT;

// --- Signals: ft_signals -----------------------------------------------------

// A pool with FT_SIGNALS_INSTALL needs nothing of this, but for threads that
// run guest code and never acquire: those call ft_thread_prepare once.

// What ft_handle_signal did.
typedef int32_t ft_fault_outcome;
enum {
  // Not an address of a pool, or no fault at all.
  FT_FAULT_NOT_MINE = 0,
  // Return from the handler: the instruction runs again.
  FT_FAULT_RESOLVED = 1,
  // A trap that no callback took; a line on standard error named it. The
  // process
  // must not go on from here.
  FT_FAULT_UNHANDLED_TRAP = 2
};

// For the host's own handler of SIGBUS and SIGSEGV, installed with SA_SIGINFO,
// SA_ONSTACK and SA_NODEFER and with the mask of ft_signals_fill_mask: resolves
// a fault of any pool. `info` is the siginfo_t*, `context` the third argument
// of the handler. In such a handler only, on the thread that faulted;
// async-signal-safe, keeps errno. A trap callback may leave it by siglongjmp.
FT_API ft_fault_outcome ft_handle_signal(int signal, void* info,
                                         void* context) FT_NOEXCEPT;

// Makes `mask`, a sigset_t*, all signals but those that an instruction raises.
// Any thread; async-signal-safe.
FT_API void ft_signals_fill_mask(void* mask) FT_NOEXCEPT;

// Installs the library's handlers in front of the present ones, or puts them
// back in front where somebody has replaced them. Counted: each call needs an
// ft_signals_uninstall, which puts the first ones back, or is
// FAILED_PRECONDITION where somebody has put a handler in front of the
// library's since. Any thread; not in a signal handler.
FT_API ft_status ft_signals_install(ft_error* error) FT_NOEXCEPT;
FT_API ft_status ft_signals_uninstall(ft_error* error) FT_NOEXCEPT;

// Whether SIGBUS and SIGSEGV still reach the library's handler, as far as can
// be told; FAILED_PRECONDITION names the signal and its present action. Any
// thread; not in a signal handler.
FT_API ft_status ft_signals_check(ft_error* error) FT_NOEXCEPT;

// What a thread that runs guest code and acquires no memory itself calls once:
// gives it an alternate signal stack, in the place of one that is too small,
// and says FAILED_PRECONDITION where SIGBUS or SIGSEGV is blocked. Any thread;
// not in a signal handler.
FT_API ft_status ft_thread_prepare(ft_error* error) FT_NOEXCEPT;

// FAILED_PRECONDITION where the calling thread has no alternate stack, or has
// SIGBUS or SIGSEGV blocked. Any thread; not in a signal handler.
FT_API ft_status ft_thread_check(ft_error* error) FT_NOEXCEPT;

// Where an address is.
enum {
  FT_PLACE_NO_POOL = 0,
  FT_PLACE_GUARD_BEFORE = 1,
  FT_PLACE_MEMORY = 2,
  FT_PLACE_GUARD_AFTER = 3,
  // Between two memories, where either can be meant.
  FT_PLACE_GUARD_UNOWNED = 4
};

typedef struct ft_location {
  size_t struct_size;
  // FT_PLACE_*. With FT_PLACE_NO_POOL all else is zero.
  int32_t place;
  // Not 0 where the address is below the memory's present size.
  uint32_t in_bounds;
  uint32_t pool_id;
  uint32_t slot;
  uint32_t instance;
  uint32_t memory_index;
  // From the memory's start; negative in front of the first.
  int64_t offset_bytes;
  uint64_t size_bytes;
} ft_location;
#define FT_LOCATION_INIT \
  { sizeof(ft_location), 0, 0, 0, 0, 0, 0, 0, 0 }

// Finds the pool and the memory that an address belongs to. STRUCT_SIZE and
// INVALID_ARGUMENT (NULL) are its only errors. Any thread; async-signal-safe.
FT_API ft_status ft_locate(const void* address,
                           ft_location* location) FT_NOEXCEPT;

#ifdef __cplusplus
}
#endif

// NOLINTEND(readability-identifier-naming)

#endif  // FIRSTTOUCH_CAPI_FIRSTTOUCH_H_
