// Writing text in signal handlers.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation.

#ifndef FIRSTTOUCH_SERVICE_RAW_TEXT_H_
#define FIRSTTOUCH_SERVICE_RAW_TEXT_H_

#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace firsttouch {

// A line that is composed in a fixed buffer and written with one write(2). What
// does not fit is cut off.
class RawText {
 public:
  RawText& Text(const char* text) {
    while (*text != '\0') Put(*text++);
    return *this;
  }
  RawText& Number(uint64_t value) { return Digits(value, 10); }
  RawText& Signed(int64_t value) {
    if (value >= 0) return Number(static_cast<uint64_t>(value));
    Put('-');
    return Number(~static_cast<uint64_t>(value) + 1);
  }
  RawText& Hex(uint64_t value) {
    Text("0x");
    return Digits(value, 16);
  }
  // Appends a newline and writes the line to `fd`. Errors are ignored: there is
  // no one to report them to.
  void WriteLine(int fd) {
    buffer_[length_++] = '\n';
    [[maybe_unused]] const ssize_t written = write(fd, buffer_, length_);
  }

 private:
  void Put(char c) {
    if (length_ < sizeof(buffer_) - 1) buffer_[length_++] = c;
  }
  RawText& Digits(uint64_t value, uint64_t base) {
    char digits[20];
    int count = 0;
    do {
      digits[count++] = "0123456789abcdef"[value % base];
      value /= base;
    } while (value != 0);
    while (count != 0) Put(digits[--count]);
    return *this;
  }

  char buffer_[512];
  size_t length_ = 0;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RAW_TEXT_H_
