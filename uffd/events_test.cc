#include "firsttouch/uffd/events.h"

#include <array>
#include <cerrno>
#include <vector>

#include "firsttouch/uffd/fake_kernel.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

uffd_msg Message(uint8_t event) {
  uffd_msg message{};
  message.event = event;
  return message;
}

TEST(Events, EveryKindIsRead) {
  std::vector<uffd_msg> messages(6);
  messages[0] = Message(kUffdEventPagefault);
  messages[0].arg.pagefault.address = 0x7000;
  messages[0].arg.pagefault.flags =
      kUffdPagefaultWrite | kUffdPagefaultWp | (uint64_t{1} << 40);
  messages[0].arg.pagefault.feat.ptid = 1234;
  messages[1] = Message(kUffdEventFork);
  messages[1].arg.fork.ufd = 17;
  messages[2] = Message(kUffdEventRemap);
  messages[2].arg.remap.from = 0x1000;
  messages[2].arg.remap.to = 0x2000;
  messages[2].arg.remap.len = 4096;
  messages[3] = Message(kUffdEventRemove);
  messages[3].arg.remove.start = 0x3000;
  messages[3].arg.remove.end = 0x5000;
  messages[4] = Message(kUffdEventUnmap);
  messages[4].arg.remove.start = 0x6000;
  messages[4].arg.remove.end = 0x9000;
  messages[5] = Message(0x77);

  FakeKernel kernel(FakeKernel::kScripted);
  kernel.QueueEvents(messages);
  EventReader reader(kernel, 3);
  const EventReader::Batch batch = reader.Read();
  EXPECT_EQ(batch.error, 0);
  ASSERT_EQ(batch.events.size(), 6u);
  EXPECT_EQ(kernel.Calls(Op::kReadEvents), 1u);

  const Event& fault = batch.events[0];
  EXPECT_EQ(fault.kind, Event::Kind::kPagefault);
  EXPECT_EQ(fault.address, 0x7000u);
  EXPECT_EQ(fault.tid, 1234u);
  EXPECT_TRUE(fault.is_write());
  EXPECT_TRUE(fault.is_write_protect());
  EXPECT_FALSE(fault.is_minor());
  EXPECT_NE(fault.flags & (uint64_t{1} << 40), 0u) << "unknown bits are kept";

  EXPECT_EQ(batch.events[1].kind, Event::Kind::kFork);
  EXPECT_EQ(batch.events[1].forked_fd, 17);
  EXPECT_EQ(batch.events[2].kind, Event::Kind::kRemap);
  EXPECT_EQ(batch.events[2].from, 0x1000u);
  EXPECT_EQ(batch.events[2].to, 0x2000u);
  EXPECT_EQ(batch.events[2].bytes, 4096u);
  EXPECT_EQ(batch.events[3].kind, Event::Kind::kRemove);
  EXPECT_EQ(batch.events[3].start, 0x3000u);
  EXPECT_EQ(batch.events[3].end, 0x5000u);
  EXPECT_EQ(batch.events[4].kind, Event::Kind::kUnmap);
  EXPECT_EQ(batch.events[4].end, 0x9000u);
  EXPECT_EQ(batch.events[5].kind, Event::Kind::kUnknown);
  EXPECT_EQ(batch.events[5].raw_kind, 0x77);
}

TEST(Events, NoneIsAnEmptyBatch) {
  FakeKernel kernel(FakeKernel::kScripted);
  EventReader reader(kernel, 3);
  const EventReader::Batch batch = reader.Read();
  EXPECT_TRUE(batch.events.empty());
  EXPECT_EQ(batch.error, 0);
}

TEST(Events, MoreThanABatchComesInSeveral) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.QueueEvents(
      std::vector<uffd_msg>(EventReader::kBatch + 3, Message(0x12)));
  EventReader reader(kernel, 3);
  EXPECT_EQ(reader.Read().events.size(), EventReader::kBatch);
  EXPECT_EQ(reader.Read().events.size(), 3u);
  EXPECT_EQ(reader.Read().events.size(), 0u);
}

TEST(Events, TheMessagesAreInTheCallersMemory) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.QueueEvents({Message(0x15), Message(0x16)});
  EventReader reader(kernel, 3);
  std::array<uffd_msg, EventReader::kBatch> messages = {};
  EXPECT_EQ(reader.Read(messages).events.size(), 2u);
  EXPECT_EQ(messages[0].event, 0x15);
  EXPECT_EQ(messages[1].event, 0x16);
  EXPECT_EQ(messages[2].event, 0);
}

TEST(Events, ASignalIsNoError) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.QueueEvents({Message(0x15)});
  kernel.Fail(Op::kReadEvents, 1, CallResult{0, EINTR});
  EventReader reader(kernel, 3);
  EXPECT_EQ(reader.Read().events.size(), 1u);
  EXPECT_EQ(kernel.Calls(Op::kReadEvents), 2u);
}

TEST(Events, AnErrorIsHandedOn) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kReadEvents, FakeKernel::kEvery, CallResult{0, EBADF});
  EventReader reader(kernel, 3);
  const EventReader::Batch batch = reader.Read();
  EXPECT_TRUE(batch.events.empty());
  EXPECT_EQ(batch.error, EBADF);
}

}  // namespace
}  // namespace firsttouch
