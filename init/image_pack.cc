// Packing and unpacking of image files: see image_file.h.

#include <errno.h>
#include <zstd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_file_io.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// zstd's window on both sides, 8 MiB: what the reader has to keep.
constexpr int kWindowLog = 23;

constexpr int kMaxLevel = 19;

// How much of a manifest is read before it is seen whether there is more.
constexpr uint64_t kManifestChunk = 1 << 16;

struct FreeStream {
  void operator()(ZSTD_CCtx* stream) const { ZSTD_freeCCtx(stream); }
  void operator()(ZSTD_DCtx* stream) const { ZSTD_freeDCtx(stream); }
};

absl::Status ZstdFailed(const std::string& prefix, const char* what,
                        size_t code) {
  return absl::DataLossError(
      absl::StrCat(prefix, what, ": ", ZSTD_getErrorName(code), " (zstd)"));
}

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Compresses into a file.
class PackedWriter {
 public:
  static absl::StatusOr<PackedWriter> Create(const std::string& path, int level,
                                             uint64_t total_bytes,
                                             MemfdCalls& calls) {
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
    if (!file.ok()) return file.status();
    PackedWriter writer(absl::StrCat("packed image '", path, "': "),
                        *std::move(file), calls);
    ZSTD_CCtx* const stream = writer.stream_.get();
    if (stream == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(writer.prefix_, "no memory for zstd"));
    }
    for (const size_t code :
         {ZSTD_CCtx_setParameter(stream, ZSTD_c_compressionLevel, level),
          ZSTD_CCtx_setParameter(stream, ZSTD_c_checksumFlag, 1),
          ZSTD_CCtx_setParameter(stream, ZSTD_c_windowLog, kWindowLog),
          ZSTD_CCtx_setPledgedSrcSize(stream, total_bytes)}) {
      if (ZSTD_isError(code) != 0U) {
        return ZstdFailed(writer.prefix_, "setting up the compression", code);
      }
    }
    return writer;
  }

  absl::Status Add(std::span<const std::byte> bytes) {
    return Compress(bytes, ZSTD_e_continue);
  }

  absl::Status Commit(bool replace) {
    absl::Status status = Compress({}, ZSTD_e_end);
    if (!status.ok()) return status;
    return file_.Commit(replace);
  }

 private:
  PackedWriter(std::string prefix, AtomicFile file, MemfdCalls& calls)
      : prefix_(std::move(prefix)),
        file_(std::move(file)),
        calls_(&calls),
        stream_(ZSTD_createCCtx()),
        out_(ZSTD_CStreamOutSize()) {}

  absl::Status Compress(std::span<const std::byte> bytes,
                        ZSTD_EndDirective directive) {
    ZSTD_inBuffer in = {bytes.data(), bytes.size(), 0};
    for (;;) {
      ZSTD_outBuffer out = {out_.data(), out_.size(), 0};
      const size_t left =
          ZSTD_compressStream2(stream_.get(), &out, &in, directive);
      if (ZSTD_isError(left) != 0U) {
        return ZstdFailed(prefix_, "compressing", left);
      }
      for (size_t done = 0; done < out.pos;) {
        const MemfdResult written = calls_->Write(
            file_.fd(), out_.data() + done, out.pos - done, offset_);
        const int error =
            written.ok() && written.value == 0 ? ENOSPC : written.error;
        if (error != 0) {
          return absl::ErrnoToStatus(
              error,
              absl::StrCat(prefix_, "writing at offset ", offset_, " failed"));
        }
        done += written.value;
        offset_ += written.value;
      }
      const bool finished =
          directive == ZSTD_e_end ? left == 0 : in.pos == in.size;
      if (finished) return absl::OkStatus();
    }
  }

  std::string prefix_;
  AtomicFile file_;
  MemfdCalls* calls_;
  std::unique_ptr<ZSTD_CCtx, FreeStream> stream_;
  std::vector<std::byte> out_;
  uint64_t offset_ = 0;
};

// Reads what a file decompresses to, as much as is asked for and no more.
class PackedReader {
 public:
  static absl::StatusOr<PackedReader> Create(const std::string& path,
                                             MemfdCalls& calls) {
    PackedReader reader(absl::StrCat("packed image '", path, "': "), calls);
    absl::StatusOr<std::shared_ptr<const int>> fd =
        OpenRegularFile(path, reader.prefix_);
    if (!fd.ok()) return fd.status();
    reader.fd_ = *std::move(fd);
    if (reader.stream_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(reader.prefix_, "no memory for zstd"));
    }
    const size_t code = ZSTD_DCtx_setParameter(reader.stream_.get(),
                                               ZSTD_d_windowLogMax, kWindowLog);
    if (ZSTD_isError(code) != 0U) {
      return ZstdFailed(reader.prefix_, "setting up the decompression", code);
    }
    return reader;
  }

  const std::string& prefix() const { return prefix_; }

  // `what` is for the error where the stream ends before.
  absl::Status Read(std::span<std::byte> into, const char* what) {
    ZSTD_outBuffer out = {into.data(), into.size(), 0};
    while (out.pos < out.size) {
      absl::Status status = Step(out, what);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // That the frame ends here, and the file with it.
  absl::Status ReadEnd() {
    std::byte more[1];
    ZSTD_outBuffer out = {more, sizeof more, 0};
    while (!ended_ && out.pos == 0) {
      absl::Status status = Step(out, "the end of the stream");
      if (!status.ok()) return status;
    }
    if (out.pos == 0 && in_.pos == in_.size) {
      absl::Status status = Fill();
      if (!status.ok()) return status;
    }
    if (out.pos == 0 && in_.pos == in_.size) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(
        prefix_, "goes on after the last extent, at offset ",
        offset_ - (in_.size - in_.pos), " of the file; something was added"));
  }

 private:
  PackedReader(std::string prefix, MemfdCalls& calls)
      : prefix_(std::move(prefix)),
        calls_(&calls),
        stream_(ZSTD_createDCtx()),
        buffer_(ZSTD_DStreamInSize()) {}

  absl::Status Fill() {
    const MemfdResult read =
        calls_->Read(*fd_, buffer_.data(), buffer_.size(), offset_);
    if (!read.ok()) {
      return absl::ErrnoToStatus(
          read.error,
          absl::StrCat(prefix_, "reading at offset ", offset_, " failed"));
    }
    offset_ += read.value;
    in_ = {buffer_.data(), static_cast<size_t>(read.value), 0};
    return absl::OkStatus();
  }

  absl::Status Step(ZSTD_outBuffer& out, const char* what) {
    if (ended_) {
      return absl::DataLossError(absl::StrCat(prefix_,
                                              "the compressed stream ends in ",
                                              what, "; it is too short"));
    }
    const size_t before = out.pos;
    if (in_.pos == in_.size) {
      // What is decompressed already may wait inside zstd.
      absl::Status status = Fill();
      if (!status.ok()) return status;
    }
    const bool at_end = in_.size == 0;
    const size_t code = ZSTD_decompressStream(stream_.get(), &out, &in_);
    if (ZSTD_isError(code) != 0U) {
      return ZstdFailed(
          prefix_,
          absl::StrCat("decompressing ", what, " near offset ", offset_)
              .c_str(),
          code);
    }
    ended_ = code == 0;
    if (at_end && !ended_ && out.pos == before) {
      return absl::DataLossError(absl::StrCat(prefix_, "ends after ", offset_,
                                              " bytes, in ", what,
                                              "; it was cut short"));
    }
    return absl::OkStatus();
  }

  std::string prefix_;
  MemfdCalls* calls_;
  std::shared_ptr<const int> fd_;
  std::unique_ptr<ZSTD_DCtx, FreeStream> stream_;
  std::vector<std::byte> buffer_;
  ZSTD_inBuffer in_ = {nullptr, 0, 0};
  uint64_t offset_ = 0;
  bool ended_ = false;
};

}  // namespace

absl::Status PackImageFile(const std::string& path,
                           const std::string& packed_path,
                           const PackOptions& options) {
  MemfdCalls& calls = RealMemfdCalls();
  if (options.level < 1 || options.level > kMaxLevel) {
    return absl::InvalidArgumentError(
        absl::StrCat("packed image '", packed_path, "': level ", options.level,
                     " is not 1 to ", kMaxLevel));
  }
  absl::StatusOr<OpenedImageFile> file = OpenAndCheck(path, calls);
  if (!file.ok()) return file.status();
  const uint64_t stored_bytes = PageCount(file->info.stored_pages).bytes();
  absl::StatusOr<PackedWriter> packed = PackedWriter::Create(
      packed_path, options.level,
      kImageHeaderBytes + file->manifest.size() + stored_bytes, calls);
  if (!packed.ok()) return packed.status();
  absl::Status status = packed->Add(Bytes(EncodeHeader(file->header)));
  if (status.ok()) status = packed->Add(Bytes(file->manifest));
  if (!status.ok()) return status;
  std::vector<std::byte> buffer(kExtentPieceBytes);
  uint64_t done = 0;
  for (size_t i = 0; i < file->info.extents.size(); ++i) {
    status = ReadExtent(
        *file, i, buffer,
        [&](std::span<const std::byte> bytes) {
          absl::Status added = packed->Add(bytes);
          if (!added.ok()) return added;
          done += bytes.size();
          if (options.progress) options.progress(done, stored_bytes);
          return absl::OkStatus();
        },
        calls);
    if (!status.ok()) return status;
  }
  return packed->Commit(options.replace);
}

absl::StatusOr<ImageFileInfo> UnpackImageFile(const std::string& packed_path,
                                              const std::string& path,
                                              const UnpackOptions& options) {
  MemfdCalls& calls = RealMemfdCalls();
  absl::StatusOr<PackedReader> packed =
      PackedReader::Create(packed_path, calls);
  if (!packed.ok()) return packed.status();
  const auto failed = [&](const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat(packed->prefix(), status.message()));
  };
  std::byte header_bytes[kImageHeaderBytes];
  absl::Status status = packed->Read(header_bytes, "the header");
  if (!status.ok()) return status;
  absl::StatusOr<ImageHeader> header = DecodeHeader(header_bytes);
  if (!header.ok()) return failed(header.status());
  // Memory is taken as bytes arrive, not as the header promises them.
  std::string manifest;
  while (manifest.size() < header->manifest_bytes) {
    const size_t had = manifest.size();
    manifest.resize(had +
                    std::min(kManifestChunk, header->manifest_bytes - had));
    status = packed->Read(
        std::as_writable_bytes(
            std::span(manifest.data(), manifest.size()).subspan(had)),
        "the manifest");
    if (!status.ok()) return status;
  }
  absl::StatusOr<ImageFileInfo> info = DecodeManifest(*header, Bytes(manifest));
  if (!info.ok()) return failed(info.status());
  const uint64_t stored_bytes = PageCount(info->stored_pages).bytes();
  if (stored_bytes > options.max_stored_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(packed->prefix(), "would unpack to ", stored_bytes,
                     " bytes of stored pages, more than the limit of ",
                     options.max_stored_bytes, " (max_stored_bytes)"));
  }

  absl::StatusOr<ImageFileWriter> writer =
      ImageFileWriter::Create(path, *header, calls);
  if (!writer.ok()) return writer.status();
  std::vector<std::byte> buffer(kExtentPieceBytes);
  uint64_t done = 0;
  Sha256 sha;
  for (size_t i = 0; i < info->extents.size(); ++i) {
    const ImageExtent& extent = info->extents[i];
    const std::string what = absl::StrCat("extent ", i);
    status = ForEachPiece(extent, [&](uint64_t offset, uint64_t size) {
      const auto bytes = std::span(buffer).first(size);
      absl::Status read = packed->Read(bytes, what.c_str());
      if (!read.ok()) return read;
      sha.Update(bytes);
      absl::Status wrote = writer->WriteData(offset, bytes);
      if (!wrote.ok()) return wrote;
      done += size;
      if (options.progress) options.progress(done, stored_bytes);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    if (sha.Finish() != extent.digest) {
      return absl::DataLossError(absl::StrCat(
          packed->prefix(), "extent ", i, " (pages [",
          extent.pages.first.value(), ", ", extent.pages.end().value(),
          ")) does not have the SHA-256 ", extent.digest.ToHex(),
          " that the manifest says; its bytes were changed"));
    }
  }
  status = packed->ReadEnd();
  if (!status.ok()) return status;
  return std::move(*writer).Commit(manifest, options.replace);
}

}  // namespace firsttouch
