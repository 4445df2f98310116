#include "firsttouch/init/image_builder.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder_with_kernel.h"
#include "firsttouch/init/image_memfd.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr PageCount kOnePage(1);

constexpr uint64_t kPagesPerHugePage = (uint64_t{2} << 20) / kPageBytes;

// On the heap: not every compiler aligns a stack frame that far under ASan.
struct alignas(kPageBytes) PageBuffer {
  std::byte bytes[kPageBytes];
};

bool IsZero(std::span<const std::byte> bytes) {
  // A buffer is zero when its first byte is, and each byte equals the next.
  return bytes.empty() ||
         (bytes[0] == std::byte{0} &&
          std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace

// An image while it is being built: pages are written to its memfd, and
// Finish() seals it and hands it out. Destroying it before that leaves nothing
// behind.
class ImageWriter {
 public:
  static absl::StatusOr<ImageWriter> Create(const ImageOptions& options,
                                            MemfdCalls& calls) {
    if (options.size_bytes > kMaxImageBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("image '", options.name, "': size_bytes ",
                       options.size_bytes, " exceeds the limit of ",
                       kMaxImageBytes, " (1 TiB); lower size_bytes"));
    }
    const PageCount pages = PagesRoundedUp(options.size_bytes);
    ImageWriter writer(std::unique_ptr<Image>(new Image(calls)));
    Image& image = *writer.image_;
    image.name_ = options.name;
    image.size_bytes_ = options.size_bytes;
    absl::StatusOr<PageMap> stored = PageMap::Create(pages);
    if (!stored.ok()) return writer.Prefixed(stored.status());
    absl::StatusOr<PageMap> recheck = PageMap::Create(pages);
    if (!recheck.ok()) return writer.Prefixed(recheck.status());
    image.stored_ = *std::move(stored);
    writer.recheck_ = *std::move(recheck);

    absl::StatusOr<int> memfd = CreateImageMemfd(
        calls, options.name, options.size_bytes, pages.bytes());
    if (!memfd.ok()) return memfd.status();
    image.memfd_ = *memfd;
    return writer;
  }

  // Puts `bytes` at the offset; what was there before is overwritten. The range
  // must lie within the image's pages (the caller has checked it, so as to say
  // where it came from).
  absl::Status Put(uint64_t offset_bytes, std::span<const std::byte> bytes) {
    // Zero pages that hold nothing yet stay holes. What lies between two
    // such is written in one call: [begin, done).
    size_t begin = 0;
    for (size_t done = 0; done < bytes.size();) {
      const uint64_t position = offset_bytes + done;
      const size_t chunk = std::min<size_t>(kPageBytes - position % kPageBytes,
                                            bytes.size() - done);
      const PageIndex page = PageContaining(position);
      if (IsZero(bytes.subspan(done, chunk))) {
        if (image_->stored_.Contains(page)) {
          recheck_.Insert(page);
        } else {
          absl::Status status =
              Write(offset_bytes + begin, bytes.subspan(begin, done - begin));
          if (!status.ok()) return status;
          begin = done + chunk;
        }
      } else {
        image_->stored_.Insert(page);
      }
      done += chunk;
    }
    return Write(offset_bytes + begin, bytes.subspan(begin));
  }

  // Puts pages that `base` stores. The kernel alone reads them: where they are
  // those of a file that was cut short, to do it here would be a SIGBUS.
  absl::Status PutStoredOf(const Image& base, PageRun run) {
    image_->stored_.InsertRun(run);
    recheck_.InsertRun(run);
    return Write(
        run.first.offset_bytes(),
        std::span(base.data() + run.first.offset_bytes(), run.length.bytes()),
        &base);
  }

  absl::StatusOr<ImageRef> Finish() && {
    absl::Status status = DropZeroPages();
    if (status.ok()) status = DropUnaskedPages();
    if (status.ok()) status = Seal();
    if (status.ok()) status = Map();
    if (!status.ok()) return status;
    return std::shared_ptr<Image>(std::move(image_))->Handle();
  }

  // `status` with the image's name in front.
  absl::Status Prefixed(const absl::Status& status) const {
    return absl::Status(status.code(), absl::StrCat("image '", image_->name(),
                                                    "': ", status.message()));
  }

 private:
  explicit ImageWriter(std::unique_ptr<Image> image)
      : image_(std::move(image)) {}

  MemfdCalls& calls() { return image_->calls_; }

  absl::Status Failed(const std::string& call, int error) const {
    return ImageCallFailed(image_->name(), call, error);
  }

  // `base`: whose the bytes are, where they may be those of a file.
  absl::Status Write(uint64_t offset_bytes, std::span<const std::byte> bytes,
                     const Image* base = nullptr) {
    while (!bytes.empty()) {
      const MemfdResult written = calls().Write(image_->memfd_, bytes.data(),
                                                bytes.size(), offset_bytes);
      // A count of zero would repeat for ever: the kernel has no room.
      const int error =
          written.ok() && written.value == 0 ? ENOSPC : written.error;
      if (error == EFAULT && base != nullptr) {
        return Prefixed(absl::DataLossError(absl::StrCat(
            "the base image '", base->name(), "' cannot be read at offset ",
            offset_bytes, " (errno ", error,
            "): a file that it is made of was cut short while it was open")));
      }
      if (error != 0) {
        return Failed(absl::StrCat("pwrite of ", bytes.size(),
                                   " bytes at offset ", offset_bytes),
                      error);
      }
      offset_bytes += written.value;
      bytes = bytes.subspan(written.value);
    }
    return absl::OkStatus();
  }

  absl::Status Punch(PageRun run) {
    const MemfdResult punched = calls().PunchHole(
        image_->memfd_, run.first.offset_bytes(), run.length.bytes());
    if (punched.ok()) return absl::OkStatus();
    return Failed(absl::StrCat("fallocate(PUNCH_HOLE) of ", run.length.bytes(),
                               " bytes at offset ", run.first.offset_bytes()),
                  punched.error);
  }

  // Takes out the pages that zeroes were written to and that are zero now.
  absl::Status DropZeroPages() {
    std::byte bytes[kPageBytes];
    for (auto run = recheck_.NextRun(PageIndex(0)); run.has_value();
         run = recheck_.NextRun(run->end())) {
      for (PageIndex page = run->first; page < run->end(); ++page) {
        const MemfdResult read = calls().Read(image_->memfd_, bytes, kPageBytes,
                                              page.offset_bytes());
        if (!read.ok() || read.value != static_cast<int64_t>(kPageBytes)) {
          return Failed(absl::StrCat("pread of page ", page.value(), " (",
                                     read.value, " of ", kPageBytes, " bytes)"),
                        read.ok() ? EIO : read.error);
        }
        if (!IsZero(bytes)) continue;
        absl::Status status = Punch({page, kOnePage});
        if (!status.ok()) return status;
        image_->stored_.Erase(page);
      }
    }
    return absl::OkStatus();
  }

  // Where the administrator has put huge pages into shared memory
  // (/sys/kernel/mm/transparent_hugepage/shmem_enabled), storing one page may
  // have installed 2 MiB, the rest of it zeroes. Give those back.
  absl::Status DropUnaskedPages() {
    const MemfdResult allocated = calls().AllocatedBytes(image_->memfd_);
    if (!allocated.ok()) return Failed("fstat", allocated.error);
    const PageMap& stored = image_->stored_;
    if (static_cast<uint64_t>(allocated.value) <= stored.count() * kPageBytes) {
      return absl::OkStatus();
    }
    for (auto gap = stored.NextGap(PageIndex(0)); gap.has_value();
         gap = stored.NextGap(gap->end())) {
      absl::Status status = Punch(*gap);
      if (!status.ok()) return status;
    }
    // The last huge page may reach past the end of the file.
    const PageIndex end = PageIndex(0) + stored.pages();
    const uint64_t over = end.value() % kPagesPerHugePage;
    if (over == 0) return absl::OkStatus();
    return Punch({end, PageCount(kPagesPerHugePage - over)});
  }

  absl::Status Seal() {
    // F_SEAL_WRITE is refused while there is a writable mapping. There never
    // was one: the pages came by pwrite.
    return SealImageMemfd(calls(), image_->name(), image_->memfd_);
  }

  absl::Status Map() {
    const size_t bytes = image_->pages().bytes();
    if (bytes == 0) return absl::OkStatus();
    MemfdResult mapped =
        calls().MapReadOnly(image_->memfd_, bytes, MAP_SHARED | MAP_NORESERVE);
    if (mapped.error == EPERM) {
      // Before Linux 6.7 no shared mapping of a write-sealed memfd is possible.
      // A private one that nobody writes to shows the same pages.
      mapped = calls().MapReadOnly(image_->memfd_, bytes,
                                   MAP_PRIVATE | MAP_NORESERVE);
    }
    if (!mapped.ok()) {
      return Failed(absl::StrCat("mmap of ", bytes, " bytes"), mapped.error);
    }
    image_->data_ = reinterpret_cast<const std::byte*>(mapped.value);
    const MemfdResult advised = calls().Advise(
        static_cast<uintptr_t>(mapped.value), bytes, MADV_DONTDUMP);
    if (advised.ok()) return absl::OkStatus();
    return Failed("madvise(MADV_DONTDUMP)", advised.error);
  }

  std::unique_ptr<Image> image_;
  PageMap recheck_;  // Stored pages that zeroes were written to.
};

absl::StatusOr<ImageRef> ImageFromSegments(
    const ImageOptions& options, std::span<const DataSegment> segments,
    MemfdCalls& calls) {
  if (segments.size() > kMaxSegments) {
    return absl::InvalidArgumentError(
        absl::StrCat("image '", options.name, "': ", segments.size(),
                     " segments exceed the limit of ", kMaxSegments,
                     "; join neighbouring segments, or use ImageFromBytes or "
                     "ImageFromCallback"));
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    const uint64_t offset = segments[i].offset_bytes;
    const uint64_t bytes = segments[i].bytes.size();
    if (offset > options.size_bytes || bytes > options.size_bytes - offset) {
      return absl::OutOfRangeError(absl::StrCat(
          "image '", options.name, "': segment ", i, ": offset ", offset, " + ",
          bytes, " bytes exceeds memory size ", options.size_bytes,
          "; move the segment or raise size_bytes"));
    }
  }
  absl::StatusOr<ImageWriter> writer = ImageWriter::Create(options, calls);
  if (!writer.ok()) return writer.status();
  for (const DataSegment& segment : segments) {
    absl::Status status = writer->Put(segment.offset_bytes, segment.bytes);
    if (!status.ok()) return status;
  }
  return std::move(*writer).Finish();
}

absl::StatusOr<ImageRef> ImageFromBytes(const ImageOptions& options,
                                        std::span<const std::byte> bytes,
                                        MemfdCalls& calls) {
  if (bytes.size() > options.size_bytes) {
    return absl::OutOfRangeError(
        absl::StrCat("image '", options.name, "': ", bytes.size(),
                     " bytes exceed size_bytes ", options.size_bytes,
                     "; raise size_bytes or give fewer bytes"));
  }
  absl::StatusOr<ImageWriter> writer = ImageWriter::Create(options, calls);
  if (!writer.ok()) return writer.status();
  absl::Status status = writer->Put(0, bytes);
  if (!status.ok()) return status;
  return std::move(*writer).Finish();
}

absl::StatusOr<ImageRef> ImageFromCallback(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(PageIndex page,
                                   std::span<std::byte, kPageBytes> bytes)>
        fill,
    MemfdCalls& calls) {
  absl::StatusOr<ImageWriter> writer = ImageWriter::Create(options, calls);
  if (!writer.ok()) return writer.status();
  const auto buffer = std::make_unique<PageBuffer>();
  const std::span<std::byte, kPageBytes> bytes(buffer->bytes);
  for (uint64_t offset = 0; offset < options.size_bytes; offset += kPageBytes) {
    const PageIndex page = PageContaining(offset);
    std::memset(bytes.data(), 0, kPageBytes);
    absl::Status status = fill(page, bytes);
    if (!status.ok()) {
      return writer->Prefixed(absl::Status(
          status.code(), absl::StrCat("callback for page ", page.value(), ": ",
                                      status.message())));
    }
    const size_t wanted =
        std::min<uint64_t>(kPageBytes, options.size_bytes - offset);
    status = writer->Put(offset, bytes.first(wanted));
    if (!status.ok()) return status;
  }
  return std::move(*writer).Finish();
}

absl::StatusOr<ImageRef> ImageFromWriter(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(ImagePut put)> write, MemfdCalls& calls) {
  absl::StatusOr<ImageWriter> writer = ImageWriter::Create(options, calls);
  if (!writer.ok()) return writer.status();
  absl::Status status =
      write([&](uint64_t offset_bytes, std::span<const std::byte> bytes) {
        if (offset_bytes > options.size_bytes ||
            bytes.size() > options.size_bytes - offset_bytes) {
          return absl::OutOfRangeError(absl::StrCat(
              "image '", options.name, "': write of offset ", offset_bytes,
              " + ", bytes.size(), " bytes exceeds size_bytes ",
              options.size_bytes, "; raise size_bytes"));
        }
        return writer->Put(offset_bytes, bytes);
      });
  if (!status.ok()) return status;
  return std::move(*writer).Finish();
}

absl::StatusOr<ImageRef> ImageWithPages(const ImageOptions& options,
                                        const Image* base,
                                        std::span<const PageData> pages,
                                        MemfdCalls& calls) {
  if (base != nullptr && base->size_bytes() > options.size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "image '", options.name, "': base image '", base->name(),
        "' has size_bytes ", base->size_bytes(), ", more than size_bytes ",
        options.size_bytes, "; an image does not shrink, raise size_bytes"));
  }
  if (base != nullptr) {
    if (absl::Status status = base->FetchAll(); !status.ok()) return status;
  }
  const PageCount limit = PagesRoundedUp(options.size_bytes);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].page.value() >= limit.value()) {
      return absl::OutOfRangeError(absl::StrCat(
          "image '", options.name, "': changed page ", i, ": page ",
          pages[i].page.value(), " is past the image's ", limit.value(),
          " pages (size_bytes ", options.size_bytes, ")"));
    }
  }
  absl::StatusOr<ImageWriter> writer = ImageWriter::Create(options, calls);
  if (!writer.ok()) return writer.status();
  absl::StatusOr<PageMap> changed = PageMap::Create(limit);
  if (!changed.ok()) return writer->Prefixed(changed.status());

  // Back to front, so that the last of several for a page is the one that
  // counts and no page is written twice.
  for (auto given = pages.rbegin(); given != pages.rend(); ++given) {
    if (!changed->Insert(given->page) || given->bytes == nullptr) continue;
    const uint64_t offset = given->page.offset_bytes();
    const size_t wanted =
        std::min<uint64_t>(kPageBytes, options.size_bytes - offset);
    absl::Status status = writer->Put(offset, std::span(given->bytes, wanted));
    if (!status.ok()) return status;
  }
  if (base == nullptr) return std::move(*writer).Finish();
  // The base's stored pages, in stretches between changed ones.
  const auto keep = [&](PageIndex first, PageIndex end) {
    if (base->is_file_backed() && first < end) {
      return writer->PutStoredOf(*base, {first, end - first});
    }
    return writer->Put(
        first.offset_bytes(),
        std::span(base->data() + first.offset_bytes(), (end - first).bytes()));
  };
  for (auto run = base->stored().NextRun(PageIndex(0)); run.has_value();
       run = base->stored().NextRun(run->end())) {
    PageIndex first = run->first;
    for (PageIndex page = first; page < run->end(); ++page) {
      if (!changed->Contains(page)) continue;
      absl::Status status = keep(first, page);
      if (!status.ok()) return status;
      first = page + kOnePage;
    }
    absl::Status status = keep(first, run->end());
    if (!status.ok()) return status;
  }
  return std::move(*writer).Finish();
}

absl::StatusOr<ImageRef> ImageFromSegments(
    const ImageOptions& options, std::span<const DataSegment> segments) {
  return ImageFromSegments(options, segments, RealMemfdCalls());
}

absl::StatusOr<ImageRef> ImageFromBytes(const ImageOptions& options,
                                        std::span<const std::byte> bytes) {
  return ImageFromBytes(options, bytes, RealMemfdCalls());
}

absl::StatusOr<ImageRef> ImageFromCallback(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(PageIndex page,
                                   std::span<std::byte, kPageBytes> bytes)>
        fill) {
  return ImageFromCallback(options, fill, RealMemfdCalls());
}

absl::StatusOr<ImageRef> ImageFromWriter(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(ImagePut put)> write) {
  return ImageFromWriter(options, write, RealMemfdCalls());
}

absl::StatusOr<ImageRef> ImageWithPages(const ImageOptions& options,
                                        const Image* base,
                                        std::span<const PageData> pages) {
  return ImageWithPages(options, base, pages, RealMemfdCalls());
}

}  // namespace firsttouch
