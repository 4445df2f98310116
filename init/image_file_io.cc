#include "firsttouch/init/image_file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// st_blocks counts in 512 bytes, whatever st_blksize says.
constexpr uint64_t kStatBlockBytes = 512;

absl::Status ReadAt(int fd, std::span<std::byte> into, uint64_t offset,
                    const std::string& prefix, MemfdCalls& calls) {
  while (!into.empty()) {
    const MemfdResult read = calls.Read(fd, into.data(), into.size(), offset);
    if (!read.ok()) {
      return absl::ErrnoToStatus(
          read.error, absl::StrCat(prefix, "reading ", into.size(),
                                   " bytes at offset ", offset, " failed"));
    }
    if (read.value == 0) {
      return absl::DataLossError(
          absl::StrCat(prefix, "ends at or before offset ", offset, ", where ",
                       into.size(), " more bytes should be; it was cut short"));
    }
    into = into.subspan(read.value);
    offset += read.value;
  }
  return absl::OkStatus();
}

absl::Status Prefixed(const std::string& prefix, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const int>> OpenRegularFile(
    const std::string& path, const std::string& what) {
  const int fd =
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(what, "opening it failed"));
  }
  std::shared_ptr<const int> owner(new int(fd), [](const int* owned) {
    close(*owned);
    delete owned;
  });
  struct stat status = {};
  if (fstat(fd, &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(what, "fstat failed"));
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, "is not a regular file"));
  }
  return owner;
}

absl::StatusOr<OpenedImageFile> OpenAndCheck(const std::string& path,
                                             MemfdCalls& calls) {
  OpenedImageFile file;
  file.prefix = absl::StrCat("image file '", path, "': ");
  absl::StatusOr<std::shared_ptr<const int>> fd =
      OpenRegularFile(path, file.prefix);
  if (!fd.ok()) return fd.status();
  file.fd = *std::move(fd);
  struct stat status = {};
  if (fstat(*file.fd, &status) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat(file.prefix, "fstat failed"));
  }
  const auto actual_bytes = static_cast<uint64_t>(status.st_size);

  std::byte header_bytes[kImageHeaderBytes];
  const auto header_there =
      std::span(header_bytes)
          .first(std::min<uint64_t>(actual_bytes, kImageHeaderBytes));
  absl::Status read = ReadAt(*file.fd, header_there, 0, file.prefix, calls);
  if (!read.ok()) return read;
  absl::StatusOr<ImageHeader> header = DecodeHeader(header_there);
  if (!header.ok()) return Prefixed(file.prefix, header.status());
  file.header = *header;
  if (header->file_bytes != actual_bytes) {
    return absl::DataLossError(absl::StrCat(
        file.prefix, "has ", actual_bytes, " bytes, and its header says ",
        header->file_bytes,
        actual_bytes < header->file_bytes ? "; it was cut short"
                                          : "; something was added"));
  }

  // No more than 64 MiB, and no more than the file has.
  file.manifest.resize(header->manifest_bytes);
  const auto manifest = std::as_writable_bytes(
      std::span(file.manifest.data(), file.manifest.size()));
  read =
      ReadAt(*file.fd, manifest, header->manifest_offset, file.prefix, calls);
  if (!read.ok()) return read;
  std::byte gap_bytes[kPageBytes];
  const uint64_t manifest_end =
      header->manifest_offset + header->manifest_bytes;
  const auto gap =
      std::span(gap_bytes).first(header->data_offset - manifest_end);
  read = ReadAt(*file.fd, gap, manifest_end, file.prefix, calls);
  if (!read.ok()) return read;
  for (size_t i = 0; i < gap.size(); ++i) {
    if (gap[i] == std::byte{0}) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(file.prefix, "byte ", manifest_end + i,
                     ", between manifest and data, is ",
                     std::to_integer<int>(gap[i]), "; it must be 0"));
  }
  absl::StatusOr<ImageFileInfo> info = DecodeManifest(*header, manifest);
  if (!info.ok()) return Prefixed(file.prefix, info.status());
  file.info = *std::move(info);
  file.info.disk_bytes =
      static_cast<uint64_t>(status.st_blocks) * kStatBlockBytes;
  return file;
}

absl::Status ReadFully(const OpenedImageFile& file, std::span<std::byte> into,
                       uint64_t offset, MemfdCalls& calls) {
  return ReadAt(*file.fd, into, offset, file.prefix, calls);
}

absl::Status ForEachPiece(
    const ImageExtent& extent,
    absl::FunctionRef<absl::Status(uint64_t offset, uint64_t bytes)> piece) {
  const uint64_t end = extent.pages.end().offset_bytes();
  for (uint64_t at = extent.pages.first.offset_bytes(); at < end;) {
    const uint64_t bytes = std::min(kExtentPieceBytes, end - at);
    absl::Status status = piece(at, bytes);
    if (!status.ok()) return status;
    at += bytes;
  }
  return absl::OkStatus();
}

absl::Status ReadExtent(
    const OpenedImageFile& file, size_t index, std::span<std::byte> buffer,
    absl::FunctionRef<absl::Status(std::span<const std::byte>)> use,
    MemfdCalls& calls) {
  const ImageExtent& extent = file.info.extents[index];
  Sha256 sha;
  absl::Status status =
      ForEachPiece(extent, [&](uint64_t offset, uint64_t size) {
        const auto bytes = buffer.first(size);
        absl::Status read =
            ReadFully(file, bytes, file.info.data_offset + offset, calls);
        if (!read.ok()) return read;
        sha.Update(bytes);
        return use(bytes);
      });
  if (!status.ok()) return status;
  if (sha.Finish() == extent.digest) return absl::OkStatus();
  return ExtentMismatch(file, index);
}

absl::Status ExtentMismatch(const OpenedImageFile& file, size_t index) {
  const ImageExtent& extent = file.info.extents[index];
  return absl::DataLossError(absl::StrCat(
      file.prefix, "extent ", index, " (pages [", extent.pages.first.value(),
      ", ", extent.pages.end().value(), ") at offset ",
      file.info.data_offset + extent.pages.first.offset_bytes(),
      ") does not have the SHA-256 ", extent.digest.ToHex(),
      " that the manifest says; its bytes were changed"));
}

absl::StatusOr<ImageFileWriter> ImageFileWriter::Create(
    const std::string& path, const ImageHeader& layout, MemfdCalls& calls,
    AtomicFile::Existing existing) {
  std::string prefix = absl::StrCat("image file '", path, "': ");
  const MemfdResult limit = calls.FileSizeLimit();
  if (limit.ok() && layout.file_bytes > static_cast<uint64_t>(limit.value)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(prefix, "would have ", layout.file_bytes,
                     " bytes, which exceeds RLIMIT_FSIZE ", limit.value,
                     "; raise it (ulimit -f)"));
  }
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path, existing);
  if (!file.ok()) return file.status();
  const MemfdResult sized = calls.Truncate(file->fd(), layout.file_bytes);
  if (!sized.ok()) {
    return absl::ErrnoToStatus(
        sized.error, absl::StrCat(prefix, "ftruncate to ", layout.file_bytes,
                                  " bytes failed"));
  }
  return ImageFileWriter(std::move(prefix), layout, *std::move(file), calls);
}

absl::Status ImageFileWriter::Write(uint64_t offset,
                                    std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const MemfdResult written =
        calls_->Write(file_.fd(), bytes.data(), bytes.size(), offset);
    // A count of zero would repeat for ever: the file system has no room.
    const int error =
        written.ok() && written.value == 0 ? ENOSPC : written.error;
    if (error != 0) {
      return absl::ErrnoToStatus(
          error, absl::StrCat(prefix_, "writing ", bytes.size(),
                              " bytes at offset ", offset, " failed"));
    }
    bytes = bytes.subspan(written.value);
    offset += written.value;
  }
  return absl::OkStatus();
}

absl::Status ImageFileWriter::WriteData(uint64_t offset,
                                        std::span<const std::byte> bytes) {
  return Write(layout_.data_offset + offset, bytes);
}

absl::Status ImageFileWriter::ReadData(uint64_t offset,
                                       std::span<std::byte> bytes) {
  return ReadAt(file_.fd(), bytes, layout_.data_offset + offset, prefix_,
                *calls_);
}

absl::StatusOr<ImageFileInfo> ImageFileWriter::Finish(
    std::string_view manifest) {
  layout_.manifest_sha256 = Sha256Of(manifest);
  const std::string header = EncodeHeader(layout_);
  const auto manifest_bytes =
      std::as_bytes(std::span(manifest.data(), manifest.size()));
  absl::Status status =
      Write(0, std::as_bytes(std::span(header.data(), header.size())));
  if (status.ok()) status = Write(layout_.manifest_offset, manifest_bytes);
  if (!status.ok()) return status;
  // What is written is read with a reader's eyes before it gets its name.
  absl::StatusOr<ImageFileInfo> info = DecodeManifest(layout_, manifest_bytes);
  if (!info.ok()) return Prefixed(prefix_, info.status());
  return info;
}

absl::StatusOr<ImageFileInfo> ImageFileWriter::Publish(ImageFileInfo info,
                                                       bool replace) && {
  absl::Status status = file_.Commit(replace);
  if (!status.ok()) return status;
  struct stat stat_of_file = {};
  if (fstat(file_.fd(), &stat_of_file) == 0) {
    info.disk_bytes =
        static_cast<uint64_t>(stat_of_file.st_blocks) * kStatBlockBytes;
  }
  return info;
}

absl::StatusOr<ImageFileInfo> ImageFileWriter::Commit(std::string_view manifest,
                                                      bool replace) && {
  absl::StatusOr<ImageFileInfo> info = Finish(manifest);
  if (!info.ok()) return info.status();
  return std::move(*this).Publish(*std::move(info), replace);
}

}  // namespace firsttouch
