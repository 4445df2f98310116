// The fault service: a pool of sandbox memories, supplied page by page at first
// touch.
//
//   absl::StatusOr<std::unique_ptr<Service>> service = Service::Create(
//       {.name = "tenants",
//        .layout = LayoutOptions::ForWasm32(1000)});
//   if (!service.ok()) return service.status();
//   absl::StatusOr<Memory> memory = (*service)->Acquire({.image = image});
//
// WHAT A TOUCH DOES. Inside the memory's size the page appears, with the
// image's bytes or zeroes, and the guest does not notice. Outside it is a trap,
// see service/trap.h. Nothing is made PROT_NONE for that (except for handler
// threads before kernel 6.6, and where there is no userfaultfd): an address is
// out of bounds where no page is and none will come.
//
// WHEN NOT TO USE IT. For memory that is shared between processes, or by fork:
// a pool is not inherited (MADV_DONTFORK). For memory that is passed to system
// calls without Memory::MakeReady, unless faults of the kernel are served.
//
// DESTRUCTION ORDER. A Service and its Memories may be destroyed in any order:
// the pool stays mapped, and its userfaultfd open, until the last of them is
// destroyed.
//
// Thread-safe. Not for signal handlers. In a child of fork(2) every call fails
// with FailedPrecondition and touching a memory is SIGSEGV.
//
// WITHOUT USERFAULTFD, where kernel or container refuse it, plain mappings
// supply a pool (service/supply.h): the interface and the guarantees are the
// same, at the price of system calls.
//
// Kernel: 5.11 without privilege (USER_MODE_ONLY), 5.7 otherwise, for the
// copied backing; 6.4 for the shared one; 4.14 without userfaultfd.
// docs/kernel.md has the table.

#ifndef FIRSTTOUCH_SERVICE_SERVICE_H_
#define FIRSTTOUCH_SERVICE_SERVICE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/stats.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

struct ServicePool;

// The request for a memory.
struct MemoryOptions {
  // The initial contents; null for zeroes. The memory keeps the image alive.
  // Keep an ImageRef of your own for as long as more memories are to start from
  // it: once the last one is dropped, no slot stays bound to the image for the
  // next lease (see Trim).
  ImageRef image;
  // Bytes that may be touched; at least the image's size, at most the pool's
  // max_memory_bytes. 0 is legal: every touch traps. Unset: the image's size, 0
  // without an image.
  std::optional<uint64_t> size_bytes;
  // Called, in signal context, for touches outside the bounds; may be null.
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;
  // The time until which to wait where every slot is in use; the default does
  // not wait.
  absl::Time deadline = absl::InfinitePast();

  // The size that the memory begins with, in bytes.
  uint64_t initial_bytes() const {
    return size_bytes.has_value() ? *size_bytes
           : image == nullptr     ? 0
                                  : image->size_bytes();
  }
};

class Service {
 public:
  // Reserves the pool, opens the userfaultfd and starts what serves it. Errors
  // name the option, its value, the rule and the way out: InvalidArgument for
  // options, ResourceExhausted for a limit of this process or machine,
  // PermissionDenied or Unimplemented where userfaultfd is refused and `supply`
  // asks for it (lists each way that was tried), FailedPrecondition where the
  // kernel lacks a feature that an option needs.
  static absl::StatusOr<std::unique_ptr<Service>> Create(
      ServiceOptions options);

  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  // Memories that are held stay valid.
  ~Service();

  // Acquires a single memory, from a pool with one memory per instance.
  // ResourceExhausted when every slot is in use (until the deadline, if there
  // is one): names capacity, use and the option. InvalidArgument for a size
  // above the pool's maximum or below the image's, naming both. Gives the
  // calling thread an alternate signal stack if it lacks one. In the steady
  // cycle: no system call, no lock shared with other threads, no allocation.
  absl::StatusOr<Memory> Acquire(const MemoryOptions& options);

  // Acquires all memories of one instance: takes exactly memories_per_instance
  // options, in order of their index. The instance is free again when the last
  // of them is released; the first option's deadline counts.
  absl::StatusOr<std::vector<Memory>> AcquireInstance(
      std::span<const MemoryOptions> options);

  // Gives back the private pages of free slots, the longest free first, until
  // what the rest keep is within ServiceOptions::resident_budget_bytes; if that
  // is unset, gives back all of them. The slots' next leases begin as usual,
  // but more slowly. Returns the bytes given back. Any thread, at any time; an
  // Acquire that wants a slot which is being trimmed waits for that.
  //
  // A free slot keeps its image mapped for the next lease of it, as long as
  // there is an ImageRef outside the pool. When the last of these is dropped,
  // free slots unmap the image in the thread that drops it (some 10 us per
  // slot), and leased slots do at their release; so the memory of an image ends
  // with its last user. Trim and the slot's next use unmap what could not be
  // unmapped then (at the mapping limit).
  //
  // Errors: FailedPrecondition in a forked child; otherwise the first error
  // that occurred (its slot is quarantined, the others are trimmed).
  absl::StatusOr<uint64_t> Trim();

  ServiceStats Stats() const;

  // What was chosen and why, for people: some lines of text.
  std::string Describe() const;

  const ServiceOptions& options() const;
  // The kind of supply; see service/supply.h.
  Supply supply() const;
  // kShared with mappings.
  Backing backing() const;
  // Whether system calls work on any page, without MakeReady.
  bool serves_kernel_faults() const;
  const PoolLayout& layout() const;
  // The pool's first address, and the pool's number in this process.
  uintptr_t base() const;
  uint32_t pool_id() const;

 private:
  friend class ServiceMaker;                     // service_with_kernel.h
  friend ServicePool& PoolOf(Service& service);  // service_pool.h
  explicit Service(ServicePool* pool) : pool_(pool) {}

  ServicePool* pool_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SERVICE_H_
