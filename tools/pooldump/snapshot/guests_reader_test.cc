#include "firsttouch/tools/pooldump/snapshot/guests_reader.h"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"
#include "firsttouch/tools/pooldump/snapshot/test_block.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kStart = 0x7f0000000000;

template <typename Record>
void Put(std::string& block, uint64_t offset, const Record& record) {
  std::memcpy(block.data() + offset, &record, sizeof(record));
}

// Of a server with room for four guests, of which the third is there.
std::string TestGuests() {
  GuestsHeader header = {};
  std::memcpy(header.magic, kGuestsMagic, sizeof(kGuestsMagic));
  header.version = kGuestsVersion;
  header.header_bytes = sizeof(header);
  header.ready = 1;
  header.pid = 5;
  std::strcpy(header.name, "vms");
  header.guests = {sizeof(header), sizeof(GuestInBlock), 4};
  header.regions = {sizeof(header) + 4 * sizeof(GuestInBlock),
                    sizeof(RegionInBlock), 8};
  header.block_bytes = header.regions.offset_bytes + 8 * sizeof(RegionInBlock);
  std::string block(header.block_bytes, '\0');
  Put(block, 0, header);
  GuestInBlock guest = {};
  guest.sequence = 2;
  guest.number = 9;
  guest.first_region = 3;
  guest.regions = 2;
  guest.image_size_bytes = 0x8000;
  guest.image_stored_pages = 6;
  std::strcpy(guest.name, "vm");
  std::strcpy(guest.image_name, "base");
  Put(block, header.guests.offset_bytes + 2 * sizeof(guest), guest);
  RegionInBlock region = {};
  region.start = kStart;
  region.bytes = 0x4000;
  region.page_bytes = 4096;
  region.read_faults = 3;
  region.lost = 1;
  region.pages_early = 2;
  Put(block, header.regions.offset_bytes + 3 * sizeof(region), region);
  region.start += 0x100000;
  region.bytes = 0x8000;
  region.image_offset_bytes = 0x4000;
  Put(block, header.regions.offset_bytes + 4 * sizeof(region), region);
  return block;
}

absl::StatusOr<std::vector<PoolSnapshot>> Guests(const std::string& block) {
  MemoryBytes bytes(block);
  absl::StatusOr<GuestsReader> reader = GuestsReader::Open(bytes);
  if (!reader.ok()) return reader.status();
  return reader->ReadGuests();
}

TEST(GuestsReaderTest, AGuestIsAPoolAndItsRegionsAreSlots) {
  const auto guests = Guests(TestGuests());
  ASSERT_TRUE(guests.ok()) << guests.status();
  ASSERT_EQ(guests->size(), 1u);
  const PoolSnapshot& guest = guests->front();
  EXPECT_EQ(guest.name(), "vm");
  EXPECT_EQ(guest.pool_id(), 9u);
  EXPECT_EQ(guest.base(), kStart);
  EXPECT_TRUE(guest.has_guest());
  ASSERT_EQ(guest.slots_size(), 2);
  EXPECT_EQ(guest.slots(1).base(), kStart + 0x100000);
  EXPECT_EQ(guest.slots(1).size_bytes(), 0x8000u);
  EXPECT_EQ(guest.slots(1).image_name(), "base");
  EXPECT_EQ(guest.slots(1).state(), Slot::HELD);
  EXPECT_EQ(guest.totals().counters().missing_read_faults(), 6u);
  EXPECT_EQ(guest.totals().counters().traps(), 2u);
  EXPECT_EQ(guest.totals().counters().pages_prefilled(), 4u);
  EXPECT_EQ(guest.images(0).stored_pages(), 6u);
}

TEST(GuestsReaderTest, AGuestWithFaultsThatWaitIsStalled) {
  std::string block = TestGuests();
  Put(block,
      sizeof(GuestsHeader) + 2 * sizeof(GuestInBlock) +
          offsetof(GuestInBlock, waiting),
      uint64_t{4});
  const auto guests = Guests(block);
  ASSERT_TRUE(guests.ok() && guests->size() == 1);
  EXPECT_EQ(guests->front().guest().waiting_faults(), 4u);
  EXPECT_EQ(guests->front().slots(0).state_name(), "stalled");
}

TEST(GuestsReaderTest, AddressesAreThoseOfItsRegions) {
  const auto guests = Guests(TestGuests());
  ASSERT_TRUE(guests.ok() && guests->size() == 1);
  const PoolSnapshot& guest = guests->front();
  EXPECT_FALSE(LocateInGuest(guest, kStart - 1).has_value());
  EXPECT_FALSE(LocateInGuest(guest, kStart + 0x4000).has_value());
  const std::optional<Location> last = LocateInGuest(guest, kStart + 0x3fff);
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->page(), 3u);
  EXPECT_EQ(last->image_page(), 3u);
  std::optional<Location> second = LocateInGuest(guest, kStart + 0x103001);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->slot(), 1u);
  EXPECT_EQ(second->image_page(), 7u);
  // Behind the image's end.
  second = LocateInGuest(guest, kStart + 0x104000);
  ASSERT_TRUE(second.has_value());
  EXPECT_FALSE(second->has_image_page());
  EXPECT_EQ(second->page_source(), PAGE_OF_ZEROES);
}

TEST(GuestsReaderTest, AGuestThatComesOrGoesIsLeftOut) {
  std::string block = TestGuests();
  const uint64_t at = sizeof(GuestsHeader) + 2 * sizeof(GuestInBlock);
  Put(block, at, uint64_t{3});
  EXPECT_TRUE(Guests(block)->empty());
  Put(block, at, uint64_t{4});
  EXPECT_EQ(Guests(block)->size(), 1u);
  Put(block, at + 8, uint64_t{0});
  EXPECT_TRUE(Guests(block)->empty());
}

TEST(GuestsReaderTest, OtherBlocksAreRefusedByName) {
  std::string block = TestGuests();
  block[0] = 'X';
  EXPECT_THAT(Guests(block).status().message(), HasSubstr("begins with"));
  block = TestGuests();
  block[8] = 2;
  EXPECT_TRUE(absl::IsFailedPrecondition(Guests(block).status()));
  EXPECT_THAT(Guests(block).status().message(),
              HasSubstr("of server \"vms\" is of version 2"));
  block = TestGuests();
  Put(block, offsetof(GuestsHeader, ready), uint64_t{0});
  EXPECT_TRUE(absl::IsNotFound(Guests(block).status()));
  EXPECT_TRUE(absl::IsDataLoss(Guests("short").status()));
}

// Nothing that a block says is believed.
TEST(GuestsReaderTest, NoWordOfABlockDoesHarm) {
  const std::string right = TestGuests();
  for (size_t at = 0; at < right.size(); at += 8) {
    for (const uint64_t value :
         {std::numeric_limits<uint64_t>::max(), uint64_t{1} << 63,
          uint64_t{1} << 57, uint64_t{4}, uint64_t{1} << 24}) {
      std::string block = right;
      Put(block, at, value);
      const auto guests = Guests(block);
      if (!guests.ok()) continue;
      for (const PoolSnapshot& guest : *guests) {
        LocateInGuest(guest, kStart + 0x1000);
      }
    }
  }
}

}  // namespace
}  // namespace firsttouch::pooldump
