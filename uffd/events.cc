// Raw layer: async-signal-safe, no lock, no allocation.

#include "firsttouch/uffd/events.h"

#include <cerrno>

namespace firsttouch {

Event EventFromMessage(const uffd_msg& message) {
  Event event;
  event.raw_kind = message.event;
  switch (message.event) {
    case kUffdEventPagefault:
      event.kind = Event::Kind::kPagefault;
      event.address = message.arg.pagefault.address;
      event.flags = message.arg.pagefault.flags;
      event.tid = message.arg.pagefault.feat.ptid;
      break;
    case kUffdEventFork:
      event.kind = Event::Kind::kFork;
      event.forked_fd = static_cast<int>(message.arg.fork.ufd);
      break;
    case kUffdEventRemap:
      event.kind = Event::Kind::kRemap;
      event.from = message.arg.remap.from;
      event.to = message.arg.remap.to;
      event.bytes = message.arg.remap.len;
      break;
    case kUffdEventRemove:
    case kUffdEventUnmap:
      event.kind = message.event == kUffdEventRemove ? Event::Kind::kRemove
                                                     : Event::Kind::kUnmap;
      event.start = message.arg.remove.start;
      event.end = message.arg.remove.end;
      break;
    default:
      break;
  }
  return event;
}

EventReader::Batch EventReader::Read(std::span<uffd_msg, kBatch> messages) {
  CallResult read;
  do {
    read = kernel_.ReadEvents(fd_, messages.data(), messages.size());
  } while (read.error == EINTR);
  if (read.error == EAGAIN) return {};
  if (!read.ok()) return {{}, read.error};
  const size_t count = static_cast<size_t>(read.value);
  for (size_t i = 0; i < count; ++i) {
    events_[i] = EventFromMessage(messages[i]);
  }
  return {std::span<const Event>(events_.data(), count), 0};
}

}  // namespace firsttouch
