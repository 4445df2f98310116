// Images in C, but for their files.

#include "firsttouch/init/image.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/images.h"
#include "firsttouch/capi/registry.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::capi {
namespace {

static_assert(FT_PAGE_BYTES == kPageBytes);
static_assert(FT_DIGEST_BYTES == Digest::kBytes);

// A source whose callbacks are in C. Owns their `user`.
class SourceInC : public PageSource {
 public:
  explicit SourceInC(const ft_source_options& options)
      : fetch_(options.fetch), destroy_(options.destroy), user_(options.user) {}
  SourceInC(const SourceInC&) = delete;
  SourceInC& operator=(const SourceInC&) = delete;
  ~SourceInC() override {
    if (destroy_ != nullptr) destroy_(user_);
  }

  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    return FromCallback(
        fetch_(user_, first.value(), bytes.size() / kPageBytes, bytes.data()),
        "ft_source_options::fetch");
  }

 private:
  const ft_fetch_pages fetch_;
  void (*const destroy_)(void* user);
  void* const user_;
};

// What every function that makes an image has to check.
ft_status TakeImageOptions(const char* function,
                           const ft_image_options* options, const void* image,
                           ImageOptions* into, ft_error* error) {
  if (options == nullptr) return FailNull(error, function, "options");
  if (image == nullptr) return FailNull(error, function, "image");
  ft_image_options room;
  const ft_status status = TakeStruct(function, room, &options, error);
  if (status != FT_OK) return status;
  if (options->name != nullptr) into->name = options->name;
  into->size_bytes = options->size_bytes;
  return FT_OK;
}

std::span<const std::byte> Bytes(const void* bytes, size_t length) {
  return {static_cast<const std::byte*>(bytes), length};
}

ft_status FromSource(const ft_image_options* options,
                     const ft_source_options* source,
                     std::shared_ptr<SourceInC> fetcher, ft_image* image,
                     ft_error* error) {
  constexpr const char* kFunction = "ft_image_from_source";
  ImageOptions asked;
  const ft_status status =
      TakeImageOptions(kFunction, options, image, &asked, error);
  if (status != FT_OK) return status;
  if (source->fetch == nullptr) {
    return FailNull(error, kFunction, "ft_source_options::fetch");
  }
  if (source->stored == nullptr && source->stored_count != 0) {
    return FailNull(error, kFunction, "ft_source_options::stored");
  }
  PageSourceOptions how;
  if (source->all_at_once != 0) how.when = PageSourceOptions::When::kAllAtOnce;
  if (source->chunk_pages != 0) how.chunk_pages = source->chunk_pages;
  if (source->threads != 0) how.threads = source->threads;
  std::vector<PageRun> stored;
  stored.reserve(source->stored_count);
  for (size_t i = 0; i < source->stored_count; ++i) {
    stored.push_back({.first = PageIndex(source->stored[i].first),
                      .length = PageCount(source->stored[i].length)});
  }
  how.stored = stored;
  return GiveImage(ImageFromSource(asked, std::move(fetcher), how), image,
                   error);
}

ft_status BadSet(ft_error* error, const char* function, int32_t which) {
  return Fail(error, FT_ERROR_INVALID_ARGUMENT,
              absl::StrCat(function, ": which is ", which,
                           " and must be FT_PAGES_WRITTEN or FT_PAGES_READ"));
}

}  // namespace

ft_status GiveImage(absl::StatusOr<ImageRef> made, ft_image* image,
                    ft_error* error) {
  if (!made.ok()) return Fail(error, made.status());
  const absl::StatusOr<ft_image> added = AddImage(*std::move(made));
  if (!added.ok()) return Fail(error, added.status());
  *image = *added;
  return FT_OK;
}

ft_status TakeOptionalImage(const char* function, ft_image image,
                            ImageRef* into, ft_error* error) {
  if (image.entry == 0 && image.serial == 0) return FT_OK;
  *into = CopyImage(image);
  if (*into != nullptr) return FT_OK;
  return FailHandle(error, function, "image", image.entry, image.serial);
}

}  // namespace firsttouch::capi

using firsttouch::Digest;
using firsttouch::ImageOptions;
using firsttouch::ImageRef;
using firsttouch::PageCount;
using firsttouch::PageIndex;
using firsttouch::WorkingSet;
using firsttouch::capi::Bytes;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailHandle;
using firsttouch::capi::FailNull;
using firsttouch::capi::Finish;
using firsttouch::capi::GiveImage;
using firsttouch::capi::GiveStruct;
using firsttouch::capi::GiveText;
using firsttouch::capi::TakeImageOptions;
using firsttouch::capi::TakeOptionalImage;
using firsttouch::capi::WithImage;

ft_status ft_image_from_bytes(const ft_image_options* options,
                              const void* bytes, size_t length, ft_image* image,
                              ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    ImageOptions asked;
    const ft_status status =
        TakeImageOptions(function, options, image, &asked, error);
    if (status != FT_OK) return status;
    if (bytes == nullptr && length != 0) {
      return FailNull(error, function, "bytes");
    }
    return GiveImage(firsttouch::ImageFromBytes(asked, Bytes(bytes, length)),
                     image, error);
  });
}

ft_status ft_image_from_segments(const ft_image_options* options,
                                 const ft_segment* segments, size_t count,
                                 ft_image* image, ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    ImageOptions asked;
    const ft_status status =
        TakeImageOptions(function, options, image, &asked, error);
    if (status != FT_OK) return status;
    if (segments == nullptr && count != 0) {
      return FailNull(error, function, "segments");
    }
    // One more than are allowed is enough to be told so.
    count = std::min(count, firsttouch::kMaxSegments + 1);
    std::vector<firsttouch::DataSegment> given;
    given.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (segments[i].bytes == nullptr && segments[i].length != 0) {
        return FailNull(error, function, "ft_segment::bytes");
      }
      given.push_back({.offset_bytes = segments[i].offset_bytes,
                       .bytes = Bytes(segments[i].bytes, segments[i].length)});
    }
    return GiveImage(firsttouch::ImageFromSegments(asked, given), image, error);
  });
}

ft_status ft_image_from_callback(const ft_image_options* options,
                                 ft_fill_page fill, void* user, ft_image* image,
                                 ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    ImageOptions asked;
    const ft_status status =
        TakeImageOptions(function, options, image, &asked, error);
    if (status != FT_OK) return status;
    if (fill == nullptr) return FailNull(error, function, "fill");
    const auto fill_page =
        [&](PageIndex page,
            std::span<std::byte, firsttouch::kPageBytes> bytes) {
          return firsttouch::capi::FromCallback(
              fill(user, page.value(), bytes.data()), "fill");
        };
    return GiveImage(firsttouch::ImageFromCallback(asked, fill_page), image,
                     error);
  });
}

ft_status ft_image_with_pages(const ft_image_options* options, ft_image base,
                              const ft_page* pages, size_t count,
                              ft_image* image, ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    ImageOptions asked;
    ft_status status =
        TakeImageOptions(function, options, image, &asked, error);
    if (status != FT_OK) return status;
    if (pages == nullptr && count != 0) {
      return FailNull(error, function, "pages");
    }
    ImageRef from;
    status = TakeOptionalImage(function, base, &from, error);
    if (status != FT_OK) return status;
    std::vector<firsttouch::PageData> given;
    given.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      given.push_back({.page = PageIndex(pages[i].page),
                       .bytes = static_cast<const std::byte*>(pages[i].bytes)});
    }
    return GiveImage(firsttouch::ImageWithPages(asked, from.get(), given),
                     image, error);
  });
}

ft_status ft_image_from_source(const ft_image_options* options,
                               const ft_source_options* source, ft_image* image,
                               ft_error* error) noexcept {
  if (source == nullptr) return FailNull(error, __func__, "source");
  ft_source_options room;
  if (const ft_status status =
          firsttouch::capi::TakeStruct(__func__, room, &source, error);
      status != FT_OK) {
    return status;
  }
  return Call(error, [&] {
    // From here on `user` is destroyed, whatever goes wrong.
    auto fetcher = std::make_shared<firsttouch::capi::SourceInC>(*source);
    return firsttouch::capi::FromSource(options, source, std::move(fetcher),
                                        image, error);
  });
}

ft_status ft_image_get_info(ft_image image, ft_image_info* info,
                            ft_error* error) noexcept {
  if (info == nullptr) return FailNull(error, __func__, "info");
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    const ft_image_info told = {
        .struct_size = sizeof(ft_image_info),
        .id = held->id(),
        .size_bytes = held->size_bytes(),
        .stored_pages = held->stored_pages(),
        .memory_bytes = held->MemfdBytes(),
        .is_file_backed = held->is_file_backed() ? 1U : 0U,
        .has_source = held->has_source() ? 1U : 0U,
        .has_parent = held->parent() != nullptr ? 1U : 0U,
        .has_working_set = held->working_set().known() ? 1U : 0U,
    };
    return GiveStruct(function, told, info, error);
  });
}

ft_status ft_image_get_name(ft_image image, char* buffer, size_t capacity,
                            size_t* length, ft_error* error) noexcept {
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    return GiveText(error, function, held->name(), buffer, capacity, length);
  });
}

ft_status ft_image_get_digest(ft_image image, uint8_t digest[FT_DIGEST_BYTES],
                              ft_error* error) noexcept {
  if (digest == nullptr) return FailNull(error, __func__, "digest");
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    if (const absl::Status fetched = held->FetchAll(); !fetched.ok()) {
      return Fail(error, fetched);
    }
    const Digest found = firsttouch::ContentDigest(*held);
    memcpy(digest, found.bytes.data(), found.bytes.size());
    return ft_status{FT_OK};
  });
}

ft_status ft_image_read(ft_image image, uint64_t offset_bytes, void* into,
                        size_t length, ft_error* error) noexcept {
  if (into == nullptr && length != 0) return FailNull(error, __func__, "into");
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    return Finish(error, held->Read(offset_bytes,
                                    {static_cast<std::byte*>(into), length}));
  });
}

ft_status ft_image_get_parent(ft_image image, ft_image* parent,
                              ft_error* error) noexcept {
  if (parent == nullptr) return FailNull(error, __func__, "parent");
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    if (held->parent() == nullptr) {
      return Fail(error, FT_ERROR_NOT_FOUND,
                  absl::StrCat("image '", held->name(),
                               "' is no delta: it has no parent"));
    }
    return GiveImage(held->parent(), parent, error);
  });
}

ft_status ft_image_duplicate(ft_image image, ft_image* duplicate,
                             ft_error* error) noexcept {
  if (duplicate == nullptr) return FailNull(error, __func__, "duplicate");
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    return GiveImage(held, duplicate, error);
  });
}

ft_status ft_image_release(ft_image image, ft_error* error) noexcept {
  return Call(error, [&] {
    if (firsttouch::capi::RemoveImage(image) == nullptr) {
      return FailHandle(error, "ft_image_release", "image", image.entry,
                        image.serial);
    }
    return ft_status{FT_OK};
  });
}

ft_status ft_image_fetch_early(ft_image image, uint64_t first, uint64_t pages,
                               ft_error* error) noexcept {
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    const uint64_t all = held->pages().value();
    first = std::min(first, all);
    held->FetchEarly(PageIndex(first), PageCount(std::min(pages, all - first)));
    return ft_status{FT_OK};
  });
}

ft_status ft_image_get_working_set(ft_image image, int32_t which,
                                   uint64_t* words, size_t capacity,
                                   size_t* count, ft_error* error) noexcept {
  if (words == nullptr && capacity != 0) {
    return FailNull(error, __func__, "words");
  }
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    if (which != FT_PAGES_WRITTEN && which != FT_PAGES_READ) {
      return firsttouch::capi::BadSet(error, function, which);
    }
    const WorkingSet& set = held->working_set();
    const WorkingSet::Words found =
        which == FT_PAGES_WRITTEN ? set.written() : set.read();
    std::copy_n(found.begin(), std::min(capacity, found.size()), words);
    if (count != nullptr) *count = found.size();
    return ft_status{FT_OK};
  });
}

ft_status ft_image_learn_working_set(ft_image image, int32_t which,
                                     const uint64_t* words, size_t count,
                                     ft_error* error) noexcept {
  if (words == nullptr && count != 0) return FailNull(error, __func__, "words");
  const char* const function = __func__;
  return WithImage(function, image, error, [&](const ImageRef& held) {
    switch (which) {
      case FT_PAGES_WRITTEN:
        held->working_set().LearnWritten({words, count});
        return ft_status{FT_OK};
      case FT_PAGES_READ:
        held->working_set().LearnRead({words, count});
        return ft_status{FT_OK};
      default:
        return firsttouch::capi::BadSet(error, function, which);
    }
  });
}

ft_status ft_image_replace_working_set(ft_image image, const uint64_t* written,
                                       size_t written_count,
                                       const uint64_t* read, size_t read_count,
                                       ft_error* error) noexcept {
  if (written == nullptr && written_count != 0) {
    return FailNull(error, __func__, "written");
  }
  if (read == nullptr && read_count != 0) {
    return FailNull(error, __func__, "read");
  }
  return WithImage(__func__, image, error, [&](const ImageRef& held) {
    held->working_set().Replace({written, written_count}, {read, read_count});
    return ft_status{FT_OK};
  });
}
