// The names of an image store's images.
//
// Internal to this folder (image_store.h). Of a directory the files are what
// counts. Thread-compatible. Not for signal handlers.

#ifndef FIRSTTOUCH_INIT_STORE_NAMES_H_
#define FIRSTTOUCH_INIT_STORE_NAMES_H_

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/store_directory.h"

namespace firsttouch {

// Of a name. Twice as many hexadecimal digits have to fit into a file's name.
inline constexpr size_t kMaxStoreNameBytes = 80;

class StoreNames {
 public:
  // The directory outlives it.
  explicit StoreNames(const StoreDirectory& directory)
      : directory_(directory) {}

  // What is known so far, with the images' digests; of a directory everything
  // after Load.
  const std::map<std::string, Digest>& all() const { return names_; }
  // Of what is known so far: the names of one image, ascending.
  std::vector<std::string> Of(const Digest& content) const;

  // NotFound: nothing has the name. Of a directory also DataLoss, and what the
  // system says.
  absl::StatusOr<Digest> Find(const std::string& name) const;
  // Gives a name of 1 to kMaxStoreNameBytes bytes to an image, whoever had it.
  absl::Status Set(const std::string& name, const Digest& content);
  absl::Status Drop(const std::string& name);

  // Of a directory: reads what is there, and adds the paths of files that
  // cannot be read to `damaged`.
  absl::Status Load(std::set<std::string>& damaged);

 private:
  const StoreDirectory& directory_;
  std::map<std::string, Digest> names_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_STORE_NAMES_H_
