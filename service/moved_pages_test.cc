// What the kernel does with pages by its own choice must not change what a
// lease sees: it swaps them out, collapses an image's pages into huge ones,
// moves them to other frames, merges equal ones. The test makes it do so, with
// each way of supplying memory, while a memory is held and while its slot is
// idle; then it compares all bytes of the memory, and those of the next lease.
//
// The test changes settings of the machine (swap, KSM, khugepaged) and restores
// them. Where it may not, or the kernel moves no page, it is skipped and says
// why. Soft offlining costs the machine a page each time, until it is rebooted;
// so it is only tried on request:
//
//   bazel test //service:moved_pages_test
//       --test_env=FIRSTTOUCH_MAY_OFFLINE_PAGES=1

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/swap.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// <linux/mman.h>.
constexpr int kMadvPageout = 21;       // 5.4
constexpr int kMadvSoftOffline = 101;  // CONFIG_MEMORY_FAILURE

constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;
// Two huge pages, and a rest.
constexpr uint64_t kImagePages = 1100;
constexpr uint64_t kMaxPages = 1300;
constexpr uint64_t kSwapBytes = uint64_t{32} << 20;

// Changes a setting of the machine, and restores it.
class MachineSetting {
 public:
  MachineSetting(std::string path, const std::string& value)
      : path_(std::move(path)) {
    std::ifstream file(path_);
    std::string text;
    if (!std::getline(file, text)) return;
    // "always [madvise] never": what is chosen stands in brackets.
    const size_t chosen = text.find('[');
    before_ = chosen == std::string::npos
                  ? text
                  : text.substr(chosen + 1, text.find(']') - chosen - 1);
    is_set_ = Write(value);
  }
  ~MachineSetting() {
    if (is_set_) Write(before_);
  }
  MachineSetting(const MachineSetting&) = delete;
  MachineSetting& operator=(const MachineSetting&) = delete;

  bool is_set() const { return is_set_; }

 private:
  bool Write(const std::string& value) const {
    std::ofstream file(path_);
    file << value << std::flush;
    return file.good();
  }

  const std::string path_;
  std::string before_;
  bool is_set_ = false;
};

uint64_t NumberIn(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  file >> number;
  return number;
}

// A swap file of the test's own.
class SwapFile {
 public:
  explicit SwapFile(uint64_t bytes)
      : path_(absl::StrCat(testing::TempDir(), "/swap.", getpid())) {
    // mkswap(8): a header of one page, of which these fields matter.
    std::array<char, kPageBytes> header = {};
    const std::array<uint32_t, 2> version_and_last_page = {
        1, static_cast<uint32_t>(bytes / kPageBytes - 1)};
    memcpy(header.data() + 1024, version_and_last_page.data(),
           sizeof(version_and_last_page));
    memcpy(header.data() + kPageBytes - 10, "SWAPSPACE2", 10);
    UniqueFd file(open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                       S_IRUSR | S_IWUSR));
    // Not by ftruncate(2): swap files have no holes.
    const std::vector<char> rest(bytes - kPageBytes);
    if (!file || !WriteAll(file.get(), header.data(), header.size()) ||
        !WriteAll(file.get(), rest.data(), rest.size()) ||
        fsync(file.get()) != 0) {
      error_ = absl::StrCat("a swap file: ", strerror(errno));
      return;
    }
    is_on_ = swapon(path_.c_str(), 0) == 0;
    if (!is_on_) error_ = absl::StrCat("swapon(2): ", strerror(errno));
  }
  ~SwapFile() {
    if (is_on_) swapoff(path_.c_str());
    unlink(path_.c_str());
  }
  SwapFile(const SwapFile&) = delete;
  SwapFile& operator=(const SwapFile&) = delete;

  // Why there is no swap file; empty where there is.
  const std::string& error() const { return error_; }

 private:
  static bool WriteAll(int fd, const char* bytes, size_t size) {
    while (size > 0) {
      const ssize_t written = write(fd, bytes, size);
      if (written <= 0) return false;
      bytes += written;
      size -= static_cast<size_t>(written);
    }
    return true;
  }

  const std::string path_;
  std::string error_;
  bool is_on_ = false;
};

// The sum of one field of /proc/self/smaps over the mappings that overlap
// [start, end).
uint64_t SmapsKib(const char* field, uintptr_t start, uintptr_t end) {
  std::ifstream smaps("/proc/self/smaps");
  const std::string format = absl::StrCat(field, ": %lu kB");
  uint64_t sum = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long first = 0, last = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      inside = first < end && last > start;
    } else if (inside && std::sscanf(line.c_str(), format.c_str(), &kib) == 1) {
      sum += kib;
    }
  }
  return sum;
}

// Whether `done` comes true within some time; a thread of the kernel does the
// work when it gets to it.
template <typename Condition>
bool HappensSoon(Condition done) {
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (!done()) {
    if (absl::Now() > deadline) return false;
    sched_yield();
  }
  return true;
}

// The pages that the kernel is made to work on.
struct Place {
  // The slot: held, or idle and still bound to its last image.
  uintptr_t start;
  uintptr_t end;
  // The image; null where there is none.
  const Image* image;
  // The memfd that holds the image's bytes, or -1.
  int memfd;

  void* address() const { return reinterpret_cast<void*>(start); }
  size_t bytes() const { return end - start; }
};

uint64_t SwapOut(const Place& place) {
  const auto swapped_pages = [&] {
    return SmapsKib("Swap", place.start, place.end) * 1024 / kPageBytes;
  };
  const uint64_t before = swapped_pages();
  if (place.image != nullptr) {
    // The advice skips pages that another mapping maps, too. The image's own
    // view maps them.
    const std::byte* const view = place.image->data();
    madvise(const_cast<std::byte*>(view), kImagePages * kPageBytes,
            MADV_DONTNEED);
  }
  madvise(place.address(), place.bytes(), kMadvPageout);
  const uint64_t after = swapped_pages();
  return after > before ? after - before : 0;
}

// A mapping of an image's memfd in which huge pages can be mapped.
class AlignedView {
 public:
  explicit AlignedView(int memfd)
      : room_(mmap(nullptr, kBytes + kHugePageBytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (room_ == MAP_FAILED || memfd < 0) return;
    const uintptr_t aligned =
        (reinterpret_cast<uintptr_t>(room_) + kHugePageBytes - 1) /
        kHugePageBytes * kHugePageBytes;
    void* const view = mmap(reinterpret_cast<void*>(aligned), kBytes, PROT_READ,
                            MAP_SHARED | MAP_FIXED, memfd, 0);
    if (view != MAP_FAILED) data_ = static_cast<char*>(view);
  }
  ~AlignedView() {
    if (room_ != MAP_FAILED) munmap(room_, kBytes + kHugePageBytes);
  }
  AlignedView(const AlignedView&) = delete;
  AlignedView& operator=(const AlignedView&) = delete;

  static constexpr uint64_t kBytes =
      kImagePages * kPageBytes / kHugePageBytes * kHugePageBytes;

  // Null where there is no such mapping.
  char* data() const { return data_; }

  // The number of pages that are parts of huge ones. Reads a byte of each range
  // that could be one, so that it is mapped; that page is stored in every image
  // here, and present already.
  uint64_t PagesInHugeOnes() const {
    for (uint64_t at = 0; at < kBytes; at += kHugePageBytes) {
      static_cast<void>(static_cast<volatile char*>(data_)[at]);
    }
    const auto start = reinterpret_cast<uintptr_t>(data_);
    return SmapsKib("ShmemPmdMapped", start, start + kBytes) * 1024 /
           kPageBytes;
  }

 private:
  void* const room_;
  char* data_ = nullptr;
};

uint64_t Collapse(const Place& place) {
  // The slot's own pages must not become huge ones.
  madvise(place.address(), place.bytes(), kMadvCollapse);
  const AlignedView view(place.memfd);
  if (view.data() == nullptr) return 0;
  for (uint64_t at = 0; at < AlignedView::kBytes; at += kHugePageBytes) {
    // Refused where it would fill a hole that a userfaultfd is to be told of.
    madvise(view.data() + at, kHugePageBytes, kMadvCollapse);
  }
  return view.PagesInHugeOnes();
}

uint64_t LetKhugepagedCollapse(const Place& place) {
  const AlignedView view(place.memfd);
  if (view.data() == nullptr) return 0;
  // Advises twice: the thread is told of a mapping that had the advice before.
  madvise(view.data(), AlignedView::kBytes, MADV_HUGEPAGE);
  if (madvise(view.data(), AlignedView::kBytes, MADV_HUGEPAGE) != 0) return 0;
  // The thread may be in the middle of a scan of everything.
  constexpr char kLooks[] =
      "/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans";
  const uint64_t before = NumberIn(kLooks);
  if (!HappensSoon([&] { return NumberIn(kLooks) >= before + 2; })) return 0;
  return view.PagesInHugeOnes();
}

// The frames of the pages of [start, end); 0 for a page without one, and for
// every page without CAP_SYS_ADMIN.
std::vector<uint64_t> Frames(uintptr_t start, uintptr_t end) {
  std::vector<uint64_t> entries((end - start) / kPageBytes);
  const UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const ssize_t bytes = static_cast<ssize_t>(entries.size() * sizeof(uint64_t));
  if (pread(pagemap.get(), entries.data(), static_cast<size_t>(bytes),
            static_cast<off_t>(start / kPageBytes * sizeof(uint64_t))) !=
      bytes) {
    return {};
  }
  for (uint64_t& entry : entries) {
    constexpr uint64_t kPresent = uint64_t{1} << 63;
    constexpr uint64_t kFrame = (uint64_t{1} << 55) - 1;
    entry = (entry & kPresent) != 0 ? entry & kFrame : 0;
  }
  return entries;
}

uint64_t CountMoved(const std::vector<uint64_t>& before,
                    const std::vector<uint64_t>& after) {
  uint64_t moved = 0;
  for (size_t i = 0; i < std::min(before.size(), after.size()); ++i) {
    if (before[i] != 0 && before[i] != after[i]) ++moved;
  }
  return moved;
}

uint64_t Compact(const Place& place) {
  const std::vector<uint64_t> before = Frames(place.start, place.end);
  std::ofstream("/proc/sys/vm/compact_memory") << "1" << std::flush;
  return CountMoved(before, Frames(place.start, place.end));
}

uint64_t SoftOffline(const Place& place) {
  uint64_t moved = 0;
  // A page of the image, and one behind it.
  for (const uint64_t page : {uint64_t{5}, kImagePages + 10}) {
    const uintptr_t at = place.start + page * kPageBytes;
    const std::vector<uint64_t> before = Frames(at, at + kPageBytes);
    if (madvise(reinterpret_cast<void*>(at), kPageBytes, kMadvSoftOffline) ==
        0) {
      moved += CountMoved(before, Frames(at, at + kPageBytes));
    }
  }
  return moved;
}

uint64_t LetKsmMerge(const Place& /*place*/) {
  // Equal pages that may be merged. Once these are merged, pages of the pool
  // would be, too, since they have existed for as long.
  static ScratchMemory& equal = *new ScratchMemory(64 * kPageBytes);
  static uint8_t contents = 0;
  ++contents;
  memset(equal.data(), contents, equal.bytes());
  std::vector<uint64_t> frames;
  const bool merged = HappensSoon([&] {
    frames = Frames(equal.address(), equal.address() + equal.bytes());
    std::sort(frames.begin(), frames.end());
    return frames.size() == 64 && frames.front() == frames.back();
  });
  return merged && frames.front() != 0 ? 64 : 0;
}

struct Mover {
  const char* name;
  // Path and value of what has to be set.
  std::vector<std::pair<std::string, std::string>> settings;
  bool needs_swap = false;
  bool merges = false;
  bool costs_pages = false;
  // A thread of the kernel does it, so not at every opportunity.
  bool is_slow = false;
  // Returns the number of pages that were moved.
  uint64_t (*move)(const Place& place);
};

std::ostream& operator<<(std::ostream& out, const Mover& mover) {
  return out << mover.name;
}

std::vector<Mover> Movers() {
  const std::string huge = "/sys/kernel/mm/transparent_hugepage/";
  const std::string ksm = "/sys/kernel/mm/ksm/";
  return {
      {.name = "swap", .needs_swap = true, .move = SwapOut},
      {.name = "collapse", .move = Collapse},
      {.name = "khugepaged",
       .settings = {{huge + "shmem_enabled", "advise"},
                    {huge + "khugepaged/scan_sleep_millisecs", "0"}},
       .is_slow = true,
       .move = LetKhugepagedCollapse},
      {.name = "compaction", .move = Compact},
      {.name = "soft_offline", .costs_pages = true, .move = SoftOffline},
      {.name = "ksm",
       .settings = {{ksm + "sleep_millisecs", "0"},
                    {ksm + "pages_to_scan", "100000"},
                    {ksm + "run", "1"}},
       .merges = true,
       .is_slow = true,
       .move = LetKsmMerge},
  };
}

// An image whose page p is filled with a byte of its own, never zero, and
// begins with a different byte; each page whose number is in `holes` is zero.
ImageRef LongImage(const std::string& name,
                   const std::vector<uint64_t>& holes = {}) {
  std::vector<std::byte> bytes(kImagePages * kPageBytes);
  for (uint64_t page = 0; page < kImagePages; ++page) {
    const uint64_t value = 1 + (page * 31 + name.size() * 13) % 251;
    std::byte* const start = bytes.data() + page * kPageBytes;
    memset(start, static_cast<int>(value), kPageBytes);
    start[0] = std::byte{static_cast<uint8_t>(1 + page / 251)};
  }
  for (const uint64_t hole : holes) {
    memset(bytes.data() + hole * kPageBytes, 0, kPageBytes);
  }
  absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = name, .size_bytes = bytes.size()}, std::span(bytes));
  return image.ok() ? *image : nullptr;
}

using Case = std::tuple<Way, Mover>;

class MovedPagesTest : public testing::TestWithParam<Case> {
 protected:
  const Way& way() const { return std::get<0>(GetParam()); }
  const Mover& mover() const { return std::get<1>(GetParam()); }

  Place PlaceOf(uintptr_t base, const Image* image) const {
    int memfd = -1;
    if (image != nullptr && image->fetch() == nullptr) {
      memfd = image->memfd();
    } else if (image != nullptr && way().backing == Backing::kShared &&
               !way().by_mappings()) {
      // Pages that are filled on demand are present where leases have read
      // them.
      memfd = image->OnDemandMemfd().value_or(-1);
    }
    return {base, base + kMaxPages * kPageBytes, image, memfd};
  }

  // Returns "" where all is well.
  std::string Leases() const {
    if (mover().merges && prctl(kPrSetMemoryMerge, 1, 0, 0, 0) != 0) {
      return "skip: this kernel has no PR_SET_MEMORY_MERGE";
    }
    absl::StatusOr<std::unique_ptr<Service>> made =
        Service::Create({.name = "moved",
                         .layout = {.instances = 1,
                                    .max_memory_bytes = kMaxPages * kPageBytes,
                                    .guard_after_bytes = 65536},
                         .supply = Asking(way()),
                         .trap_callback = JumpOutOfTrap});
    if (!made.ok()) return made.status().ToString();
    Service& service = **made;
    const std::vector<ImageRef> images = {
        LongImage("whole"), nullptr, LongImage("holes", {3, 4, 700}),
        FromFile(LongImage("a file", {1, kImagePages - 1}))};
    std::mt19937 random(17);
    uint64_t moved = 0;
    // The image is collapsed before anything has mapped it.
    moved += mover().move(PlaceOf(service.base(), images[2].get()));
    for (int cycle = 0; cycle < 16; ++cycle) {
      const std::string when = absl::StrCat("cycle ", cycle, ": ");
      // Uses each image several times in a row, so that what a slot keeps is
      // used again.
      const ImageRef& image = images[static_cast<size_t>(cycle) / 4];
      const uint64_t size_bytes =
          (kImagePages + 20 + random() % 150) * kPageBytes;
      absl::StatusOr<Memory> memory =
          service.Acquire({.image = image, .size_bytes = size_bytes});
      if (!memory.ok()) return when + memory.status().ToString();
      std::vector<uint8_t> model = InitialBytes(image, size_bytes);
      if (std::optional<uint64_t> at = FirstDifference(*memory, model)) {
        return absl::StrCat(when, "byte ", *at, " is another lease's");
      }
      const auto base = reinterpret_cast<uintptr_t>(memory->base());
      const Place place = PlaceOf(base, image.get());
      const auto write = [&](uint8_t value) {
        for (uint64_t writes = random() % 60; writes > 0; --writes) {
          const uint64_t at = random() % model.size();
          Store(*memory, at, value);
          model[at] = value;
        }
      };
      // Moves pages while clean, while changed, and when changed again after
      // that.
      const bool often = !mover().is_slow;
      if (often && cycle % 2 == 0) moved += mover().move(place);
      write(0xee);
      if (often || cycle % 4 == 1) moved += mover().move(place);
      if (cycle % 4 == 2) {
        absl::StatusOr<ImageRef> snapshot = memory->Snapshot("moved");
        if (!snapshot.ok()) return when + snapshot.status().ToString();
        if (InitialBytes(*snapshot, model.size()) != model) {
          return when + "a snapshot shows other bytes";
        }
      }
      if (std::optional<uint64_t> at = FirstDifference(*memory, model)) {
        return absl::StrCat(when, "byte ", *at, " has changed");
      }
      for (const uint64_t past : {size_bytes, kMaxPages * kPageBytes}) {
        if (!TrapOf([&] { Store(*memory, past, 0xbb); })) {
          return absl::StrCat(when, "no trap at ", past);
        }
      }
      if (random() % 2 == 0) {
        absl::Status grown = memory->Grow(size_bytes + 3 * kPageBytes);
        if (!grown.ok()) return when + grown.ToString();
        model.resize(size_bytes + 3 * kPageBytes);
        if (often) moved += mover().move(place);
      }
      write(0xdd);
      if (std::optional<uint64_t> at = FirstDifference(*memory, model)) {
        return absl::StrCat(when, "byte ", *at, " has changed since");
      }
      write(0xcc);
      absl::Status released = memory->Release();
      if (!released.ok()) return when + released.ToString();
      if (often ? cycle % 2 == 1 : cycle % 4 == 2) {
        moved += mover().move(place);
      }
    }
    if (service.Stats().slots_quarantined != 0) return "slots are quarantined";
    return moved == 0 ? "skip: this kernel moved no page" : "";
  }
};

TEST_P(MovedPagesTest, EveryLeaseSeesItsOwnBytes) {
  if (const std::string missing = MissingFor(way()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  if (mover().costs_pages &&
      getenv("FIRSTTOUCH_MAY_OFFLINE_PAGES") == nullptr) {
    GTEST_SKIP() << "FIRSTTOUCH_MAY_OFFLINE_PAGES is not set";
  }
  std::vector<std::unique_ptr<MachineSetting>> settings;
  for (const auto& [path, value] : mover().settings) {
    settings.push_back(std::make_unique<MachineSetting>(path, value));
    if (!settings.back()->is_set()) {
      GTEST_SKIP() << "this user cannot set " << path;
    }
  }
  std::optional<SwapFile> swap;
  if (mover().needs_swap) {
    swap.emplace(kSwapBytes);
    if (!swap->error().empty()) GTEST_SKIP() << swap->error();
  }
  const ChildResult child = RunInChild([this] { return Leases(); });
  ExpectWell(child);
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return WayName({std::get<0>(info.param), 0}) + "_" +
         std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Ways, MovedPagesTest,
                         testing::Combine(AllWays(),
                                          testing::ValuesIn(Movers())),
                         CaseName);

}  // namespace
}  // namespace firsttouch
