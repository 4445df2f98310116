// What an image store knows of each of its images: which pages of which
// segments it is made of, its working set, and whether somebody uses it.
//
// Internal to this folder (image_store.h). Of a directory the files are what
// counts: a record is read again each time that it is asked for, since another
// process may have removed it, and put it again as other parts.
//
// Thread-compatible. Not for signal handlers.

#ifndef FIRSTTOUCH_INIT_STORE_RECORDS_H_
#define FIRSTTOUCH_INIT_STORE_RECORDS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/store_directory.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// A stretch of an image's pages that lie together in a segment.
struct StorePart {
  PageRun pages;
  uint64_t segment = 0;  // In StoreRecord::segments.
  PageIndex source;      // Its first page there.
};

struct StoreRecord {
  Digest content;
  std::string name;  // That it was first put under.
  uint64_t size_bytes = 0;
  std::vector<Digest> segments;
  std::vector<StorePart> parts;  // Ascending.
  WorkingSet::Words written;
  WorkingSet::Words read;
  bool working_set_changed = false;  // Since it was written to the directory.

  std::weak_ptr<const Image> live;
  uint64_t last_use = 0;  // In memory: counts uses.

  uint64_t stored_pages() const;
  // Takes over the image's working set, which the directory does not have yet.
  void KeepWorkingSet(const Image& image);
};

class StoreRecords {
 public:
  // The directory outlives it.
  explicit StoreRecords(const StoreDirectory& directory)
      : directory_(directory) {}

  // What is known so far; of a directory everything after Load.
  const std::map<Digest, StoreRecord>& all() const { return records_; }
  // Whether Load found a record that cannot be read and is not damaged: one of
  // a newer build, or of another user. What segments it needs is not known.
  bool has_unknown() const { return has_unknown_; }

  // Of what is known so far: null if it is not.
  StoreRecord* Known(const Digest& content);
  // NotFound: no such image. Of a directory also DataLoss, and what the system
  // says.
  absl::StatusOr<StoreRecord*> Find(const Digest& content);

  // Enters a record in place of one of the same contents.
  absl::StatusOr<StoreRecord*> Enter(StoreRecord record);
  // Takes a record away. Gives the segments that it was made of.
  absl::StatusOr<std::vector<Digest>> Remove(const Digest& content);

  // Of a directory: reads what is there, lets go of what is not, and adds the
  // paths of records that cannot be read to `damaged`.
  absl::Status Load(std::set<std::string>& damaged);
  // Of a directory: writes the working sets that have changed.
  absl::Status Flush();

  // In memory: that an image is asked for now.
  void NoteUse(StoreRecord& record) { record.last_use = ++uses_; }
  // Of a directory: that this process uses an image from now on, and tells
  // others so while the descriptor is open. In memory: null.
  absl::StatusOr<std::shared_ptr<const int>> Hold(
      const StoreRecord& record) const;
  // Of a directory: by any process. What cannot be asked is in use.
  bool InUse(const StoreRecord& record) const;
  // When it was used last: only to be compared.
  uint64_t LastUse(const StoreRecord& record) const;

 private:
  absl::StatusOr<StoreRecord> Decode(const StoredImageManifest& manifest,
                                     const Digest& content,
                                     const std::string& path) const;

  const StoreDirectory& directory_;
  std::map<Digest, StoreRecord> records_;
  uint64_t uses_ = 0;
  bool has_unknown_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_STORE_RECORDS_H_
