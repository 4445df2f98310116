// The targets of block_fuzz and core_fuzz without the fuzzer: a few thousand
// changes of good inputs, the same in each run.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fuzz/snapshot_target.h"

namespace firsttouch {
namespace {

using Target = void (*)(std::span<const uint8_t>);

void Read(Target target, const std::string& input) {
  target({reinterpret_cast<const uint8_t*>(input.data()), input.size()});
}

// Changes `seed` where its numbers are: below `end`.
std::string Changed(const std::string& seed, size_t end, std::mt19937& random) {
  std::string input = seed;
  for (uint32_t changes = 1 + random() % 3; changes > 0; --changes) {
    const size_t at = random() % std::min(end, input.size());
    switch (random() % 5) {
      case 0:
        input[at] = static_cast<char>(input[at] ^ (1 << (random() % 8)));
        break;
      case 1:
        input[at] = static_cast<char>(random());
        break;
      case 2:
        // A whole number becomes huge, or nothing.
        std::fill_n(input.begin() + static_cast<std::ptrdiff_t>(at / 8 * 8),
                    std::min<size_t>(8, input.size() - at / 8 * 8),
                    static_cast<char>(random() % 2 == 0 ? 0 : 0xff));
        break;
      case 3:
        input.resize(at + 1);
        break;
      default:
        input.erase(at, random() % 9);
    }
    if (input.empty()) input.assign(1, '\1');
  }
  return input;
}

TEST(SnapshotCorpusTest, SeedsAreRead) {
  for (const std::string& seed : ControlBlockSeeds()) {
    Read(&ReadAsControlBlock, seed);
  }
  for (const std::string& seed : CoreSeeds()) Read(&ReadAsCore, seed);
}

TEST(SnapshotCorpusTest, ChangedBlocksAreReadOrRefused) {
  std::mt19937 random(1);
  const std::string seed = ControlBlockSeeds().front();
  for (int i = 0; i < 5000; ++i) {
    // Header and names, and now and then records.
    const size_t end = random() % 4 == 0 ? seed.size() : 1600;
    Read(&ReadAsControlBlock, Changed(seed, end, random));
  }
}

TEST(SnapshotCorpusTest, ChangedCoresAreReadOrRefused) {
  std::mt19937 random(2);
  const std::vector<std::string> seeds = CoreSeeds();
  for (int i = 0; i < 3000; ++i) {
    const std::string& seed = seeds[i % seeds.size()];
    const size_t end = random() % 4 == 0 ? seed.size() : 1200;
    Read(&ReadAsCore, Changed(seed, end, random));
  }
}

}  // namespace
}  // namespace firsttouch
