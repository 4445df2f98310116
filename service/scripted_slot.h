// Two slots of a pool that is not there, over a kernel that does nothing and
// writes down what it is asked for: to test what the fault path and a supply do
// to a slot, call by call, without a Service. For tests only.
//
//   class FillerTest : public ScriptedSlotTest {};
//   TEST_F(FillerTest, ...) {
//     UseImage(ImageOf(40, {18}), /*mapped=*/true);
//     ResolveFault(fault_pool_, {.slot = 0, .offset_bytes = ...});
//     EXPECT_THAT(TakeCalls(), ElementsAre("CONTINUE 16+2 WP", ...));
//   }

#ifndef FIRSTTOUCH_SERVICE_SCRIPTED_SLOT_H_
#define FIRSTTOUCH_SERVICE_SCRIPTED_SLOT_H_

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {

class ScriptedSlotTest : public testing::Test {
 protected:
  using Op = FakeKernel::Op;

  static constexpr uint32_t kSlots = 2;
  static constexpr PageCount kPages{1024};
  static constexpr uint64_t kGuardPages = 64;
  static constexpr uint64_t kStridePages = kPages.value() + kGuardPages;
  static constexpr int kUffd = 1001;
  static constexpr int kAsyncUffd = 1002;
  static constexpr int kPagemapFd = 1003;
  // Numbers: nothing is mapped there.
  static constexpr uintptr_t kPoolBase = uintptr_t{0x1234} << 32;
  static constexpr uintptr_t kZeroSource = uintptr_t{0x2345} << 32;

  ScriptedSlotTest() {
    constexpr uint64_t kBytes = PageStates::BytesFor(kPages);
    for (uint32_t i = 0; i < kSlots; ++i) {
      planes_[i].reset(static_cast<std::byte*>(std::aligned_alloc(64, kBytes)));
      memset(planes_[i].get(), 0, kBytes);
      slots_[i].pages = PageStates(planes_[i].get(), kPages);
      slots_[i].base =
          kPoolBase + (kGuardPages + i * kStridePages) * kPageBytes;
    }
    slot_.size_bytes = kPages.bytes();
    slot_.kept_pages = kPages.value();
    fault_pool_.kernel = &kernel_;
    fault_pool_.uffd = kUffd;
    fault_pool_.slots = slots_;
    fault_pool_.name = "scripted";
    fault_pool_.zero_source = kZeroSource;
    PoolEntry& entry = fault_pool_.entry;
    entry.base = kPoolBase;
    entry.bytes = (kGuardPages + kSlots * kStridePages) * kPageBytes;
    entry.first_memory_offset_bytes = kGuardPages * kPageBytes;
    entry.slot_stride_bytes = kStridePages * kPageBytes;
    entry.max_memory_bytes = kPages.bytes();
    entry.unowned_guard_bytes = kPageBytes;
    entry.slots = kSlots;
    entry.first_size_bytes = &slots_[0].size_bytes;
    entry.size_stride_bytes = sizeof(SlotState);
    entry.owner = &fault_pool_;
    EXPECT_EQ(PreparePoolEntry(&entry).ToString(), "OK");
    for (size_t op = 0; op < FakeKernel::kOps; ++op) {
      kernel_.Hook(static_cast<Op>(op), [this](const FakeKernel::Call& call) {
        // Depends on how the tests' process was started.
        if (call.op == Op::kMadvise && call.mode == MADV_UNMERGEABLE) return;
        calls_.push_back(TextOf(call));
        if (on_call_) on_call_(call);
      });
    }
  }

  // Gives the slot memory that can be touched: all pages, zero. A process has
  // it at another address each time.
  void UseRealMemory() {
    memory_.emplace(kPages.bytes());
    slot_.base = memory_->address();
  }
  std::byte* PagePointer(uint64_t page) {
    return reinterpret_cast<std::byte*>(memory_->data()) + page * kPageBytes;
  }

  // An image of `pages` pages, byte 0 of page p being 1 + p % 251; each page
  // whose number is in `holes` is zero.
  static ImageRef ImageOf(uint64_t pages,
                          const std::vector<uint64_t>& holes = {}) {
    std::vector<std::byte> bytes(pages * kPageBytes);
    for (uint64_t page = 0; page < pages; ++page) {
      bytes[page * kPageBytes] = std::byte(1 + page % 251);
    }
    for (const uint64_t hole : holes) bytes[hole * kPageBytes] = std::byte{0};
    absl::StatusOr<ImageRef> image =
        ImageFromBytes({.name = "scripted", .size_bytes = bytes.size()}, bytes);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : nullptr;
  }

  // Has the record say that the slot is bound to the image.
  void UseImage(const ImageRef& image, bool mapped) {
    SetImage(slot_, image);
    slot_.image_mapped = mapped;
  }

  // Has the record say that pages are in a state.
  void Put(uint64_t first, uint64_t pages, PageState state) {
    const bool dirty =
        state == PageState::kDirty || state == PageState::kRetained;
    ForEachWordOf(first, first + pages, [&](uint64_t index, uint64_t bits) {
      PageGroup& group = slot_.pages.group(index);
      if (state != PageState::kMissing) group.present |= bits;
      if (state == PageState::kUntracked) group.untracked |= bits;
      if (dirty) group.dirty |= bits;
      if (state == PageState::kRetained) group.retained |= bits;
      slot_.pages.NoteGroup(index);
    });
    if (state == PageState::kUntracked) slot_.any_untracked = true;
  }

  // The states of pages, a letter each: "." missing, "c" clean, "u" untracked,
  // "d" dirty, "r" retained; capitals where dirty ones are not known to be
  // present.
  std::string States(uint64_t first, uint64_t pages) const {
    std::string text;
    for (uint64_t page = first; page < first + pages; ++page) {
      char letter = ".cudr"[static_cast<int>(slot_.pages.StateOf(page))];
      const PageGroup& group = slot_.pages.GroupOf(page);
      const bool present = (group.present >> (page % kPagesPerGroup) & 1) != 0;
      if (!present && letter == 'd') letter = 'D';
      if (!present && letter == 'r') letter = 'R';
      text += letter;
    }
    return text;
  }

  // Whether the bit of a page is set in a plane.
  bool IsIn(std::atomic<uint64_t> PageGroup::*plane, uint64_t page) const {
    const uint64_t bits = slot_.pages.GroupOf(page).*plane;
    return (bits >> (page % kPagesPerGroup) & 1) != 0;
  }

  // A region of pages of the slot, for FakeKernel::SetPagemap().
  PageRegion Pages(uint64_t first, uint64_t pages, uint64_t categories) const {
    const uint64_t start = slot_.base + first * kPageBytes;
    return {start, start + pages * kPageBytes, categories};
  }

  // The calls since the last time, as TextOf() has them.
  std::vector<std::string> TakeCalls() { return std::exchange(calls_, {}); }

  // "CALL first+pages details", the pages counted from the slot's start.
  std::string TextOf(const FakeKernel::Call& call) const {
    const auto offset = static_cast<int64_t>(call.start - slot_.base);
    const std::string range =
        absl::StrCat(offset / static_cast<int64_t>(kPageBytes), "+",
                     call.bytes / kPageBytes);
    switch (call.op) {
      case Op::kCopy:
        return absl::StrCat("COPY ", range, " from ", SourceText(call.source),
                            (call.mode & kUffdCopyWp) != 0 ? " WP" : "");
      case Op::kZeroPage:
        return absl::StrCat("ZEROPAGE ", range);
      case Op::kContinue:
        return absl::StrCat("CONTINUE ", range,
                            (call.mode & kUffdContinueWp) != 0 ? " WP" : "");
      case Op::kPoison:
        return absl::StrCat("POISON ", range);
      case Op::kWriteProtect:
        return absl::StrCat(
            "WRITEPROTECT ", range,
            (call.mode & kUffdWriteProtectWp) != 0 ? " on" : " off");
      case Op::kWake:
        return absl::StrCat("WAKE ", range);
      case Op::kRegister:
        return absl::StrCat(
            "REGISTER ", range, " on ", UffdText(call.fd),
            (call.mode & kUffdRegisterMissing) != 0 ? " MISSING" : "",
            (call.mode & kUffdRegisterWp) != 0 ? " WP" : "",
            (call.mode & kUffdRegisterMinor) != 0 ? " MINOR" : "");
      case Op::kUnregister:
        return absl::StrCat("UNREGISTER ", range, " on ", UffdText(call.fd));
      case Op::kPagemapScan:
        return absl::StrCat(
            "SCAN ", range,
            (call.mode & kPmScanWpMatching) != 0 ? " and protect" : "");
      case Op::kMmap:
        return absl::StrCat("mmap ", range, call.fd < 0 ? " anonymous" : " fd");
      case Op::kMprotect:
        return absl::StrCat("mprotect ", range,
                            call.mode == PROT_NONE   ? " NONE"
                            : call.mode == PROT_READ ? " R"
                                                     : " RW");
      case Op::kMadvise:
        return absl::StrCat("madvise ", range, " ", AdviceText(call.mode));
      case Op::kProcessMadvise:
        return absl::StrCat("process_madvise ", range, " ",
                            AdviceText(call.mode));
      case Op::kMunlock:
        return absl::StrCat("munlock ", range);
      default:
        return absl::StrCat("operation ", static_cast<int>(call.op));
    }
  }

  FakeKernel kernel_{FakeKernel::kScripted};
  // Called at each call, after it was written down and before it is answered.
  std::function<void(const FakeKernel::Call&)> on_call_;
  SlotState slots_[kSlots];
  SlotState& slot_ = slots_[0];
  FaultPool fault_pool_;

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  std::string SourceText(uintptr_t source) const {
    if (source == kZeroSource) return "zeroes";
    const auto image = reinterpret_cast<uintptr_t>(slot_.image_data);
    return absl::StrCat("image ", (source - image) / kPageBytes);
  }
  static std::string UffdText(int fd) {
    return fd == kUffd ? "uffd" : fd == kAsyncUffd ? "async" : absl::StrCat(fd);
  }
  static std::string AdviceText(uint64_t advice) {
    switch (advice) {
      case MADV_DONTNEED:
        return "DONTNEED";
      case MADV_DONTFORK:
        return "DONTFORK";
      case MADV_DONTDUMP:
        return "DONTDUMP";
      case MADV_NOHUGEPAGE:
        return "NOHUGEPAGE";
      case MADV_WILLNEED:
        return "WILLNEED";
      case kMadvDontNeedLocked:
        return "DONTNEED_LOCKED";
      case kMadvPopulateRead:
        return "POPULATE_READ";
      case kMadvPopulateWrite:
        return "POPULATE_WRITE";
      default:
        return absl::StrCat(advice);
    }
  }

  std::unique_ptr<std::byte, Free> planes_[kSlots];
  std::optional<ScratchMemory> memory_;
  std::vector<std::string> calls_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SCRIPTED_SLOT_H_
