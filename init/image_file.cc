#include "firsttouch/init/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/checksum.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file_io.h"
#include "firsttouch/init/image_file_with_kernel.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr PageCount kOnePage(1);

bool AllZero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} &&
          std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

std::vector<PageRun> RunsOf(std::span<const ImageExtent> extents) {
  std::vector<PageRun> runs;
  for (const ImageExtent& extent : extents) {
    if (!runs.empty() && runs.back().end() == extent.pages.first) {
      runs.back().length += extent.pages.length;
    } else {
      runs.push_back(extent.pages);
    }
  }
  return runs;
}

// Of a delta: the image's stored pages that differ from the parent's, and pages
// that only the parent stores.
struct Difference {
  PageMap changed;
  std::vector<PageRun> zeroed;
};

absl::StatusOr<Difference> DifferenceOf(const Image& image,
                                        const Image& parent) {
  absl::StatusOr<PageMap> changed = PageMap::Create(image.pages());
  if (!changed.ok()) return changed.status();
  Difference difference;
  for (auto run = image.stored().NextRun(PageIndex(0)); run.has_value();
       run = image.stored().NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) {
      if (!parent.IsStored(page) ||
          std::memcmp(image.PageBytes(page), parent.PageBytes(page),
                      kPageBytes) != 0) {
        changed->Insert(page);
      }
    }
  }
  for (auto run = parent.stored().NextRun(PageIndex(0)); run.has_value();
       run = parent.stored().NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) {
      if (image.IsStored(page)) continue;
      if (!difference.zeroed.empty() &&
          difference.zeroed.back().end() == page) {
        difference.zeroed.back().length += kOnePage;
      } else {
        difference.zeroed.push_back({page, kOnePage});
      }
    }
  }
  difference.changed = *std::move(changed);
  return difference;
}

// Checks that the file holds what its extents say, and nothing elsewhere.
absl::Status VerifyData(const OpenedImageFile& file,
                        const ImageProgress& progress, MemfdCalls& calls) {
  const ImageFileInfo& info = file.info;
  std::vector<std::byte> buffer(kExtentPieceBytes);
  const uint64_t total = PageCount(info.stored_pages).bytes();
  uint64_t done = 0;
  for (size_t i = 0; i < info.extents.size(); ++i) {
    std::optional<uint64_t> wrong;  // Of all stored pages.
    const uint64_t before = done;
    absl::Status status = ReadExtent(
        file, i, buffer,
        [&](std::span<const std::byte> bytes) {
          for (uint64_t at = 0; at < bytes.size(); at += kPageBytes) {
            const uint64_t index = (done + at) / kPageBytes;
            if (index < info.page_checksums.size() &&
                ChecksumOf(bytes.subspan(at, kPageBytes)) !=
                    info.page_checksums[index]) {
              wrong = index;
            }
          }
          done += bytes.size();
          if (progress) progress(done, total);
          return absl::OkStatus();
        },
        calls);
    if (!status.ok()) return status;
    if (!wrong.has_value()) continue;
    return absl::DataLossError(absl::StrCat(
        file.prefix, "page ",
        (info.extents[i].pages.first + PageCount(*wrong - before / kPageBytes))
            .value(),
        " does not have the checksum that the manifest says (page_xxh3), and "
        "its extent has its digest; the manifest was made wrongly"));
  }

  // What the file system has data for, outside the extents.
  const auto end = static_cast<off_t>(info.file_bytes);
  size_t extent = 0;
  for (auto at = static_cast<off_t>(info.data_offset); at < end;) {
    off_t data = lseek(*file.fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // Only a hole is left.
    off_t hole = data < 0 ? end : lseek(*file.fd, data, SEEK_HOLE);
    // A file system that cannot tell has data everywhere.
    if (data < 0) data = at;
    if (hole <= data || hole > end) hole = end;
    uint64_t page = (data - info.data_offset) / kPageBytes;
    const uint64_t past = PagesRoundedUp(hole - info.data_offset).value();
    while (page < past) {
      while (extent < info.extents.size() &&
             info.extents[extent].pages.end().value() <= page) {
        ++extent;
      }
      uint64_t stop = past;
      if (extent < info.extents.size()) {
        const PageRun& run = info.extents[extent].pages;
        if (run.first.value() <= page) {
          page = run.end().value();
          continue;
        }
        stop = std::min(stop, run.first.value());
      }
      stop = std::min(stop, page + kExtentPieceBytes / kPageBytes);
      const auto bytes =
          std::span(buffer).first(PageCount(stop - page).bytes());
      const uint64_t offset = info.data_offset + PageIndex(page).offset_bytes();
      absl::Status status = ReadFully(file, bytes, offset, calls);
      if (!status.ok()) return status;
      for (uint64_t i = 0; i < stop - page; ++i) {
        if (AllZero(bytes.subspan(i * kPageBytes, kPageBytes))) continue;
        return absl::DataLossError(absl::StrCat(
            file.prefix, "page ", page + i, " at offset ",
            offset + i * kPageBytes, " is not zero, and no extent has it"));
      }
      page = stop;
    }
    at = hole;
  }
  return absl::OkStatus();
}

// What is behind the memory's end in its last page, when that is stored.
absl::Status CheckTail(const OpenedImageFile& file, MemfdCalls& calls) {
  const ImageFileInfo& info = file.info;
  const uint64_t used = info.size_bytes % kPageBytes;
  if (used == 0 || info.extents.empty()) return absl::OkStatus();
  const PageRun& last = info.extents.back().pages;
  if (last.end().offset_bytes() < info.size_bytes) return absl::OkStatus();
  std::byte bytes[kPageBytes];
  const auto tail = std::span(bytes).first(kPageBytes - used);
  const uint64_t offset = info.data_offset + info.size_bytes;
  absl::Status status = ReadFully(file, tail, offset, calls);
  if (!status.ok() || AllZero(tail)) return status;
  return absl::InvalidArgumentError(absl::StrCat(
      file.prefix, "the ", tail.size(), " bytes at offset ", offset,
      ", behind the memory's ", info.size_bytes, " bytes, are not zero"));
}

// An opened image, and the stored runs and pieces that it is made of.
class Opener {
 public:
  Opener(const OpenImageOptions& options, MemfdCalls& calls)
      : options_(options), calls_(calls) {}

  absl::StatusOr<ImageRef> Open(const std::string& path) {
    absl::StatusOr<OpenedImageFile> file = OpenAndCheck(path, calls_);
    if (!file.ok()) return file.status();
    return Open(*file, /*is_parent=*/false);
  }

 private:
  absl::StatusOr<ImageRef> Open(const OpenedImageFile& file, bool is_parent) {
    const ImageFileInfo& info = file.info;
    if (absl::Status status = CheckTail(file, calls_); !status.ok()) {
      return status;
    }
    using Backing = OpenImageOptions::Backing;
    const bool copied = !is_parent && options_.backing == Backing::kCopied;
    const bool verified = options_.verify == OpenImageOptions::Verify::kAll;
    // A copy is verified when it is made; a view, before.
    if (verified && (!copied || info.parent.has_value())) {
      absl::Status status = VerifyData(file, options_.progress, calls_);
      if (!status.ok()) return status;
    }

    std::vector<PageRun> stored;
    std::vector<ImagePiece> pieces;
    ImageRef parent;
    if (info.parent.has_value()) {
      absl::Status status = AddParent(file, stored, pieces);
      if (!status.ok()) return status;
      parent = std::exchange(parent_, nullptr);
    } else {
      stored = RunsOf(info.extents);
      const PageCount pages = PagesRoundedUp(info.size_bytes);
      if (pages > PageCount(0)) {
        pieces.push_back(
            {{PageIndex(0), pages}, *file.fd, info.data_offset, file.fd});
      }
    }
    const ImageOptions image_options = {
        .name = is_parent ? info.name : options_.name.value_or(info.name),
        .size_bytes = info.size_bytes};
    absl::StatusOr<ImageRef> image =
        copied
            ? CopyOfPieces(image_options, pieces, stored, calls_)
            : ImageFromPieces(image_options, std::move(pieces), stored, calls_);
    if (!image.ok()) return Prefixed(file, image.status());
    if (verified && (copied || info.parent.has_value())) {
      absl::Status status = VerifyImage(file, **image);
      if (!status.ok()) return status;
    }
    NoteParent(**image, std::move(parent));
    (*image)->NoteDigest(info.content);
    (*image)->working_set().Replace(info.written, info.read);
    return image;
  }

  static absl::Status Prefixed(const OpenedImageFile& file,
                               const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat(file.prefix, status.message()));
  }

  // Compares an image with the digests of the file that it came from.
  absl::Status VerifyImage(const OpenedImageFile& file, const Image& image) {
    const ImageFileInfo& info = file.info;
    const std::vector<ImageExtent> extents = ImageExtents(image);
    if (ContentDigest(info.size_bytes, extents) == info.content) {
      return absl::OkStatus();
    }
    if (!info.parent.has_value()) {
      for (size_t i = 0; i < info.extents.size(); ++i) {
        if (i >= extents.size() || extents[i] != info.extents[i]) {
          return ExtentMismatch(file, i);
        }
      }
    }
    return absl::DataLossError(absl::StrCat(
        file.prefix, "the contents do not have the digest ",
        info.content.ToHex(), " that the manifest says (content_sha256)"));
  }

  // The parent of a delta, as an image.
  absl::StatusOr<ImageRef> Parent(const OpenedImageFile& file) {
    const Digest& wanted = *file.info.parent;
    if (options_.parent != nullptr &&
        ContentDigest(*options_.parent) == wanted) {
      return options_.parent;
    }
    if (!options_.find_parent) {
      return absl::FailedPreconditionError(absl::StrCat(
          file.prefix, "is a delta to the image with content digest ",
          wanted.ToHex(),
          options_.parent == nullptr
              ? ", and no parent was given"
              : absl::StrCat(", and the parent that was given, image '",
                             options_.parent->name(), "', is ",
                             ContentDigest(*options_.parent).ToHex())));
    }
    chain_.push_back(file.info.content);
    if (std::find(chain_.begin(), chain_.end(), wanted) != chain_.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.prefix, "its parent ", wanted.ToHex(),
          " is a delta to it: a loop of ", chain_.size(), " files"));
    }
    if (chain_.size() >= kMaxImageChain) {
      return absl::ResourceExhaustedError(absl::StrCat(
          file.prefix, "is the parent's parent in a chain of more than ",
          kMaxImageChain, " files; merge some of them"));
    }
    absl::StatusOr<std::string> path = options_.find_parent(wanted);
    if (!path.ok()) {
      return absl::Status(
          path.status().code(),
          absl::StrCat(file.prefix, "its parent ", wanted.ToHex(), ": ",
                       path.status().message()));
    }
    absl::StatusOr<OpenedImageFile> parent = OpenAndCheck(*path, calls_);
    if (!parent.ok()) return parent.status();
    if (parent->info.content != wanted) {
      return absl::FailedPreconditionError(
          absl::StrCat(file.prefix, "its parent is ", wanted.ToHex(), ", and '",
                       *path, "' is ", parent->info.content.ToHex()));
    }
    return Open(*parent, /*is_parent=*/true);
  }

  // Stored runs and pieces of a delta laid over its parent.
  absl::Status AddParent(const OpenedImageFile& file,
                         std::vector<PageRun>& stored,
                         std::vector<ImagePiece>& pieces) {
    const ImageFileInfo& info = file.info;
    absl::StatusOr<ImageRef> parent = Parent(file);
    if (!parent.ok()) return parent.status();
    parent_ = *parent;
    if ((*parent)->size_bytes() > info.size_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.prefix, "size_bytes ", info.size_bytes,
                       " is less than its parent's ", (*parent)->size_bytes(),
                       "; an image does not shrink"));
    }
    // Pages that the parent has no say in.
    absl::StatusOr<PageMap> own =
        PageMap::Create(PagesRoundedUp(info.size_bytes));
    if (!own.ok()) return Prefixed(file, own.status());
    for (const ImageExtent& extent : info.extents) own->InsertRun(extent.pages);
    for (const PageRun& run : info.zeroed) own->InsertRun(run);

    const auto add_own = [&](const ImageExtent& extent) {
      stored.push_back(extent.pages);
      const uint64_t offset =
          info.data_offset + extent.pages.first.offset_bytes();
      if (!pieces.empty()) {
        ImagePiece& last = pieces.back();
        if (last.keeper == file.fd && last.pages.end() == extent.pages.first) {
          last.pages.length += extent.pages.length;
          return;
        }
      }
      pieces.push_back({extent.pages, *file.fd, offset, file.fd});
    };
    size_t next = 0;
    const PageMap& below = (*parent)->stored();
    for (auto run = below.NextRun(PageIndex(0)); run.has_value();
         run = below.NextRun(run->end())) {
      for (auto kept = own->NextGap(run->first);
           kept.has_value() && kept->first < run->end();
           kept = own->NextGap(kept->end())) {
        const PageRun pages = {kept->first,
                               std::min(kept->end(), run->end()) - kept->first};
        while (next < info.extents.size() &&
               info.extents[next].pages.first < pages.first) {
          add_own(info.extents[next++]);
        }
        stored.push_back(pages);
        AppendPieces(*parent, pages, pages.first, pieces);
      }
    }
    while (next < info.extents.size()) add_own(info.extents[next++]);
    return absl::OkStatus();
  }

  const OpenImageOptions& options_;
  MemfdCalls& calls_;
  std::vector<Digest> chain_;
  ImageRef parent_;  // As AddParent has found it.
};

}  // namespace

struct PendingImageFile::State {
  ImageFileWriter writer;
  ImageFileInfo info;
  bool replace;
};

PendingImageFile::PendingImageFile(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
PendingImageFile::PendingImageFile(PendingImageFile&&) noexcept = default;
PendingImageFile::~PendingImageFile() = default;

absl::StatusOr<ImageFileInfo> PendingImageFile::Commit() && {
  return std::move(state_->writer)
      .Publish(std::move(state_->info), state_->replace);
}

class PendingImageFileMaker {
 public:
  static absl::StatusOr<PendingImageFile> Prepare(
      const Image& image, const std::string& path,
      const WriteImageFileOptions& options, MemfdCalls& calls);
};

absl::StatusOr<PendingImageFile> PendingImageFileMaker::Prepare(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options, MemfdCalls& calls) {
  const std::string prefix = absl::StrCat("image file '", path, "': ");
  if (image.has_source()) {
    absl::StatusOr<ImageRef> built = BuiltCopy(image, calls);
    if (!built.ok()) return built.status();
    return Prepare(**built, path, options, calls);
  }
  if (options.parent != nullptr && options.parent->has_source()) {
    absl::StatusOr<ImageRef> built = BuiltCopy(*options.parent, calls);
    if (!built.ok()) return built.status();
    WriteImageFileOptions with_built = options;
    with_built.parent = *std::move(built);
    return Prepare(image, path, with_built, calls);
  }
  ImageFileInfo info;
  info.name = image.name();
  info.size_bytes = image.size_bytes();
  info.written = image.working_set().written();
  info.read = image.working_set().read();
  info.provenance = options.provenance;
  std::vector<PageRun> runs;
  if (options.parent == nullptr) {
    runs = ExtentRuns(image.stored());
  } else {
    if (options.parent->size_bytes() > image.size_bytes()) {
      return absl::InvalidArgumentError(absl::StrCat(
          prefix, "size_bytes ", image.size_bytes(), " of image '",
          image.name(), "' is less than its parent's ",
          options.parent->size_bytes(), "; an image does not shrink"));
    }
    info.parent = ContentDigest(*options.parent);
    info.content = ContentDigest(image);
    if (info.parent == info.content) {
      return absl::InvalidArgumentError(
          absl::StrCat(prefix, "image '", image.name(),
                       "' is its own parent: both have content digest ",
                       info.content.ToHex(), "; there is nothing to write"));
    }
    absl::StatusOr<Difference> difference =
        DifferenceOf(image, *options.parent);
    if (!difference.ok()) return difference.status();
    runs = ExtentRuns(difference->changed);
    info.zeroed = std::move(difference->zeroed);
  }
  for (const PageRun& run : runs) {
    info.extents.push_back({run, Digest()});
    info.stored_pages += run.length.value();
  }
  if (absl::Status status = CheckWritable(info); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
  }
  if (options.page_checksums && info.stored_pages <= kMaxPageChecksums) {
    info.page_checksums.resize(info.stored_pages);
  }

  // Digests and checksums have a fixed length, so that the manifest has its
  // final one.
  ImageHeader layout = HeaderFor(EncodeManifest(info), info.size_bytes);
  if (layout.manifest_bytes > kMaxManifestBytes) {
    // What a reader can do without.
    info.page_checksums.clear();
    layout = HeaderFor(EncodeManifest(info), info.size_bytes);
  }
  const bool checksums = !info.page_checksums.empty();
  if (layout.manifest_bytes > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(prefix, "the manifest would have ", layout.manifest_bytes,
                     " bytes, more than the limit of ", kMaxManifestBytes));
  }
  absl::StatusOr<ImageFileWriter> writer = ImageFileWriter::Create(
      path, layout, calls,
      options.follow_links ? AtomicFile::Existing::kFollow
                           : AtomicFile::Existing::kReplace);
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> buffer(kExtentPieceBytes);
  const uint64_t total = PageCount(info.stored_pages).bytes();
  uint64_t done = 0;
  Sha256 sha;
  for (ImageExtent& extent : info.extents) {
    absl::Status status =
        ForEachPiece(extent, [&](uint64_t offset, uint64_t bytes) {
          absl::Status wrote = writer->WriteData(
              offset, std::span(image.data() + offset, bytes));
          if (!wrote.ok()) return wrote;
          // What went into the file is what gets a digest, also where the image
          // is a view of another file that somebody changes.
          const auto written = std::span(buffer).first(bytes);
          absl::Status read = writer->ReadData(offset, written);
          if (!read.ok()) return read;
          sha.Update(written);
          for (uint64_t at = 0; checksums && at < bytes; at += kPageBytes) {
            info.page_checksums[(done + at) / kPageBytes] =
                ChecksumOf(written.subspan(at, kPageBytes));
          }
          done += bytes;
          if (options.progress) options.progress(done, total);
          return absl::OkStatus();
        });
    if (!status.ok()) return status;
    extent.digest = sha.Finish();
  }
  if (!info.parent.has_value()) {
    info.content = ContentDigest(info.size_bytes, info.extents);
  }
  absl::StatusOr<ImageFileInfo> told = writer->Finish(EncodeManifest(info));
  if (!told.ok()) return told.status();
  return PendingImageFile(
      std::make_unique<PendingImageFile::State>(PendingImageFile::State{
          *std::move(writer), *std::move(told), options.replace}));
}

absl::StatusOr<ImageFileInfo> WriteImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options, MemfdCalls& calls) {
  absl::StatusOr<PendingImageFile> file =
      PendingImageFileMaker::Prepare(image, path, options, calls);
  if (!file.ok()) return file.status();
  return std::move(*file).Commit();
}

absl::StatusOr<PendingImageFile> PrepareImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options) {
  return PendingImageFileMaker::Prepare(image, path, options, RealMemfdCalls());
}

absl::StatusOr<ImageFileInfo> WriteImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options) {
  return WriteImageFile(image, path, options, RealMemfdCalls());
}

absl::StatusOr<ImageRef> OpenImageFile(const std::string& path,
                                       const OpenImageOptions& options) {
  return Opener(options, RealMemfdCalls()).Open(path);
}

absl::StatusOr<ImageFileInfo> ReadImageFileInfo(const std::string& path) {
  absl::StatusOr<OpenedImageFile> file = OpenAndCheck(path, RealMemfdCalls());
  if (!file.ok()) return file.status();
  return std::move(file->info);
}

absl::StatusOr<ImageFileInfo> VerifyImageFile(const std::string& path,
                                              const OpenImageOptions& options) {
  MemfdCalls& calls = RealMemfdCalls();
  absl::StatusOr<OpenedImageFile> file = OpenAndCheck(path, calls);
  if (!file.ok()) return file.status();
  if (file->info.parent.has_value() &&
      (options.parent != nullptr || options.find_parent)) {
    OpenImageOptions all = options;
    all.verify = OpenImageOptions::Verify::kAll;
    absl::StatusOr<ImageRef> image = OpenImageFile(path, all);
    if (!image.ok()) return image.status();
    return std::move(file->info);
  }
  absl::Status status = CheckTail(*file, calls);
  if (status.ok()) status = VerifyData(*file, options.progress, calls);
  if (!status.ok()) return status;
  return std::move(file->info);
}

absl::StatusOr<ImageFileInfo> MergeImageFile(const std::string& path,
                                             const std::string& merged_path,
                                             const OpenImageOptions& options,
                                             bool replace) {
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  OpenImageOptions mapped = options;
  mapped.progress = nullptr;
  absl::StatusOr<ImageRef> image = OpenImageFile(path, mapped);
  if (!image.ok()) return image.status();
  return WriteImageFile(**image, merged_path,
                        {.provenance = info->provenance,
                         .replace = replace,
                         .page_checksums = !info->page_checksums.empty(),
                         .progress = options.progress});
}

}  // namespace firsttouch
