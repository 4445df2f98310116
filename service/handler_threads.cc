#include "firsttouch/service/handler_threads.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/raw_text.h"
#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The faulting thread waits for ever unless something happens to its page: ends
// the process, saying why, where nothing can.
[[noreturn]] void Die(const FaultCore& core, const char* call, int error) {
  RawText()
      .Text("firsttouch: handler thread of pool \"")
      .Text(core.name)
      .Text("\": ")
      .Text(call)
      .Text(" failed with errno ")
      .Signed(error)
      .Text("; threads that wait for a page would wait for ever")
      .WriteLine(STDERR_FILENO);
  abort();
}

void Handle(FaultCore& core, const Event& event) {
  const uint64_t start_ns = MonotonicNanos();
  const Location where = LocateIn(core.entry, event.address);
  const uintptr_t page_address = RoundDownToPage(event.address);
  FaultResult result{FaultResult::Kind::kOutOfBounds, 0, ""};
  // By pages: in a last page that the size ends in, the rest is accessible too,
  // and the page must not be made to trap.
  if (where.page_in_bounds) {
    result = ResolveForOther(
        core,
        {.slot = where.slot,
         .offset_bytes = where.page * kPageBytes,
         .access = event.is_write() || event.is_write_protect() ? Access::kWrite
                                                                : Access::kRead,
         .protection = event.is_write_protect()});
  }
  if (result.kind == FaultResult::Kind::kResolved) {
    core.shards[where.slot % FaultCore::kShards].latency.Add(MonotonicNanos() -
                                                             start_ns);
    return;
  }
  if (result.kind == FaultResult::Kind::kGone) return;
  // Out of bounds: the touched page is made to raise a signal in the thread
  // that waits for it, where it becomes a trap. So is a page that cannot be
  // supplied: the thread's own attempt to resolve it then says what failed.
  bool placed = false;
  const FaultResult trapping =
      MakeTrapping(core, where.slot, page_address, &placed);
  if (trapping.kind == FaultResult::Kind::kFailed) {
    Die(core, trapping.call, trapping.error);
  }
  // A page that is there cannot be made to trap, and the thread would fault on
  // it without end. (One whose contents could not be had is not there: it traps
  // already, by another thread's touch, or was brought since.)
  if (result.kind == FaultResult::Kind::kFailed && !placed) {
    Die(core, result.call, result.error);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandlerThreads>> HandlerThreads::Start(
    FaultCore& core, const std::string& name, uint32_t count) {
  const CallResult stop = core.kernel->EventFd();
  if (!stop.ok()) {
    return absl::ErrnoToStatus(stop.error,
                               "eventfd(2) to end the handler threads by");
  }
  std::unique_ptr<HandlerThreads> threads(
      new HandlerThreads(core, UniqueFd(static_cast<int>(stop.value))));
  // Threads inherit the mask of the one that starts them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  absl::Status status;
  const std::string thread_name = absl::StrCat("ft:", name).substr(0, 15);
  for (uint32_t i = 0; i < count; ++i) {
    // std::thread reports failure by an exception, and in no other way.
    try {
      threads->threads_.emplace_back([raw = threads.get()] { raw->Run(); });
    } catch (const std::system_error& error) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("handler thread ", i + 1, " of handler_threads ", count,
                       " could not be started: ", error.what()));
      break;
    }
    pthread_setname_np(threads->threads_.back().native_handle(),
                       thread_name.c_str());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!status.ok()) return status;
  return threads;
}

HandlerThreads::~HandlerThreads() {
  const uint64_t one = 1;
  // An eventfd that holds 0 takes a 1 without blocking.
  [[maybe_unused]] const ssize_t written =
      write(stop_.get(), &one, sizeof(one));
  for (std::thread& thread : threads_) thread.join();
}

void HandlerThreads::Run() {
  EventReader reader(*core_.kernel, core_.uffd);
  pollfd fds[2] = {{core_.uffd, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (true) {
    const CallResult poll = core_.kernel->Poll(fds, 2, -1);
    if (!poll.ok()) {
      if (poll.error == EINTR) continue;
      Die(core_, "poll", poll.error);
    }
    if (fds[1].revents != 0) return;
    if ((fds[0].revents & POLLNVAL) != 0) Die(core_, "poll", EBADF);
    const EventReader::Batch batch = reader.Read();
    if (batch.error != 0) Die(core_, "read", batch.error);
    for (const Event& event : batch.events) {
      if (event.kind == Event::Kind::kPagefault) Handle(core_, event);
    }
  }
}

}  // namespace firsttouch
