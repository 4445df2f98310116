#include "firsttouch/service/tracking_policy.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr PageCosts kCosts;

// Guests that change the same 30 pages in each cycle.
constexpr ChurnSample kSteady = {
    .changed = 30, .regular = 30, .faulted = 0, .retained = 30, .pages = 1024};
// Guests that change the same 28 pages of 256 in each cycle, and 4 others.
constexpr ChurnSample kMixed = {.changed = 32,
                                .regular = 28,
                                .faulted = 1.4,
                                .retained = 176,
                                .pages = 256};
// Guests that change a quarter of 256 pages, others in each cycle: soon all
// have changed.
constexpr ChurnSample kMostOfIt = {
    .changed = 64, .regular = 16, .faulted = 0, .retained = 256, .pages = 256};
// Guests that change a sixteenth of 1,024 pages, nearly all of which become
// retained. Both kinds of tracking cost about the same, whichever is in use
// while they are counted.
constexpr ChurnSample kMostOfMuch = {.changed = 64,
                                     .regular = 4,
                                     .faulted = 0.6,
                                     .retained = 1000,
                                     .restore_ns = 86,
                                     .pages = 1024};

Tracking After(const ChurnSample& sample, int votes) {
  TrackingPolicy policy(std::nullopt, /*async_works=*/true);
  for (int i = 0; i < votes; ++i) policy.Vote(sample);
  return policy.tracking();
}

TEST(TrackingPolicyTest, TheSamePagesEachTimeCostNothingButRestoringThem) {
  const TrackingCosts costs = EstimateCosts(kSteady);
  EXPECT_DOUBLE_EQ(costs.signal_ns, 30 * kCosts.restore_ns);
  EXPECT_DOUBLE_EQ(
      costs.async_ns,
      kCosts.scan_ns + 1024 * kCosts.scan_page_ns + 30 * kCosts.restore_ns +
          (30 * kCosts.kernel_fault_ns + kCosts.protect_ns +
           1024 * kCosts.scan_page_ns + 30 * kCosts.protect_page_ns) /
              1e9);
}

TEST(TrackingPolicyTest, SteadyTenantsStayWithSignals) {
  EXPECT_EQ(After(kSteady, 10), Tracking::kSignal);
}

TEST(TrackingPolicyTest,
     AFewChurningPagesAmongSteadyOnesAreTrackedByTheKernel) {
  EXPECT_EQ(After(kMixed, TrackingPolicy::kVotes), Tracking::kAsync);
}

TEST(TrackingPolicyTest, AnImageThatChangesMostlyIsRestoredInOnePass) {
  EXPECT_EQ(After(kMostOfIt, 10), Tracking::kSignal);
}

TEST(TrackingPolicyTest, WhatIsHotAfterAllIsRestoredInOnePassAndStaysSo) {
  TrackingPolicy policy(std::nullopt, true);
  // While pages are becoming retained, tracking by the kernel seems cheaper.
  ChurnSample first = kMostOfMuch;
  first.faulted = 40;
  for (int i = 0; i < TrackingPolicy::kVotes; ++i) policy.Vote(first);
  ASSERT_EQ(policy.tracking(), Tracking::kAsync);
  for (int i = 0; i < TrackingPolicy::kVotes; ++i) policy.Vote(kMostOfMuch);
  EXPECT_EQ(policy.tracking(), Tracking::kSignal);
  for (int i = 0; i < 10; ++i) policy.Vote(kMostOfMuch);
  EXPECT_EQ(policy.tracking(), Tracking::kSignal);
}

TEST(TrackingPolicyTest, OneWindowIsNotEnoughAndVotesMustAgree) {
  TrackingPolicy policy(std::nullopt, true);
  for (int i = 0; i < 5; ++i) {
    policy.Vote(kMixed);
    EXPECT_EQ(policy.tracking(), Tracking::kSignal);
    policy.Vote(kSteady);
  }
  EXPECT_EQ(policy.tracking(), Tracking::kSignal);
}

TEST(TrackingPolicyTest, TenantsThatBecomeSteadyGoBackToSignals) {
  TrackingPolicy policy(std::nullopt, true);
  for (int i = 0; i < TrackingPolicy::kVotes; ++i) policy.Vote(kMixed);
  ASSERT_EQ(policy.tracking(), Tracking::kAsync);
  for (int i = 0; i < TrackingPolicy::kVotes; ++i) policy.Vote(kSteady);
  EXPECT_EQ(policy.tracking(), Tracking::kSignal);
}

TEST(TrackingPolicyTest, BetweenTheTwoBordersNothingChanges) {
  // Async is cheaper, but by less than a quarter: the tracking does not change
  // either way.
  ChurnSample sample = kMixed;
  sample.faulted = 0;
  sample.retained = 1.1 * EstimateCosts(kMixed).async_ns / kCosts.restore_ns;
  EXPECT_EQ(After(sample, 10), Tracking::kSignal);
  TrackingPolicy policy(std::nullopt, true);
  for (int i = 0; i < TrackingPolicy::kVotes; ++i) policy.Vote(kMixed);
  for (int i = 0; i < 10; ++i) policy.Vote(sample);
  EXPECT_EQ(policy.tracking(), Tracking::kAsync);
}

TEST(TrackingPolicyTest, WhereItIsForcedOrImpossibleNobodyVotes) {
  TrackingPolicy forced(Tracking::kAsync, true);
  TrackingPolicy impossible(std::nullopt, false);
  for (int i = 0; i < 10; ++i) {
    forced.Vote(kSteady);
    impossible.Vote(kMixed);
  }
  EXPECT_EQ(forced.tracking(), Tracking::kAsync);
  EXPECT_EQ(impossible.tracking(), Tracking::kSignal);
}

TEST(TrackingPolicyTest, AllPagesAreProtectedWhenRestoringInVainHasCostAsMuch) {
  const ProtectCosts one_dirty = {.pages = 256, .dirty = 1};
  const auto cost = static_cast<uint64_t>(
      kCosts.protect_ns + 256 * kCosts.scan_page_ns + kCosts.protect_page_ns);
  EXPECT_FALSE(ShouldProtectAll(0, {}));
  EXPECT_FALSE(ShouldProtectAll(cost, one_dirty));
  EXPECT_TRUE(ShouldProtectAll(cost + 1, one_dirty));
  ProtectCosts again = one_dirty;
  again.regular = 1;
  EXPECT_FALSE(ShouldProtectAll(cost + 1, again));
}

ImageRef ImageOf(uint64_t stored_pages, uint64_t pages) {
  std::vector<std::byte> bytes(stored_pages * kPageBytes, std::byte{1});
  absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = "churn", .size_bytes = pages * kPageBytes}, bytes);
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *image : nullptr;
}

TEST(TrackingPolicyTest, AnImageWithManyHolesIsNotLeftToTheKernel) {
  EXPECT_TRUE(KernelMayServe(*ImageOf(1, 257)));
  EXPECT_FALSE(KernelMayServe(*ImageOf(1, 258)));
  EXPECT_TRUE(KernelMayServe(*ImageOf(300, 600)));
  EXPECT_FALSE(KernelMayServe(*ImageOf(299, 600)));
  TrackingPolicies policies(std::nullopt, true);
  EXPECT_TRUE(policies.Find(ImageOf(1, 258))->fixed());
  EXPECT_FALSE(policies.Find(ImageOf(1, 257))->fixed());
}

TEST(TrackingPolicyTest, EveryImageHasOnePolicyAsLongAsItLives) {
  TrackingPolicies policies(std::nullopt, true);
  const ImageRef image = ImageOf(1, 1);
  const std::shared_ptr<TrackingPolicy> policy = policies.Find(image);
  // Many images that come and go leave nothing behind, and keep this one's
  // policy.
  for (int i = 0; i < 1000; ++i) policies.Find(ImageOf(1, 1));
  EXPECT_EQ(policies.Find(image), policy);
  EXPECT_NE(policies.Find(ImageOf(1, 1)), policy);
}

}  // namespace
}  // namespace firsttouch
