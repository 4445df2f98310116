#include "firsttouch/capi/firsttouch.h"

const char* ft_version() noexcept { return FT_VERSION_STRING; }

uint32_t ft_version_number() noexcept {
  return FT_VERSION_MAJOR * 1'000'000 + FT_VERSION_MINOR * 1'000 +
         FT_VERSION_PATCH;
}

const char* ft_status_name(ft_status status) noexcept {
  switch (status) {
    case FT_OK:
      return "OK";
    case FT_ERROR_CANCELLED:
      return "CANCELLED";
    case FT_ERROR_INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case FT_ERROR_DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case FT_ERROR_NOT_FOUND:
      return "NOT_FOUND";
    case FT_ERROR_ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case FT_ERROR_PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case FT_ERROR_RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case FT_ERROR_FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case FT_ERROR_ABORTED:
      return "ABORTED";
    case FT_ERROR_OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case FT_ERROR_UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case FT_ERROR_INTERNAL:
      return "INTERNAL";
    case FT_ERROR_UNAVAILABLE:
      return "UNAVAILABLE";
    case FT_ERROR_DATA_LOSS:
      return "DATA_LOSS";
    case FT_ERROR_UNAUTHENTICATED:
      return "UNAUTHENTICATED";
    case FT_ERROR_INVALID_HANDLE:
      return "INVALID_HANDLE";
    case FT_ERROR_STRUCT_SIZE:
      return "STRUCT_SIZE";
    case FT_ERROR_TRAPPED:
      return "TRAPPED";
    default:
      return "UNKNOWN";
  }
}
