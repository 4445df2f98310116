#include "firsttouch/serve/guest_image.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/checksum.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/page_words.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

// Of bytes that may be those of a file which was cut short.
absl::StatusOr<Digest> DigestOf(const Image& image, const PageRun& pages) {
  constexpr uint64_t kPiecePages = 64;
  std::vector<std::byte> piece(kPiecePages * kPageBytes);
  Sha256 digest;
  for (PageIndex page = pages.first; page < pages.end();) {
    const uint64_t count =
        std::min<uint64_t>(kPiecePages, (pages.end() - page).value());
    const std::span<std::byte> into(piece.data(), count * kPageBytes);
    if (const int error =
            ReadMapped(image.data() + page.offset_bytes(), into)) {
      return absl::DataLossError(absl::StrCat(
          "cannot be read: ", ErrnoText(error), "; was the file cut short?"));
    }
    digest.Update(into);
    page += PageCount(count);
  }
  return digest.Finish();
}

}  // namespace

int ReadMapped(const std::byte* from, std::span<std::byte> into) {
  while (!into.empty()) {
    const iovec local = {into.data(), into.size()};
    const iovec remote = {const_cast<std::byte*>(from), into.size()};
    const ssize_t count =
        process_vm_readv(getpid(), &local, 1, &remote, 1, /*flags=*/0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EFAULT;
    from += count;
    into = into.subspan(static_cast<size_t>(count));
  }
  return 0;
}

const std::byte* ZeroBytes() {
  // Never written to: all of it is the kernel's zero page, or one huge one.
  static const std::byte* const zeroes = [] {
    void* const mapped = mmap(nullptr, kHugePageBytes, PROT_READ,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) std::abort();
    return static_cast<const std::byte*>(mapped);
  }();
  return zeroes;
}

std::shared_ptr<GuestImage> GuestImage::Create(ImageRef image) {
  return std::shared_ptr<GuestImage>(new GuestImage(std::move(image)));
}

std::shared_ptr<GuestImage> GuestImage::CreateChecked(ImageRef image) {
  std::shared_ptr<GuestImage> created = Create(std::move(image));
  created->whole_ = true;
  return created;
}

absl::StatusOr<std::shared_ptr<GuestImage>> GuestImage::OpenFile(
    const std::string& path, const OpenImageOptions& options) {
  if (options.parent != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        ": a parent was given as an image, whose file cannot be checked; "
        "say how to find files of parents (find_parent)"));
  }
  absl::StatusOr<ImageRef> image = OpenImageFile(path, options);
  if (!image.ok()) return image.status();
  std::shared_ptr<GuestImage> opened(new GuestImage(*image));
  // What is copied into a sealed memfd as a whole cannot be damaged later.
  if (options.backing == OpenImageOptions::Backing::kCopied &&
      options.verify == OpenImageOptions::Verify::kAll) {
    return opened;
  }
  std::string file = path;
  for (ImageRef at = *image; at != nullptr; at = at->parent()) {
    if (absl::Status added = opened->AddFile(at, file); !added.ok()) {
      return added;
    }
    if (at->parent() == nullptr) break;
    const std::optional<Digest> digest = at->parent()->known_digest();
    if (!digest.has_value() || options.find_parent == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat(file, ": the file of its parent is not known"));
    }
    absl::StatusOr<std::string> found = options.find_parent(*digest);
    if (!found.ok()) return found.status();
    file = *std::move(found);
  }
  return opened;
}

absl::Status GuestImage::AddFile(ImageRef image, const std::string& path) {
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  if (image->known_digest() != info->content) {
    return absl::UnavailableError(absl::StrCat(
        path, ": the file was replaced while it was opened; open it again"));
  }
  absl::StatusOr<PageMap> own = PageMap::Create(image->pages());
  if (!own.ok()) return own.status();
  absl::StatusOr<PageMap> zeroed = PageMap::Create(image->pages());
  if (!zeroed.ok()) return zeroed.status();
  for (const ImageExtent& extent : info->extents) own->InsertRun(extent.pages);
  for (const PageRun& run : info->zeroed) zeroed->InsertRun(run);
  File file;
  file.image = std::move(image);
  file.path = path;
  file.extents = std::move(info->extents);
  file.checksums = std::move(info->page_checksums);
  file.pages_before.reserve(file.extents.size());
  uint64_t pages = 0;
  for (const ImageExtent& extent : file.extents) {
    file.pages_before.push_back(pages);
    pages += extent.pages.length.value();
  }
  file.checked = std::make_unique<std::atomic<uint64_t>[]>(
      WordsFor(file.checksums.empty() ? file.extents.size() : pages));
  file.own = *std::move(own);
  file.zeroed = *std::move(zeroed);
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

GuestImage::Place GuestImage::PlaceOf(PageIndex page, PageIndex end) const {
  for (const File& file : files_) {
    if (file.own.Contains(page)) {
      const auto after = std::upper_bound(
          file.extents.begin(), file.extents.end(), page,
          [](PageIndex p, const ImageExtent& e) { return p < e.pages.first; });
      const auto extent = static_cast<size_t>(after - file.extents.begin()) - 1;
      const PageRun& run = file.extents[extent].pages;
      // A page of the delta may lie inside an extent of its parent.
      const PageCount pages = &file == files_.data()
                                  ? std::min(end, run.end()) - page
                                  : PageCount(1);
      if (file.checksums.empty()) return {&file, extent, pages, extent, 1};
      return {&file, extent, pages,
              file.pages_before[extent] + (page - run.first).value(),
              pages.value()};
    }
    if (file.zeroed.Contains(page)) break;
  }
  return {};
}

bool GuestImage::IsChecked(const Place& place) {
  bool all = true;
  ForEachWordOf(place.first_bit, place.first_bit + place.bits,
                [&](uint64_t index, uint64_t bits) {
                  const uint64_t word = place.file->checked[index].load(
                      std::memory_order_acquire);
                  all = all && (word & bits) == bits;
                });
  return all;
}

bool GuestImage::IsReady(PageIndex first, PageCount pages) const {
  const bool has_source = image_->has_source();
  const PageMap& stored = image_->stored();
  if (whole_ && !whole_is_right_.load(std::memory_order_acquire) &&
      stored.NextRun(first, first + pages).has_value()) {
    return false;
  }
  if (!has_source && files_.empty()) return true;
  const PageIndex end = first + pages;
  for (std::optional<PageRun> run = stored.NextRun(first, end); run.has_value();
       run = stored.NextRun(run->end(), end)) {
    for (PageIndex page = run->first; page < run->end();) {
      if (has_source && !image_->IsFetched(page)) return false;
      if (files_.empty()) {
        ++page;
        continue;
      }
      const Place place = PlaceOf(page, run->end());
      if (place.file == nullptr || !IsChecked(place)) return false;
      page += place.pages;
    }
  }
  return true;
}

absl::Status GuestImage::MakeReady(PageIndex first, PageCount pages) {
  if (image_->has_source()) {
    if (const int error = image_->FetchPages(first, pages)) {
      return absl::ErrnoToStatus(
          error,
          absl::StrCat("image '", image_->name(), "': pages ", first.value(),
                       " to ", (first + pages).value() - 1,
                       ": the page source failed"));
    }
  }
  if (whole_ && !whole_is_right_.load(std::memory_order_acquire)) {
    if (absl::Status checked = CheckWhole(); !checked.ok()) return checked;
  }
  if (files_.empty()) return absl::OkStatus();
  const PageMap& stored = image_->stored();
  const PageIndex end = first + pages;
  for (std::optional<PageRun> run = stored.NextRun(first, end); run.has_value();
       run = stored.NextRun(run->end(), end)) {
    for (PageIndex page = run->first; page < run->end();) {
      const Place place = PlaceOf(page, run->end());
      if (place.file == nullptr) {
        return absl::DataLossError(
            absl::StrCat("image '", image_->name(), "': page ", page.value(),
                         " is stored, and no file has a digest for it"));
      }
      if (!IsChecked(place)) {
        if (absl::Status checked = place.file->checksums.empty()
                                       ? CheckExtent(place)
                                       : CheckPages(page, place);
            !checked.ok()) {
          return checked;
        }
      }
      page += place.pages;
    }
  }
  return absl::OkStatus();
}

bool GuestImage::SeemsReadAndReady(std::span<const PageRun> runs) const {
  // mincore(2) of every page takes as long as to place some of them.
  constexpr uint64_t kSamples = 64;
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.length.value();
  const uint64_t step = std::max<uint64_t>(1, pages / kSamples);
  uint64_t next = 0;    // Of all pages of the runs.
  uint64_t before = 0;  // Of this run.
  for (const PageRun& run : runs) {
    for (; next < before + run.length.value(); next += step) {
      const PageIndex page = run.first + PageCount(next - before);
      if (page.value() >= image_->pages().value()) continue;
      unsigned char flags = 0;
      if (!IsReady(page, PageCount(1)) ||
          mincore(AddressOf(page.value()), kPageBytes, &flags) != 0 ||
          (flags & 1) == 0) {
        return false;
      }
    }
    before += run.length.value();
  }
  return true;
}

void GuestImage::BeginReading(std::span<const PageRun> runs) const {
  if (SeemsReadAndReady(runs)) return;
  // Where a digest is one of all stored pages of a block, all are read.
  const uint64_t block = ExtentBlockPages(image_->pages());
  const uint64_t image_end = image_->pages().value();
  // What mincore(2) says of the block that was asked for last.
  uint64_t asked = UINT64_MAX;
  std::vector<unsigned char> in_memory(block);
  const auto read = [&](uint64_t first, uint64_t end) {
    // Errors are for whoever needs the pages.
    madvise(AddressOf(first), (end - first) * kPageBytes, MADV_WILLNEED);
  };
  const bool whole_blocks =
      whole_ || std::any_of(files_.begin(), files_.end(), [](const File& file) {
        return file.checksums.empty();
      });
  std::vector<bool> begun(image_end / block + 1);
  for (const PageRun& run : runs) {
    const uint64_t run_end = std::min(run.end().value(), image_end);
    for (uint64_t page = run.first.value(); page < run_end;) {
      const uint64_t index = page / block;
      const uint64_t first = index * block;
      const uint64_t block_end = std::min(first + block, image_end);
      const uint64_t end = std::min(run_end, block_end);
      if (!begun[index] && !IsReady(PageIndex(page), PageCount(end - page))) {
        if (whole_blocks) {
          begun[index] = true;
          read(first, block_end);
        } else {
          read(page, end);
        }
        page = end;
        continue;
      }
      if (!begun[index] && asked != index) {
        asked = index;
        std::fill(in_memory.begin(), in_memory.end(), 1);
        mincore(AddressOf(first), (block_end - first) * kPageBytes,
                in_memory.data());
      }
      while (!begun[index] && page < end) {
        const auto from =
            in_memory.begin() + static_cast<ptrdiff_t>(page - first);
        const auto to = in_memory.begin() + static_cast<ptrdiff_t>(end - first);
        const auto is_in = [](unsigned char flags) { return (flags & 1) != 0; };
        const auto missing = std::find_if_not(from, to, is_in);
        const auto back = std::find_if(missing, to, is_in);
        if (missing != back) {
          read(first + static_cast<uint64_t>(missing - in_memory.begin()),
               first + static_cast<uint64_t>(back - in_memory.begin()));
        }
        page = first + static_cast<uint64_t>(back - in_memory.begin());
      }
      page = end;
    }
  }
}

std::shared_ptr<const std::vector<PageRun>> GuestImage::Shared(
    std::vector<PageRun> runs, bool& first) {
  MutexLock lock(&shared_mutex_);
  std::shared_ptr<const std::vector<PageRun>> shared = shared_.lock();
  first = shared == nullptr || *shared != runs;
  if (first) {
    shared = std::make_shared<const std::vector<PageRun>>(std::move(runs));
    shared_ = shared;
  }
  return shared;
}

std::byte* GuestImage::AddressOf(uint64_t page) const {
  return const_cast<std::byte*>(image_->data()) + page * kPageBytes;
}

absl::Status GuestImage::CheckWhole() {
  MutexLock lock(&whole_mutex_);
  if (whole_is_right_.load(std::memory_order_relaxed)) return absl::OkStatus();
  // One of its own for each caller, as in Guest::Arrived().
  const auto wrong = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(whole_mutex_) {
    return absl::Status(whole_wrong_.code(), whole_wrong_.message());
  };
  if (!whole_wrong_.ok()) return wrong();
  std::vector<ImageExtent> extents;
  for (const PageRun& run : ExtentRuns(image_->stored())) {
    absl::StatusOr<Digest> digest = DigestOf(*image_, run);
    if (!digest.ok()) {
      whole_wrong_ = absl::DataLossError(absl::StrCat(
          "image '", image_->name(), "': pages ", run.first.value(), " to ",
          run.end().value() - 1, " ", digest.status().message()));
      return wrong();
    }
    extents.push_back({run, *digest});
  }
  const std::optional<Digest> expected = image_->known_digest();
  const Digest found = ContentDigest(image_->size_bytes(), extents);
  if (expected != found) {
    whole_wrong_ = absl::DataLossError(
        absl::StrCat("image '", image_->name(), "' does not match its digest ",
                     expected.has_value() ? expected->ToHex() : "(none)",
                     ": what it is stored in is damaged"));
    return wrong();
  }
  whole_is_right_.store(true, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status GuestImage::CheckPages(PageIndex page, const Place& place) const {
  // Few enough for a processor's cache.
  constexpr uint64_t kPiecePages = 16;
  const File& file = *place.file;
  const auto buffer =
      std::make_unique_for_overwrite<std::byte[]>(kPiecePages * kPageBytes);
  const auto lost = [&](PageIndex first, uint64_t pages,
                        const std::string& why) {
    return absl::DataLossError(
        absl::StrCat("image '", image_->name(), "': ",
                     pages == 1 ? absl::StrCat("page ", first.value())
                                : absl::StrCat("pages ", first.value(), " to ",
                                               first.value() + pages - 1),
                     " of ", file.path, " ", why));
  };
  for (uint64_t done = 0; done < place.bits;) {
    const uint64_t first_bit = place.first_bit + done;
    // The bits of one word, so that they are set at once.
    const uint64_t pages =
        std::min({kPiecePages, place.bits - done,
                  kPagesPerWord - first_bit % kPagesPerWord});
    const PageIndex first = page + PageCount(done);
    if (const int error = ReadMapped(AddressOf(first.value()),
                                     {buffer.get(), pages * kPageBytes})) {
      return lost(first, pages,
                  absl::StrCat("cannot be read: ", ErrnoText(error),
                               "; was the file cut short?"));
    }
    uint64_t right = 0;
    std::optional<PageIndex> wrong;
    for (uint64_t i = 0; i < pages; ++i) {
      if (ChecksumOf({buffer.get() + i * kPageBytes, kPageBytes}) ==
          file.checksums[first_bit + i]) {
        right |= uint64_t{1} << ((first_bit + i) % kPagesPerWord);
      } else {
        wrong = first + PageCount(i);
      }
    }
    file.checked[first_bit / kPagesPerWord].fetch_or(right,
                                                     std::memory_order_release);
    if (wrong.has_value()) {
      return lost(*wrong, 1,
                  "does not match its checksum: the file is damaged");
    }
    done += pages;
  }
  return absl::OkStatus();
}

absl::Status GuestImage::CheckExtent(const Place& place) const {
  const File& file = *place.file;
  const ImageExtent& expected = file.extents[place.extent];
  const auto lost = [&](const std::string& why) {
    return absl::DataLossError(absl::StrCat(
        "image '", image_->name(), "': pages ", expected.pages.first.value(),
        " to ", expected.pages.end().value() - 1, " of ", file.path, " ", why));
  };
  absl::StatusOr<Digest> digest = DigestOf(*file.image, expected.pages);
  if (!digest.ok()) return lost(absl::StrCat(digest.status().message()));
  if (*digest != expected.digest) {
    return lost("do not match their digest: the file is damaged");
  }
  file.checked[place.first_bit / kPagesPerWord].fetch_or(
      uint64_t{1} << (place.first_bit % kPagesPerWord),
      std::memory_order_release);
  return absl::OkStatus();
}

}  // namespace firsttouch
