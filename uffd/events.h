// Reading a userfaultfd's events in batches.
//
//   EventReader reader(kernel, uffd.fd());
//   EventReader::Batch batch = reader.Read();
//   for (const Event& event : batch.events) ...
//
// Raw layer: async-signal-safe, takes no lock, allocates nothing. A reader
// belongs to one thread; several readers may read one userfaultfd at once, and
// each event goes to one of them.

#ifndef FIRSTTOUCH_UFFD_EVENTS_H_
#define FIRSTTOUCH_UFFD_EVENTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// One event. The kind determines which fields are meaningful.
struct Event {
  enum class Kind : uint8_t {
    kPagefault,  // a thread waits for a page: address, flags, tid
    kFork,       // the process forked: forked_fd (4.11)
    kRemap,      // a range moved by mremap(2): from, to, bytes (4.11)
    kRemove,     // pages were dropped by madvise(2): start, end (4.11)
    kUnmap,      // a range was unmapped: start, end (4.11)
    kUnknown,    // newer than this library: raw_kind
  };

  Kind kind = Kind::kUnknown;
  uint8_t raw_kind = 0;  // uffd_msg.event as read

  // kPagefault. The address is that of the page, or of the access where
  // EXACT_ADDRESS was asked for. `flags` keeps bits that we do not know.
  uintptr_t address = 0;
  uint64_t flags = 0;  // kUffdPagefault...
  uint32_t tid = 0;    // of the faulting thread, where THREAD_ID was asked for

  // kFork: a new userfaultfd for the child. The code that handles the event
  // owns it and must close it; a reader that ignores it leaks a descriptor.
  int forked_fd = -1;

  uintptr_t from = 0;  // kRemap
  uintptr_t to = 0;
  uint64_t bytes = 0;

  uintptr_t start = 0;  // kRemove, kUnmap; `end` is exclusive
  uintptr_t end = 0;

  bool is_write() const { return (flags & kUffdPagefaultWrite) != 0; }
  bool is_write_protect() const { return (flags & kUffdPagefaultWp) != 0; }
  bool is_minor() const { return (flags & kUffdPagefaultMinor) != 0; }
};

// One message of the kernel as an Event. Never fails: an unknown message is
// kUnknown.
Event EventFromMessage(const uffd_msg& message);

class EventReader {
 public:
  static constexpr size_t kBatch = 64;

  // Takes ownership of neither. `fd` should be non-blocking: a read on a
  // blocking one waits for the first event, and closing it elsewhere does not
  // wake the reader.
  EventReader(Kernel& kernel, int fd) : kernel_(kernel), fd_(fd) {}

  struct Batch {
    std::span<const Event> events;  // valid until the next Read
    int error = 0;                  // 0, or an errno that is not EAGAIN
  };

  // Reads up to kBatch events with one system call. No events and no error:
  // there was nothing to read. A read that a signal interrupts is repeated.
  Batch Read() { return Read(messages_); }
  // The same, by way of the caller's memory: what the kernel has told is there
  // when the system call is over, whatever becomes of this process.
  Batch Read(std::span<uffd_msg, kBatch> messages);

 private:
  Kernel& kernel_;
  const int fd_;
  std::array<uffd_msg, kBatch> messages_;
  std::array<Event, kBatch> events_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_EVENTS_H_
