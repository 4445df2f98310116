// For tests: uses up all mappings that this process may have.

#ifndef FIRSTTOUCH_UFFD_MAPPING_WALL_H_
#define FIRSTTOUCH_UFFD_MAPPING_WALL_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "firsttouch/uffd/units.h"

namespace firsttouch {

// Inaccessible memory in which every other page is readable, so that each page
// is a mapping of its own: as many as vm.max_map_count allows.
class MappingWall {
 public:
  MappingWall()
      : start_(mmap(nullptr, kBytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (start_ == MAP_FAILED) return;
    for (uint64_t page = 1; page < kMostMappings; page += 2) {
      if (mprotect(static_cast<std::byte*>(start_) + page * kPageBytes,
                   kPageBytes, PROT_READ) != 0) {
        at_limit_ = true;
        break;
      }
    }
  }
  ~MappingWall() {
    if (start_ != MAP_FAILED) munmap(start_, kBytes);
  }
  MappingWall(const MappingWall&) = delete;
  MappingWall& operator=(const MappingWall&) = delete;

  // False where the limit is above the wall's size, or there is no room for it.
  bool at_limit() const { return at_limit_; }

  // Makes room for this many mappings (an even number).
  void GiveBack(uint64_t mappings) {
    mprotect(start_, mappings * kPageBytes, PROT_NONE);
  }

 private:
  static constexpr uint64_t kMostMappings = 1 << 17;
  static constexpr uint64_t kBytes = kMostMappings * kPageBytes;

  void* const start_;
  bool at_limit_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_MAPPING_WALL_H_
