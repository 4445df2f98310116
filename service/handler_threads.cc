#include "firsttouch/service/handler_threads.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/locator/lookup.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/raw_text.h"
#include "firsttouch/service/trapping_pages.h"
#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/signal_masked_thread.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The faulting thread waits forever unless something happens to its page. Ends
// the process, saying why, where nothing can.
[[noreturn]] void Die(const FaultPool& fault_pool, const char* call,
                      int error) {
  RawText()
      .Text("firsttouch: handler thread of pool \"")
      .Text(fault_pool.name)
      .Text("\": ")
      .Text(call)
      .Text(" failed with errno ")
      .Signed(error)
      .Text("; threads that wait for a page would wait for ever")
      .WriteLine(STDERR_FILENO);
  abort();
}

// A fault event, and its slot's lease when the event was read.
struct Noted {
  uintptr_t address = 0;
  bool is_write = false;
  bool is_write_protect = false;
  uint32_t lease = 0;
};

// Makes a page trap that cannot be poisoned in its present state: it is
// present, or has kept a write-protection mark, in a slot that is not leased.
// The host touches a memory that it has released, or locks all pages of the
// process (mlockall(2)). The page is given back first, as Trim() does; nothing
// else can take the slot meanwhile. Returns false where the slot is in use by
// now: the touch must then be looked at again.
bool MakeIdlePageTrapping(FaultPool& fault_pool, uint32_t slot_number,
                          uintptr_t page_address) {
  SlotState& slot = fault_pool.slots[slot_number];
  const std::optional<SlotLifecycle> before = slot.lifecycle.BeginTrim();
  if (!before.has_value() && slot.lifecycle.Load(std::memory_order_acquire) !=
                                 SlotLifecycle::kQuarantined) {
    return false;
  }
  const CallResult dropped =
      DropMappedPages(*fault_pool.kernel, page_address, kPageBytes);
  if (!dropped.ok()) Die(fault_pool, "MADV_DONTNEED", dropped.error);
  // A private mapping of a file keeps the mark of a protected page, in the
  // place where the poison would be.
  fault_pool.kernel->WriteProtect(fault_pool.uffd, page_address, kPageBytes, 0);
  bool placed = false;
  const FaultResult trapping =
      MakeTrapping(fault_pool, slot_number, page_address, &placed);
  if (trapping.kind == FaultResult::Kind::kFailed) {
    Die(fault_pool, trapping.call, trapping.error);
  }
  if (before.has_value()) slot.lifecycle.Move(*before);
  return true;
}

void Handle(FaultPool& fault_pool, const Noted& event) {
  const uint64_t start_ns = MonotonicNanos();
  const uintptr_t page_address = RoundDownToPage(event.address);
  const uint32_t slot = LocateIn(fault_pool.entry, event.address).slot;
  const FillForOther fill(fault_pool.slots[slot], event.lease);
  if (!fill.is_current()) {
    // The thread that waited has left the memory. If one still waits (a host
    // that released a memory with a guest in it), its touch is looked at again.
    fault_pool.kernel->Wake(fault_pool.uffd, page_address, kPageBytes);
    return;
  }
  const Location where = LocateIn(fault_pool.entry, event.address);
  FaultResult result{FaultResult::Kind::kOutOfBounds, 0, ""};
  // Decides by pages: where the size ends within a page, the rest of that page
  // is accessible too, and the page must not be made to trap.
  if (where.page_in_bounds) {
    result = ResolveFault(
        fault_pool, {.slot = where.slot,
                     .offset_bytes = where.page * kPageBytes,
                     .access = event.is_write ? Access::kWrite : Access::kRead,
                     .protection = event.is_write_protect});
  }
  if (result.kind == FaultResult::Kind::kResolved) {
    fault_pool.shards[where.slot % FaultPool::kShards].latency.Add(
        MonotonicNanos() - start_ns);
    return;
  }
  if (result.kind == FaultResult::Kind::kGone) return;
  // Out of bounds: the touched page is made to raise a signal in the thread
  // that waits for it, where the signal becomes a trap. The same is done with a
  // page that cannot be supplied: the thread's own attempt to resolve it then
  // says what failed.
  bool placed = false;
  const FaultResult trapping =
      MakeTrapping(fault_pool, where.slot, page_address, &placed);
  if (trapping.kind == FaultResult::Kind::kFailed) {
    Die(fault_pool, trapping.call, trapping.error);
  }
  if (result.kind == FaultResult::Kind::kOutOfBounds && !fault_pool.poison &&
      LocateIn(fault_pool.entry, event.address).page_in_bounds) {
    // The memory has grown meanwhile, and the page may have been written to:
    // mprotect(2), unlike POISON, also hits a page that is present.
    MakeAccessible(fault_pool, page_address);
    fault_pool.kernel->Wake(fault_pool.uffd, page_address, kPageBytes);
    return;
  }
  if (result.kind == FaultResult::Kind::kOutOfBounds && !placed &&
      !MakeIdlePageTrapping(fault_pool, where.slot, page_address)) {
    fault_pool.kernel->Wake(fault_pool.uffd, page_address, kPageBytes);
    return;
  }
  // A page that is present cannot be made to trap, and the thread would fault
  // on it forever. (A page whose contents could not be had is not present: it
  // traps already, by another thread's touch, or was fetched since.)
  if (result.kind == FaultResult::Kind::kFailed && !placed) {
    Die(fault_pool, result.call, result.error);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandlerThreads>> HandlerThreads::Start(
    FaultPool& fault_pool, const std::string& name, uint32_t count) {
  const CallResult stop = fault_pool.kernel->EventFd();
  if (!stop.ok()) {
    return absl::ErrnoToStatus(stop.error,
                               "eventfd(2) to end the handler threads by");
  }
  std::unique_ptr<HandlerThreads> threads(new HandlerThreads(
      fault_pool, UniqueFd(static_cast<int>(stop.value)), count));
  for (uint32_t i = 0; i < count; ++i) {
    absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
        absl::StrCat("ft:", name),
        [raw = threads.get(), i] { raw->Run(raw->readers_[i]); });
    if (!thread.ok()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("handler thread ", i + 1, " of handler_threads ", count,
                       " could not be started: ", thread.status().message()));
    }
    threads->threads_.push_back(*std::move(thread));
  }
  return threads;
}

HandlerThreads::~HandlerThreads() {
  const uint64_t one = 1;
  // An eventfd that holds 0 takes a 1 without blocking.
  [[maybe_unused]] const ssize_t written =
      write(stop_.get(), &one, sizeof(one));
  for (std::thread& thread : threads_) thread.join();
}

void HandlerThreads::WaitForReads() const {
  for (uint32_t i = 0; i < reader_count_; ++i) {
    const std::atomic<uint64_t>& turn = readers_[i].turn;
    const uint64_t seen = turn.load(std::memory_order_seq_cst);
    if (seen % 2 == 0) continue;
    for (int spins = 0; turn.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins >= 100) sched_yield();
    }
  }
}

void HandlerThreads::Run(Reader& self) {
  EventReader reader(*fault_pool_.kernel, fault_pool_.uffd);
  std::array<Noted, EventReader::kBatch> noted;
  pollfd fds[2] = {{fault_pool_.uffd, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (true) {
    const CallResult poll = fault_pool_.kernel->Poll(fds, 2, -1);
    if (!poll.ok()) {
      if (poll.error == EINTR) continue;
      Die(fault_pool_, "poll", poll.error);
    }
    if (fds[1].revents != 0) return;
    if ((fds[0].revents & POLLNVAL) != 0) Die(fault_pool_, "poll", EBADF);
    // An event leaves the queue when the thread that waits for it leaves, and
    // from then on nothing tells which lease it belonged to. So a release that
    // begins while events are neither in the queue nor noted waits
    // (WaitForReads).
    self.turn.fetch_add(1, std::memory_order_seq_cst);
    const EventReader::Batch batch = reader.Read();
    size_t count = 0;
    for (const Event& event : batch.events) {
      if (event.kind != Event::Kind::kPagefault) continue;
      const SlotState& slot =
          fault_pool_.slots[LocateIn(fault_pool_.entry, event.address).slot];
      noted[count++] = {
          .address = event.address,
          .is_write = event.is_write() || event.is_write_protect(),
          .is_write_protect = event.is_write_protect(),
          .lease = slot.lease.load(std::memory_order_relaxed)};
    }
    self.turn.fetch_add(1, std::memory_order_release);
    if (batch.error != 0) Die(fault_pool_, "read", batch.error);
    for (size_t i = 0; i < count; ++i) Handle(fault_pool_, noted[i]);
  }
}

}  // namespace firsttouch
