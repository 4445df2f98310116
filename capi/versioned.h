// Structs whose first field is their size, so that callers and library may be
// of different versions.
//
// Threads: any. Async-signal-safe, but for the text of an error.

#ifndef FIRSTTOUCH_CAPI_VERSIONED_H_
#define FIRSTTOUCH_CAPI_VERSIONED_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/status.h"

namespace firsttouch::capi {

// The size of each struct in the first version that had it: what every caller
// has at least. These numbers never change.
template <typename T>
inline constexpr size_t kFirstSize = 0;
template <>
inline constexpr size_t kFirstSize<ft_trap> = 80;
template <>
inline constexpr size_t kFirstSize<ft_layout_options> = 56;
template <>
inline constexpr size_t kFirstSize<ft_layout> = 64;
template <>
inline constexpr size_t kFirstSize<ft_pool_options> = 104;
template <>
inline constexpr size_t kFirstSize<ft_pool_info> = 40;
template <>
inline constexpr size_t kFirstSize<ft_image_options> = 24;
template <>
inline constexpr size_t kFirstSize<ft_source_options> = 64;
template <>
inline constexpr size_t kFirstSize<ft_open_options> = 64;
template <>
inline constexpr size_t kFirstSize<ft_write_options> = 72;
template <>
inline constexpr size_t kFirstSize<ft_image_info> = 56;
template <>
inline constexpr size_t kFirstSize<ft_memory_options> = 56;
template <>
inline constexpr size_t kFirstSize<ft_memory_info> = 40;
template <>
inline constexpr size_t kFirstSize<ft_memory_pages> = 32;
template <>
inline constexpr size_t kFirstSize<ft_location> = 48;
template <>
inline constexpr size_t kFirstSize<ft_store_options> = 32;
template <>
inline constexpr size_t kFirstSize<ft_stack_pool_options> = 48;
template <>
inline constexpr size_t kFirstSize<ft_table_pool_options> = 48;
template <>
inline constexpr size_t kFirstSize<ft_stack_pool_info> = 32;
template <>
inline constexpr size_t kFirstSize<ft_table_pool_info> = 48;

// No struct of any version is larger; what says so is not initialized.
inline constexpr size_t kLargestStruct = 4096;

[[gnu::cold]] inline ft_status FailSize(ft_error* error, const char* function,
                                        size_t size, size_t known) {
  return Call(error, [&] {
    return Fail(error, FT_ERROR_STRUCT_SIZE,
                absl::StrCat(function, ": a struct with struct_size ", size,
                             ", which is ", known, " in this library (version ",
                             FT_VERSION_STRING,
                             "), or has fields set that it does not know: set "
                             "it by the struct's *_INIT macro"));
  });
}

// Makes *given a struct of this library's version: the caller's own, or `room`
// with a copy. What the caller's version lacks is zero; what only it has must
// be zero.
template <typename T>
ft_status TakeStruct(const char* function, T& room, const T** given,
                     ft_error* error) {
  static_assert(kFirstSize<T> != 0 && kFirstSize<T> <= sizeof(T));
  const size_t size = (*given)->struct_size;
  if (size == sizeof(T)) [[likely]] {
    return FT_OK;
  }
  if (size < kFirstSize<T> || size > kLargestStruct) {
    return FailSize(error, function, size, sizeof(T));
  }
  const auto* const bytes = reinterpret_cast<const unsigned char*>(*given);
  if (std::any_of(bytes + std::min(size, sizeof(T)), bytes + size,
                  [](unsigned char byte) { return byte != 0; })) {
    return FailSize(error, function, size, sizeof(T));
  }
  room = T{};
  memcpy(&room, bytes, std::min(size, sizeof(T)));
  *given = &room;
  return FT_OK;
}

// Whether the struct of the caller's can be filled.
template <typename T>
bool CanGiveStruct(const T& into) {
  static_assert(kFirstSize<T> != 0 && kFirstSize<T> <= sizeof(T));
  return into.struct_size >= kFirstSize<T> &&
         into.struct_size <= kLargestStruct;
}

// Fills the struct of the caller's as far as it reaches. Its size stays.
template <typename T>
void CopyStruct(const T& from, T* into) {
  const size_t size = into->struct_size;
  constexpr size_t kHead = sizeof(size_t);
  memcpy(reinterpret_cast<unsigned char*>(into) + kHead,
         reinterpret_cast<const unsigned char*>(&from) + kHead,
         std::min(size, sizeof(T)) - kHead);
}

// Both, with the error.
template <typename T>
ft_status GiveStruct(const char* function, const T& from, T* into,
                     ft_error* error) {
  if (!CanGiveStruct(*into)) {
    return FailSize(error, function, into->struct_size, sizeof(T));
  }
  CopyStruct(from, into);
  return FT_OK;
}

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_VERSIONED_H_
