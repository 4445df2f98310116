// Tells the address sanitizer about memory that is recycled.
#ifndef FIRSTTOUCH_POOL_SANITIZER_H_
#define FIRSTTOUCH_POOL_SANITIZER_H_

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define FIRSTTOUCH_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIRSTTOUCH_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef FIRSTTOUCH_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace firsttouch {

// Makes every byte of the range legal to touch again. Does nothing in a build
// without the sanitizer.
inline void UnpoisonForSanitizers([[maybe_unused]] const void* start,
                                  [[maybe_unused]] size_t bytes) {
#ifdef FIRSTTOUCH_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(start, bytes);
#endif
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SANITIZER_H_
