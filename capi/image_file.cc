// Files of images in C.

#include "firsttouch/init/image_file.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/images.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"

namespace firsttouch::capi {
namespace {

// The longest path that Linux takes, with its NUL.
constexpr size_t kPathBytes = 4096;

absl::Status UnknownFlags(const char* flags, uint64_t unknown) {
  return absl::InvalidArgumentError(
      absl::StrCat(flags, " has bits ", absl::Hex(unknown),
                   " that this library does not know"));
}

ImageProgress ProgressOf(ft_progress progress, void* user) {
  if (progress == nullptr) return nullptr;
  return [progress, user](uint64_t done_bytes, uint64_t total_bytes) {
    progress(user, done_bytes, total_bytes);
  };
}

// `options` may be null.
ft_status TakeOpenOptions(const char* function, const ft_open_options* options,
                          OpenImageOptions* into, ft_error* error) {
  if (options == nullptr) return FT_OK;
  ft_open_options room;
  ft_status status = TakeStruct(function, room, &options, error);
  if (status != FT_OK) return status;
  constexpr uint64_t kKnown = FT_OPEN_COPY | FT_OPEN_VERIFY;
  if ((options->flags & ~kKnown) != 0) {
    return Fail(error, UnknownFlags("ft_open_options::flags",
                                    options->flags & ~kKnown));
  }
  if ((options->flags & FT_OPEN_COPY) != 0) {
    into->backing = OpenImageOptions::Backing::kCopied;
  }
  if ((options->flags & FT_OPEN_VERIFY) != 0) {
    into->verify = OpenImageOptions::Verify::kAll;
  }
  if (options->name != nullptr) into->name = options->name;
  status = TakeOptionalImage(function, options->parent, &into->parent, error);
  if (status != FT_OK) return status;
  void* const user = options->user;
  if (options->find_parent != nullptr) {
    into->find_parent =
        [find = options->find_parent,
         user](const Digest& content) -> absl::StatusOr<std::string> {
      std::string path(kPathBytes, '\0');
      absl::Status found = FromCallback(
          find(user, content.bytes.data(), path.data(), path.size()),
          "ft_open_options::find_parent");
      if (!found.ok()) return found;
      path.resize(strnlen(path.data(), path.size()));
      return path;
    };
  }
  into->progress = ProgressOf(options->progress, user);
  return FT_OK;
}

ft_status TakeWriteOptions(const char* function,
                           const ft_write_options* options,
                           WriteImageFileOptions* into, ft_error* error) {
  if (options == nullptr) return FT_OK;
  ft_write_options room;
  const ft_status status = TakeStruct(function, room, &options, error);
  if (status != FT_OK) return status;
  constexpr uint64_t kKnown = FT_WRITE_NEW | FT_WRITE_NO_FOLLOW;
  if ((options->flags & ~kKnown) != 0) {
    return Fail(error, UnknownFlags("ft_write_options::flags",
                                    options->flags & ~kKnown));
  }
  into->replace = (options->flags & FT_WRITE_NEW) == 0;
  into->follow_links = (options->flags & FT_WRITE_NO_FOLLOW) == 0;
  if (options->tool != nullptr) into->provenance.tool = options->tool;
  if (options->source != nullptr) into->provenance.source = options->source;
  if (options->comment != nullptr) into->provenance.comment = options->comment;
  into->progress = ProgressOf(options->progress, options->user);
  return TakeOptionalImage(function, options->parent, &into->parent, error);
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::ImageRef;
using firsttouch::OpenImageOptions;
using firsttouch::capi::Call;
using firsttouch::capi::FailNull;
using firsttouch::capi::Finish;
using firsttouch::capi::GiveImage;
using firsttouch::capi::TakeOpenOptions;
using firsttouch::capi::WithImage;

ft_status ft_image_open(const char* path, const ft_open_options* options,
                        ft_image* image, ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  if (image == nullptr) return FailNull(error, __func__, "image");
  const char* const function = __func__;
  return Call(error, [&] {
    OpenImageOptions asked;
    const ft_status status = TakeOpenOptions(function, options, &asked, error);
    if (status != FT_OK) return status;
    return GiveImage(firsttouch::OpenImageFile(path, asked), image, error);
  });
}

ft_status ft_image_write(ft_image image, const char* path,
                         const ft_write_options* options,
                         ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    firsttouch::WriteImageFileOptions asked;
    const ft_status status =
        firsttouch::capi::TakeWriteOptions(function, options, &asked, error);
    if (status != FT_OK) return status;
    return Finish(error,
                  firsttouch::WriteImageFile(*held, path, asked).status());
  });
}

ft_status ft_image_verify(const char* path, const ft_open_options* options,
                          ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  const char* const function = __func__;
  return Call(error, [&] {
    OpenImageOptions asked;
    const ft_status status = TakeOpenOptions(function, options, &asked, error);
    if (status != FT_OK) return status;
    return Finish(error, firsttouch::VerifyImageFile(path, asked).status());
  });
}

ft_status ft_image_merge(const char* path, const char* merged_path,
                         const ft_open_options* options,
                         ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  if (merged_path == nullptr) return FailNull(error, __func__, "merged_path");
  const char* const function = __func__;
  return Call(error, [&] {
    OpenImageOptions asked;
    const ft_status status = TakeOpenOptions(function, options, &asked, error);
    if (status != FT_OK) return status;
    return Finish(
        error, firsttouch::MergeImageFile(path, merged_path, asked).status());
  });
}

ft_status ft_image_pack(const char* path, const char* packed_path,
                        int32_t level, ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  if (packed_path == nullptr) return FailNull(error, __func__, "packed_path");
  return Call(error, [&] {
    firsttouch::PackOptions asked;
    if (level != 0) asked.level = level;
    return Finish(error, firsttouch::PackImageFile(path, packed_path, asked));
  });
}

ft_status ft_image_unpack(const char* packed_path, const char* path,
                          uint64_t max_stored_bytes, ft_error* error) noexcept {
  if (packed_path == nullptr) return FailNull(error, __func__, "packed_path");
  if (path == nullptr) return FailNull(error, __func__, "path");
  return Call(error, [&] {
    firsttouch::UnpackOptions asked;
    if (max_stored_bytes != 0) asked.max_stored_bytes = max_stored_bytes;
    return Finish(
        error, firsttouch::UnpackImageFile(packed_path, path, asked).status());
  });
}
