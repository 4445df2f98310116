#include "firsttouch/capi/status.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"

namespace firsttouch::capi {
namespace {

std::string_view View(absl::string_view text) {
  return {text.data(), text.size()};
}

// Copies as much as there is room for, and a NUL. Does not cut a character of
// UTF-8 in two.
void CopyCut(std::string_view text, char* buffer, size_t capacity) {
  if (capacity == 0) return;
  size_t bytes = std::min(text.size(), capacity - 1);
  if (bytes < text.size()) {
    while (bytes > 0 && (static_cast<uint8_t>(text[bytes]) & 0xc0) == 0x80) {
      --bytes;
    }
  }
  memcpy(buffer, text.data(), bytes);
  buffer[bytes] = '\0';
}

}  // namespace

ft_status Fail(ft_error* error, ft_status status, std::string_view message) {
  constexpr size_t kHead = offsetof(ft_error, message);
  if (error == nullptr || error->struct_size <= kHead) return status;
  error->status = status;
  error->message_length = static_cast<uint32_t>(message.size());
  CopyCut(message, error->message, error->struct_size - kHead);
  return status;
}

ft_status Fail(ft_error* error, const absl::Status& status) {
  return Fail(error, static_cast<ft_status>(status.raw_code()),
              View(status.message()));
}

ft_status FailNull(ft_error* error, const char* function,
                   const char* parameter) {
  return Call(error, [&] {
    return Fail(
        error, FT_ERROR_INVALID_ARGUMENT,
        absl::StrCat(function, ": ", parameter, " is NULL and must not be"));
  });
}

ft_status FailHandle(ft_error* error, const char* function, const char* kind,
                     uint64_t entry, uint64_t serial) {
  return Call(error, [&] {
    if (entry == 0 && serial == 0) {
      return Fail(error, FT_ERROR_INVALID_HANDLE,
                  absl::StrCat(function, ": no ", kind,
                               " was given: the handle is all zero"));
    }
    return Fail(error, FT_ERROR_INVALID_HANDLE,
                absl::StrCat(function, ": the handle {", absl::Hex(entry), ", ",
                             serial, "} is of no ", kind,
                             ": it was released, or never given out"));
  });
}

absl::Status FromCallback(ft_status status, const char* callback) {
  if (status == FT_OK) return absl::OkStatus();
  const bool known = status > FT_OK && status <= FT_ERROR_UNAUTHENTICATED;
  return absl::Status(
      known ? static_cast<absl::StatusCode>(status)
            : absl::StatusCode::kUnknown,
      absl::StrCat("the callback ", callback, " returned ", status));
}

ft_status GiveText(ft_error* error, const char* function, std::string_view text,
                   char* buffer, size_t capacity, size_t* length) {
  if (buffer == nullptr && capacity != 0) {
    return FailNull(error, function, "buffer (with a capacity)");
  }
  CopyCut(text, buffer, capacity);
  if (length != nullptr) *length = text.size();
  return FT_OK;
}

}  // namespace firsttouch::capi
