// What //bench:serve measures: processes that touch pages of an image, and
// where these come from.
//
// A sample has processes of its own: the guests, forked before time is taken,
// and the servers, which are there before the guests as they are in life. All
// are gone when it is over.

#ifndef FIRSTTOUCH_BENCH_SERVE_GUESTS_H_
#define FIRSTTOUCH_BENCH_SERVE_GUESTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "firsttouch/bench/serve.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {

// The kernel's own way: each guest maps the file.
inline constexpr char kMappingName[] = "file mapping";
// As Firecracker's example: each guest has a server, which maps all of the file
// when the guest comes, and has one thread that places one page for each fault.
inline constexpr char kExampleName[] = "example's way";
// serve/ with default options: with what was recorded, and without.
inline constexpr char kSetName[] = "working set";
// As with a working set, of an image whose digests nobody checks.
inline constexpr char kUncheckedName[] = "set, unchecked";
inline constexpr char kNoSetName[] = "no working set";
// What bounds a working set: the kernel is asked for all that was recorded at
// once, and as many threads as there are processors copy it, by address, with
// nothing looked at or checked.
inline constexpr char kLimitName[] = "limit: copies";
// serve/ without a working set and read-ahead, so that each fault is a page;
// and a loop that does nothing but read a fault and copy a page.
inline constexpr char kPageName[] = "page by page";
inline constexpr char kBareLoopName[] = "bare loop";

// An image all of whose pages are stored, in a file.
class ServedFile {
 public:
  ServedFile(std::string path, uint64_t bytes);

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return words_.size() * kPageBytes; }
  // Where page 0 is in the file.
  uint64_t data_offset() const { return data_offset_; }
  // The first eight bytes of a page.
  uint64_t WordOf(PageIndex page) const { return words_[page.value()]; }

  // What the page cache has of the file.
  uint64_t CachedBytes() const;
  void FillPageCache() const;

 private:
  const std::string path_;
  uint64_t data_offset_ = 0;
  std::vector<uint64_t> words_;
};

// What a guest touches, in order.
struct TouchPattern {
  std::vector<PageIndex> pages;
  // What a server has recorded of a guest that did.
  std::shared_ptr<const std::vector<PageRun>> recorded;
};

// So many pages: in a row, or all over the first half of the image.
TouchPattern RecordPattern(const ServedFile& file, bool sequential,
                           uint64_t pages);

// One sample of the row's way in its situation: sets its numbers. A page with
// other bytes than the image's ends the program.
ServeRow SampleGuests(const ServedFile& file, const TouchPattern& pattern,
                      const ServeRow& row);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SERVE_GUESTS_H_
