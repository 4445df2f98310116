// What the page cache has of a file. Ends the program where the file cannot be
// read.

#ifndef FIRSTTOUCH_BENCH_PAGE_CACHE_H_
#define FIRSTTOUCH_BENCH_PAGE_CACHE_H_

#include <cstdint>
#include <string>

namespace firsttouch::bench {

uint64_t CachedPages(const std::string& file);

// Returns how many pages stay all the same, as those of tmpfs do.
uint64_t DropFromPageCache(const std::string& file);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PAGE_CACHE_H_
