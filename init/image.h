// What the pages of a memory hold before they are written.
//
// An image is a sparse map from page to bytes. Its non-zero pages are stored in
// a memfd; pages that are all zero are holes there and cost nothing. Once built
// (image_builder.h) it never changes: the memfd is sealed, so that not even
// this process can write to it, and any number of memories and threads share it
// through an ImageRef. It lives until the last reference goes.
//
// When not to use it: to look at a memory's present contents (an image is how a
// memory began), or as a general file (only whole pages are kept).
//
// Two kinds. A built image has its pages in its sealed memfd. A file-backed one
// (image_file.h, image_store.h) is a view of pages that are elsewhere: in a
// file, or in other images. It gets a memfd at the first call that asks for
// one, and each page goes there when it is first wanted (OnDemandMemfd,
// FetchPages). What a file-backed image costs, and what it asks of the file, is
// said in image_file.h. A file-backed image may also have a PageSource
// (page_source.h), which makes pages when they are needed: a reader waits for
// that, and must be ready for a source that fails.
//
// Example:
//   std::vector<std::byte> hello(5, std::byte{'x'});
//   absl::StatusOr<ImageRef> image =
//       ImageFromBytes({.name = "hello", .size_bytes = 65536}, hello);
//   if (!image.ok()) return image.status();
//   (*image)->stored_pages();                  // 1
//   (*image)->IsStored(PageIndex(1));          // false: zeroes
//   (*image)->PageBytes(PageIndex(0))[4];      // 'x'
//
// Threads: everything here may be called from any thread at any time. Signals:
// what does not say otherwise only reads memory that was written before the
// image was handed out: no lock, no allocation, no system call, so it may be
// used in a signal handler and on the fault path. Read() may not. Copying or
// dropping an ImageRef may not: the last drop unmaps and closes.
//
// Fork: the child inherits the view and the descriptor (unless it executes
// another program: the descriptor is close-on-exec). It sees the same bytes as
// the parent, since nobody can change them; stored pages stay shared between
// the two, but for those in the memfd of a file-backed image, of which the
// child makes its own when it first asks for it. It may use the image as long
// as it likes, also after the parent's end. Destroying the child's copy does
// not disturb the parent. This differs from the memories of a pool, which the
// child does not have, and from an image with a PageSource: the child can
// destroy that, but neither PageBytes() nor data() may be read there;
// FetchPages() gives ECHILD, and the others fail with that, or as
// CheckProcess() does.
//
// Core dumps: the view is MADV_DONTDUMP. A dump of a process with many images
// does not contain them.
//
// Kernel: memfd_create and seals, Linux 3.17. Where the kernel knows it (6.3)
// the memfd is also sealed against being executed (MFD_NOEXEC_SEAL). The memfd
// of a file-backed image wants F_SEAL_FUTURE_WRITE (5.1) and a userfaultfd on
// shared memory (4.11), less than the minor faults need that it is for (5.14).

#ifndef FIRSTTOUCH_INIT_IMAGE_H_
#define FIRSTTOUCH_INIT_IMAGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

class ImageWriter;
class MemfdCalls;
struct ImageFetch;

// The largest image: 1 TiB of memory (not of stored pages).
inline constexpr uint64_t kMaxImageBytes = PageMap::kMaxPages * kPageBytes;

// One class because builders, files and stores make the same thing, and
// everybody who has one may ask it for each of its pages, wherever they are:
// most methods are a line, and say what the image is.
class Image : public std::enable_shared_from_this<Image> {
 public:
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  ~Image();

  // Tells images apart: unique in this process, never 0, never used again after
  // the image is gone.
  uint64_t id() const { return id_; }

  // As given by the builder's caller. Not unique. The memfd carries it too,
  // behind "firsttouch:" and cut to what the kernel takes (249 bytes in all),
  // where /proc/<pid>/maps and /proc/<pid>/fd show it.
  const std::string& name() const { return name_; }

  // Bytes from offset 0, as declared. May end inside a page: the rest of that
  // page is zero. May be zero: an image of no pages.
  uint64_t size_bytes() const { return size_bytes_; }

  // size_bytes() in pages, rounded up.
  PageCount pages() const { return stored_.pages(); }

  // Whether the page has bytes other than zero. False at or past pages().
  bool IsStored(PageIndex page) const { return stored_.Contains(page); }

  // How many pages are stored: the image's cost in memory, in pages.
  uint64_t stored_pages() const { return stored_.count(); }

  // The set of stored pages, to walk its runs.
  const PageMap& stored() const { return stored_; }

  // The same as words: bit p % 64 of word p / 64, ceil(pages() / 64) words,
  // bits past pages() zero. Null for an image of no pages.
  const uint64_t* stored_words() const { return stored_.words(); }

  // The whole image, pages() * kPageBytes long, page aligned, read-only; null
  // for an image of no pages. ONLY STORED PAGES MAY BE READ through this
  // pointer: a read of a hole gives zeroes but makes the kernel allocate a page
  // for it, which then counts for ever. PageBytes() and Read() have no such
  // trap. Of an image with a PageSource, only pages that FetchPages() has
  // brought may be read: any other is a SIGBUS.
  const std::byte* data() const { return data_; }

  // The kPageBytes bytes of one page: in the view for a stored page, in one
  // shared zero page for any other. Page aligned. Valid as long as the
  // image. Of an image with a PageSource it waits for the page; if the source
  // fails, to read it is a SIGBUS.
  const std::byte* PageBytes(PageIndex page) const;

  // Copies out [offset_bytes, offset_bytes + into.size()).
  //
  // Errors: OutOfRange, naming the range, when it does not end within
  // size_bytes(); `into` is untouched then. Of an image with a PageSource also
  // the errno of FetchPages().
  absl::Status Read(uint64_t offset_bytes, std::span<std::byte> into) const;

  // A memfd, pages() * kPageBytes long, stored pages at their offsets, holes
  // elsewhere; for MAP_PRIVATE mappings of it. Sealed with F_SEAL_SEAL,
  // _SHRINK, _GROW and _WRITE: nobody can change or resize it. Borrowed: do not
  // close it.
  //
  // Of a file-backed image: the first call copies every stored page (any
  // thread; not in a signal handler), and -1 says that it failed;
  // OnDemandMemfd() has the reason. The two functions that follow do without
  // that copy.
  int memfd() const;

  // Like memfd(), for callers that resolve the mapping's faults themselves, and
  // so can bring a page that is missing: of a file-backed image, a stored page
  // may still be a hole. FetchPages fills it. So UFFDIO_CONTINUE fails with
  // EFAULT, and succeeds after FetchPages of the same range. Sealed like the
  // above, with F_SEAL_FUTURE_WRITE for _WRITE: no new mapping can be written
  // to, nor can write(2); the one way in is FetchPages. Where userfaultfd is
  // not to be had, it is filled in whole.
  //
  // Errors: ResourceExhausted (descriptors, memory, address space) and what
  // else memfd_create and userfaultfd give; the next call tries anew.
  absl::StatusOr<int> OnDemandMemfd() const;

  // Puts the stored pages of [first, first + pages) into OnDemandMemfd() where
  // they are not yet; the range may reach past pages(). A page appears whole or
  // not at all, to every reader. Gives 0, or an errno; pages before the one
  // that failed are there. EFAULT: the file has been cut short. EIO: it cannot
  // be read. ENOMEM. EBADF: OnDemandMemfd() was not called. With a PageSource
  // what it answered. Of a built image: 0, at once. Any thread;
  // async-signal-safe (it may wait for a disk, or for the source).
  int FetchPages(PageIndex first, PageCount pages) const noexcept;

  // Of an image with a PageSource: asks for these pages, and does not wait.
  // Otherwise nothing. Any thread, not in a signal handler.
  void FetchEarly(PageIndex first, PageCount pages) const;

  // Whether there is a PageSource.
  bool has_source() const;

  // FailedPrecondition for an image with a PageSource in a child of the process
  // that made it, where it cannot be used; otherwise OK. Any thread, not in a
  // signal handler.
  absl::Status CheckProcess() const;

  // Whether the page can be read without waiting for a PageSource. Any thread;
  // async-signal-safe.
  bool IsFetched(PageIndex page) const noexcept;

  // Of an image with a PageSource: waits until all pages are there, for a
  // caller that then reads them through data(). Otherwise OK. Errors: what
  // FetchPages() gives, with the image's name. Any thread, not in a signal
  // handler.
  absl::Status FetchAll() const;

  // FetchPages for a fault path that keeps no Image; null for a built image.
  // Valid as long as the image.
  const ImageFetch* fetch() const { return fetch_; }

  // A file and where page 0 is in it.
  struct Mapping {
    int fd = -1;
    uint64_t offset_bytes = 0;
  };

  // What to map MAP_PRIVATE where faults are not resolved: complete at any
  // time. Of an image from one file, that file (not shared memory: fit for no
  // minor faults); otherwise memfd(), with its copy, or for a built image
  // without. Borrowed. Errors: as of OnDemandMemfd().
  absl::StatusOr<Mapping> PrivateMapping() const;

  // Whether there is a memfd: false for a file-backed image of which
  // OnDemandMemfd() has not been called.
  bool has_memfd() const;

  // Bytes of memory that the memfds of this image take at present: of a built
  // image its pages, of a file-backed one what has been fetched. 0 where the
  // kernel does not tell. A system call; not in a signal handler.
  uint64_t MemfdBytes() const;

  // Whether this is a file-backed image.
  bool is_file_backed() const { return on_demand_ != nullptr; }

  // Of a delta (OpenImageFile, DeltaOf, Memory::SnapshotDelta) the image whose
  // pages it has where it has none of its own; else null.
  const std::shared_ptr<const Image>& parent() const { return parent_; }

  // The digest of the contents (image_digest.h), if it has been computed or
  // came with the file. Any thread, not in a signal handler.
  std::optional<Digest> known_digest() const;
  void NoteDigest(const Digest& digest) const;

  // ---- For a pool that keeps an image for the next lease ----
  //
  // An ImageRef that a user has is a handle: the image is in use as long as
  // there is one. What Hold() gives keeps the image alive and does not count:
  // its owner should let go when the last handle has gone, of which
  // SetUnusedHook() tells. Any thread, not in a signal handler.

  std::shared_ptr<const Image> Hold() const { return shared_from_this(); }
  // A new handle.
  std::shared_ptr<const Image> Handle() const;
  // Whether there is a handle.
  bool in_use() const { return handles_.load(std::memory_order_seq_cst) != 0; }
  // `hook` is called when the last handle of an image has gone that somebody
  // holds, in the thread that dropped it: wherever that may be, so that it must
  // not wait for what such a thread may be about to do. One for the process.
  static void SetUnusedHook(void (*hook)(const Image& image));

  // What is known of the pages that guests touch; the only part of an image
  // that changes, and none that they can see. Any thread, not in a signal
  // handler.
  WorkingSet& working_set() const { return working_set_; }

 private:
  friend class ImageWriter;
  friend class ImageMapper;
  friend class ImageSourcer;
  struct OnDemand;  // image_on_demand.h

  explicit Image(MemfdCalls& calls);

  MemfdCalls& calls_;
  uint64_t id_ = 0;
  std::string name_;
  uint64_t size_bytes_ = 0;
  PageMap stored_;
  const std::byte* data_ = nullptr;  // Unmapped by the destructor.
  int memfd_ = -1;  // Of a built image. Closed by the destructor.
  // Of a file-backed image, else null.
  std::unique_ptr<OnDemand> on_demand_;
  const ImageFetch* fetch_ = nullptr;  // In *on_demand_.
  // Set before the image is handed out.
  mutable std::shared_ptr<const Image> parent_;
  mutable std::atomic<uint64_t> handles_{0};
  mutable WorkingSet working_set_;
  mutable Mutex digest_mutex_;
  mutable std::optional<Digest> digest_ ABSL_GUARDED_BY(digest_mutex_);
};

using ImageRef = std::shared_ptr<const Image>;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_H_
