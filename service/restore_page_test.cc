#include "firsttouch/service/restore_page.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firsttouch/service/fault_registers.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

struct alignas(kPageBytes) Page {
  std::byte bytes[kPageBytes];
};

Page Pattern() {
  Page page;
  for (size_t i = 0; i < kPageBytes; ++i) {
    page.bytes[i] = std::byte(1 + i * 7 % 255);
  }
  return page;
}

TEST(RestorePageTest, EveryByteOfAPageIsRestoredAndReported) {
  const Page initial = Pattern();
  bool unreadable = false;
  for (const bool downwards : {false, true}) {
    for (size_t at = 0; at < kPageBytes; ++at) {
      Page page = initial;
      page.bytes[at] ^= std::byte{0x80};
      EXPECT_TRUE(
          RestorePage(page.bytes, initial.bytes, downwards, &unreadable))
          << at;
      ASSERT_EQ(memcmp(page.bytes, initial.bytes, kPageBytes), 0) << at;
    }
  }
}

TEST(RestorePageTest, EveryByteOfAZeroPageIsRestoredAndReported) {
  const Page zero = {};
  for (const bool downwards : {false, true}) {
    for (size_t at = 0; at < kPageBytes; ++at) {
      Page page = {};
      page.bytes[at] = std::byte{1};
      EXPECT_TRUE(RestoreZeroPage(page.bytes, downwards)) << at;
      ASSERT_EQ(memcmp(page.bytes, zero.bytes, kPageBytes), 0) << at;
    }
  }
}

TEST(RestorePageTest, AnUnchangedPageIsReportedAsSuch) {
  const Page initial = Pattern();
  bool unreadable = false;
  Page page = initial;
  Page zero = {};
  for (const bool downwards : {false, true}) {
    EXPECT_FALSE(
        RestorePage(page.bytes, initial.bytes, downwards, &unreadable));
    EXPECT_FALSE(RestoreZeroPage(zero.bytes, downwards));
  }
}

TEST(RestorePageTest, APageThatChangedAllOverIsRestored) {
  const Page initial = Pattern();
  bool unreadable = false;
  for (const bool downwards : {false, true}) {
    Page page;
    memset(page.bytes, 0xff, kPageBytes);
    EXPECT_TRUE(RestorePage(page.bytes, initial.bytes, downwards, &unreadable));
    EXPECT_EQ(memcmp(page.bytes, initial.bytes, kPageBytes), 0);
    EXPECT_FALSE(unreadable);
  }
}

TEST(RestorePageTest, ACopyIsWholeAndADifferenceIsFound) {
  const Page initial = Pattern();
  Page copy = {};
  ASSERT_TRUE(CopyGuarded(copy.bytes, initial.bytes, kPageBytes));
  EXPECT_FALSE(DiffersFrom(copy.bytes, initial.bytes));
  for (const size_t at : {size_t{0}, size_t{4095}}) {
    copy.bytes[at] ^= std::byte{1};
    EXPECT_TRUE(DiffersFrom(copy.bytes, initial.bytes));
    copy.bytes[at] ^= std::byte{1};
  }
}

// Does what the fault handler of a service does.
void EndGuardedRead(int, siginfo_t*, void* ucontext) {
  auto& context = *static_cast<ucontext_t*>(ucontext);
  const uintptr_t end = EndOfGuardedRead(ProgramCounter(context));
  if (end == 0) _exit(1);
  FailGuardedRead(context, end);
}

TEST(RestorePageTest, AReadThatCannotBeDoneIsEndedAndReported) {
  const int memfd = memfd_create("cut", MFD_CLOEXEC);
  ASSERT_GE(memfd, 0);
  ASSERT_EQ(ftruncate(memfd, kPageBytes), 0);
  void* const mapped =
      mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED, memfd, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_EQ(ftruncate(memfd, 0), 0);
  const auto* const cut = static_cast<const std::byte*>(mapped);
  struct sigaction action = {};
  action.sa_sigaction = EndGuardedRead;
  action.sa_flags = SA_SIGINFO;
  struct sigaction before = {};
  ASSERT_EQ(sigaction(SIGBUS, &action, &before), 0);
  for (const Page& present : {Pattern(), Page{}}) {
    Page page = present;
    for (const bool downwards : {false, true}) {
      bool unreadable = false;
      RestorePage(page.bytes, cut, downwards, &unreadable);
      EXPECT_TRUE(unreadable);
    }
    EXPECT_FALSE(CopyGuarded(page.bytes, cut, kPageBytes));
    EXPECT_TRUE(DiffersFrom(page.bytes, cut));
  }
  sigaction(SIGBUS, &before, nullptr);
  munmap(mapped, kPageBytes);
  close(memfd);
}

TEST(RestorePageTest, OnlyReadsThatAreGuardedHaveAnEnd) {
  EXPECT_EQ(EndOfGuardedRead(0), 0u);
  EXPECT_EQ(EndOfGuardedRead(reinterpret_cast<uintptr_t>(&Pattern)), 0u);
}

}  // namespace
}  // namespace firsttouch
