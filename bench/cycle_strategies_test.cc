#include "firsttouch/bench/cycle_strategies.h"

#include <cstring>
#include <memory>

#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kImagePages = kCycleImageBytes / kPageBytes;

// Each strategy that is possible here.
class CycleStrategies : public testing::TestWithParam<CycleStrategyFactory> {};

TEST_P(CycleStrategies, PutBackImageAndZeroes) {
  auto strategy = GetParam().make(CycleLayout(1));
  if (!strategy.ok()) GTEST_SKIP() << strategy.status();
  const std::unique_ptr<CycleSlot> slot = (*strategy)->NewSlot();
  const ImageRef image = PatternImage(kCycleImageBytes);
  // On both sides of the image's end, neighbours and alone.
  const uint32_t changed[] = {3,           kImagePages - 2, kImagePages - 1,
                              kImagePages, kImagePages + 1, kImagePages + 30};
  for (int round = 0; round < 3; ++round) {
    std::byte* const memory = slot->Acquire(image);
    EXPECT_EQ(memcmp(memory, image->data(), kCycleImageBytes), 0) << round;
    for (uint64_t i = kCycleImageBytes; i < kCycleMemoryBytes; i += 8) {
      ASSERT_EQ(memory[i], std::byte{0}) << round << ": byte " << i;
    }
    for (uint32_t page : changed) memset(memory + page * kPageBytes, 1, 8);
    slot->Release(changed, kCycleMemoryBytes);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CycleStrategies,
                         testing::ValuesIn(AllCycleStrategies()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name) {
                             if (!isalnum(static_cast<unsigned char>(c)))
                               c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace firsttouch::bench
