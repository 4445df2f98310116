// WASI for guests: what works, what is refused, and hostile pointers.
#include "firsttouch/integrations/wasm2c/wasi.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/source_test.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "gtest/gtest.h"
#include "integrations/wasm2c/wasi_guest.firsttouch.h"

namespace firsttouch::wasm2c {
namespace {

// Calls with pointers into an ordinary array.
class WasiCallTest : public testing::Test {
 protected:
  static constexpr uint32_t kSize = 65536;

  void SetUp() override {
    memory_.data = bytes_.data();
    memory_.size = kSize;
    memory_.pages = 1;
  }

  Wasi MakeWasi(WasiOptions options) {
    Wasi wasi(std::move(options));
    wasi.Attach(&memory_);
    return wasi;
  }

  uint32_t Number(uint32_t at) const {
    uint32_t number;
    memcpy(&number, bytes_.data() + at, 4);
    return number;
  }
  void SetNumbers(uint32_t at, std::vector<uint32_t> numbers) {
    memcpy(bytes_.data() + at, numbers.data(), numbers.size() * 4);
  }
  std::string Text(uint32_t at) const {
    return reinterpret_cast<const char*>(bytes_.data() + at);
  }
  // Whether nothing was written at all.
  bool Untouched() const {
    return bytes_ == std::vector<uint8_t>(kSize + 4096);
  }

  // The guest's memory, and what lies behind it.
  std::vector<uint8_t> bytes_ = std::vector<uint8_t>(kSize + 4096);
  wasm_rt_memory_t memory_ = {};
};

TEST_F(WasiCallTest, ArgumentsAndEnvironment) {
  Wasi wasi = MakeWasi(
      {.arguments = {"guest", "-v"}, .environment = {"A=1", "", "LONG=22"}});
  EXPECT_EQ(wasi.ArgsSizesGet(0, 4), kWasiSuccess);
  EXPECT_EQ(Number(0), 2u);
  EXPECT_EQ(Number(4), 9u);
  EXPECT_EQ(wasi.ArgsGet(16, 100), kWasiSuccess);
  EXPECT_EQ(Text(Number(16)), "guest");
  EXPECT_EQ(Text(Number(20)), "-v");
  EXPECT_EQ(wasi.EnvironSizesGet(0, 4), kWasiSuccess);
  EXPECT_EQ(Number(0), 3u);
  EXPECT_EQ(Number(4), 13u);
  EXPECT_EQ(wasi.EnvironGet(16, 200), kWasiSuccess);
  EXPECT_EQ(Text(Number(24)), "LONG=22");
}

TEST_F(WasiCallTest, Clocks) {
  Wasi fixed = MakeWasi({.fixed_clock_ns = 123});
  EXPECT_EQ(fixed.ClockTimeGet(0, 8), kWasiSuccess);
  EXPECT_EQ(Number(8), 123u);
  EXPECT_EQ(fixed.ClockTimeGet(4, 8), kWasiInval);
  EXPECT_EQ(fixed.ClockTimeGet(UINT32_MAX, 8), kWasiInval);
  Wasi real = MakeWasi({});
  EXPECT_EQ(real.ClockTimeGet(1, 8), kWasiSuccess);
  uint64_t nanoseconds = 0;
  memcpy(&nanoseconds, bytes_.data() + 8, 8);
  EXPECT_GT(nanoseconds, 123u);
  EXPECT_EQ(real.ClockResGet(1, 16), kWasiSuccess);
  EXPECT_GE(Number(16), 1u);
}

TEST_F(WasiCallTest, RandomNumbersRepeatWithASeed) {
  Wasi first = MakeWasi({.random_seed = 9});
  EXPECT_EQ(first.RandomGet(0, 1000), kWasiSuccess);
  const std::vector<uint8_t> bytes(bytes_.begin(), bytes_.begin() + 1000);
  EXPECT_EQ(bytes_[1000], 0);
  Wasi second = MakeWasi({.random_seed = 9});
  EXPECT_EQ(second.RandomGet(2000, 1000), kWasiSuccess);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), bytes_.begin() + 2000));
  // Going on gives others; a reset begins again.
  EXPECT_EQ(second.RandomGet(4000, 1000), kWasiSuccess);
  EXPECT_FALSE(std::equal(bytes.begin(), bytes.end(), bytes_.begin() + 4000));
  second.Reset();
  EXPECT_EQ(second.RandomGet(4000, 1000), kWasiSuccess);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), bytes_.begin() + 4000));
  Wasi other = MakeWasi({.random_seed = 10});
  EXPECT_EQ(other.RandomGet(2000, 1000), kWasiSuccess);
  EXPECT_FALSE(std::equal(bytes.begin(), bytes.end(), bytes_.begin() + 2000));
  Wasi kernel = MakeWasi({});
  EXPECT_EQ(kernel.RandomGet(6000, 1000), kWasiSuccess);
  EXPECT_NE(std::vector<uint8_t>(bytes_.begin() + 6000, bytes_.begin() + 7000),
            std::vector<uint8_t>(1000));
}

TEST_F(WasiCallTest, WritesPieceByPiece) {
  std::vector<std::pair<int, std::string>> written;
  Wasi wasi = MakeWasi({.on_output = [&](int fd, std::string_view text) {
    written.emplace_back(fd, std::string(text));
  }});
  memcpy(bytes_.data() + 1000, "hello, world", 12);
  memset(bytes_.data() + 20000, 'x', 5000);
  SetNumbers(0, {1000, 7, 2000, 0, 1007, 5, 20000, 5000});
  EXPECT_EQ(wasi.FdWrite(1, 0, 4, 64), kWasiSuccess);
  EXPECT_EQ(Number(64), 5012u);
  ASSERT_EQ(written.size(), 4u);
  EXPECT_EQ(written[0], std::pair(1, std::string("hello, ")));
  EXPECT_EQ(written[1].second, "world");
  EXPECT_EQ(written[2].second, std::string(4096, 'x'));
  EXPECT_EQ(written[3].second, std::string(904, 'x'));
  EXPECT_EQ(wasi.FdWrite(2, 0, 1, 64), kWasiSuccess);
  EXPECT_EQ(written.back(), std::pair(2, std::string("hello, ")));
  EXPECT_EQ(wasi.FdWrite(0, 0, 1, 64), kWasiBadf);
  EXPECT_EQ(wasi.FdWrite(3, 0, 1, 64), kWasiBadf);
  EXPECT_EQ(MakeWasi({}).FdWrite(1, 0, 4, 64), kWasiSuccess);  // dropped
}

TEST_F(WasiCallTest, PointersOutsideAreFaultsAndChangeNothing) {
  const std::string text(100, 'a');
  int calls = 0;
  Wasi wasi = MakeWasi({.arguments = {text},
                        .environment = {text, text},
                        .on_output = [&](int, std::string_view) { ++calls; },
                        .random_seed = 1});
  for (uint32_t bad : {kSize - 3, kSize, kSize + 4, 0x7fffffffu, 0x80000000u,
                       0xfffffff8u, UINT32_MAX}) {
    EXPECT_EQ(wasi.ArgsSizesGet(bad, 0), kWasiFault) << bad;
    EXPECT_EQ(wasi.ArgsSizesGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.ArgsGet(bad, 0), kWasiFault) << bad;
    EXPECT_EQ(wasi.ArgsGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.EnvironGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.EnvironGet(bad, 0), kWasiFault) << bad;
    EXPECT_EQ(wasi.EnvironSizesGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.ClockResGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.ClockTimeGet(0, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdFdstatGet(1, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdFilestatGet(1, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdRead(0, bad, 1, 0), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdRead(0, 0, 1, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdWrite(1, bad, 1, 0), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdWrite(1, 0, 1, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.RandomGet(bad, 4), kWasiFault) << bad;
    EXPECT_EQ(wasi.RandomGet(4, bad), kWasiFault) << bad;
    EXPECT_EQ(wasi.FdWrite(1, 0, bad, 0), kWasiFault) << bad;
  }
  EXPECT_TRUE(Untouched());
  EXPECT_EQ(calls, 0);
  // One bad piece behind a good one: nothing is written.
  SetNumbers(0, {1000, 4, kSize - 2, 4});
  EXPECT_EQ(wasi.FdWrite(1, 0, 2, 64), kWasiFault);
  SetNumbers(0, {1000, 4, 0xfffffff0u, 0x20u});
  EXPECT_EQ(wasi.FdWrite(1, 0, 2, 64), kWasiFault);
  EXPECT_EQ(calls, 0);
  // The very end is inside.
  EXPECT_EQ(wasi.ClockTimeGet(0, kSize - 8), kWasiSuccess);
  EXPECT_EQ(wasi.RandomGet(kSize, 0), kWasiSuccess);
  EXPECT_EQ(bytes_[kSize], 0);
}

TEST_F(WasiCallTest, WithoutAMemoryEveryPointerIsBad) {
  Wasi wasi;
  EXPECT_EQ(wasi.ClockTimeGet(0, 0), kWasiFault);
  EXPECT_EQ(wasi.RandomGet(0, 0), kWasiFault);
}

TEST_F(WasiCallTest, ThereAreThreeDescriptorsAndNoFiles) {
  Wasi wasi = MakeWasi({});
  EXPECT_EQ(wasi.FdFdstatGet(2, 0), kWasiSuccess);
  EXPECT_EQ(bytes_[0], 2);  // a character device
  EXPECT_EQ(wasi.FdFdstatGet(3, 0), kWasiBadf);
  EXPECT_EQ(wasi.FdFilestatGet(0, 0), kWasiSuccess);
  EXPECT_EQ(wasi.FdClose(1), kWasiSuccess);
  EXPECT_EQ(wasi.FdClose(3), kWasiBadf);
  EXPECT_EQ(wasi.FdSeek(1), kWasiSpipe);
  EXPECT_EQ(wasi.FdSeek(9), kWasiBadf);
  EXPECT_EQ(wasi.FdSync(0), kWasiInval);
  SetNumbers(0, {1000, 4});
  SetNumbers(64, {77});
  EXPECT_EQ(wasi.FdRead(0, 0, 1, 64), kWasiSuccess);
  EXPECT_EQ(Number(64), 0u);
  EXPECT_EQ(wasi.FdRead(1, 0, 1, 64), kWasiBadf);
  EXPECT_EQ(Z_wasi_snapshot_preview1Z_fd_prestat_get(&wasi, 3, 0), kWasiBadf);
  EXPECT_EQ(wasi.unimplemented_calls(), 0u);
  EXPECT_EQ(
      Z_wasi_snapshot_preview1Z_path_open(&wasi, 3, 0, 0, 0, 0, 0, 0, 0, 0),
      kWasiNosys);
  EXPECT_EQ(Z_wasi_snapshot_preview1Z_poll_oneoff(&wasi, 0, 0, 0, 0),
            kWasiNosys);
  EXPECT_EQ(Z_wasi_snapshot_preview1Z_fd_readdir(&wasi, 0, 0, 0, 0, 0),
            kWasiNosys);
  EXPECT_EQ(Z_wasi_snapshot_preview1Z_fd_readdir(&wasi, 5, 0, 0, 0, 0),
            kWasiBadf);
  EXPECT_EQ(Z_wasi_snapshot_preview1Z_sched_yield(&wasi), kWasiSuccess);
  EXPECT_EQ(wasi.unimplemented_calls(), 3u);
}

// The same from a C program in a pool.
class WasiGuestTest : public SourceTest {
 protected:
  using WasiGuest = Guest<Z_wasi_guest_instance_t>;

  void SetUp() override { MakeSource(4, 64 * kWasmPageBytes); }

  WasiGuest Make(Wasi* wasi) {
    absl::StatusOr<WasiGuest> guest = WasiGuest::Create(source(), wasi);
    EXPECT_TRUE(guest.ok()) << guest.status();
    EXPECT_TRUE(guest->Call(&Z_wasi_guestZ__initialize).ok());
    return *std::move(guest);
  }
};

INSTANTIATE_TEST_SUITE_P(Sources, WasiGuestTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

TEST_P(WasiGuestTest, ACProgramRuns) {
  std::array<std::string, 3> output;
  Wasi wasi(
      {.environment = {"NAME=world"},
       .on_output = [&](int fd,
                        std::string_view text) { output[fd].append(text); },
       .random_seed = 4,
       .fixed_clock_ns = uint64_t{1'700'000'000} * 1'000'000'000});
  WasiGuest guest = Make(&wasi);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_greet), 0u);
  EXPECT_EQ(output[1], "hello, world\n");
  EXPECT_EQ(output[2], "and goodbye\n");
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_seconds), 1'700'000'000u);
  uint8_t expected = 0;
  wasm_rt_memory_t one_byte = {.data = &expected, .size = 1};
  Wasi same({.random_seed = 4});
  same.Attach(&one_byte);
  same.RandomGet(0, 1);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_random_byte), expected);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_open_file), 0u);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_read_input), 0u);
}

TEST_P(WasiGuestTest, ExitIsAnEndWithACode) {
  Wasi wasi;
  WasiGuest guest = Make(&wasi);
  const Outcome<Nothing> outcome = guest.Call(&Z_wasi_guestZ_leave, 17u);
  EXPECT_FALSE(outcome.ok());
  EXPECT_FALSE(outcome.trapped());
  ASSERT_TRUE(outcome.exited());
  EXPECT_EQ(outcome.exit_code(), 17u);
  EXPECT_EQ(outcome.trap().exit_code, 17u);
  EXPECT_EQ(outcome.status().message(), "the guest exited with code 17");
}

TEST_P(WasiGuestTest, InputComesFromTheHostByASystemCallIfItLikes) {
  std::array<int, 2> pipe_ends;
  ASSERT_EQ(pipe(pipe_ends.data()), 0);
  const std::string sent(3000, 'q');
  ASSERT_EQ(write(pipe_ends[1], sent.data(), sent.size()), 3000);
  close(pipe_ends[1]);
  Wasi wasi({.on_input = [&](std::span<char> buffer) -> size_t {
    const ssize_t got = read(pipe_ends[0], buffer.data(), buffer.size());
    EXPECT_GE(got, 0) << strerror(errno);
    return got < 0 ? 0 : static_cast<size_t>(got);
  }});
  WasiGuest guest = Make(&wasi);
  // Into pages that nobody has touched.
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_count_input, u32{'q'}), 3000u);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_read_input), 0u);  // the end
  close(pipe_ends[0]);
}

TEST_F(WasiCallTest, InputIsBoundedByWhatTheGuestOffers) {
  size_t claims = 3;
  Wasi wasi = MakeWasi({.on_input = [&](std::span<char> buffer) {
    memset(buffer.data(), 'i', std::min(buffer.size(), claims));
    return claims;
  }});
  SetNumbers(0, {1000, 4, 2000, 4});
  EXPECT_EQ(wasi.FdRead(0, 0, 2, 64), kWasiSuccess);
  EXPECT_EQ(Number(64), 3u);  // a short count ends it
  EXPECT_EQ(Text(1000), "iii");
  EXPECT_EQ(bytes_[2000], 0);
  claims = 4;
  EXPECT_EQ(wasi.FdRead(0, 0, 2, 64), kWasiSuccess);
  EXPECT_EQ(Number(64), 8u);
  claims = 5;  // more than there is room for
  EXPECT_EQ(wasi.FdRead(0, 0, 1, 64), kWasiIo);
  SetNumbers(0, {kSize - 2, 4});
  EXPECT_EQ(wasi.FdRead(0, 0, 1, 64), kWasiFault);
}

TEST_P(WasiGuestTest, AHostilePointerIsTheGuestsProblem) {
  std::string output;
  Wasi wasi(
      {.on_output = [&](int, std::string_view text) { output.append(text); }});
  WasiGuest guest = Make(&wasi);
  const uint32_t size = guest.memory().size;
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_write_from, size - 4, 8u), UINT32_MAX);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_write_from, size, 1u), UINT32_MAX);
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_write_from, UINT32_MAX, 1u), UINT32_MAX);
  EXPECT_EQ(output, "");
  EXPECT_EQ(*guest.Call(&Z_wasi_guestZ_write_from, size - 4, 4u), 4u);
  EXPECT_EQ(output.size(), 4u);
}

TEST_P(WasiGuestTest, TheHeapIsPartOfASnapshotAndWasiIsNot) {
  Wasi wasi;
  WasiGuest guest = Make(&wasi);
  ASSERT_EQ(*guest.Call(&Z_wasi_guestZ_keep, 33u), 0u);
  auto prepared = guest.Snapshot("heap");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  std::string output;
  Wasi own(
      {.on_output = [&](int, std::string_view text) { output.append(text); }});
  auto copy = (*prepared)->Instantiate(source(), &own);
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*copy->Call(&Z_wasi_guestZ_kept_byte, 99999u), 33u);
  EXPECT_EQ(*copy->Call(&Z_wasi_guestZ_write_from, 1024u, 1u), 1u);
  EXPECT_EQ(output.size(), 1u);
}

}  // namespace
}  // namespace firsttouch::wasm2c
