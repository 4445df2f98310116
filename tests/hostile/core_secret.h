// A text that a tenant has in its memory and nobody has anywhere else, so that
// finding it in a core file tells where it came from.

#ifndef FIRSTTOUCH_TESTS_HOSTILE_CORE_SECRET_H_
#define FIRSTTOUCH_TESTS_HOSTILE_CORE_SECRET_H_

#include <string>

namespace firsttouch::hostile {

// Made when it is asked for: it is not among the program's constants.
inline std::string CoreSecret() {
  std::string secret;
  secret.reserve(256);
  for (int i = 1; i <= 16; ++i) {
    secret += std::to_string(i * 7919);
    secret += '|';
  }
  return secret;
}

}  // namespace firsttouch::hostile

#endif  // FIRSTTOUCH_TESTS_HOSTILE_CORE_SECRET_H_
