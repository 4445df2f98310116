// A guest's memory: a lease of one slot of a pool.
//
//   absl::StatusOr<Memory> memory =
//       service->Acquire({.image = image, .size_bytes = 1 << 20});
//   if (!memory.ok()) return memory.status();
//   std::byte* base = memory->base();
//   base[123] = std::byte{1};       // faults in, starts as the image says
//   ...                             // base[1 << 20] would be a trap
//   return memory->Release();       // clean for the next; or let it go out of
//                                   // scope
//
// BEFORE Reset() AND Release() every thread must have left the memory: touching
// it later is a bug like a use after free. (Such a touch traps only where the
// page is not resident or not accessible.)
//
// SIZES are bytes. A size that is no multiple of 4096 leaves the rest of its
// last page accessible once that page is resident: the bytes behind the end are
// zero for each new lease, but a touch of them need not trap.
//
// The system calls named here are those of a pool with userfaultfd;
// service/supply.h says what a pool without one does instead.
//
// Thread-compatible: several threads may touch the memory itself at will, and
// call size_bytes(), Grow(), GrowBy(), MakeReady(), CountPages(), Snapshot()
// and SnapshotDelta() at once (of two snapshots, one waits for the other);
// Reset(), Release(), moving and destroying need exclusive access to the
// handle. Not for signal handlers. May be released on another thread than the
// one that acquired it, and may outlive its Service.

#ifndef FIRSTTOUCH_SERVICE_MEMORY_H_
#define FIRSTTOUCH_SERVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/memory_pages.h"
#include "firsttouch/service/stats.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

struct ServicePool;
class Memory;
struct SlotState;

absl::Status RunTrapped(const Memory& memory, absl::FunctionRef<void()> run,
                        TrapInfo* trap);

class Memory {
 public:
  // A handle that holds nothing.
  Memory() = default;
  Memory(Memory&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        slot_(std::exchange(other.slot_, nullptr)),
        base_(std::exchange(other.base_, nullptr)) {}
  Memory& operator=(Memory&& other) noexcept {
    if (this != &other) {
      if (slot_ != nullptr) Drop();
      pool_ = std::exchange(other.pool_, nullptr);
      slot_ = std::exchange(other.slot_, nullptr);
      base_ = std::exchange(other.base_, nullptr);
    }
    return *this;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  // Releases; an error shows in the statistics only (quarantined slots).
  ~Memory() {
    if (slot_ != nullptr) Drop();
  }

  // Whether this holds a slot.
  explicit operator bool() const { return slot_ != nullptr; }

  // The first byte, a multiple of 4096; nullptr after release. Constant while
  // held.
  std::byte* base() const { return base_; }

  // Bytes that may be touched now; 0 after release.
  uint64_t size_bytes() const;

  // Bytes that the slot can grow to; 0 after release.
  uint64_t max_bytes() const;

  // The bytes that may be touched now; empty after release. A Grow() makes a
  // longer one at the same address.
  std::span<std::byte> span() const { return {base_, size_bytes()}; }

  // Which memory of which instance of the pool this is; kNoMemory after
  // release.
  uint32_t instance() const;
  uint32_t memory_index() const;

  // What happened in this memory's slot since the pool was made, in all of its
  // leases: the difference of two calls is what happened between them. All 0
  // after release. Any thread that holds the memory.
  SlotCounts stats() const;

  // Makes the memory `new_size_bytes` large; what is new reads as zero. No
  // system call, but for pages that handler threads made to trap before (and
  // then also the errno of that call). InvalidArgument for a size below the
  // present one, ResourceExhausted for one above max_bytes() (names both, in
  // bytes and pages, and the option), FailedPrecondition after release or a
  // failed Reset or Snapshot.
  absl::Status Grow(uint64_t new_size_bytes);

  // Like Grow(), by a difference, atomically where threads grow one memory at
  // once. Returns the size before, in bytes.
  absl::StatusOr<uint64_t> GrowBy(uint64_t delta_bytes);

  // Restores the initial image and size, in the same slot. After an error the
  // memory has the size 0, does not grow, and must not be used any more; its
  // release quarantines the slot.
  absl::Status Reset();

  // An image of the memory as it is at one moment of the call, which later
  // memories can start from. The pages that differ from the memory's own image
  // are found from what the pool knows of its pages, and copied; the others are
  // taken from that image. Snapshot() returns an image of its own, in one
  // memfd, as the builders do. SnapshotDelta() copies only the pages that
  // differ: it returns a file-backed image (image.h) over the memory's own
  // image, which is its parent() and is kept alive by it; WriteImageFile with
  // that parent writes a delta.
  //
  // WRITERS. Other threads may go on. The snapshot has everything that a thread
  // has written before that moment, and nothing that is written after it: no
  // write is there in part, and none without those that came before it, by the
  // same thread or by another one that it waited for. From that moment until
  // the changed pages are copied (about 0.3 us each), a thread that writes to
  // the memory waits, in the signal handler (SIGSEGV; see service/signals.h
  // where the host owns it); a thread that reads does not. A system call that
  // would write to the memory meanwhile gives EFAULT or a short count, once,
  // whatever supplies the memory. DEADLOCK: the caller must not wait for a
  // thread that is blocked writing to this memory.
  //
  // Errors: FailedPrecondition after release or a failed Reset;
  // ResourceExhausted and others with the errno of mprotect(2) (it may need two
  // mappings more) or mmap(2); those of a page that could not be filled, or be
  // had from the image's PageSource; DataLoss where a page is to be taken from
  // an image file that was cut short; those of image_builder.h. If the memory
  // cannot be made writable again, it is unusable: threads that write to it
  // trap, and Reset() and Grow() fail. Its slot is mapped anew after its
  // release. Both calls need every page of the image and wait for its
  // PageSource, but not while writers wait.
  absl::StatusOr<ImageRef> Snapshot(std::string name) const;
  absl::StatusOr<ImageRef> SnapshotDelta(std::string name) const;

  // Makes [offset_bytes, offset_bytes + bytes) ready for a system call that
  // will read (kRead) or write (kWrite) it: afterwards each page is there and,
  // for kWrite, writable and known as changed. Needed where faults are resolved
  // in-thread, since the kernel does not take SIGBUS in the middle of read(2):
  // it returns EFAULT, or a short count. Harmless where not needed. One system
  // call asks the kernel whether the pages are there. The kernel may still take
  // a page away before the caller's system call touches it (reclaim,
  // migration); that call then gets EFAULT or a short count: make ready and
  // call again.
  //
  // OutOfRange when the range does not end within size_bytes(); Unavailable
  // where another part of the process keeps a page from being touched;
  // FailedPrecondition after release; the errno of a fill that failed.
  absl::Status MakeReady(uint64_t offset_bytes, uint64_t bytes,
                         Access access) const;

  // Counts pages; compares the contents of writable ones, so its time grows
  // with them. A page counts as changed where its image cannot be read any
  // more, since its file was cut short. All 0 after release and in a child of
  // fork(2).
  MemoryPages CountPages() const;

  // From now on Reset() and the release (also the destructor's) give the pages
  // back to the kernel (MADV_DONTNEED) instead of restoring them in place. For
  // a memory on which the kernel may still be at work then: its pages are
  // registered as buffers of an io_uring, or pinned by a MSG_ZEROCOPY send, by
  // vmsplice(2), by an O_DIRECT request, or by a device for RDMA. The pages
  // stay those of this lease: no later guest sees what is read into them, and
  // what is sent from them is what this guest wrote. It does not help against a
  // request that has only the address and has not begun: such a request must
  // have ended, or been cancelled, before the release (docs/embedding.md).
  // Costs a system call at each release, and the next lease its first touches.
  // Any thread that holds the memory; does nothing after release.
  void DropAtRelease();

  // Gives the slot back, clean for its next lease. After an error the slot is
  // quarantined: it is never leased again. FailedPrecondition when nothing is
  // held.
  absl::Status Release();

 private:
  friend struct ServicePool;
  friend absl::Status RunTrapped(const Memory& memory,
                                 absl::FunctionRef<void()> run, TrapInfo* trap);
  Memory(ServicePool* pool, SlotState* slot, std::byte* base)
      : pool_(pool), slot_(slot), base_(base) {}

  // Releases, and ignores the error.
  void Drop();

  ServicePool* pool_ = nullptr;
  SlotState* slot_ = nullptr;
  std::byte* base_ = nullptr;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MEMORY_H_
