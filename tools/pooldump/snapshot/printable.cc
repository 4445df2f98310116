#include "firsttouch/tools/pooldump/snapshot/printable.h"

#include <cstddef>
#include <string>
#include <string_view>

namespace firsttouch::pooldump {
namespace {

// What of a UTF-8 sequence begins `text`: its length, 0 for none. Leaves out
// overlong forms, surrogates, and controls of C0 and C1.
size_t PrintableSequence(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  if (first >= 0xc2 && first < 0xe0) {
    if (!tail(1)) return 0;
    return first == 0xc2 && byte(1) < 0xa0 ? 0 : 2;
  }
  if (first >= 0xe0 && first < 0xf0) {
    if (!tail(1) || !tail(2)) return 0;
    if (first == 0xe0 && byte(1) < 0xa0) return 0;
    if (first == 0xed && byte(1) >= 0xa0) return 0;
    // Marks that turn the direction of writing, and separators of lines.
    if (first == 0xe2 && byte(1) == 0x80 &&
        ((byte(2) >= 0x8e && byte(2) <= 0x8f) ||
         (byte(2) >= 0xa8 && byte(2) <= 0xae))) {
      return 0;
    }
    return 3;
  }
  if (first >= 0xf0 && first < 0xf5) {
    if (!tail(1) || !tail(2) || !tail(3)) return 0;
    if (first == 0xf0 && byte(1) < 0x90) return 0;
    if (first == 0xf4 && byte(1) >= 0x90) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

std::string Printable(std::string_view text, bool lines) {
  text = text.substr(0, text.find('\0'));
  std::string out;
  while (!text.empty()) {
    size_t length = PrintableSequence(text);
    if (length == 0 && lines && text[0] == '\n') length = 1;
    if (length == 0) {
      out += '?';
      length = 1;
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace firsttouch::pooldump
