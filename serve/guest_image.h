// An image as a server reads it: for any number of guests at once, and only
// bytes that are known to be right.
//
// The bytes are those of the image's one mapping, so that all guests share what
// the page cache has. What can fail on the way is an answer and never a signal
// or a zero: a page source that fails, a file that is cut short, an extent
// whose digest is wrong.
//
//   absl::StatusOr<std::shared_ptr<GuestImage>> image =
//       GuestImage::OpenFile("/var/lib/vm/base.ftimg");
//   if (!(*image)->IsReady(page, PageCount(1))) {
//     absl::Status ready = (*image)->MakeReady(page, PageCount(1));
//     ...
//   }
//   ... (*image)->image().data() + page.offset_bytes() ...
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_GUEST_IMAGE_H_
#define FIRSTTOUCH_SERVE_GUEST_IMAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// Copies bytes of this process, and says EFAULT where reading them would be a
// SIGBUS (a mapped file that was cut short). 0, or an errno.
int ReadMapped(const std::byte* from, std::span<std::byte> into);

// kHugePageBytes of zeroes, page aligned; for the life of the process.
const std::byte* ZeroBytes();

class GuestImage {
 public:
  // Serves an image whose bytes are right as they are: a built one, one with a
  // page source.
  static std::shared_ptr<GuestImage> Create(ImageRef image);

  // Serves an image that knows the digest of its content (one of a store). All
  // of it is checked when its first page is wanted; where the digest is wrong,
  // no page is ready from then on.
  static std::shared_ptr<GuestImage> CreateChecked(ImageRef image);

  // Opens an image file. Each page is checked against its checksum, when it is
  // first wanted; in a file without checksums (an old one) each extent against
  // its digest. Of a delta, so are those of its parents.
  // Errors: those of OpenImageFile and ReadImageFileInfo; InvalidArgument for
  // `options.parent`, whose file is not known (say options.find_parent);
  // Unavailable if the file was replaced meanwhile.
  static absl::StatusOr<std::shared_ptr<GuestImage>> OpenFile(
      const std::string& path, const OpenImageOptions& options = {});

  GuestImage(const GuestImage&) = delete;
  GuestImage& operator=(const GuestImage&) = delete;

  const Image& image() const { return *image_; }
  uint64_t bytes() const { return image_->pages().bytes(); }
  // Whether the file has a checksum for each page.
  bool has_page_checksums() const {
    return !files_.empty() && !files_.front().checksums.empty();
  }

  // Whether the stored pages of the range can be copied at once, without
  // waiting for a page source or for a check of their digest. (A file's pages
  // may have to come from a disk all the same.) The range may reach past the
  // image's end.
  bool IsReady(PageIndex first, PageCount pages) const;

  // Makes them so, and waits as long as it takes. Errors: DataLoss for a page
  // whose checksum, or an extent whose digest, is wrong, or which cannot be
  // read, with the image's name, the pages and the file; of a page source what
  // it answered. A later call tries again.
  absl::Status MakeReady(PageIndex first, PageCount pages);

  // Has the kernel read what these pages need from files, all at once, and
  // waits for none of it. (What is in the page cache is known to the owner of
  // the files only; others have no more read than what is not ready.) Fast
  // where the runs ascend.
  void BeginReading(std::span<const PageRun> runs) const;

  // One copy for all guests that have the same pages placed early. Whoever asks
  // for others does not share with those before it. `first`: nobody has them
  // yet.
  std::shared_ptr<const std::vector<PageRun>> Shared(std::vector<PageRun> runs,
                                                     bool& first);

 private:
  // One file of the image: itself, its parent, and so on. The bytes of its
  // extents are read through the image that was opened from it.
  struct File {
    ImageRef image;
    std::string path;
    std::vector<ImageExtent> extents;  // Ascending.
    PageMap own;                       // The pages of the extents.
    PageMap zeroed;
    // Of each page of the extents, ascending. Empty: extents are checked.
    std::vector<uint64_t> checksums;
    // For each extent, how many pages those before it have.
    std::vector<uint64_t> pages_before;
    // Bits: whether this page of the extents, or this extent, was found right.
    std::unique_ptr<std::atomic<uint64_t>[]> checked;
  };

  explicit GuestImage(ImageRef image) : image_(std::move(image)) {}

  absl::Status AddFile(ImageRef image, const std::string& path);
  // For calls on the mapping.
  std::byte* AddressOf(uint64_t page) const;
  // Where the bytes of a stored page are; without a file where nothing has
  // them.
  struct Place {
    const File* file = nullptr;
    size_t extent = 0;
    // Pages from here on that the extent has, and no other file of the image.
    PageCount pages{0};
    // The bits of File::checked for them: one for each, or one for all.
    uint64_t first_bit = 0;
    uint64_t bits = 0;
  };
  // Whether all of some pages of the runs are in the page cache and ready.
  bool SeemsReadAndReady(std::span<const PageRun> runs) const;
  // At most `end`.
  Place PlaceOf(PageIndex page, PageIndex end) const;
  static bool IsChecked(const Place& place);
  // Pages from `page` on; makes IsChecked(place) true.
  absl::Status CheckPages(PageIndex page, const Place& place) const;
  absl::Status CheckExtent(const Place& place) const;
  absl::Status CheckWhole();

  const ImageRef image_;
  // CreateChecked() only.
  bool whole_ = false;
  std::atomic<bool> whole_is_right_{false};
  Mutex whole_mutex_;
  absl::Status whole_wrong_ ABSL_GUARDED_BY(whole_mutex_);
  // Empty: nothing is checked.
  std::vector<File> files_;

  Mutex shared_mutex_;
  // As long as a guest has it.
  std::weak_ptr<const std::vector<PageRun>> shared_
      ABSL_GUARDED_BY(shared_mutex_);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_GUEST_IMAGE_H_
