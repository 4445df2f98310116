// Images whose contents the host makes when they are asked for: computed,
// decompressed, fetched from elsewhere.
//
//   class Fetcher : public PageSource {
//     absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override
//     {
//       return client_.Read(first.offset_bytes(), bytes);
//     }
//   };
//   absl::StatusOr<ImageRef> image = ImageFromSource(
//       {.name = "remote", .size_bytes = 64 << 20},
//       std::make_shared<Fetcher>(...));
//
// On demand (the default): nothing is asked for until a memory, or somebody who
// reads the image, needs a page. The source is then asked for the chunk around
// it, by a thread of the image's own, while the thread that needs it waits.
// Each chunk is asked for once, however many need it at a time, and stays in
// the image's memfd. All at once: the image is built as the other builders do,
// and the source is not kept. Use this for what is needed in whole anyway: it
// is a built image, with less to do at a fault.
//
// ERRORS reach all who wait for the chunk at that time: the fault becomes a
// trap in each thread (TrapInfo::error is the errno that belongs to the status'
// code: EHOSTDOWN for Unavailable, EIO where none does), and MakeReady and
// Image::Read return an error with that errno. Nothing of the page is left in
// the memory, whose slot is as clean for its next lease as any other. Whoever
// needs the chunk later makes the source try again.
//
// What waits for a source: a thread that touches the page, in a signal handler;
// with handler threads, also whatever else the same handler thread serves. At
// bind nobody waits: pages of the working set are asked for early, behind those
// that somebody waits for. A pool without userfaultfd needs all pages at bind
// (Image::PrivateMapping), and so does a caller that copies or writes the
// image.
//
// Fork: the threads are in the process that made the image. In a child its
// pages cannot be read (image.h), nor can a memory start from it: the child
// makes an image of its own. Its copy of the source is destroyed with the
// image.
//
// Kernel: on demand needs userfaultfd with missing faults on shared memory
// (4.11); without it all is fetched at once.

#ifndef FIRSTTOUCH_INIT_PAGE_SOURCE_H_
#define FIRSTTOUCH_INIT_PAGE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

class PageSource {
 public:
  virtual ~PageSource() = default;

  // Writes the contents of whole pages from `first` on into `bytes`, which are
  // zero and page aligned; their number is a multiple of kPageBytes. What is
  // behind the image's size is not kept. Must always give the same bytes: what
  // a memory is restored to is what came first.
  //
  // Called on threads of the image's own, as many at a time as
  // PageSourceOptions::threads, or (all at once) by whoever makes the image.
  // Must not touch memory of a pool that starts from this image.
  virtual absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) = 0;
};

struct PageSourceOptions {
  enum class When {
    kOnDemand,
    kAllAtOnce,
  };
  When when = When::kOnDemand;
  // How many pages the source is asked for at a time, at least 1: neighbours
  // that come for little. kAllAtOnce asks for 256.
  uint64_t chunk_pages = 16;
  // Fetches that run at once, 1 to 64.
  uint32_t threads = 1;
  // Pages that may be other than zero; the source is not asked for the others.
  // Empty: all of them.
  std::span<const PageRun> stored;
};

// Errors: InvalidArgument for an option that does not lie in its bounds, or a
// null source; what the source says, with the image and the page in front
// (kAllAtOnce); ResourceExhausted where no thread can be started; those of the
// builders. Of several images made from one source each asks for itself.
//
// The last ImageRef to go waits for a Fetch that is under way.
absl::StatusOr<ImageRef> ImageFromSource(
    const ImageOptions& options, std::shared_ptr<PageSource> source,
    const PageSourceOptions& source_options = {});

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_PAGE_SOURCE_H_
