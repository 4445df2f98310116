#include "firsttouch/service/slot_record.h"

#include <errno.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "firsttouch/init/image.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class SlotRecordTest : public ScriptedSlotTest {};

TEST_F(SlotRecordTest, TheRecordOfAnImageIsInTheFormThatTheFaultPathReads) {
  const ImageRef image = ImageOf(20, {3});
  SetImage(slot_, image);
  EXPECT_EQ(slot_.image, image);
  EXPECT_EQ(slot_.image_id, image->id());
  EXPECT_EQ(slot_.image_pages, 20u);
  EXPECT_EQ(slot_.image_data, image->data());
  EXPECT_EQ(slot_.image_fetch, nullptr);
  EXPECT_TRUE(IsStored(slot_, 2));
  EXPECT_FALSE(IsStored(slot_, 3));
  EXPECT_FALSE(IsStored(slot_, 20));
  EXPECT_EQ(slot_.counters.binds, 1u);
}

TEST_F(SlotRecordTest, ASlotKeepsAnImageAliveAndIsNoUserOfIt) {
  ImageRef image = ImageOf(20);
  const std::weak_ptr<const Image> alive = image->Hold();
  SetImage(slot_, image);
  image.reset();
  ASSERT_FALSE(alive.expired());
  EXPECT_FALSE(slot_.image->in_use());
  SetImage(slot_, nullptr);
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(slot_.image_id, 0u);
  EXPECT_EQ(slot_.image_pages, 0u);
  EXPECT_EQ(slot_.image_data, nullptr);
  EXPECT_EQ(slot_.image_stored, nullptr);
}

TEST_F(SlotRecordTest, EveryPageHasInitialBytes) {
  const ImageRef image = ImageOf(20, {3});
  SetImage(slot_, image);
  EXPECT_EQ(InitialPage(slot_, 2), image->PageBytes(PageIndex(2)));
  for (const uint64_t zero : {3, 20, 1000}) {
    for (uint64_t i = 0; i < kPageBytes; ++i) {
      ASSERT_EQ(InitialPage(slot_, zero)[i], std::byte{0}) << zero;
    }
  }
}

TEST_F(SlotRecordTest, NothingRefersToAnAbandonedSlot) {
  ImageRef image = ImageOf(20);
  const std::weak_ptr<const Image> alive = image->Hold();
  UseImage(image, /*mapped=*/true);
  image.reset();
  Put(3, 2, PageState::kRetained);
  Put(1000, 2, PageState::kUntracked);
  slot_.pages.group(0).recent |= 1;
  slot_.pages.group(0).previous |= 1;
  slot_.demotion.cold_pages = {1};
  slot_.demotion.due = true;
  slot_.reads_to_teach = true;
  slot_.filled = true;
  slot_.policy = std::make_shared<TrackingPolicy>(Tracking::kAsync, true);
  slot_.mapping_wanted = true;
  slot_.prefill_wanted = true;
  slot_.other_tracking_wanted = true;
  slot_.tracking = Tracking::kAsync;
  slot_.kernel_pages = 20;
  slot_.async.all_marked = true;
  slot_.idle.keeps_fewer = true;
  slot_.growth = {3, 4};
  slot_.window_cycles = 5;
  slot_.window.last_noted_at = 5;
  Abandon(slot_);
  EXPECT_TRUE(alive.expired());
  EXPECT_TRUE(slot_.remap_wanted);
  EXPECT_EQ(States(0, 1024), std::string(1024, '.'));
  EXPECT_EQ(slot_.pages.group(0).recent, 0u);
  EXPECT_EQ(slot_.pages.group(0).previous, 0u);
  EXPECT_FALSE(slot_.any_untracked);
  EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty());
  EXPECT_FALSE(slot_.demotion.due);
  EXPECT_FALSE(slot_.reads_to_teach);
  EXPECT_FALSE(slot_.filled);
  EXPECT_EQ(slot_.policy, nullptr);
  EXPECT_EQ(slot_.image_id, SlotState::kAbandoned);
  EXPECT_EQ(slot_.image_pages, 0u);
  EXPECT_EQ(slot_.image_data, nullptr);
  EXPECT_EQ(slot_.image_stored, nullptr);
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_FALSE(slot_.mapping_wanted);
  EXPECT_FALSE(slot_.prefill_wanted);
  EXPECT_FALSE(slot_.other_tracking_wanted);
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_EQ(slot_.kernel_pages, 0u);
  EXPECT_FALSE(slot_.async.all_marked);
  EXPECT_EQ(slot_.kept_pages, 0u);
  EXPECT_FALSE(slot_.idle.keeps_fewer);
  EXPECT_EQ(slot_.growth.pages + slot_.growth.pages_before, 0u);
  EXPECT_EQ(slot_.window_cycles, 0u);
  EXPECT_EQ(slot_.window.last_noted_at, ~uint32_t{0});
}

TEST_F(SlotRecordTest, ANewWindowHasCountedNothing) {
  slot_.window_cycles = 1;
  slot_.window_changed = 2;
  slot_.window.regular = 3;
  slot_.window.pairs = 4;
  slot_.window.faulted = 5;
  slot_.window.signals = 6;
  slot_.window.windows_to_teach = 7;
  BeginSamplingWindow(slot_);
  EXPECT_EQ(slot_.window_cycles + slot_.window_changed + slot_.window.regular +
                slot_.window.pairs + slot_.window.faulted +
                slot_.window.signals,
            0u);
  // This is no count of one window.
  EXPECT_EQ(slot_.window.windows_to_teach, 7u);
}

TEST_F(SlotRecordTest, AnErrorNamesTheCallTheRangeTheSlotAndThePool) {
  const absl::Status status =
      PagesCallFailed(fault_pool_, slots_[1], EBUSY, "mremap", 2, 3,
                      {.mappings = " (and more)"});
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("mremap of 12288 bytes at offset 8192 of slot 1 in "
                        "pool \"scripted\""));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("(and more)")));
}

TEST_F(SlotRecordTest, AnErrorForWantOfMemoryNamesTheLimits) {
  const absl::Status status = PagesCallFailed(
      fault_pool_, slot_, ENOMEM, "mmap", 2, 3, {.mappings = " (and more)"});
  EXPECT_THAT(std::string(status.message()), HasSubstr("vm.max_map_count"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("(and more)"));
}

TEST_F(SlotRecordTest, ARegionIsWalkedGroupByGroup) {
  std::vector<uint64_t> visits;
  ForEachWordIn(slot_, Pages(62, 67, 0), [&](uint64_t index, uint64_t bits) {
    visits.push_back(index);
    visits.push_back(bits);
  });
  EXPECT_THAT(visits, ElementsAre(0, uint64_t{3} << 62, 1, ~uint64_t{0}, 2, 1));
}

TEST_F(SlotRecordTest, WhereNothingIsToBeWaitedForNobodyWaits) {
  WaitForFills(slot_);
  WaitUntilThawed(slot_);
}

TEST_F(SlotRecordTest, AFillIsWaitedFor) {
  slot_.fills_in_flight = 1;
  std::atomic<bool> waited{false};
  std::thread waiter([&] {
    WaitForFills(slot_);
    EXPECT_EQ(slot_.fills_in_flight, 0u);
    waited = true;
  });
  EXPECT_FALSE(waited);
  slot_.fills_in_flight = 0;
  waiter.join();
  EXPECT_TRUE(waited);
}

}  // namespace
}  // namespace firsttouch
