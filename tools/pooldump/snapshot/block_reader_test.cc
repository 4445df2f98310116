#include "firsttouch/tools/pooldump/snapshot/block_reader.h"

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/block.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/test_block.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using ::testing::HasSubstr;

template <typename Value>
void Put(std::string& block, size_t offset, Value value) {
  std::memcpy(block.data() + offset, &value, sizeof(value));
}

absl::Status StatusOf(const std::string& block) {
  MemoryBytes bytes(block);
  return BlockReader::Open(bytes).status();
}

TEST(PrintableTest, LeavesWhatATerminalTakes) {
  EXPECT_EQ(Printable("plain"), "plain");
  EXPECT_EQ(Printable("zür\xe2\x82\xac\xf0\x9f\x98\x80"),
            "zür\xe2\x82\xac\xf0\x9f\x98\x80");
  EXPECT_EQ(Printable(std::string_view("a\0b", 3)), "a");
  EXPECT_EQ(Printable("a\x1b[31m\nb"), "a?[31m?b");
  EXPECT_EQ(Printable("a\nb\tc", /*lines=*/true), "a\nb?c");
  // Cut, overlong, a surrogate, C1, a mark that turns the line around.
  EXPECT_EQ(Printable("\xc3"), "?");
  EXPECT_EQ(Printable("\xc0\xaf"), "??");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "???");
  EXPECT_EQ(Printable("\xc2\x9b"), "??");
  EXPECT_EQ(Printable("\xe2\x80\xae"), "???");
}

TEST(BlockReaderTest, ReadsAnyRecordLayoutByItsNames) {
  MemoryBytes bytes(TestBlock());
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok()) << reader.status();
  std::vector<std::string> warnings;
  auto pool = reader->ReadPool(warnings);
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_TRUE(warnings.empty());
  PoolSnapshot expected;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      R"pb(
        name: "test"
        pool_id: 4
        format_version: 1
        base: 0x700000000000
        layout {
          instances: 3
          memories_per_instance: 1
          slots: 3
          max_memory_bytes: 1228800
          guard_before_bytes: 8192
          guard_after_bytes: 16384
          granule_bytes: 65536
          page_bytes: 4096
          slot_stride_bytes: 1245184
          reservation_bytes: 3743744
        }
        options {
          supply: "userfaultfd"
          hot_cycles: 60
          resident_budget_bytes: 1048576
        }
        description: "a pool\nof a test\n"
        slots {
          base: 0x700000002000
          state: HELD
          state_name: "held"
          tracking: "async"
          image_id: 7
          image_name: "greeting"
          size_bytes: 409600
          initial_bytes: 368640
          pages { clean: 1 untracked: 1 dirty: 1 hot: 2 changed_lately: 1 }
          counters { traps: 3 handovers: 5 }
        }
        slots {
          slot: 1
          instance: 1
          base: 0x700000132000
          state: FREE
          state_name: "free"
          tracking: "signal"
          pages {}
          counters {}
        }
        slots {
          slot: 2
          instance: 2
          base: 0x700000262000
          state: QUARANTINED
          state_name: "quarantined"
          tracking: "signal"
          pages {}
          counters {}
        }
        totals {
          slots: 3
          free: 1
          held: 1
          quarantined: 1
          size_bytes: 409600
          pages { clean: 1 untracked: 1 dirty: 1 hot: 2 changed_lately: 1 }
          counters { traps: 3 handovers: 5 }
        }
        images {
          id: 7
          name: "greeting"
          size_bytes: 286720
          stored_pages: 60
          digest: "abcd000000000000000000000000000000000000000000000000000000000000"
          slots: 1
          held: 1
        }
      )pb",
      &expected));
  EXPECT_EQ(pool->DebugString(), expected.DebugString());
}

TEST(BlockReaderTest, MapsPages) {
  MemoryBytes bytes(TestBlock());
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok());
  auto map = reader->ReadPages(0);
  ASSERT_TRUE(map.ok());
  std::string runs;
  for (const PageRun& run : map->runs()) {
    absl::StrAppend(&runs, run.first_page(), "+", run.pages(), " ",
                    PageState_Name(run.state()), " ",
                    PageSource_Name(run.source()), "\n");
  }
  EXPECT_EQ(runs,
            "0+1 PAGE_CLEAN PAGE_OF_IMAGE\n"
            "1+1 PAGE_UNTRACKED PAGE_OF_IMAGE\n"
            "2+1 PAGE_DIRTY PAGE_OF_IMAGE\n"
            "3+1 PAGE_HOT PAGE_OF_IMAGE\n"
            "4+66 PAGE_MISSING PAGE_OF_IMAGE\n"
            "70+30 PAGE_MISSING PAGE_OF_ZEROES\n"
            "100+199 PAGE_MISSING PAGE_OUTSIDE\n"
            "299+1 PAGE_HOT PAGE_OUTSIDE\n");
  EXPECT_EQ(reader->ReadPages(1)->runs_size(), 0);
  EXPECT_EQ(
      reader->ReadPages(3).status(),
      absl::NotFoundError("pool \"test\" has no slot 3: its slots are 0 to 2"));
}

TEST(BlockReaderTest, LocatesAddresses) {
  MemoryBytes bytes(TestBlock());
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok());
  EXPECT_FALSE(reader->Contains(kTestBase - 1));
  EXPECT_TRUE(reader->Contains(kTestBase));
  EXPECT_FALSE(reader->Contains(kTestFirstSlot + 3 * kTestStride));
  auto where = reader->Locate(kTestFirstSlot + 3 * 4096 + 1);
  ASSERT_TRUE(where.ok());
  EXPECT_EQ(where->page_state(), PAGE_HOT);
  EXPECT_EQ(where->image_page(), 3u);
  EXPECT_TRUE(where->in_bounds());
  where = reader->Locate(kTestFirstSlot + 299 * 4096);
  EXPECT_EQ(where->page_state(), PAGE_HOT);
  EXPECT_EQ(where->page_source(), PAGE_OUTSIDE);
  EXPECT_FALSE(where->has_image_page());
  where = reader->Locate(kTestFirstSlot + 2 * kTestStride - 1);
  EXPECT_EQ(where->place(), Location::GUARD_UNOWNED);
  EXPECT_EQ(where->slot(), 1u);
  EXPECT_EQ(where->slot_state(), Slot::FREE);
}

TEST(BlockReaderTest, AnotherVersionIsToldApartFromACorruptedBlock) {
  std::string block = TestBlock();
  Put(block, offsetof(ControlHeader, version), uint32_t{2});
  EXPECT_EQ(StatusOf(block),
            absl::FailedPreconditionError(
                "the control block of pool \"test\" is of version 2, and this "
                "pooldump reads version 1: use the pooldump of the firsttouch "
                "that the process was built with"));
  block = TestBlock();
  Put(block, offsetof(ControlHeader, ready), uint64_t{0});
  EXPECT_TRUE(absl::IsNotFound(StatusOf(block)));
}

TEST(BlockReaderTest, ALaterHeaderMayBeLonger) {
  std::string block = TestBlock();
  Put(block, offsetof(ControlHeader, header_bytes),
      uint32_t{sizeof(ControlHeader) + 64});
  EXPECT_TRUE(StatusOf(block).ok());
}

TEST(BlockReaderTest, AStateOfALaterVersionKeepsItsName) {
  std::string block = TestBlock();
  MemoryBytes before(block);
  const ControlHeader header = BlockReader::Open(before)->header();
  std::memcpy(block.data() + header.states.offset_bytes + sizeof(ControlName),
              "frozen\0", 7);
  // And one that has no name.
  Put(block, header.slots.offset_bytes + 2 * header.slots.record_bytes + 4,
      uint32_t{77});
  MemoryBytes bytes(block);
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->ReadSlot(0)->state(), Slot::STATE_UNSPECIFIED);
  EXPECT_EQ(reader->ReadSlot(0)->state_name(), "frozen");
  EXPECT_EQ(reader->ReadSlot(2)->state_name(), "state 77");
}

// Each of these would make a reader that believes it read somewhere else.
TEST(BlockReaderTest, WhatCannotBeRightIsNamed) {
  struct Case {
    size_t offset;
    uint64_t value;
    const char* what;
  };
  constexpr uint64_t kHuge = ~uint64_t{0} - 7;
  const Case cases[] = {
      {0, 0, "it begins with"},
      {offsetof(ControlHeader, block_bytes), 1, "block_bytes is 1"},
      {offsetof(ControlHeader, base), 1, "is not in an address space"},
      {offsetof(ControlHeader, base), kHuge, "is not in an address space"},
      {offsetof(ControlHeader, max_memory_bytes), 0, "max_memory_bytes"},
      {offsetof(ControlHeader, max_memory_bytes), 4096, "offsets"},
      {offsetof(ControlHeader, slot_stride_bytes), 0, "its offsets"},
      {offsetof(ControlHeader, page_bytes), 0, "page_bytes"},
      {offsetof(ControlHeader, slots.offset_bytes), kHuge, "section of slots"},
      {offsetof(ControlHeader, slots.offset_bytes), 4, "section of slots"},
      {offsetof(ControlHeader, slots.record_bytes), kHuge, "section of slots"},
      {offsetof(ControlHeader, slots.records), kHuge, "section of slots"},
      {offsetof(ControlHeader, slots.records), 2, "it has 2 records"},
      {offsetof(ControlHeader, images.record_bytes), 8, "section of images"},
      {offsetof(ControlHeader, pages.offset_bytes), kHuge, "section of pages"},
      {offsetof(ControlHeader, fields.records), kHuge, "section of fields"},
      {offsetof(ControlHeader, fields.records), 0, "it names no field"},
      {offsetof(ControlHeader, states.records), kHuge, "section of states"},
      {offsetof(ControlHeader, planes.groups), 1, "its page states"},
      {offsetof(ControlHeader, planes.group_bytes), 4, "its page states"},
      {offsetof(ControlHeader, planes.group_bytes), 4096, "its page states"},
      {offsetof(ControlHeader, planes.group_offset_bytes), kHuge,
       "its page states"},
      {offsetof(ControlHeader, planes.present), 4096, "its page states"},
      {offsetof(ControlHeader, description.record_bytes), kHuge,
       "its description"},
      {offsetof(ControlHeader, description.offset_bytes), kHuge,
       "its description"},
  };
  for (const Case& one : cases) {
    std::string block = TestBlock();
    Put(block, one.offset, one.value);
    const absl::Status status = StatusOf(block);
    EXPECT_TRUE(absl::IsDataLoss(status)) << one.what << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.what));
  }
  EXPECT_THAT(std::string(StatusOf("").message()), HasSubstr("it has 0 bytes"));
  EXPECT_THAT(std::string(StatusOf(TestBlock().substr(0, 5000)).message()),
              HasSubstr("and it has 5000"));
}

TEST(BlockReaderTest, AFieldOutsideItsRecordIsNamed) {
  std::string block = TestBlock();
  MemoryBytes before(block);
  const ControlHeader header = BlockReader::Open(before)->header();
  Put(block, header.fields.offset_bytes + offsetof(ControlField, offset_bytes),
      uint32_t{4000});
  EXPECT_THAT(std::string(StatusOf(block).message()),
              HasSubstr("field \"state\" is not in a slot's record"));
}

// A block that changes whenever it is looked at.
class RestlessBytes : public MemoryBytes {
 public:
  using MemoryBytes::MemoryBytes;
  uint64_t image_at = ~uint64_t{0};
  uint64_t reads = 0;
  // From this read on it rests.
  uint64_t rests_at = ~uint64_t{0};

  absl::Status Read(uint64_t offset, std::span<uint64_t> into) override {
    absl::Status status = MemoryBytes::Read(offset, into);
    if (offset == image_at && ++reads < rests_at) into[0] = 2 * reads;
    return status;
  }
};

TEST(BlockReaderTest, ATornReadIsRepeatedAndThenTold) {
  RestlessBytes bytes(TestBlock());
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok());
  EXPECT_FALSE(reader->ReadSlot(0)->torn());
  bytes.image_at = reader->header().images.offset_bytes;
  EXPECT_TRUE(reader->ReadSlot(0)->torn());
  EXPECT_GT(bytes.reads, 10u);
  bytes.reads = 0;
  bytes.rests_at = 7;
  EXPECT_FALSE(reader->ReadSlot(0)->torn());
}

// A block that somebody goes on writing, read so slowly that he is always
// faster.
class SlowBytes : public BlockBytes {
 public:
  SlowBytes(const ControlBlock& block, std::atomic<uint64_t>& words_read)
      : block_(block), words_read_(words_read) {}
  uint64_t bytes() const override { return block_.bytes(); }
  absl::Status Read(uint64_t offset, std::span<uint64_t> into) override {
    const auto* from =
        reinterpret_cast<const uint64_t*>(block_.address() + offset);
    for (uint64_t& word : into) {
      word = __atomic_load_n(from++, __ATOMIC_ACQUIRE);
      ++words_read_;
      sched_yield();
    }
    return absl::OkStatus();
  }
  absl::StatusOr<Part> NextData(uint64_t offset, uint64_t end) override {
    return Part{offset, end};
  }

 private:
  const ControlBlock& block_;
  std::atomic<uint64_t>& words_read_;
};

// The slot changes hands, between two images, in the order in which the service
// writes: what is read is of one lease, or said to be torn.
TEST(BlockReaderTest, NoRecordIsAMixtureOfTwoLeases) {
  const std::unique_ptr<ControlBlock> block = MakeTestBlock();
  auto& record = *reinterpret_cast<TestRecord*>(block->slot_record(0));
  const auto store = [](auto& field, auto value) {
    __atomic_store_n(&field, value, __ATOMIC_RELEASE);
  };
  store(record.state, uint32_t{kTestFree});
  store(record.size_bytes, uint64_t{0});
  std::atomic<bool> stop{false};
  // While the reader reads so many words.
  std::atomic<uint64_t> words_read{0};
  std::thread writer([&] {
    std::mt19937 random(1);
    const auto pause = [&] {
      const uint64_t until = words_read + random() % 100;
      while (words_read < until && !stop) sched_yield();
    };
    for (uint64_t i = 0; !stop; ++i) {
      const uint64_t pages = i % 2 == 0 ? 70 : 50;
      store(record.state, uint32_t{kTestReturning});
      block->NoteImage(0, {.id = pages,
                           .size_bytes = pages * 4096,
                           .stored_pages = pages,
                           .name = pages == 70 ? "seventy" : "fifty"});
      store(record.state, uint32_t{kTestHeld});
      store(record.size_bytes, pages * 4096);
      store(record.initial_bytes, pages * 4096);
      pause();
      store(record.state, uint32_t{kTestReturning});
      store(record.size_bytes, uint64_t{0});
      store(record.handovers, record.handovers + 1);
      store(record.state, uint32_t{kTestFree});
      pause();
    }
  });
  SlowBytes bytes(*block, words_read);
  auto reader = BlockReader::Open(bytes);
  ASSERT_TRUE(reader.ok()) << reader.status();
  int held = 0;
  int free = 0;
  for (int round = 0; round < 300; ++round) {
    auto slot = reader->ReadSlot(0);
    ASSERT_TRUE(slot.ok());
    if (slot->torn()) continue;
    if (slot->state() == Slot::FREE) {
      ++free;
      EXPECT_EQ(slot->size_bytes(), 0u);
    }
    if (slot->has_image() && slot->image_id() != 7) {
      EXPECT_EQ(slot->image().stored_pages(), slot->image_id());
      EXPECT_EQ(slot->image_name(),
                slot->image_id() == 70 ? "seventy" : "fifty");
    }
    if (slot->state() == Slot::HELD && slot->size_bytes() != 0) {
      ++held;
      EXPECT_EQ(slot->size_bytes(), slot->image().size_bytes());
    }
    if (HasFailure()) break;
  }
  stop = true;
  writer.join();
  EXPECT_GT(held, 0);
  EXPECT_GT(free, 0);
}

}  // namespace
}  // namespace firsttouch::pooldump
