// read(2) into a sandbox's memory.
//
// Where faults are resolved in the thread that takes them, the kernel cannot
// take one in the middle of a system call: it returns EFAULT for a missing
// page, or a short count. Memory::MakeReady puts the pages there first.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/service.h"

namespace firsttouch::examples {
namespace {

constexpr uint64_t kMemoryBytes = 1 << 20;

// Reads up to `bytes` bytes from `fd` to `offset_bytes` in the memory, as
// read(2) does, wherever the guest's buffer is.
absl::StatusOr<size_t> ReadInto(const Memory& memory, int fd,
                                uint64_t offset_bytes, uint64_t bytes) {
  // This also checks that the buffer lies in the memory: a hostile guest gets
  // an error, and nothing else.
  if (absl::Status ready =
          memory.MakeReady(offset_bytes, bytes, Access::kWrite);
      !ready.ok()) {
    return ready;
  }
  ssize_t count;
  do {
    count = read(fd, memory.base() + offset_bytes, bytes);
  } while (count < 0 && errno == EINTR);
  if (count < 0) return absl::ErrnoToStatus(errno, "read");
  return static_cast<size_t>(count);
}

// What a plain read(2) returns for a buffer whose pages are missing.
std::string PlainRead(const Memory& memory, int fd, uint64_t offset_bytes,
                      uint64_t bytes) {
  const ssize_t count = read(fd, memory.base() + offset_bytes, bytes);
  return count < 0 ? strerror(errno) : absl::StrCat(count, " bytes");
}

absl::Status Run() {
  ServiceOptions options;
  options.name = "read-example";
  options.layout = {.instances = 1,
                    .max_memory_bytes = kMemoryBytes,
                    .guard_after_bytes = kMemoryBytes};
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  if (!service.ok()) return service.status();
  absl::StatusOr<Memory> memory =
      (*service)->Acquire({.size_bytes = kMemoryBytes});
  if (!memory.ok()) return memory.status();

  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return absl::ErrnoToStatus(errno, "pipe");
  constexpr std::string_view kText = "from the kernel, into a cold page";
  if (write(pipe_ends[1], kText.data(), kText.size()) !=
      static_cast<ssize_t>(kText.size())) {
    return absl::ErrnoToStatus(errno, "write");
  }

  // A buffer across two pages that were never touched.
  constexpr uint64_t kOffset = 3 * 4096 - 10;
  std::cout << "read(2) alone: "
            << PlainRead(*memory, pipe_ends[0], kOffset, kText.size()) << "\n";
  absl::StatusOr<size_t> count =
      ReadInto(*memory, pipe_ends[0], kOffset, kText.size());
  if (!count.ok()) return count.status();
  std::cout << "after MakeReady: " << *count << " bytes: "
            << std::string_view(
                   reinterpret_cast<const char*>(memory->base()) + kOffset,
                   *count)
            << "\n";
  std::cout
      << "a buffer that ends outside: "
      << ReadInto(*memory, pipe_ends[0], kMemoryBytes - 4, 8).status().message()
      << "\n";
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  return absl::OkStatus();
}

}  // namespace
}  // namespace firsttouch::examples

int main() {
  const absl::Status status = firsttouch::examples::Run();
  if (!status.ok()) {
    std::cerr << "read_into_guest: " << status.message() << "\n";
    return 1;
  }
}
