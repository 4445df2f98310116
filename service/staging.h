// The staging area of a pool: memory in which a thread keeps copies of image
// granules ready, so that a first write to one moves pages (UFFDIO_MOVE, Linux
// 6.8) instead of copying them.
//
// What is kept is what was asked for: a granule that was written to and not
// found here is copied for the next one who writes to it, and a copy that was
// taken is made again. A cell serves other granules when they were missed many
// times while nobody wanted the one in it, or when its image is gone.
//
// The area is private anonymous memory that a forked child does not have, and
// registered with the pool's userfaultfd, so that only fill calls write to it:
// the bytes in it are the image's.
//
// Threads: Use() and the accessors from any. What the fault path does is in
// staged_cells.h.

#ifndef FIRSTTOUCH_SERVICE_STAGING_H_
#define FIRSTTOUCH_SERVICE_STAGING_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/staged_cells.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {

class Staging {
 public:
  // Maps the area, at most `bytes` of it, and starts the thread, which is named
  // "ft-stage:" and `name`, cut to what the kernel takes, with all signals
  // blocked. `uffd` must outlive the object and have kUffdFeatureMove;
  // `granule_pages` is a power of two.
  //
  // Errors: InvalidArgument where `bytes` has no room for one set of cells or
  // is above kMaxBytes; ResourceExhausted where no thread can be had; what
  // mmap(2), madvise(2) and UFFDIO_REGISTER give.
  static absl::StatusOr<std::unique_ptr<Staging>> Start(Kernel& kernel,
                                                        const Uffd& uffd,
                                                        const std::string& name,
                                                        uint64_t bytes,
                                                        uint64_t granule_pages);

  static constexpr uint64_t kMaxBytes = uint64_t{16} << 30;

  // Ends the thread, then unmaps the area. No fault may be under way.
  ~Staging();

  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // What to ask ClaimStaged() for granules of `image` by; 0 where it has none
  // here: it is null, or its pages come from a PageSource. The image is not
  // kept alive. Not in a signal handler.
  uint64_t Use(const ImageRef& image);

  StagedCells& cells() { return cells_; }
  // Of the area.
  uint64_t bytes() const {
    return cells_.sets * StagedCells::kWays * cells_.cell_pages * kPageBytes;
  }
  // Of the copies that are ready now.
  uint64_t ready_bytes() const;

 private:
  Staging(Kernel& kernel, const Uffd& uffd) : kernel_(kernel), uffd_(uffd) {}

  absl::Status Map(uint64_t bytes, uint64_t granule_pages,
                   const std::string& name);
  void Run();
  void Tidy();
  // Frees the cells of images that are gone, where some may be.
  void ForgetGoneImages();
  void TidySet(uint64_t set);
  void Grant(uint64_t set, uint64_t image_id, uint64_t chunk);
  // Null where it is gone.
  ImageRef Find(uint64_t image_id);
  // Of a cell that is kFilling: makes it ready for that chunk of the image, or
  // empty.
  void Fill(StagedCell& cell, const ImageRef& image, uint64_t chunk);
  // Gives its pages back. False: that failed.
  bool Drop(StagedCell& cell);

  Kernel& kernel_;
  const Uffd& uffd_;
  StagedCells cells_;
  std::unique_ptr<StagedCell[]> cell_records_;
  std::unique_ptr<std::atomic<uint64_t>[]> work_;
  // Wishes of each set that found no room.
  std::vector<uint64_t> misses_;

  Mutex mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<const Image>> images_
      ABSL_GUARDED_BY(mutex_);
  bool images_changed_ ABSL_GUARDED_BY(mutex_) = false;

  // A futex.
  std::atomic<uint32_t> ending_{0};
  std::thread thread_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STAGING_H_
