// What crosses the border of the C interface when something goes wrong: a code,
// and a text in the caller's memory.
//
// Threads: all functions from any thread. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_STATUS_H_
#define FIRSTTOUCH_CAPI_STATUS_H_

#include <cstddef>
#include <new>
#include <string_view>

#include "absl/status/status.h"
#include "firsttouch/capi/firsttouch.h"

namespace firsttouch::capi {

// Puts the code and the text into `error`, if there is one and it has room, and
// returns the code. `status` must not be FT_OK.
[[gnu::cold]] ft_status Fail(ft_error* error, ft_status status,
                             std::string_view message);

// The same for a status, which must not be OK.
[[gnu::cold]] ft_status Fail(ft_error* error, const absl::Status& status);

// FT_OK for OK.
inline ft_status Finish(ft_error* error, const absl::Status& status) {
  if (status.ok()) [[likely]] {
    return FT_OK;
  }
  return Fail(error, status);
}

// A pointer that must not be null, and is.
[[gnu::cold]] ft_status FailNull(ft_error* error, const char* function,
                                 const char* parameter);

// A handle that names nothing; `kind` is "pool", "image" or "memory".
[[gnu::cold]] ft_status FailHandle(ft_error* error, const char* function,
                                   const char* kind, uint64_t entry,
                                   uint64_t serial);

// What a callback of the host's returned, as a status with that code; a number
// that is no code of absl's is Unknown.
absl::Status FromCallback(ft_status status, const char* callback);

// Copies a text out as the head of firsttouch.h says of TEXTS.
ft_status GiveText(ft_error* error, const char* function, std::string_view text,
                   char* buffer, size_t capacity, size_t* length);

// Calls `body`, which returns an ft_status, and makes of an allocation that
// fails an error. Nothing else is thrown here; if it is, the process ends,
// since every function of the interface is noexcept.
template <typename Body>
ft_status Call(ft_error* error, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Fail(error, FT_ERROR_RESOURCE_EXHAUSTED, "out of memory");
  }
}

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_STATUS_H_
