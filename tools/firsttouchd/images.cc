#include "firsttouch/tools/firsttouchd/images.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/touch_file.h"

namespace firsttouch::firsttouchd {
namespace {

absl::StatusOr<std::shared_ptr<GuestImage>> OpenFile(const Image& image) {
  std::map<Digest, std::string> parents;
  for (const std::string& path : image.parent()) {
    absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
    if (!info.ok()) return info.status();
    parents[info->content] = path;
  }
  OpenImageOptions options;
  options.find_parent =
      [parents](const Digest& content) -> absl::StatusOr<std::string> {
    const auto found = parents.find(content);
    if (found != parents.end()) return found->second;
    return absl::NotFoundError(
        absl::StrCat("the image needs a parent with the digest ",
                     content.ToHex(), ", which none of --parent has"));
  };
  return GuestImage::OpenFile(image.file(), options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedImage>> ServedImage::Open(
    const Image& image, const std::function<void(const std::string&)>& tell) {
  std::unique_ptr<ServedImage> served(new ServedImage());
  served->touches_path_ = image.touches();
  if (!image.file().empty()) {
    absl::StatusOr<std::shared_ptr<GuestImage>> opened = OpenFile(image);
    if (!opened.ok()) return opened.status();
    served->label_ = image.file();
    served->image_ = *std::move(opened);
    served->save_working_set_ = [image = served->image_, path = image.file()] {
      WriteImageFileOptions write;
      write.parent = image->image().parent();
      write.page_checksums = image->has_page_checksums();
      return WriteImageFile(image->image(), path, write).status();
    };
  } else {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = image.store()});
    if (!store.ok()) return store.status();
    absl::StatusOr<ImageRef> got = (*store)->Get(image.name_in_store());
    if (!got.ok()) return got.status();
    served->label_ = absl::StrCat(image.name_in_store(), " of ", image.store());
    served->store_ = *std::move(store);
    served->image_ = GuestImage::CreateChecked(*std::move(got));
    served->save_working_set_ = [store = served->store_.get()] {
      return store->Flush();
    };
  }
  // Both kinds know it without reading a page.
  served->digest_ = ContentDigest(served->image_->image());
  if (served->touches_path_.empty()) return served;
  absl::StatusOr<std::vector<Touch>> touches = ReadTouchFile(
      served->touches_path_, served->digest_, served->image_->image().pages());
  MutexLock lock(&served->mutex_);
  if (touches.ok()) {
    served->place_first_ =
        std::make_shared<std::vector<PageRun>>(RunsOf(*touches));
  } else if (!absl::IsNotFound(touches.status())) {
    tell(absl::StrCat("the order of touches is not used: ",
                      touches.status().message()));
  }
  return served;
}

std::shared_ptr<const std::vector<PageRun>> ServedImage::place_first() const {
  MutexLock lock(&mutex_);
  return place_first_;
}

void ServedImage::Learn(const Guest& guest) {
  guest.TeachWorkingSet();
  std::vector<Touch> touches = guest.Touches();
  if (touches.empty()) return;
  MutexLock lock(&mutex_);
  place_first_ = std::make_shared<std::vector<PageRun>>(RunsOf(touches));
  touches_ = std::move(touches);
  learned_ = true;
}

absl::Status ServedImage::Save() {
  std::vector<Touch> touches;
  {
    MutexLock lock(&mutex_);
    if (!learned_) return absl::OkStatus();
    learned_ = false;
    touches = std::move(touches_);
  }
  if (!touches_path_.empty()) {
    if (absl::Status written = WriteTouchFile(touches_path_, digest_, touches);
        !written.ok()) {
      return written;
    }
  }
  return save_working_set_();
}

}  // namespace firsttouch::firsttouchd
