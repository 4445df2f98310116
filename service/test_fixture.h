// Shared parts of the service's tests.

#ifndef FIRSTTOUCH_SERVICE_TEST_FIXTURE_H_
#define FIRSTTOUCH_SERVICE_TEST_FIXTURE_H_

#include <setjmp.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/plain_supply.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/service_with_kernel.h"
#include "firsttouch/service/supply_choice.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/probe.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "gtest/gtest.h"

namespace firsttouch {

// One way of supplying memory. The contract is the same for each.
struct Way {
  Backing backing;
  Resolve resolve;
  // Unset: chosen by the service, and an image's first lease is not tracked.
  std::optional<Tracking> tracking = Tracking::kSignal;
  Supply supply = Supply::kUserfaultfd;

  // Null: what the service opens for `supply`.
  SupplyOpener open_supply = nullptr;

  // The kernel places the pages.
  bool by_mappings() const { return IsMappings(supply); }
};

// The options that ask a service for `way`.
inline SupplyChoice Asking(const Way& way, uint32_t handler_threads = 1) {
  return ChoiceOf(way.supply, way.backing, way.resolve, way.tracking,
                  handler_threads);
}

inline constexpr Way kMappingsDropWay{Backing::kShared, Resolve::kInThread,
                                      std::nullopt, Supply::kMappingsDrop};
inline constexpr Way kMappingsScanWay{Backing::kShared, Resolve::kInThread,
                                      std::nullopt, Supply::kMappingsScan};

// The reference supply (plain_supply.h).
inline constexpr Way kPlainWay{Backing::kShared, Resolve::kInThread,
                               std::nullopt, Supply::kMappingsDrop,
                               &OpenPlainSupply};

inline absl::StatusOr<std::unique_ptr<Service>> CreateService(
    const Way& way, ServiceOptions options, Kernel& kernel = RealKernel()) {
  if (way.open_supply == nullptr) {
    return CreateService(std::move(options), kernel);
  }
  return ServiceMaker::Create(std::move(options), kernel, way.open_supply);
}

inline std::string WayName(const testing::TestParamInfo<Way>& info) {
  if (info.param.open_supply == &OpenPlainSupply) return "Plain";
  if (info.param.supply == Supply::kMappingsDrop) return "MappingsDrop";
  if (info.param.supply == Supply::kMappingsScan) return "MappingsScan";
  const Way& way = info.param;
  return std::string(way.backing == Backing::kShared ? "Shared" : "Copied") +
         (way.resolve == Resolve::kInThread ? "InThread" : "HandlerThread") +
         (!way.tracking.has_value()           ? "Chosen"
          : *way.tracking == Tracking::kAsync ? "Async"
                                              : "");
}

inline auto AllWays() {
  return testing::Values(
      Way{Backing::kShared, Resolve::kInThread},
      Way{Backing::kCopied, Resolve::kInThread},
      Way{Backing::kShared, Resolve::kHandlerThread},
      Way{Backing::kCopied, Resolve::kHandlerThread},
      Way{Backing::kShared, Resolve::kInThread, Tracking::kAsync},
      Way{Backing::kShared, Resolve::kHandlerThread, Tracking::kAsync},
      Way{Backing::kShared, Resolve::kInThread, std::nullopt},
      Way{Backing::kCopied, Resolve::kInThread, std::nullopt}, kMappingsDropWay,
      kMappingsScanWay);
}

// What this kernel and user allow; probed once.
inline const UffdFacts& MachineFacts() {
  static const UffdFacts& facts = *new UffdFacts(Probe(RealKernel()));
  return facts;
}

// Whether handler threads poison a page that is to trap; otherwise they make it
// inaccessible.
inline bool TrapsByPoison() {
  return (MachineFacts().features & kUffdFeaturePoison) != 0 &&
         !MayLogPoisonedPages();
}

inline bool HasPagemapScan() { return MachineFacts().pagemap_scan_error == 0; }

// What the machine lacks for `way`; empty where it lacks nothing. This asks the
// kernel, not Service: where a Service refuses what the machine allows, its
// tests must fail, not be skipped.
inline std::string MissingFor(const Way& way) {
  const UffdFacts& facts = MachineFacts();
  constexpr char kNoScan[] = "PAGEMAP_SCAN (Linux 6.7)";
  if (way.by_mappings()) {
    return way.supply == Supply::kMappingsScan && !HasPagemapScan() ? kNoScan
                                                                    : "";
  }
  if (!facts.can_open) return "userfaultfd";
  uint64_t needed = kUffdFeaturePagefaultFlagWp;
  if (way.resolve == Resolve::kInThread) needed |= kUffdFeatureSigbus;
  if (way.backing == Backing::kShared) {
    // WP_UNPOPULATED is the sign of a kernel whose UFFDIO_CONTINUE protects.
    needed |= kUffdFeatureMissingShmem | kUffdFeatureMinorShmem |
              kUffdFeatureWpHugetlbfsShmem | kUffdFeatureWpUnpopulated;
  }
  if (way.tracking == Tracking::kAsync) {
    needed |= kUffdFeatureWpAsync;
    if (!HasPagemapScan()) return kNoScan;
  }
  const uint64_t missing = needed & ~facts.features;
  return missing == 0 ? "" : "userfaultfd's " + UffdFeatureNames(missing);
}

// Judges a child's output: "" where all was well, "skip: " and what this
// machine lacks, or what was wrong. The last step of a test.
inline void ExpectWell(const ChildResult& child) {
  if (child.output.rfind("skip: ", 0) == 0) GTEST_SKIP() << child.output;
  EXPECT_EQ(child.output, "");
  EXPECT_EQ(child.signal, 0);
}

// The trap that TrapOf() is waiting for, per thread.
struct CaughtTrap {
  sigjmp_buf jump;
  bool armed = false;
  TrapInfo info;
};

inline CaughtTrap& ThisThreadsTrap() {
  static thread_local CaughtTrap trap;
  return trap;
}

// A trap callback for TrapOf().
inline TrapAction JumpOutOfTrap(const TrapInfo& info) {
  CaughtTrap& caught = ThisThreadsTrap();
  if (!caught.armed) return TrapAction::kUnhandled;
  caught.armed = false;
  caught.info = info;
  siglongjmp(caught.jump, 1);
}

// Runs `body`, which must have nothing to destroy when it traps. Returns the
// trap, or nullopt when there was none.
inline std::optional<TrapInfo> TrapOf(absl::FunctionRef<void()> body) {
  // The mask is not saved: the test also checks that it is right after a trap.
  if (sigsetjmp(ThisThreadsTrap().jump, 0) == 0) {
    ThisThreadsTrap().armed = true;
    body();
    ThisThreadsTrap().armed = false;
    return std::nullopt;
  }
  return ThisThreadsTrap().info;
}

inline uint8_t Load(const Memory& memory, uint64_t offset) {
  return static_cast<uint8_t>(
      reinterpret_cast<volatile std::byte*>(memory.base())[offset]);
}

inline void Store(const Memory& memory, uint64_t offset, uint8_t value) {
  reinterpret_cast<volatile std::byte*>(memory.base())[offset] =
      std::byte{value};
}

// An image of `pages` pages. Each byte is a mix of its offset and its page's
// number, never zero; each page whose number is in `holes` is zero.
inline ImageRef PatternImage(const std::string& name, uint64_t pages,
                             const std::vector<uint64_t>& holes = {}) {
  std::vector<std::byte> bytes(pages * kPageBytes);
  for (uint64_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::byte(
        1 +
        (i / kPageBytes * 31 + i % kPageBytes * 7 + name.size() * 13) % 251);
  }
  for (uint64_t hole : holes) {
    memset(bytes.data() + hole * kPageBytes, 0, kPageBytes);
  }
  absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = name, .size_bytes = bytes.size()}, std::span(bytes));
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *image : nullptr;
}

// The same image as a file, from which nothing is copied before it is touched.
inline ImageRef FromFile(const ImageRef& image) {
  const std::string path =
      testing::TempDir() + "/" + std::to_string(image->id()) + ".ftimg";
  absl::StatusOr<ImageFileInfo> written = WriteImageFile(*image, path);
  EXPECT_TRUE(written.ok()) << written.status();
  absl::StatusOr<ImageRef> opened = OpenImageFile(path);
  EXPECT_TRUE(opened.ok()) << opened.status();
  unlink(path.c_str());
  return opened.ok() ? *opened : nullptr;
}

// The bytes that a memory of `size_bytes` with this image starts with.
inline std::vector<uint8_t> InitialBytes(const ImageRef& image,
                                         uint64_t size_bytes) {
  std::vector<uint8_t> bytes(size_bytes);
  for (uint64_t page = 0; image != nullptr && page < image->pages().value();
       ++page) {
    const uint64_t offset = page * kPageBytes;
    memcpy(bytes.data() + offset, image->PageBytes(PageIndex(page)),
           std::min<uint64_t>(kPageBytes, size_bytes - offset));
  }
  return bytes;
}

// The first offset at which the memory differs from `expected`, or nullopt.
inline std::optional<uint64_t> FirstDifference(
    const Memory& memory, const std::vector<uint8_t>& expected) {
  if (memory.size_bytes() != expected.size()) return memory.size_bytes();
  if (memcmp(memory.base(), expected.data(), expected.size()) == 0) {
    return std::nullopt;
  }
  for (uint64_t i = 0; i < expected.size(); ++i) {
    if (Load(memory, i) != expected[i]) return i;
  }
  return std::nullopt;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_TEST_FIXTURE_H_
