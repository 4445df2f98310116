// Many images, in which identical pages are kept once.
//
//   absl::StatusOr<std::unique_ptr<ImageStore>> store =
//       ImageStore::Open({.budget_bytes = uint64_t{1} << 30});
//   absl::StatusOr<ImageRef> image = (*store)->Put("sqlite", **built);
//   ...
//   image = (*store)->Get("sqlite");           // the same one
//
// What is kept: the pages that a new image has and no other image of the store
// has become a segment, an image of just these pages: in memory a sealed memfd,
// in a directory an image file. An image of the store is a list of runs of
// pages of segments, and what is handed out is a file-backed image (image.h)
// over them. So 50 images that share 90 % of their pages take the room of one
// and 49 tenths. Two pages are one when their hashes are equal (64 bits of
// SHA-256) and then their bytes.
//
// A store has a descriptor and a mapping for each segment.
//
// What an image in use costs besides: pages that are fetched into its own memfd
// for memories that share pages (Image::FetchPages, Image::MemfdBytes), and one
// mapping for each run. Above kMaxImagePieces runs it is a copy.
//
// An image is in use while there is an ImageRef of it, in this process or, of a
// directory, in any. It never leaves the store. The others leave, least
// recently used first, when the store holds more than its budget. The pages of
// a segment leave together, with the last image that has one of them.
//
// Names and digests: an image has one content digest (image_digest.h) and any
// number of names. Put under a name that is taken gives the name to the new
// image; the old one keeps its digest, and is the first to leave.
//
// Working sets: Put takes the image's. One that has none and takes its name
// from another image (a new build of the same thing) begins with what of the
// other's set still applies: the pages that have the same bytes in both. What a
// guest teaches an image that was handed out is kept when the last ImageRef
// goes, and in a directory when Flush() is called.
//
// A directory: may be used by many processes at a time, and by many stores of
// one. It has the folders "segments", "images" and "names", and "lock", which
// is held (flock) while any of them changes. Files appear by rename, whole. An
// image in use has a shared lock on its file in "images". The directory must be
// on a local file system, and who can write to it is trusted with what guests
// see; image_file.h has more on that. A first Put reads all segments that are
// there, to know their pages.
//
// A file of the directory that is damaged concerns those images that need it:
// Get says which file it is, all else goes on. Putting the image again writes
// the file anew. What processes left behind that were killed while they wrote
// is taken away by Put and Trim.
//
// Threads: any, also the destructor against ImageRefs that live on. Not for
// signal handlers. Fork: the child may drop its ImageRefs, and must not use the
// store.

#ifndef FIRSTTOUCH_INIT_IMAGE_STORE_H_
#define FIRSTTOUCH_INIT_IMAGE_STORE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

struct ImageStoreOptions {
  // Where the store lives. Empty: in this process's memory. Made (mode 0777
  // less the umask) if it does not exist; the folder above it must.
  std::string directory;
  // How many bytes of pages the store may hold that are not in use.
  uint64_t budget_bytes = std::numeric_limits<uint64_t>::max();
  // The hash of a page; tests give a poor one. Null: of SHA-256.
  uint64_t (*page_hash)(std::span<const std::byte> page) = nullptr;
};

// One image of a store.
struct ImageStoreEntry {
  Digest content;
  std::vector<std::string> names;  // Ascending; may be empty.
  uint64_t size_bytes = 0;
  uint64_t stored_pages = 0;  // As Image::stored_pages().
  uint64_t runs = 0;          // Of pages that lie together in a segment.
  bool in_use = false;        // Of a directory: by any process.
};

// Everything is counted once and at one moment.
struct ImageStoreStats {
  uint64_t images = 0;
  uint64_t images_in_use = 0;
  uint64_t names = 0;
  uint64_t segments = 0;
  // Pages of all images, as often as an image has them.
  uint64_t image_pages = 0;
  // Pages that the store holds, each once; what the budget counts.
  uint64_t held_pages = 0;
  uint64_t held_bytes = 0;
  // By this store since it was opened: pages of images put that were there
  // already; pages with the hash of another and other bytes; images that left
  // for the budget's sake.
  uint64_t pages_shared = 0;
  uint64_t hash_collisions = 0;
  uint64_t images_evicted = 0;
  // Of a directory: files that cannot be read, or do not match their digests,
  // when asked. Nothing else that the statistics count has them.
  uint64_t damaged_files = 0;
};

class ImageStore {
 public:
  // Errors: of a directory, what the system gives, with its errno.
  static absl::StatusOr<std::unique_ptr<ImageStore>> Open(
      const ImageStoreOptions& options);

  ImageStore(const ImageStore&) = delete;
  ImageStore& operator=(const ImageStore&) = delete;
  ~ImageStore();

  // Takes an image in under a name, and gives the store's own: the same
  // contents, over the store's pages. Reads all of the image's stored pages.
  // Afterwards, others leave if the budget is exceeded. A failure changes
  // nothing that can be seen.
  //
  // Errors: InvalidArgument (an empty name, or one of more than 80 bytes);
  // those of the builders and of WriteImageFile.
  absl::StatusOr<ImageRef> Put(const std::string& name, const Image& image);

  // NotFound: no such image. Of a directory also what OpenImageFile says of its
  // files.
  absl::StatusOr<ImageRef> Get(const std::string& name);
  absl::StatusOr<ImageRef> GetByDigest(const Digest& content);

  // Takes a name away. The image stays until its room is wanted. NotFound.
  absl::Status Remove(const std::string& name);

  // Lets images that are not in use leave until no more than `budget_bytes` are
  // held, or all that are left are in use. Gives the bytes that became free.
  absl::StatusOr<uint64_t> Trim(uint64_t budget_bytes);

  // Of a directory: writes working sets that have changed. Otherwise nothing.
  absl::Status Flush();

  // What there is, ascending by digest.
  absl::StatusOr<std::vector<ImageStoreEntry>> List();
  absl::StatusOr<ImageStoreStats> Stats();

 private:
  class State;
  explicit ImageStore(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;  // Shared with the images handed out.
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_STORE_H_
