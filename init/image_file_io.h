// Reading and writing the parts of an image file. Internal to this folder.
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_IMAGE_FILE_IO_H_
#define FIRSTTOUCH_INIT_IMAGE_FILE_IO_H_

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
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/memfd.h"

namespace firsttouch {

// A file whose header and manifest are in order.
struct OpenedImageFile {
  std::shared_ptr<const int> fd;  // Closed with the last copy.
  ImageHeader header;
  std::string manifest;  // As it is in the file.
  ImageFileInfo info;
  std::string prefix;  // "image file '...': ", for errors.
};

// Opens a file and checks header and manifest.
absl::StatusOr<OpenedImageFile> OpenAndCheck(const std::string& path,
                                             MemfdCalls& calls);

// Opens a regular file for reading; never waits for a pipe's other end. `what`
// begins the errors.
absl::StatusOr<std::shared_ptr<const int>> OpenRegularFile(
    const std::string& path, const std::string& what);

// Fills `into` from the offset. DataLoss where the file ends before.
absl::Status ReadFully(const OpenedImageFile& file, std::span<std::byte> into,
                       uint64_t offset, MemfdCalls& calls);

// Extents have any length; they are read, written and digested in pieces of at
// most this many bytes.
inline constexpr uint64_t kExtentPieceBytes = uint64_t{1} << 20;

// Calls `piece` for all of an extent in pieces, ascending: with the offset from
// the start of the data, and the number of bytes. Ends with the first error.
absl::Status ForEachPiece(
    const ImageExtent& extent,
    absl::FunctionRef<absl::Status(uint64_t offset, uint64_t bytes)> piece);

// Reads extent number `index` into `buffer` of kExtentPieceBytes, gives it to
// `use` piece by piece, and compares its digest after the last one: DataLoss.
// Ends with the first error of `use`.
absl::Status ReadExtent(
    const OpenedImageFile& file, size_t index, std::span<std::byte> buffer,
    absl::FunctionRef<absl::Status(std::span<const std::byte>)> use,
    MemfdCalls& calls);

// That extent `index` does not match its digest.
absl::Status ExtentMismatch(const OpenedImageFile& file, size_t index);

// A new file of a known layout.
class ImageFileWriter {
 public:
  // ResourceExhausted where RLIMIT_FSIZE forbids a file of this length: the
  // kernel would send SIGXFSZ.
  static absl::StatusOr<ImageFileWriter> Create(
      const std::string& path, const ImageHeader& layout, MemfdCalls& calls,
      AtomicFile::Existing existing = AtomicFile::Existing::kFollow);

  // At an offset from the start of the data.
  absl::Status WriteData(uint64_t offset, std::span<const std::byte> bytes);
  absl::Status ReadData(uint64_t offset, std::span<std::byte> bytes);

  // Writes header and manifest, of the length that the layout has. What a
  // reader would be told, but for disk_bytes.
  absl::StatusOr<ImageFileInfo> Finish(std::string_view manifest);

  // Gives the finished file its name. `info` is what Finish gave.
  absl::StatusOr<ImageFileInfo> Publish(ImageFileInfo info, bool replace) &&;

  // Both.
  absl::StatusOr<ImageFileInfo> Commit(std::string_view manifest,
                                       bool replace) &&;

 private:
  ImageFileWriter(std::string prefix, const ImageHeader& layout,
                  AtomicFile file, MemfdCalls& calls)
      : prefix_(std::move(prefix)),
        layout_(layout),
        file_(std::move(file)),
        calls_(&calls) {}

  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes);

  std::string prefix_;
  ImageHeader layout_;
  AtomicFile file_;
  MemfdCalls* calls_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_FILE_IO_H_
