// Stores of images in C.

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/images.h"
#include "firsttouch/capi/objects.h"
#include "firsttouch/capi/stats_json.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_store.h"

namespace firsttouch::capi {
namespace {

using Stores = Objects<ImageStore, ft_store, uint64_t{0xf4} << 56>;

// Calls body(ImageStore&) with the store of a handle.
template <typename Body>
ft_status WithStore(const char* function, ft_store store, ft_error* error,
                    Body body) {
  return Call(error, [&] {
    const std::shared_ptr<ImageStore> held = Stores::The().Find(store);
    if (held == nullptr) {
      return FailHandle(error, function, "store", store.entry, store.serial);
    }
    return ft_status{body(*held)};
  });
}

ft_status Open(const ft_store_options* options, ft_store* store,
               ft_error* error) {
  ImageStoreOptions asked;
  if (options != nullptr) {
    ft_store_options room;
    const ft_status status = TakeStruct("ft_store_open", room, &options, error);
    if (status != FT_OK) return status;
    const uint64_t unknown = options->flags & ~uint64_t{FT_STORE_BUDGET};
    if (unknown != 0) {
      return Fail(
          error, FT_ERROR_INVALID_ARGUMENT,
          absl::StrCat("ft_store_options::flags has bits ", absl::Hex(unknown),
                       " that this library does not know"));
    }
    if (options->directory != nullptr) asked.directory = options->directory;
    if ((options->flags & FT_STORE_BUDGET) != 0) {
      asked.budget_bytes = options->budget_bytes;
    }
  }
  absl::StatusOr<std::unique_ptr<ImageStore>> opened = ImageStore::Open(asked);
  if (!opened.ok()) return Fail(error, opened.status());
  *store = Stores::The().Add(*std::move(opened));
  return FT_OK;
}

void Visit(const ImageStoreEntry& entry, ft_store_visit visit, void* user) {
  std::vector<const char*> names;
  names.reserve(entry.names.size());
  for (const std::string& name : entry.names) names.push_back(name.c_str());
  ft_store_entry told = {};
  told.struct_size = sizeof told;
  memcpy(told.digest, entry.content.bytes.data(), sizeof told.digest);
  told.names = names.data();
  told.name_count = names.size();
  told.size_bytes = entry.size_bytes;
  told.stored_pages = entry.stored_pages;
  told.runs = entry.runs;
  told.in_use = entry.in_use ? 1 : 0;
  visit(user, &told);
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::Digest;
using firsttouch::ImageRef;
using firsttouch::ImageStore;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailHandle;
using firsttouch::capi::FailNull;
using firsttouch::capi::Finish;
using firsttouch::capi::GiveImage;
using firsttouch::capi::GiveText;
using firsttouch::capi::WithStore;

ft_status ft_store_open(const ft_store_options* options, ft_store* store,
                        ft_error* error) noexcept {
  if (store == nullptr) return FailNull(error, __func__, "store");
  return Call(error,
              [&] { return firsttouch::capi::Open(options, store, error); });
}

ft_status ft_store_close(ft_store store, ft_error* error) noexcept {
  return Call(error, [&] {
    if (firsttouch::capi::Stores::The().Remove(store) == nullptr) {
      return FailHandle(error, "ft_store_close", "store", store.entry,
                        store.serial);
    }
    return ft_status{FT_OK};
  });
}

ft_status ft_store_put(ft_store store, const char* name, ft_image image,
                       ft_image* kept, ft_error* error) noexcept {
  if (name == nullptr) return FailNull(error, __func__, "name");
  const char* const function = __func__;
  return WithStore(function, store, error, [&](ImageStore& held) {
    return firsttouch::capi::WithImage(
        function, image, error, [&](const ImageRef& given) {
          absl::StatusOr<ImageRef> put = held.Put(name, *given);
          if (kept == nullptr) return Finish(error, put.status());
          return GiveImage(std::move(put), kept, error);
        });
  });
}

ft_status ft_store_get(ft_store store, const char* name, ft_image* image,
                       ft_error* error) noexcept {
  if (name == nullptr) return FailNull(error, __func__, "name");
  if (image == nullptr) return FailNull(error, __func__, "image");
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    return GiveImage(held.Get(name), image, error);
  });
}

ft_status ft_store_get_by_digest(ft_store store,
                                 const uint8_t digest[FT_DIGEST_BYTES],
                                 ft_image* image, ft_error* error) noexcept {
  if (digest == nullptr) return FailNull(error, __func__, "digest");
  if (image == nullptr) return FailNull(error, __func__, "image");
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    Digest content;
    memcpy(content.bytes.data(), digest, content.bytes.size());
    return GiveImage(held.GetByDigest(content), image, error);
  });
}

ft_status ft_store_remove(ft_store store, const char* name,
                          ft_error* error) noexcept {
  if (name == nullptr) return FailNull(error, __func__, "name");
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    return Finish(error, held.Remove(name));
  });
}

ft_status ft_store_trim(ft_store store, uint64_t budget_bytes,
                        uint64_t* freed_bytes, ft_error* error) noexcept {
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    const absl::StatusOr<uint64_t> freed = held.Trim(budget_bytes);
    if (!freed.ok()) return Fail(error, freed.status());
    if (freed_bytes != nullptr) *freed_bytes = *freed;
    return ft_status{FT_OK};
  });
}

ft_status ft_store_flush(ft_store store, ft_error* error) noexcept {
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    return Finish(error, held.Flush());
  });
}

ft_status ft_store_list(ft_store store, ft_store_visit visit, void* user,
                        ft_error* error) noexcept {
  if (visit == nullptr) return FailNull(error, __func__, "visit");
  return WithStore(__func__, store, error, [&](ImageStore& held) {
    const auto entries = held.List();
    if (!entries.ok()) return Fail(error, entries.status());
    for (const firsttouch::ImageStoreEntry& entry : *entries) {
      firsttouch::capi::Visit(entry, visit, user);
    }
    return ft_status{FT_OK};
  });
}

ft_status ft_store_stats_json(ft_store store, char* buffer, size_t capacity,
                              size_t* length, ft_error* error) noexcept {
  const char* const function = __func__;
  return WithStore(function, store, error, [&](ImageStore& held) {
    const absl::StatusOr<firsttouch::ImageStoreStats> stats = held.Stats();
    if (!stats.ok()) return Fail(error, stats.status());
    return GiveText(error, function, firsttouch::capi::ToJson(*stats), buffer,
                    capacity, length);
  });
}
