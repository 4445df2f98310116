#include "firsttouch/tools/pooldump/layout_report.h"

#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// Large, new and generous.
Machine GoodMachine() {
  Machine machine;
  machine.set_kernel_release("6.18.0");
  machine.set_address_space_bits(47);
  machine.set_max_map_count(65530);
  machine.set_mappings(30);
  machine.set_userfaultfd(true);
  machine.set_kernel_faults(true);
  for (const char* feature :
       {"PAGEFAULT_FLAG_WP", "SIGBUS", "MISSING_SHMEM", "MINOR_SHMEM",
        "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "POISON", "WP_ASYNC",
        "EXACT_ADDRESS"}) {
    machine.add_features(feature);
  }
  machine.set_pagemap_scan(true);
  return machine;
}

PlacedConfig Config(uint32_t instances, const std::string& memory,
                    const std::string& guard) {
  PlacedConfig config;
  config.config.set_name("tenants");
  config.config.set_instances(instances);
  config.config.set_max_memory_bytes(memory);
  config.config.set_guard_after_bytes(guard);
  return config;
}

LayoutReport Report(const PlacedConfig& config, const Machine& machine,
                    const LayoutReportOptions& options = {}) {
  absl::StatusOr<LayoutReport> report =
      MakeLayoutReport(config, machine, options);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : LayoutReport();
}

std::string WarningsOf(const LayoutReport& report) {
  std::string text;
  for (const Warning& warning : report.warnings()) {
    absl::StrAppend(&text, warning.fatal() ? "FATAL " : "", warning.text(),
                    " -> ", warning.remedy(), "\n");
  }
  return text;
}

TEST(LayoutReport, ExplainsEachByteOnceForRandomOptions) {
  std::mt19937_64 random(20261126);
  const auto pick = [&random](uint64_t most) { return random() % (most + 1); };
  int made = 0;
  for (int i = 0; i < 3000; ++i) {
    PlacedConfig config;
    config.config.set_instances(1 + pick(40));
    config.config.set_memories_per_instance(1 + pick(3));
    const uint64_t before = 4096 * pick(pick(1) == 0 ? 0 : 1000);
    config.config.set_max_memory_bytes(absl::StrCat(4096 * (1 + pick(5000))));
    config.config.set_guard_before_bytes(absl::StrCat(before));
    config.config.set_guard_after_bytes(
        absl::StrCat(before + 4096 * pick(pick(1) == 0 ? 0 : 5000)));
    for (const bool all : {false, true}) {
      const LayoutReport report = Report(config, GoodMachine(), {.all = all});
      // Each byte of the reservation, by walking the ranges in order.
      struct Piece {
        uint64_t offset, bytes;
        bool operator<(const Piece& other) const {
          return offset < other.offset;
        }
      };
      std::multiset<Piece> pieces;
      for (const LayoutReport::Range& range : report.ranges()) {
        EXPECT_THAT(range.cause(),
                    testing::AnyOf("max_memory_bytes", "guard_after_bytes",
                                   "guard_before_bytes"));
        for (uint64_t n = 0; n < range.count(); ++n) {
          pieces.insert(
              {range.offset_bytes() + n * range.stride_bytes(), range.bytes()});
        }
      }
      uint64_t at = 0;
      for (const Piece& piece : pieces) {
        ASSERT_EQ(piece.offset, at) << report.ShortDebugString();
        ASSERT_GT(piece.bytes, 0u);
        at += piece.bytes;
      }
      ASSERT_EQ(at, report.reservation_bytes()) << report.ShortDebugString();
      ++made;
    }
  }
  EXPECT_EQ(made, 6000);
}

TEST(LayoutReport, AMillionSlotsAreThreeLines) {
  PlacedConfig config = Config(1'000'000, "64MiB", "64KiB");
  config.config.set_guard_before_bytes("4KiB");
  const LayoutReport report = Report(config, GoodMachine());
  ASSERT_EQ(report.ranges_size(), 3);
  EXPECT_EQ(report.ranges(0).count(), 1u);
  EXPECT_EQ(report.ranges(1).count(), 1'000'000u);
  EXPECT_EQ(report.ranges(1).stride_bytes(), (64u << 20) + 65536);
  EXPECT_EQ(report.ranges(2).cause(), "guard_after_bytes");
  EXPECT_EQ(report.slots(), 1'000'000u);
}

TEST(LayoutReport, ListsChosenSlotsOnly) {
  const LayoutReport report =
      Report(Config(100, "64KiB", "64KiB"), GoodMachine(),
             {.all = true, .wanted = [](const std::string& name) {
                return absl::EndsWith(name, "/7");
              }});
  ASSERT_EQ(report.ranges_size(), 2);
  EXPECT_EQ(report.ranges(0).slot_name(), "tenants/7");
  EXPECT_EQ(report.ranges(0).offset_bytes(), 7u * 131072);
  EXPECT_EQ(report.ranges(1).purpose(), "guard after");
}

TEST(LayoutReport, RefusesToListWhatNobodyReads) {
  const absl::Status status =
      MakeLayoutReport(Config(5'000'000, "4KiB", "4KiB"), GoodMachine(),
                       {.all = true})
          .status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--filter"));
}

TEST(LayoutReport, ChoosesAsTheServiceDoes) {
  const PlacedConfig config = Config(1000, "4GiB", "2GiB");
  LayoutReport report = Report(config, GoodMachine());
  EXPECT_EQ(report.supply(), "userfaultfd");
  EXPECT_EQ(report.backing(), "shared");
  EXPECT_EQ(report.mappings(), 2004u);
  EXPECT_TRUE(report.fits());
  EXPECT_THAT(WarningsOf(report), IsEmpty());
  EXPECT_EQ(report.largest_instances(), 21845u);
  EXPECT_EQ(report.largest_limit(), "address space");

  Machine old = GoodMachine();
  old.mutable_features()->Clear();
  old.add_features("PAGEFAULT_FLAG_WP");
  old.add_features("SIGBUS");
  report = Report(config, old);
  EXPECT_EQ(report.supply(), "userfaultfd");
  EXPECT_EQ(report.backing(), "copied");
  EXPECT_EQ(report.mappings(), 4u);
  EXPECT_TRUE(report.fits());

  Machine refused = GoodMachine();
  refused.set_userfaultfd(false);
  refused.set_userfaultfd_remedy("do this");
  report = Report(config, refused);
  EXPECT_EQ(report.supply(), "mappings-scan");
  EXPECT_EQ(report.mappings(), 3004u);
  EXPECT_TRUE(report.fits());
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("userfaultfd is not to be had: pages are supplied by "
                        "mappings-scan, and a cycle is not free of system "
                        "calls -> do this"));
  refused.set_pagemap_scan(false);
  EXPECT_EQ(Report(config, refused).supply(), "mappings-drop");
}

TEST(LayoutReport, WarnsOfTheMappingLimit) {
  Machine machine = GoodMachine();
  machine.set_max_map_count(1000);
  LayoutReport report = Report(Config(1000, "4GiB", "2GiB"), machine);
  EXPECT_EQ(report.backing(), "copied");
  EXPECT_TRUE(report.fits());
  EXPECT_EQ(WarningsOf(report),
            "mapping limit: clean pages are not shared between slots, since "
            "that takes 2004 mappings and vm.max_map_count is 1000 -> sysctl "
            "-w vm.max_map_count=2034, or fewer instances\n");
  // What the remedy says helps.
  machine.set_max_map_count(2034);
  report = Report(Config(1000, "4GiB", "2GiB"), machine);
  EXPECT_EQ(report.backing(), "shared");
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("sysctl -w vm.max_map_count=4034, or leave it"));
  machine.set_max_map_count(4034);
  EXPECT_THAT(WarningsOf(Report(Config(1000, "4GiB", "2GiB"), machine)),
              IsEmpty());

  machine.set_max_map_count(1000);
  PlacedConfig config = Config(1000, "4GiB", "2GiB");
  config.config.set_backing("shared");
  report = Report(config, machine);
  EXPECT_FALSE(report.fits());
  EXPECT_EQ(report.largest_instances(), 483u);
  EXPECT_EQ(report.largest_limit(), "vm.max_map_count");
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("FATAL mapping limit: up to 2004 mappings are needed, "
                        "and 970 of vm.max_map_count 1000 are left -> sysctl "
                        "-w vm.max_map_count=2034, --backing=copied, or at "
                        "most 483 instances"));
}

TEST(LayoutReport, WarnsOfAddressSpaceRlimitAndOvercommit) {
  LayoutReport report = Report(Config(30'000, "4GiB", "2GiB"), GoodMachine());
  EXPECT_FALSE(report.fits());
  EXPECT_GT(report.address_space_share(), 1.0);
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("FATAL address space: 175.8 TiB are "
                        "needed, and of 47 bits 128 TiB are free in "
                        "one piece -> at most 21845 instances"));

  Machine machine = GoodMachine();
  machine.set_rlimit_as_bytes(uint64_t{4} << 30);
  machine.set_mapped_bytes(uint64_t{1} << 30);
  report = Report(Config(4, "1GiB", "1GiB"), machine);
  EXPECT_FALSE(report.fits());
  EXPECT_EQ(report.largest_limit(), "RLIMIT_AS");
  EXPECT_EQ(report.largest_instances(), 1u);
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("FATAL RLIMIT_AS: 8 GiB are needed, guards "
                        "included, and 3 GiB of 4 GiB are left -> "
                        "ulimit -v unlimited, or at most 1 instance"));
  // The reservation alone would fit.
  machine.set_rlimit_as_bytes((uint64_t{2} << 30) + (1 << 16));
  machine.set_mapped_bytes(0);
  report = Report(Config(1, "1GiB", "1GiB"), machine);
  EXPECT_FALSE(report.fits());
  EXPECT_THAT(WarningsOf(report), HasSubstr("with the book-keeping"));

  machine = GoodMachine();
  machine.set_overcommit_memory(2);
  machine.set_commit_limit_bytes(uint64_t{8} << 30);
  report = Report(Config(1, "1GiB", "1GiB"), machine);
  EXPECT_TRUE(report.fits());
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("overcommit: vm.overcommit_memory=2 counts the whole "
                        "reservation as committed, 2 GiB -> sysctl "
                        "-w vm.overcommit_memory=0"));
  EXPECT_FALSE(Report(Config(5, "1GiB", "1GiB"), machine).fits());
}

TEST(LayoutReport, WarnsOfGuardsThatCanBeJumped) {
  PlacedConfig config = Config(2, "4GiB", "1GiB");
  config.config.set_largest_static_offset_bytes("2GiB");
  EXPECT_EQ(WarningsOf(Report(config, GoodMachine())),
            "guard: a constant offset of up to 2 GiB reaches past "
            "the guard of 1 GiB, into the next memory -> "
            "--guard-bytes=2GiB, or check such accesses\n");
  config = Config(2, "4GiB", "2GiB");
  config.config.set_largest_static_offset_bytes("2GiB");
  EXPECT_THAT(WarningsOf(Report(config, GoodMachine())), IsEmpty());

  config.config.set_index_bits(32);
  EXPECT_THAT(WarningsOf(Report(config, GoodMachine())),
              HasSubstr("-> --guard-bytes=2097156KiB"));
  config.config.set_guard_after_bytes("2147487744");
  EXPECT_THAT(WarningsOf(Report(config, GoodMachine())), IsEmpty());
  config.config.set_index_bits(64);
  EXPECT_THAT(WarningsOf(Report(config, GoodMachine())),
              HasSubstr("no guard helps"));
  EXPECT_THAT(WarningsOf(Report(Config(2, "4GiB", "0"), GoodMachine())),
              HasSubstr("guard: there is none"));
}

TEST(LayoutReport, NamesWhatTheKernelLacks) {
  Machine machine = GoodMachine();
  machine.mutable_features()->Clear();
  machine.add_features("PAGEFAULT_FLAG_WP");
  machine.add_features("SIGBUS");
  PlacedConfig config = Config(2, "4GiB", "2GiB");
  config.config.set_backing("shared");
  const LayoutReport report = Report(config, machine);
  EXPECT_FALSE(report.fits());
  EXPECT_THAT(WarningsOf(report),
              HasSubstr("FATAL MINOR_SHMEM (Linux 5.14) is needed to share the "
                        "image's clean pages, and is not here"));
  bool wp_async = true;
  for (const Need& need : report.needs()) {
    if (need.name() == "WP_ASYNC") wp_async = need.here();
  }
  EXPECT_FALSE(wp_async);
}

}  // namespace
}  // namespace firsttouch::pooldump
