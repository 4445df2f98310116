#include "firsttouch/bench/page_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

UniqueFd OpenFile(const std::string& file) {
  UniqueFd fd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) Die(absl::StrCat("cannot open ", file));
  return fd;
}

}  // namespace

uint64_t CachedPages(const std::string& file) {
  const UniqueFd fd = OpenFile(file);
  struct stat status = {};
  fstat(fd.get(), &status);
  const auto bytes = static_cast<uint64_t>(status.st_size);
  void* const view = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (view == MAP_FAILED) Die(absl::StrCat("mmap of ", file, " failed"));
  std::vector<unsigned char> pages(PagesRoundedUp(bytes).value());
  if (mincore(view, bytes, pages.data()) != 0) Die("mincore failed");
  munmap(view, bytes);
  return static_cast<uint64_t>(
      std::count_if(pages.begin(), pages.end(),
                    [](unsigned char page) { return (page & 1) != 0; }));
}

uint64_t DropFromPageCache(const std::string& file) {
  // Pages that are just being read, or written to the disk, may stay the first
  // time.
  constexpr int kTries = 100;
  const UniqueFd fd = OpenFile(file);
  uint64_t left = 0;
  for (int i = 0; i < kTries; ++i) {
    fdatasync(fd.get());
    posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    left = CachedPages(file);
    if (left == 0) break;
    usleep(1000);
  }
  return left;
}

}  // namespace firsttouch::bench
