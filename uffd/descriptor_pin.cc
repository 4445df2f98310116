#include "firsttouch/uffd/descriptor_pin.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {
namespace {

absl::StatusOr<UniqueFd> KeepInSocket(int fd) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    const int error = errno;
    return absl::ErrnoToStatus(
        error, absl::StrCat("socketpair(2) to keep the userfaultfd open",
                            error == EMFILE || error == ENFILE
                                ? ": the table of descriptors is full; raise "
                                  "RLIMIT_NOFILE (ulimit -n) or close some"
                                : ""));
  }
  UniqueFd kept(ends[0]);
  const UniqueFd sender(ends[1]);

  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof(int));
  if (sendmsg(sender.get(), &message, MSG_NOSIGNAL) < 0) {
    return absl::ErrnoToStatus(
        errno, "sendmsg(2) of the userfaultfd to its own socket");
  }
  return kept;
}

}  // namespace

struct DescriptorPin::Request {
  iocb block{};
  aio_context_t context = 0;
  ProcessMark made_by = ProcessMark::Here();
};

// The process's requests for events that never come. They share contexts:
// ending a context takes the kernel tens of milliseconds, cancelling a request
// takes no time.
class DescriptorPin::Requests {
 public:
  static Requests& Get() {
    static Requests* const requests = new Requests;
    return *requests;
  }

  // Returns null where no request can be made.
  Request* Submit(int fd) {
    MutexLock lock(&mutex_);
    if (!made_by_.IsHere()) {
      // The first request, or one of a child of fork(2), which inherits no
      // context.
      made_by_ = ProcessMark::Here();
      contexts_.clear();
    }
    auto request = std::make_unique<Request>();
    request->block.aio_lio_opcode = IOCB_CMD_POLL;
    request->block.aio_fildes = static_cast<uint32_t>(fd);
    // Asks for no ordinary event, only for errors and hang-ups.
    request->block.aio_buf = 0;
    request->block.aio_data = ++last_number_;
    if (!SubmitTo(*request)) return nullptr;
    // The request completes at once where the file has an error.
    if (ReapAndFind(request->context, request->block.aio_data)) return nullptr;
    return request.release();
  }

  void Cancel(Request* request) {
    const std::unique_ptr<Request> gone(request);
    MutexLock lock(&mutex_);
    if (!gone->made_by.IsHere()) return;
    io_event event = {};
    syscall(SYS_io_cancel, request->context, &request->block, &event);
    ReapAndFind(request->context, 0);
  }

 private:
  // The requests of one context, which takes 16 KiB with this many;
  // fs.aio-max-nr is mostly 65,536 for the whole machine.
  static constexpr unsigned kMostRequests = 256;

  bool SubmitTo(Request& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    iocb* block = &request.block;
    // Contexts before the last one may have room again, but are not used.
    if (!contexts_.empty()) {
      request.context = contexts_.back();
      if (syscall(SYS_io_submit, request.context, 1, &block) == 1) return true;
      if (errno != EAGAIN) return false;
    }
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, kMostRequests, &context) != 0) return false;
    contexts_.push_back(context);
    request.context = context;
    return syscall(SYS_io_submit, context, 1, &block) == 1;
  }

  // Takes completed requests out of the kernel's queue. Returns whether
  // `number` is one of them.
  bool ReapAndFind(aio_context_t context, uint64_t number)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    bool found = false;
    io_event events[16];
    timespec at_once = {};
    long count = 0;
    do {
      count = syscall(SYS_io_getevents, context, 0, 16, events, &at_once);
      for (long i = 0; i < count; ++i) {
        if (events[i].data == number) found = true;
      }
    } while (count == 16);
    return found;
  }

  Mutex mutex_;
  ProcessMark made_by_ ABSL_GUARDED_BY(mutex_);  // contexts_
  std::vector<aio_context_t> contexts_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_number_ ABSL_GUARDED_BY(mutex_) = 0;
};

absl::StatusOr<DescriptorPin> DescriptorPin::Make(int fd) {
  DescriptorPin pin;
  pin.request_ = Requests::Get().Submit(fd);
  if (pin.request_ != nullptr) return pin;
  absl::StatusOr<UniqueFd> socket = KeepInSocket(fd);
  if (!socket.ok()) return socket.status();
  pin.socket_ = *std::move(socket);
  return pin;
}

DescriptorPin::DescriptorPin(DescriptorPin&& other) noexcept
    : socket_(std::move(other.socket_)),
      request_(std::exchange(other.request_, nullptr)) {}

DescriptorPin& DescriptorPin::operator=(DescriptorPin&& other) noexcept {
  if (this != &other) {
    reset();
    socket_ = std::move(other.socket_);
    request_ = std::exchange(other.request_, nullptr);
  }
  return *this;
}

void DescriptorPin::reset() {
  socket_.reset();
  if (request_ != nullptr) {
    Requests::Get().Cancel(std::exchange(request_, nullptr));
  }
}

}  // namespace firsttouch
