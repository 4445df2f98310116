// Utilities around the kernel for tests of this and other folders: children
// that may die, lose their privileges or have calls refused; scratch memory.

#ifndef FIRSTTOUCH_UFFD_TEST_UTIL_H_
#define FIRSTTOUCH_UFFD_TEST_UTIL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace firsttouch {

// Numbers of prctl(2) and madvise(2) that Debian 12's headers lack, and the
// kernels that know them.
inline constexpr int kPrSetMdwe = 65;  // 6.3
inline constexpr unsigned long kPrMdweRefuseExecGain = 1;
inline constexpr int kPrSetMemoryMerge = 67;  // 6.4
inline constexpr int kMadvCollapse = 25;      // 6.1

// How a child of RunInChild ended.
struct ChildResult {
  bool timed_out = false;
  int exit_code = -1;  // -1: did not exit by itself
  int signal = 0;      // that killed it, or 0
  std::string output;  // what `body` returned, or wrote to stdout and stderr
};

// Forks, runs `body` in the child, and returns the text that it returned as
// `output` (exit code 0) or how it died. Output of the child on stdout and
// stderr comes first. After a minute the child is killed. The body must not use
// GoogleTest's assertions: return text and assert on it.
ChildResult RunInChild(const std::function<std::string()>& body);

// Makes this process (a child) uid and gid 65534 without groups, and lets it
// keep /proc/self. Returns false where it is neither root nor 65534 already, or
// the user namespace has no such user.
bool BecomeNobody();

// Makes these system calls fail with `error` in this process (a child) from now
// on, as under a container's seccomp profile. `refuse_uffd_device` also refuses
// the ioctl of /dev/userfaultfd. Returns false where the kernel has no seccomp
// filters.
bool RefuseSystemCalls(const std::vector<int>& numbers, int error,
                       bool refuse_uffd_device);

// The descriptor below 256 of this process whose link in /proc/self/fd contains
// `text`, as that of a memfd contains its name; -1 for none.
int DescriptorOf(std::string_view text);

// Private anonymous memory (read, write, NORESERVE, no huge pages) that the
// destructor unmaps. Aborts where there is none.
class ScratchMemory {
 public:
  explicit ScratchMemory(size_t bytes);
  ~ScratchMemory();
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  char* data() const { return data_; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  char* data_;
  size_t bytes_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_TEST_UTIL_H_
