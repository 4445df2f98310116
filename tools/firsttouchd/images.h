// The images that firsttouchd serves, and what it keeps beside them.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_IMAGES_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_IMAGES_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/tools/firsttouchd/firsttouchd.pb.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::firsttouchd {

// Threads: any.
class ServedImage {
 public:
  // Opens it, and the touches that are kept of it: a damaged file of touches is
  // told, and not used. Errors: those of GuestImage::OpenFile, ImageStore::Open
  // and ImageStore::Get.
  static absl::StatusOr<std::unique_ptr<ServedImage>> Open(
      const Image& image, const std::function<void(const std::string&)>& tell);

  // What messages and records of guests call it.
  const std::string& label() const { return label_; }
  const std::shared_ptr<GuestImage>& image() const { return image_; }
  // Of its content.
  const Digest& digest() const { return digest_; }

  // What guests are to have placed first: as the last recorded one touched it.
  std::shared_ptr<const std::vector<PageRun>> place_first() const;

  // A recorded guest has ended: what it touched is learned, for Save().
  void Learn(const Guest& guest);
  // Writes what was learned since the last call. Takes as long as the image is
  // large. Errors: of the files.
  absl::Status Save();

 private:
  ServedImage() = default;

  std::string label_;
  std::string touches_path_;  // Empty: not kept.
  std::unique_ptr<ImageStore> store_;
  std::shared_ptr<GuestImage> image_;
  Digest digest_;
  std::function<absl::Status()> save_working_set_;

  mutable Mutex mutex_;
  std::shared_ptr<const std::vector<PageRun>> place_first_
      ABSL_GUARDED_BY(mutex_);
  std::vector<Touch> touches_ ABSL_GUARDED_BY(mutex_);
  bool learned_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_IMAGES_H_
