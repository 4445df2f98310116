/* The guest of without_bazel_test.sh. */
#include <stdlib.h>

__attribute__((export_name("allocate"))) void* allocate(size_t bytes) {
  return malloc(bytes);
}
__attribute__((export_name("count_t"))) int count_t(const char* text,
                                                    size_t bytes) {
  int count = 0;
  for (size_t i = 0; i < bytes; ++i) count += text[i] == 't';
  return count;
}
__attribute__((export_name("leave"))) void leave(int code) { exit(code); }
