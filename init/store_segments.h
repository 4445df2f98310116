// The pages that an image store holds, each once: its segments, and the index
// by which a page is found in them.
//
// Internal to this folder (image_store.h). Thread-compatible. Not for signal
// handlers.

#ifndef FIRSTTOUCH_INIT_STORE_SEGMENTS_H_
#define FIRSTTOUCH_INIT_STORE_SEGMENTS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/store_directory.h"
#include "firsttouch/init/store_records.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

using PageHash = uint64_t (*)(std::span<const std::byte> page);

// 64 bits of SHA-256.
uint64_t FirstOfSha256(std::span<const std::byte> page);

// The hashes of an image's stored pages, ascending. Reads them all.
std::vector<uint64_t> PageHashes(const Image& image, PageHash hash);

class StoreSegments {
 public:
  // The directory outlives it.
  StoreSegments(const StoreDirectory& directory, PageHash page_hash)
      : directory_(directory), page_hash_(page_hash) {}

  // Where pages of an image are.
  struct Placed {
    std::vector<Digest> segments;
    std::vector<StorePart> parts;
    uint64_t shared = 0;      // Pages that were there, or are in it before.
    uint64_t collisions = 0;  // Pages with the hash of one, and other bytes.
  };

  // Splits a new image into pages that are there and a segment of those that
  // are not. `hashes` are its PageHashes. Of a directory, Load comes before;
  // the segment of an image that is not entered then is in nobody's use.
  absl::StatusOr<Placed> Place(const std::string& name, const Image& image,
                               std::span<const uint64_t> hashes);

  // Of a directory also what OpenImageFile says, and DataLoss.
  absl::StatusOr<ImageRef> Find(const Digest& digest);

  // Of a directory: opens what is there, lets go of what is not, and adds the
  // paths of files that cannot be read to `damaged`.
  absl::Status Load(std::set<std::string>& damaged);

  // Takes a segment away. Gives the bytes that became free: 0 where there was
  // none.
  absl::StatusOr<uint64_t> Drop(const Digest& digest);

  // Of what is known; of a directory everything after Load.
  std::vector<Digest> Digests() const;
  uint64_t held_pages() const;

 private:
  struct Segment {
    ImageRef image;
    std::vector<uint64_t> hashes;  // Of its pages, once they are in the index.
  };
  struct Location {
    Digest segment;
    PageIndex page;
  };
  using Segments = std::map<Digest, Segment>;

  absl::StatusOr<Digest> Add(const std::string& name, const Image& image,
                             std::span<const PageIndex> pages,
                             std::vector<uint64_t> hashes);
  // Enters the pages of segments that are not in the index.
  void IndexAll();
  void Index(const Digest& digest, Segment& segment,
             std::vector<uint64_t> hashes);
  void Forget(Segments::iterator segment);

  const StoreDirectory& directory_;
  const PageHash page_hash_;
  Segments segments_;
  absl::flat_hash_map<uint64_t, std::vector<Location>> index_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_STORE_SEGMENTS_H_
