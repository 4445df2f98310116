// What a file-backed image has beside a built one. Internal to this folder.

#ifndef FIRSTTOUCH_INIT_IMAGE_ON_DEMAND_H_
#define FIRSTTOUCH_INIT_IMAGE_ON_DEMAND_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_fetch.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/descriptor_pin.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {

// Pages of an image, and the file that they are in, one after the other.
struct ImagePiece {
  PageRun pages;
  int fd = -1;
  uint64_t offset_bytes = 0;  // Of the first page, in the file.
  // Keeps the descriptor open.
  std::shared_ptr<const void> keeper;
};

// The threads of a PageSource, as an image sees them.
class EarlyFetch {
 public:
  virtual ~EarlyFetch() = default;
  // Asks for the chunks of pages [first, end), behind those that somebody
  // waits for.
  virtual void FetchEarly(uint64_t first, uint64_t end) = 0;
};

struct Image::OnDemand {
  explicit OnDemand(Kernel& the_kernel) : kernel(the_kernel) {
    fetch.kernel = &kernel;
  }

  Kernel& kernel;
  // A child of fork(2) makes the memfd and the view anew, since the parent's
  // userfaultfd fills only the parent's memory, and none once that is gone.
  const ProcessMark made_by = ProcessMark::Here();
  std::vector<ImagePiece> pieces;  // Ascending.

  // Made by the first OnDemandMemfd(). The view is a shared mapping of the
  // memfd, registered with the userfaultfd, through which UFFDIO_COPY places
  // pages in the file. It is mapped for reading only: no stray write of this
  // process gets in by it. Nobody reads it either, since a missing page would
  // wait for a handler that is not there.
  Mutex mutex;
  std::optional<Uffd> uffd ABSL_GUARDED_BY(mutex);
  // A second reference to it where the view is read: without a userfaultfd a
  // page that is not there yet would read as zeroes.
  DescriptorPin pin ABSL_GUARDED_BY(mutex);
  bool complete ABSL_GUARDED_BY(mutex) = false;

  std::atomic<int> memfd{-1};
  ImageFetch fetch;
  // Of an image with a PageSource: then there are no pieces, and what is above
  // is there from the start. The view is also what the image is read through.
  std::shared_ptr<EarlyFetch> source;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_ON_DEMAND_H_
