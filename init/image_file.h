// Images as files (.ftimg): write, open, look into, check, pack for shipping.
//
// docs/image-format.md has the format to the byte. In short: a fixed header, a
// protobuf manifest (what there is, and the digests), then the memory itself,
// page p at data_offset + p * kPageBytes, with holes of the file system's where
// the pages are zero. So a file is as large on disk as what it stores, and a
// single mmap opens it, whatever its size.
//
//   absl::StatusOr<ImageFileInfo> written =
//       WriteImageFile(**image, "/var/lib/app/guest.ftimg");
//   absl::StatusOr<ImageRef> image = OpenImageFile("/var/lib/app/guest.ftimg");
//
// What an opened image is: by default (Backing::kFileBacked) a view of the
// file. Nothing is read until it is touched, and two processes that open the
// same file share its pages in the kernel's cache. Where a pool shares the
// pages of an image (Backing::kShared of a pool) it needs them in shared
// memory, which a file on a disk is not: userfaultfd has no minor faults for
// it. For those, the image has a memfd that each page is copied into when it is
// first asked for (Image::FetchPages). Backing::kCopied reads all that is
// stored at once into a sealed memfd, as the builders make one.
//
// WHO MAY CHANGE THE FILE. A memfd is sealed, a file is not. Nothing here ever
// changes a file in place: a writer makes a new one and renames it, files are
// written with no permission to write, and who has the old one open keeps it.
// If a file is overwritten in place while it is open, pages not copied yet show
// the new bytes; if it is cut short, FetchPages fails with EFAULT, and a plain
// read of a page behind the end is a SIGBUS. (A pool traps with that errno at a
// touch of such a page, and drops what it cannot restore.) Where others may
// write to the file, open it with Backing::kCopied and Verify::kAll: what is
// copied is what was verified, and out of reach.
//
// Errors of all functions name the file, the field or the offset, the value and
// the rule. NotFound, PermissionDenied and others carry the kernel's errno;
// DataLoss: a file that is cut short, or whose digests do not match;
// InvalidArgument: anything in a file that the format forbids;
// Unimplemented: a version that this build does not know; ResourceExhausted: no
// memory, address space or disk, or a limit of this header exceeded. A hostile
// file costs at most kMaxManifestBytes of reading and a few times that of
// memory before it is refused.
//
// `calls` are the reads and writes, for tests that make them fail.
//
// Threads: all functions from any thread. Not for signal handlers.

#ifndef FIRSTTOUCH_INIT_IMAGE_FILE_H_
#define FIRSTTOUCH_INIT_IMAGE_FILE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"

namespace firsttouch {

// The version that this build writes, and the only one it reads.
inline constexpr uint32_t kImageFileVersion = 1;

// Limits of what is read. A million extents store at least a million pages in
// the most scattered way there is.
inline constexpr uint64_t kMaxManifestBytes = uint64_t{64} << 20;
inline constexpr uint64_t kMaxImageExtents = uint64_t{1} << 20;
// Of more stored pages (8 GiB) no checksums are written, one by one.
inline constexpr uint64_t kMaxPageChecksums = uint64_t{1} << 21;
// How long a chain of deltas may be, the one that is opened included.
inline constexpr int kMaxImageChain = 16;

// Where an image came from: for people, not checked. At most
// kMaxProvenanceBytes a text.
inline constexpr size_t kMaxProvenanceBytes = 4096;
struct ImageProvenance {
  std::string tool;    // What wrote the file: "imagetool 0.1".
  std::string source;  // What it was made of: "sqlite3.wasm, memory 0".
  std::string comment;
  std::optional<Digest> source_sha256;  // Of the source's bytes.
  int64_t created_unix_seconds = 0;     // 0: not told.

  friend bool operator==(const ImageProvenance&,
                         const ImageProvenance&) = default;
};

// What the header and the manifest of a file say. That the data match the
// digests is for VerifyImageFile to find out.
struct ImageFileInfo {
  uint32_t version = kImageFileVersion;
  uint64_t file_bytes = 0;  // As `ls -l` has it, holes included.
  uint64_t disk_bytes = 0;  // What the file system has allocated for it.
  uint64_t manifest_offset = 0;
  uint64_t manifest_bytes = 0;
  uint64_t data_offset = 0;  // Page p is at data_offset + p * kPageBytes.

  std::string name;
  uint64_t size_bytes = 0;  // Of the memory.
  // What the file itself stores, ascending. Of a delta: pages that differ from
  // the parent's.
  std::vector<ImageExtent> extents;
  // Of a delta: pages that the parent stores and that are zero here.
  std::vector<PageRun> zeroed;
  // Pages in `extents`.
  uint64_t stored_pages = 0;
  // A checksum (checksum.h) of each of these pages, ascending; empty where the
  // file has none: it was written without them, or it stores more than
  // kMaxPageChecksums, or its manifest had no room.
  std::vector<uint64_t> page_checksums;
  // Of a delta: the content digest of the image that it changes.
  std::optional<Digest> parent;
  // Of the whole image, the parent's part included (see digest.h).
  Digest content;

  WorkingSet::Words written;  // The working set, as bitmaps of pages.
  WorkingSet::Words read;
  ImageProvenance provenance;
};

// Told now and then on the way, from the calling thread. `total_bytes` is
// known from the start.
using ImageProgress =
    std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

// --- Writing -----------------------------------------------------------------

struct WriteImageFileOptions {
  ImageProvenance provenance;
  // Not null: a delta, with the pages that differ from this image only. May not
  // be larger than the image.
  ImageRef parent;
  // False: a file of that name is an error (AlreadyExists).
  bool replace = true;
  // Gives each stored page a checksum, so that a page can be checked without
  // its extent: for images that a page server (serve/) fills other processes
  // with, page by page. Whoever opens the file reads 8 bytes for each page: for
  // 1 GiB that takes some milliseconds.
  bool page_checksums = false;
  // Where `path` is a symbolic link: write to what it leads to. False: replace
  // the link (AtomicFile::Existing says when that is right).
  bool follow_links = true;
  ImageProgress progress;
};

// Writes the image and its working set. The file appears under its name when it
// is whole and on the disk (file and directory synced), or not at all; until
// then it has no name where the file system allows that (atomic_file.h). Mode
// 0444 less the umask. A device or a FIFO is written through. Gives what a
// reader would be told.
absl::StatusOr<ImageFileInfo> WriteImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options = {});

// A file that is written, and whose name is still to be given: for several
// files of which all are to appear, or none. Whatever can be known to fail has
// failed by then: no room, a folder of that name.
class PendingImageFile {
 public:
  // Gives the file its name. The last call.
  absl::StatusOr<ImageFileInfo> Commit() &&;

  PendingImageFile(PendingImageFile&&) noexcept;
  ~PendingImageFile();

 private:
  friend class PendingImageFileMaker;
  struct State;
  explicit PendingImageFile(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

// WriteImageFile without the last step. Dropping the result leaves nothing.
absl::StatusOr<PendingImageFile> PrepareImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options = {});

// --- Opening -----------------------------------------------------------------

struct OpenImageOptions {
  // In place of the name in the file.
  std::optional<std::string> name;

  enum class Backing {
    kFileBacked,  // See the top of this file.
    kCopied,
  };
  Backing backing = Backing::kFileBacked;

  enum class Verify {
    kManifest,  // Header and manifest, whose digests cost nothing to speak of.
    kAll,       // Also every page that the file stores, and of a delta the
                // digest of the whole.
  };
  Verify verify = Verify::kManifest;

  // For a delta: the parent itself, or how to find the file of an image with
  // that content digest. The parent may be a delta in turn. What is found is
  // refused unless its digest is the one asked for.
  ImageRef parent;
  std::function<absl::StatusOr<std::string>(const Digest& content)> find_parent;

  ImageProgress progress;  // Of kCopied and kAll.
};

// Opens a file. FailedPrecondition: a delta, and no parent to be had.
absl::StatusOr<ImageRef> OpenImageFile(const std::string& path,
                                       const OpenImageOptions& options = {});

// Header and manifest, checked as for opening. No parent is needed.
absl::StatusOr<ImageFileInfo> ReadImageFileInfo(const std::string& path);

// Whether everything in the file matches its digest, and nothing lies where the
// file says that there are only zeroes. Of a delta without a parent in the
// options: only what the file has itself. With one, the whole.
absl::StatusOr<ImageFileInfo> VerifyImageFile(
    const std::string& path, const OpenImageOptions& options = {});

// Joins a delta with its parents into a file that needs none. Provenance and
// working set are the delta's.
absl::StatusOr<ImageFileInfo> MergeImageFile(const std::string& path,
                                             const std::string& merged_path,
                                             const OpenImageOptions& options,
                                             bool replace = true);

// --- Shipping ----------------------------------------------------------------

struct PackOptions {
  int level = 9;  // zstd's, 1 to 19.
  bool replace = true;
  ImageProgress progress;
};

// Writes a zstd stream of header, manifest and stored pages, without the holes
// (.ftimg.zst). Memory: a few MiB whatever the file.
absl::Status PackImageFile(const std::string& path,
                           const std::string& packed_path,
                           const PackOptions& options = {});

struct UnpackOptions {
  // Refused when more pages than this are stored: what a few KiB unpack to is
  // up to whoever packed them.
  uint64_t max_stored_bytes = uint64_t{4} << 30;
  bool replace = true;
  ImageProgress progress;
};

// The reverse. Every digest is checked on the way; the file appears when all
// match. Memory: as for packing, and the manifest.
absl::StatusOr<ImageFileInfo> UnpackImageFile(
    const std::string& packed_path, const std::string& path,
    const UnpackOptions& options = {});

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_FILE_H_
