#include "firsttouch/init/image_pieces.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_builder_with_kernel.h"
#include "firsttouch/init/image_fetch.h"
#include "firsttouch/init/image_memfd.h"
#include "firsttouch/init/image_on_demand.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// How much is read at a time.
constexpr uint64_t kChunkPages = 256;

constexpr PageCount kOnePage(1);

std::vector<PageRun> StoredRuns(std::span<const ImagePiece> pieces,
                                std::span<const PageRun> stored) {
  if (!stored.empty()) return {stored.begin(), stored.end()};
  std::vector<PageRun> runs;
  for (const ImagePiece& piece : pieces) runs.push_back(piece.pages);
  return runs;
}

}  // namespace

class ImageMapper {
 public:
  static absl::StatusOr<ImageRef> Map(const ImageOptions& options,
                                      std::vector<ImagePiece> pieces,
                                      std::span<const PageRun> stored,
                                      MemfdCalls& calls, Kernel& kernel) {
    if (options.size_bytes > kMaxImageBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("image '", options.name, "': size_bytes ",
                       options.size_bytes, " exceeds the limit of ",
                       kMaxImageBytes, " (1 TiB); lower size_bytes"));
    }
    const PageCount pages = PagesRoundedUp(options.size_bytes);
    std::unique_ptr<Image> image(new Image(calls));
    image->name_ = options.name;
    image->size_bytes_ = options.size_bytes;
    absl::StatusOr<PageMap> map = PageMap::Create(pages);
    if (!map.ok()) {
      return absl::Status(
          map.status().code(),
          absl::StrCat("image '", options.name, "': ", map.status().message()));
    }
    image->stored_ = *std::move(map);
    for (const PageRun& run : StoredRuns(pieces, stored)) {
      image->stored_.InsertRun(run);
    }
    image->on_demand_ = std::make_unique<Image::OnDemand>(kernel);
    image->on_demand_->pieces = std::move(pieces);
    ImageFetch& fetch = image->on_demand_->fetch;
    fetch.stored = image->stored_words();
    fetch.pages = pages.value();
    image->fetch_ = &fetch;
    if (pages == PageCount(0)) {
      return std::shared_ptr<Image>(std::move(image))->Handle();
    }
    if (absl::Status status = MapPieces(*image); !status.ok()) return status;
    return std::shared_ptr<Image>(std::move(image))->Handle();
  }

  static void NoteParent(const Image& image, ImageRef parent) {
    image.parent_ = std::move(parent);
  }

  static const std::vector<ImagePiece>* PiecesOf(const Image& image) {
    // One with a source has its pages in its memfd.
    return image.is_file_backed() && !image.has_source()
               ? &image.on_demand_->pieces
               : nullptr;
  }

 private:
  // The view: one mapping if one file has it all, otherwise each piece over
  // memory that reads as zero.
  static absl::Status MapPieces(Image& image) {
    const std::vector<ImagePiece>& pieces = image.on_demand_->pieces;
    Kernel& kernel = image.on_demand_->kernel;
    const size_t bytes = image.pages().bytes();
    const auto map = [&](uintptr_t at, size_t length, int flags, int fd,
                         uint64_t offset) -> absl::StatusOr<uintptr_t> {
      const CallResult mapped =
          kernel.Mmap(at, length, PROT_READ, flags | MAP_NORESERVE, fd, offset);
      if (mapped.error == EPERM && fd >= 0) {
        // Before Linux 6.7 no shared mapping of a write-sealed memfd is
        // possible. A private one that nobody writes to shows the same pages.
        const CallResult retried = kernel.Mmap(
            at, length, PROT_READ,
            (flags & ~MAP_SHARED) | MAP_PRIVATE | MAP_NORESERVE, fd, offset);
        if (retried.ok()) return static_cast<uintptr_t>(retried.value);
      }
      if (mapped.ok()) return static_cast<uintptr_t>(mapped.value);
      return ImageCallFailed(image.name(),
                             absl::StrCat("mmap of ", length, " bytes"),
                             mapped.error);
    };
    const bool whole = pieces.size() == 1 &&
                       pieces[0].pages.first == PageIndex(0) &&
                       pieces[0].pages.length == image.pages();
    absl::StatusOr<uintptr_t> view =
        whole ? map(0, bytes, MAP_SHARED, pieces[0].fd, pieces[0].offset_bytes)
              : map(0, bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!view.ok()) return view.status();
    image.data_ = reinterpret_cast<const std::byte*>(*view);
    image.on_demand_->fetch.source = *view;
    if (!whole) {
      for (const ImagePiece& piece : pieces) {
        absl::StatusOr<uintptr_t> mapped =
            map(*view + piece.pages.first.offset_bytes(),
                piece.pages.length.bytes(), MAP_SHARED | MAP_FIXED, piece.fd,
                piece.offset_bytes);
        if (!mapped.ok()) return mapped.status();
      }
    }
    const CallResult advised = kernel.Madvise(*view, bytes, MADV_DONTDUMP);
    if (advised.ok()) return absl::OkStatus();
    return ImageCallFailed(image.name(), "madvise(MADV_DONTDUMP)",
                           advised.error);
  }
};

void AppendPieces(const ImageRef& image, PageRun pages, PageIndex at,
                  std::vector<ImagePiece>& pieces) {
  const auto add = [&](ImagePiece piece) {
    if (!pieces.empty()) {
      ImagePiece& last = pieces.back();
      if (last.fd == piece.fd && last.pages.end() == piece.pages.first &&
          last.offset_bytes + last.pages.length.bytes() == piece.offset_bytes) {
        last.pages.length += piece.pages.length;
        return;
      }
    }
    pieces.push_back(std::move(piece));
  };
  const std::vector<ImagePiece>* const inner = ImageMapper::PiecesOf(*image);
  if (inner == nullptr) {
    add({{at, pages.length},
         image->memfd(),
         pages.first.offset_bytes(),
         image});
    return;
  }
  // The first piece that ends behind the run's start.
  auto piece = std::partition_point(
      inner->begin(), inner->end(),
      [&](const ImagePiece& p) { return p.pages.end() <= pages.first; });
  for (; piece != inner->end() && piece->pages.first < pages.end(); ++piece) {
    const PageIndex first = std::max(piece->pages.first, pages.first);
    const PageIndex end = std::min(piece->pages.end(), pages.end());
    add({{at + (first - pages.first), end - first},
         piece->fd,
         piece->offset_bytes + (first - piece->pages.first).bytes(),
         piece->keeper});
  }
}

absl::StatusOr<ImageRef> ImageFromPieces(const ImageOptions& options,
                                         std::vector<ImagePiece> pieces,
                                         std::span<const PageRun> stored,
                                         MemfdCalls& calls, Kernel& kernel) {
  if (pieces.size() > kMaxImagePieces) {
    return CopyOfPieces(options, pieces, stored, calls);
  }
  return ImageMapper::Map(options, std::move(pieces), stored, calls, kernel);
}

absl::StatusOr<ImageRef> CopyOfPieces(const ImageOptions& options,
                                      std::span<const ImagePiece> pieces,
                                      std::span<const PageRun> stored,
                                      MemfdCalls& calls) {
  return ImageFromWriter(
      options,
      [&](ImagePut put) -> absl::Status {
        std::vector<std::byte> buffer(kChunkPages * kPageBytes);
        auto piece = pieces.begin();
        for (const PageRun& run : StoredRuns(pieces, stored)) {
          for (PageIndex page = run.first; page < run.end();) {
            while (piece != pieces.end() && piece->pages.end() <= page) ++piece;
            if (piece == pieces.end() || piece->pages.first > page) {
              return absl::InternalError(
                  absl::StrCat("image '", options.name, "': no piece has page ",
                               page.value(), ", which is to be stored"));
            }
            const PageIndex end = std::min(
                {run.end(), piece->pages.end(), page + PageCount(kChunkPages)});
            const uint64_t bytes = std::min<uint64_t>(
                (end - page).bytes(), options.size_bytes - page.offset_bytes());
            const uint64_t offset =
                piece->offset_bytes + (page - piece->pages.first).bytes();
            for (uint64_t done = 0; done < bytes;) {
              const MemfdResult read = calls.Read(
                  piece->fd, buffer.data() + done, bytes - done, offset + done);
              if (!read.ok()) {
                return ImageCallFailed(
                    options.name,
                    absl::StrCat("pread of ", bytes - done, " bytes at offset ",
                                 offset + done),
                    read.error);
              }
              if (read.value == 0) {
                return absl::DataLossError(absl::StrCat(
                    "image '", options.name, "': the file ends at offset ",
                    offset + done, ", where page ",
                    (page + PageCount(done / kPageBytes)).value(),
                    " should be; it was cut short while it was open"));
              }
              done += read.value;
            }
            absl::Status status =
                put(page.offset_bytes(), std::span(buffer).first(bytes));
            if (!status.ok()) return status;
            page = end;
          }
        }
        return absl::OkStatus();
      },
      calls);
}

absl::StatusOr<ImageRef> BuiltCopy(const Image& image, MemfdCalls& calls) {
  if (absl::Status status = image.FetchAll(); !status.ok()) return status;
  absl::StatusOr<ImageRef> copy = ImageFromWriter(
      {.name = image.name(), .size_bytes = image.size_bytes()},
      [&](ImagePut put) -> absl::Status {
        const PageMap& stored = image.stored();
        for (auto run = stored.NextRun(PageIndex(0)); run.has_value();
             run = stored.NextRun(run->end())) {
          const uint64_t offset = run->first.offset_bytes();
          const uint64_t bytes = std::min<uint64_t>(
              run->length.bytes(), image.size_bytes() - offset);
          absl::Status status =
              put(offset, std::span(image.data() + offset, bytes));
          if (!status.ok()) return status;
        }
        return absl::OkStatus();
      },
      calls);
  if (!copy.ok()) return copy.status();
  const WorkingSet& set = image.working_set();
  (*copy)->working_set().Replace(set.written(), set.read());
  return copy;
}

void NoteParent(const Image& image, ImageRef parent) {
  ImageMapper::NoteParent(image, std::move(parent));
}

absl::StatusOr<ImageRef> DeltaOf(const ImageOptions& options,
                                 const ImageRef& base,
                                 std::span<const PageData> pages,
                                 MemfdCalls& calls, Kernel& kernel) {
  const PageCount limit = PagesRoundedUp(options.size_bytes);
  if (base->size_bytes() > options.size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "image '", options.name, "': base image '", base->name(),
        "' has size_bytes ", base->size_bytes(), ", more than size_bytes ",
        options.size_bytes, "; an image does not shrink, raise size_bytes"));
  }
  if (absl::Status status = base->FetchAll(); !status.ok()) return status;
  // Of several for a page, the last.
  std::map<uint64_t, const std::byte*> changed;
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].page.value() >= limit.value()) {
      return absl::OutOfRangeError(absl::StrCat(
          "image '", options.name, "': changed page ", i, ": page ",
          pages[i].page.value(), " is past the image's ", limit.value(),
          " pages (size_bytes ", options.size_bytes, ")"));
    }
    changed[pages[i].page.value()] = pages[i].bytes;
  }
  // The pages that are not zero, one after the other.
  std::vector<uint64_t> own;
  for (const auto& [page, bytes] : changed) {
    static constexpr std::byte kZeroPage[kPageBytes] = {};
    const uint64_t used =
        std::min<uint64_t>(kPageBytes, options.size_bytes - page * kPageBytes);
    if (bytes != nullptr && std::memcmp(bytes, kZeroPage, used) != 0) {
      own.push_back(page);
    }
  }
  absl::StatusOr<ImageRef> packed = ImageFromWriter(
      {.name = options.name, .size_bytes = own.size() * kPageBytes},
      [&](ImagePut put) -> absl::Status {
        for (size_t i = 0; i < own.size(); ++i) {
          const uint64_t used = std::min<uint64_t>(
              kPageBytes, options.size_bytes - own[i] * kPageBytes);
          absl::Status status =
              put(i * kPageBytes, std::span(changed[own[i]], used));
          if (!status.ok()) return status;
        }
        return absl::OkStatus();
      },
      calls);
  if (!packed.ok()) return packed.status();

  std::vector<PageRun> stored;
  std::vector<ImagePiece> pieces;
  const auto add = [&](const ImageRef& from, PageRun run, PageIndex at) {
    const PageRun there = {at, run.length};
    if (!stored.empty() && stored.back().end() == at) {
      stored.back().length += run.length;
    } else {
      stored.push_back(there);
    }
    AppendPieces(from, run, at, pieces);
  };
  size_t next = 0;
  const auto add_own_below = [&](uint64_t end) {
    for (; next < own.size() && own[next] < end; ++next) {
      add(*packed, {PageIndex(next), kOnePage}, PageIndex(own[next]));
    }
  };
  auto replaced = changed.begin();
  for (auto run = base->stored().NextRun(PageIndex(0)); run.has_value();
       run = base->stored().NextRun(run->end())) {
    for (PageIndex at = run->first; at < run->end();) {
      while (replaced != changed.end() && replaced->first < at.value()) {
        ++replaced;
      }
      const PageIndex end =
          replaced == changed.end()
              ? run->end()
              : std::min(run->end(), PageIndex(replaced->first));
      if (end == at) {
        at = at + kOnePage;
        continue;
      }
      add_own_below(at.value());
      add(base, {at, end - at}, at);
      at = end;
    }
  }
  add_own_below(limit.value());
  // No stored page at all: not "all pages of all pieces", which are none.
  absl::StatusOr<ImageRef> image =
      ImageFromPieces(options, std::move(pieces), stored, calls, kernel);
  if (image.ok()) NoteParent(**image, base);
  return image;
}

}  // namespace firsttouch
