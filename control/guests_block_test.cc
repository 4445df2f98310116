#include "firsttouch/control/guests_block.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/init/fake_memfd.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

// The block as another process reads it.
class Reader {
 public:
  Reader() : fd_(DescriptorOf("/memfd:firsttouch-guests:vms")) {
    header_ = Read<GuestsHeader>(0);
  }
  const GuestsHeader& header() const { return header_; }
  GuestInBlock Guest(uint64_t index) const {
    return Read<GuestInBlock>(header_.guests.offset_bytes +
                              index * header_.guests.record_bytes);
  }
  RegionInBlock Region(uint64_t index) const {
    return Read<RegionInBlock>(header_.regions.offset_bytes +
                               index * header_.regions.record_bytes);
  }
  int fd() const { return fd_; }

 private:
  template <typename Record>
  Record Read(uint64_t offset) const {
    Record record = {};
    EXPECT_EQ(pread(fd_, &record, sizeof(record), static_cast<off_t>(offset)),
              static_cast<ssize_t>(sizeof(record)));
    return record;
  }

  const int fd_;
  GuestsHeader header_ = {};
};

std::vector<GuestsBlock::Place> Places(size_t count) {
  std::vector<GuestsBlock::Place> places;
  for (size_t i = 0; i < count; ++i) {
    places.push_back({0x10000 * (i + 1), 0x4000, 0x4000 * i, 4096});
  }
  return places;
}

TEST(GuestsBlockTest, IsASealedMemfdNamedAfterTheServer) {
  auto block = GuestsBlock::Create(RealMemfdCalls(), "vms", 10);
  ASSERT_TRUE(block->published()) << block->why();
  const Reader reader;
  ASSERT_GE(reader.fd(), 0);
  EXPECT_NE(fcntl(reader.fd(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(fcntl(reader.fd(), F_GET_SEALS) & F_SEAL_SHRINK, 0);
  EXPECT_EQ(std::memcmp(reader.header().magic, kGuestsMagic, 8), 0);
  EXPECT_EQ(reader.header().ready, 1u);
  EXPECT_EQ(reader.header().pid, static_cast<uint64_t>(getpid()));
  EXPECT_EQ(reader.header().guests.records, 10u);
  block.reset();
  EXPECT_EQ(DescriptorOf("memfd:firsttouch-guests:vms"), -1);
}

TEST(GuestsBlockTest, AGuestIsThereAsLongAsItsEntry) {
  auto block = GuestsBlock::Create(RealMemfdCalls(), "vms", 10);
  const Reader reader;
  auto first = block->Publish({.number = 7,
                               .pid = 42,
                               .name = "vm",
                               .image_name = std::string(100, 'i'),
                               .image_size_bytes = 1 << 20},
                              Places(2));
  ASSERT_NE(first, nullptr);
  const GuestInBlock guest = reader.Guest(0);
  EXPECT_EQ(guest.number, 7u);
  EXPECT_EQ(guest.sequence % 2, 0u);
  EXPECT_EQ(guest.pid, 42u);
  EXPECT_STREQ(guest.name, "vm");
  EXPECT_EQ(std::string(guest.image_name, 64), std::string(64, 'i'));
  EXPECT_EQ(guest.image_digest_known, 0u);
  ASSERT_EQ(guest.regions, 2u);
  EXPECT_EQ(reader.Region(guest.first_region + 1).start, 0x20000u);
  EXPECT_EQ(reader.Region(guest.first_region + 1).image_offset_bytes, 0x4000u);

  first->Add(1, &RegionInBlock::read_faults);
  first->Add(1, &RegionInBlock::read_faults, 4);
  first->Move(1, 0x90000, 0x1000, 0x2000);
  first->SetWaiting(3);
  const RegionInBlock region = reader.Region(guest.first_region + 1);
  EXPECT_EQ(region.read_faults, 5u);
  EXPECT_EQ(region.start, 0x90000u);
  EXPECT_EQ(region.bytes, 0x1000u);
  EXPECT_EQ(reader.Guest(0).waiting, 3u);
  EXPECT_NE(reader.Guest(0).sequence, guest.sequence);

  first.reset();
  EXPECT_EQ(reader.Guest(0).number, 0u);
}

TEST(GuestsBlockTest, RecordsAreUsedAgainAndBeginAtZero) {
  auto block = GuestsBlock::Create(RealMemfdCalls(), "vms", 2);
  const Reader reader;
  auto first = block->Publish({.number = 1}, Places(3));
  auto second = block->Publish({.number = 2}, Places(5));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(block->Publish({.number = 3}, Places(1)), nullptr) << "two guests";
  first->Add(0, &RegionInBlock::lost);
  first.reset();
  EXPECT_EQ(block->Publish({.number = 4}, Places(4)), nullptr) << "regions";
  auto third = block->Publish({.number = 5}, Places(3));
  ASSERT_NE(third, nullptr);
  const GuestInBlock guest = reader.Guest(0);
  EXPECT_EQ(guest.number, 5u);
  EXPECT_EQ(reader.Region(guest.first_region).lost, 0u);
}

TEST(GuestsBlockTest, WhereThereIsNoMemfdNothingIsPublished) {
  FakeMemfdCalls calls;
  calls.Fail(MemfdOp::kCreate, 0, EPERM);
  const auto block = GuestsBlock::Create(calls, "vms", 10);
  EXPECT_FALSE(block->published());
  EXPECT_THAT(block->why(), HasSubstr("memfd_create: Operation not permitted"));
  EXPECT_EQ(block->Publish({.number = 1}, Places(1)), nullptr);
}

}  // namespace
}  // namespace firsttouch
