// Files of images in C.

#include "firsttouch/init/image_file.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/images.h"
#include "firsttouch/capi/objects.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/page_map.h"

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
  constexpr uint64_t kKnown =
      FT_WRITE_NEW | FT_WRITE_NO_FOLLOW | FT_WRITE_PAGE_CHECKSUMS;
  if ((options->flags & ~kKnown) != 0) {
    return Fail(error, UnknownFlags("ft_write_options::flags",
                                    options->flags & ~kKnown));
  }
  into->replace = (options->flags & FT_WRITE_NEW) == 0;
  into->follow_links = (options->flags & FT_WRITE_NO_FOLLOW) == 0;
  into->page_checksums = (options->flags & FT_WRITE_PAGE_CHECKSUMS) != 0;
  if (options->tool != nullptr) into->provenance.tool = options->tool;
  if (options->source != nullptr) into->provenance.source = options->source;
  if (options->comment != nullptr) into->provenance.comment = options->comment;
  into->provenance.created_unix_seconds = options->created_unix_seconds;
  if (options->source_digest != nullptr) {
    Digest& digest = into->provenance.source_sha256.emplace();
    memcpy(digest.bytes.data(), options->source_digest, FT_DIGEST_BYTES);
  }
  into->progress = ProgressOf(options->progress, options->user);
  return TakeOptionalImage(function, options->parent, &into->parent, error);
}

using PendingFiles =
    Objects<PendingImageFile, ft_pending_file, uint64_t{0xf9} << 56>;

void GiveDigest(const Digest& digest, uint8_t (&into)[FT_DIGEST_BYTES]) {
  memcpy(into, digest.bytes.data(), FT_DIGEST_BYTES);
}

void Visit(const ImageFileInfo& info, ft_file_visit visit, void* user) {
  std::vector<ft_extent> extents;
  extents.reserve(info.extents.size());
  for (const ImageExtent& extent : info.extents) {
    ft_extent& told = extents.emplace_back();
    told.first = extent.pages.first.value();
    told.length = extent.pages.length.value();
    GiveDigest(extent.digest, told.digest);
  }
  std::vector<ft_page_run> zeroed;
  zeroed.reserve(info.zeroed.size());
  for (const PageRun& run : info.zeroed) {
    zeroed.push_back(
        {.first = run.first.value(), .length = run.length.value()});
  }
  const ImageProvenance& provenance = info.provenance;
  ft_file_info told = {
      .struct_size = sizeof(ft_file_info),
      .version = info.version,
      .is_delta = info.parent.has_value() ? 1U : 0U,
      .file_bytes = info.file_bytes,
      .disk_bytes = info.disk_bytes,
      .manifest_offset = info.manifest_offset,
      .manifest_bytes = info.manifest_bytes,
      .data_offset = info.data_offset,
      .size_bytes = info.size_bytes,
      .stored_pages = info.stored_pages,
      .content = {},
      .parent = {},
      .extents = extents.data(),
      .extent_count = extents.size(),
      .zeroed = zeroed.data(),
      .zeroed_count = zeroed.size(),
      .written = info.written.data(),
      .written_count = info.written.size(),
      .read = info.read.data(),
      .read_count = info.read.size(),
      .name = info.name.c_str(),
      .tool = provenance.tool.c_str(),
      .source = provenance.source.c_str(),
      .comment = provenance.comment.c_str(),
      .created_unix_seconds = provenance.created_unix_seconds,
      .source_digest = provenance.source_sha256.has_value()
                           ? provenance.source_sha256->bytes.data()
                           : nullptr,
  };
  GiveDigest(info.content, told.content);
  if (info.parent.has_value()) GiveDigest(*info.parent, told.parent);
  visit(user, &told);
}

ft_status FailPending(ft_error* error, const char* function,
                      ft_pending_file pending) {
  return FailHandle(error, function, "pending file", pending.entry,
                    pending.serial);
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::ImageRef;
using firsttouch::OpenImageOptions;
using firsttouch::PendingImageFile;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailNull;
using firsttouch::capi::FailPending;
using firsttouch::capi::Finish;
using firsttouch::capi::GiveImage;
using firsttouch::capi::PendingFiles;
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

ft_status ft_image_prepare(ft_image image, const char* path,
                           const ft_write_options* options,
                           ft_pending_file* pending, ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  if (pending == nullptr) return FailNull(error, __func__, "pending");
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    firsttouch::WriteImageFileOptions asked;
    const ft_status status =
        firsttouch::capi::TakeWriteOptions(function, options, &asked, error);
    if (status != FT_OK) return status;
    absl::StatusOr<PendingImageFile> prepared =
        firsttouch::PrepareImageFile(*held, path, asked);
    if (!prepared.ok()) return Fail(error, prepared.status());
    *pending = PendingFiles::The().Add(
        std::make_shared<PendingImageFile>(*std::move(prepared)));
    return ft_status{FT_OK};
  });
}

ft_status ft_pending_file_commit(ft_pending_file pending,
                                 ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    const std::shared_ptr<PendingImageFile> file =
        PendingFiles::The().Remove(pending);
    if (file == nullptr) return FailPending(error, function, pending);
    return Finish(error, std::move(*file).Commit().status());
  });
}

ft_status ft_pending_file_drop(ft_pending_file pending,
                               ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    return PendingFiles::The().Remove(pending) != nullptr
               ? ft_status{FT_OK}
               : FailPending(error, function, pending);
  });
}

ft_status ft_image_inspect(const char* path, ft_file_visit visit, void* user,
                           ft_error* error) noexcept {
  if (path == nullptr) return FailNull(error, __func__, "path");
  if (visit == nullptr) return FailNull(error, __func__, "visit");
  return Call(error, [&] {
    const absl::StatusOr<firsttouch::ImageFileInfo> info =
        firsttouch::ReadImageFileInfo(path);
    if (!info.ok()) return Fail(error, info.status());
    firsttouch::capi::Visit(*info, visit, user);
    return ft_status{FT_OK};
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
