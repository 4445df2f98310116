// Images of modules: against what wabt's interpreter gives the same modules,
// and what is said of those that are wrong.
#include "firsttouch/init/wasm/wasm_image.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/wasm/test_modules.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

Bytes Module(std::string_view text, bool validate = true) {
  absl::StatusOr<Bytes> module = ModuleFromText(text, validate);
  EXPECT_TRUE(module.ok()) << module.status() << "\nof " << text;
  return module.ok() ? *module : Bytes{};
}

absl::StatusOr<WasmImages> Images(const Bytes& module,
                                  WasmImageOptions options = {}) {
  options.name = "m";
  return ImagesFromWasm(options, module);
}

absl::StatusOr<WasmImages> Images(std::string_view text,
                                  WasmImageOptions options = {}) {
  return Images(Module(text), std::move(options));
}

Bytes Contents(const WasmMemory& memory) {
  Bytes contents(memory.image->size_bytes());
  EXPECT_TRUE(memory.image->Read(0, contents).ok());
  return contents;
}

// A vector of megabytes in a message helps nobody.
size_t FirstDifference(const Bytes& a, const Bytes& b) {
  size_t i = 0;
  while (i < a.size() && i < b.size() && a[i] == b[i]) ++i;
  return i;
}

void ExpectAsInstantiated(const Bytes& module,
                          const WasmImageOptions& options = {}) {
  absl::StatusOr<WasmImages> images = Images(module, options);
  ASSERT_TRUE(images.ok()) << images.status();
  absl::StatusOr<std::vector<Bytes>> memories = MemoriesInInterpreter(
      module, {options.globals, options.imported_memory_pages});
  ASSERT_TRUE(memories.ok()) << memories.status();
  ASSERT_EQ(images->memories.size(), memories->size());
  EXPECT_TRUE(images->unresolved.empty());
  for (size_t i = 0; i < memories->size(); ++i) {
    const Bytes image = Contents(images->memories[i]);
    EXPECT_EQ(image.size(), (*memories)[i].size());
    EXPECT_TRUE(image == (*memories)[i])
        << "memory " << i << " differs at "
        << FirstDifference(image, (*memories)[i]);
  }
}

TEST(WasmImageTest, EqualsWhatTheInterpreterInstantiates) {
  for (std::string_view text : {
           "(module)",
           "(module (memory 0))",
           "(module (memory 1))",
           "(module (memory 1) (data (i32.const 0) \"\"))",
           "(module (memory 1) (data (i32.const 65536) \"\"))",
           "(module (memory 1) (data (i32.const 65535) \"x\"))",
           // Later ones win.
           "(module (memory 1) (data (i32.const 8) \"aaaa\")"
           " (data (i32.const 6) \"bbbb\") (data (i32.const 9) \"c\"))",
           "(module (memory $a 1) (memory $b 2)"
           " (data (memory $b) (i32.const 70000) \"b\")"
           " (data (memory $a) (i32.const 7) \"a\"))",
           "(module (memory i64 2) (data (i64.const 65536) \"sixty-four\"))",
           "(module (memory 1 2 shared) (data (i32.const 1) \"shared\"))",
           "(module (memory (import \"env\" \"memory\") 1)"
           " (memory 2) (data (memory 1) (i32.const 66000) \"own\")"
           " (data (i32.const 3) \"imported\"))",
           "(module (memory 1) (data $p \"passive\")"
           " (data (i32.const 1) \"active\"))",
           // The start function would overwrite it.
           "(module (memory 1) (data (i32.const 0) \"before\")"
           " (func $start (i32.store (i32.const 0) (i32.const 0)))"
           " (start $start))",
       }) {
    SCOPED_TRACE(text);
    ExpectAsInstantiated(Module(text));
  }
}

TEST(WasmImageTest, TheUpperHalfOfTheAddressesIsNoNegativeOffset) {
  absl::StatusOr<WasmImages> images =
      Images("(module (memory 32769) (data (i32.const -2147483648) \"far\"))");
  ASSERT_TRUE(images.ok()) << images.status();
  Bytes contents(4);
  ASSERT_TRUE(images->memories[0].image->Read(2147483648, contents).ok());
  EXPECT_EQ(std::memcmp(contents.data(), "far\0", 4), 0);
}

TEST(WasmImageTest, ConstantExpressionsAreFolded) {
  constexpr char kImports[] =
      "(import \"env\" \"given\" (global $given i32))"
      "(import \"env\" \"large\" (global $large i64))";
  // wabt 1.0.32 takes no global of the module's own in a constant expression,
  // as the first version of WebAssembly did, so that these cannot be compared.
  constexpr char kGlobals[] =
      "(global $hundred i32 (i32.const 100))"
      "(global $derived i32 (i32.mul (global.get $hundred) (i32.const 3)))"
      "(global $float f32 (f32.const 1.5))"
      "(global $ref funcref (ref.null func))"
      "(global $big i64 (i64.const 0x100000010))";
  struct Case {
    std::string memory;
    std::string offset;
    uint64_t value;
    bool own_globals = false;
  };
  for (const Case& c : {
           Case{"", "(i32.add (i32.const 40) (i32.const 2))", 42},
           Case{"", "(i32.sub (i32.const 40) (i32.const 2))", 38},
           Case{"", "(i32.mul (i32.const 40) (i32.const 2))", 80},
           // These wrap at 32 bits.
           Case{"", "(i32.add (i32.const -1) (i32.const 8))", 7},
           Case{"", "(i32.mul (i32.const 0x10001) (i32.const 0x10000))", 65536},
           Case{"", "(i32.sub (i32.const 5) (i32.const -5))", 10},
           Case{"", "(i32.add (global.get $given) (i32.const 1))", 5001},
           Case{"i64", "(i64.add (i64.const -1) (i64.const 9))", 8},
           Case{"i64", "(i64.mul (i64.const 300) (i64.const 300))", 90000},
           Case{"i64", "(i64.sub (global.get $large) (i64.const 0x100000000))",
                7},
           Case{"", "(global.get $hundred)", 100, true},
           Case{"", "(global.get $derived)", 300, true},
           Case{"", "(i32.sub (global.get $derived) (global.get $hundred))",
                200, true},
           Case{"i64", "(i64.sub (global.get $big) (i64.const 0x100000000))",
                16, true},
       }) {
    SCOPED_TRACE(c.offset);
    const Bytes module =
        Module(absl::StrCat("(module ", kImports, c.own_globals ? kGlobals : "",
                            "(memory ", c.memory, " 3) (data (offset ",
                            c.offset, ") \"here\"))"),
               /*validate=*/!c.own_globals);
    const WasmImageOptions options{
        .globals = {{"env.given", 5000}, {"env.large", 0x100000007}}};
    absl::StatusOr<WasmImages> images = Images(module, options);
    ASSERT_TRUE(images.ok()) << images.status();
    const Bytes contents = Contents(images->memories[0]);
    EXPECT_EQ(std::memcmp(contents.data() + c.value, "here", 4), 0);
    if (!c.own_globals) ExpectAsInstantiated(module, options);
  }
}

TEST(WasmImageTest, AnOffsetThatDependsOnAnImportIsNamed) {
  const Bytes module = Module(
      "(module (import \"env\" \"__memory_base\" (global $base i32))"
      " (import \"env\" \"other\" (global $other i32)) (memory 1)"
      " (global $derived i32 (i32.add (global.get $base) (i32.const 8)))"
      " (data (i32.const 3) \"known\")"
      " (data (global.get $base) \"unknown\")"
      " (data (i32.add (i32.const 16) (global.get $derived)) \"too\"))",
      /*validate=*/false);
  absl::StatusOr<WasmImages> images = Images(module);
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_EQ(images->memories[0].active_segments, 1u);
  ASSERT_EQ(images->unresolved.size(), 2u);
  EXPECT_EQ(images->unresolved[0].index, 1u);
  EXPECT_EQ(images->unresolved[0].bytes, 7u);
  EXPECT_EQ(images->unresolved[0].memory, 0u);
  EXPECT_EQ(images->unresolved[0].offset, "global.get env.__memory_base");
  EXPECT_EQ(images->unresolved[0].needs, "env.__memory_base");
  EXPECT_EQ(images->unresolved[1].index, 2u);
  EXPECT_EQ(images->unresolved[1].offset,
            "i32.const 16; global.get 2; i32.add");
  EXPECT_EQ(images->unresolved[1].needs, "env.__memory_base");
  // With its value, nothing is missing.
  images = Images(module, {.globals = {{"env.__memory_base", 0x400}}});
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_TRUE(images->unresolved.empty());
  const Bytes contents = Contents(images->memories[0]);
  EXPECT_EQ(std::memcmp(contents.data() + 1024, "unknown", 7), 0);
  EXPECT_EQ(std::memcmp(contents.data() + 1024 + 8 + 16, "too", 3), 0);
}

TEST(WasmImageTest, AValueThatDoesNotFitAGlobalIsAnError) {
  const std::string module =
      "(module (import \"env\" \"base\" (global i32))"
      " (import \"env\" \"wide\" (global i64)) (memory 1))";
  EXPECT_EQ(Images(module, {.globals = {{"env.base", 4294968320}}}).status(),
            absl::InvalidArgumentError(
                "module 'm': the value 4294968320 of global 'env.base' does "
                "not fit its 32 bits: it is an i32, from -2147483648 to "
                "4294967295"));
  const auto negative = [](int64_t value) {
    return static_cast<uint64_t>(value);
  };
  EXPECT_FALSE(
      Images(module, {.globals = {{"env.base", negative(-2147483649)}}}).ok());
  for (const uint64_t value :
       {negative(-2147483648), negative(-1), uint64_t{4294967295}}) {
    EXPECT_TRUE(Images(module, {.globals = {{"env.base", value}}}).ok())
        << value;
  }
  EXPECT_TRUE(Images(module, {.globals = {{"env.wide", 4294968320}}}).ok());
}

TEST(WasmImageTest, AValueForAGlobalThatIsNotImportedIsAnError) {
  const absl::StatusOr<WasmImages> images =
      Images("(module (import \"env\" \"base\" (global i32)))",
             {.globals = {{"env.bass", 1}}});
  EXPECT_EQ(images.status(),
            absl::InvalidArgumentError(
                "module 'm': a value is given for global 'env.bass', which the "
                "module does not import; it imports env.base"));
}

TEST(WasmImageTest, MemoriesAreDescribedImportedOnesFirst) {
  absl::StatusOr<WasmImages> images = Images(
      "(module (import \"a\" \"b\" (memory 1 5 shared))"
      " (memory i64 2) (memory 3 4)"
      " (data (memory 2) (i32.const 0) \"x\")"
      " (func $f) (start $f))");
  ASSERT_TRUE(images.ok()) << images.status();
  ASSERT_EQ(images->memories.size(), 3u);
  const WasmMemory& imported = images->memories[0];
  EXPECT_EQ(imported.import, (WasmImportName{"a", "b"}));
  EXPECT_EQ(imported.initial_pages, 1u);
  EXPECT_EQ(imported.max_pages, 5u);
  EXPECT_TRUE(imported.is_shared);
  EXPECT_FALSE(imported.is_64);
  EXPECT_EQ(imported.image->name(), "m");
  EXPECT_EQ(imported.image->size_bytes(), 65536u);
  const WasmMemory& large = images->memories[1];
  EXPECT_FALSE(large.import.has_value());
  EXPECT_FALSE(large.max_pages.has_value());
  EXPECT_TRUE(large.is_64);
  EXPECT_EQ(large.image->name(), "m#1");
  EXPECT_EQ(images->memories[2].active_segments, 1u);
  EXPECT_EQ(images->memories[2].image->name(), "m#2");
  EXPECT_EQ(images->memories[2].image->stored_pages(), 1u);
  EXPECT_EQ(images->start_function, 0u);
}

TEST(WasmImageTest, AModuleWithoutMemoriesHasNoImages) {
  absl::StatusOr<WasmImages> images =
      Images("(module (func (export \"f\")) (data $p \"passive\"))");
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_TRUE(images->memories.empty());
  EXPECT_EQ(images->passive.size(), 1u);
  EXPECT_FALSE(images->start_function.has_value());
}

TEST(WasmImageTest, PassiveSegmentsAreListedWithWhereTheirBytesAre) {
  const Bytes module = Module(
      "(module (memory 1) (data $a \"first\") (data (i32.const 0) \"active\")"
      " (data $b \"the second\"))");
  absl::StatusOr<WasmImages> images = Images(module);
  ASSERT_TRUE(images.ok()) << images.status();
  ASSERT_EQ(images->passive.size(), 2u);
  EXPECT_EQ(images->passive[0].index, 0u);
  EXPECT_FALSE(images->passive[0].memory.has_value());
  const WasmSegment& second = images->passive[1];
  EXPECT_EQ(second.index, 2u);
  EXPECT_EQ(second.bytes, 10u);
  ASSERT_LE(second.module_offset + second.bytes, module.size());
  EXPECT_EQ(std::memcmp(module.data() + second.module_offset, "the second", 10),
            0);
}

TEST(WasmImageTest, ImportedMemoriesMayBeginLarger) {
  const Bytes module = Module(
      "(module (import \"env\" \"memory\" (memory 1 4))"
      " (data (i32.const 131072) \"past the minimum\"))");
  EXPECT_EQ(Images(module).status(),
            absl::OutOfRangeError(
                "module 'm': data segment 0: offset 131072 + 16 bytes does not "
                "end within memory 0, which is imported with 65536 bytes (1 "
                "pages); say how many it will have (imported_memory_pages)"));
  ExpectAsInstantiated(module, {.imported_memory_pages = 3});
  for (uint64_t pages : {uint64_t{0}, uint64_t{5}, ~uint64_t{0}}) {
    EXPECT_EQ(Images(module, {.imported_memory_pages = pages}).status(),
              absl::InvalidArgumentError(absl::StrCat(
                  "module 'm': imported_memory_pages ", pages,
                  " is outside what memory 0 (imported as env.memory) allows: "
                  "1 to 4 pages")));
  }
}

TEST(WasmImageTest, ASegmentOutsideItsMemoryIsNamed) {
  const struct {
    std::string_view text;
    std::string_view error;
  } cases[] = {
      {"(module (memory 1) (data (i32.const 0) \"\")"
       " (data (i32.const 65535) \"xy\"))",
       "data segment 1: offset 65535 + 2 bytes does not end within memory 0, "
       "which begins with 65536 bytes (1 pages)"},
      {"(module (memory 1) (data (i32.const 65537) \"\"))",
       "data segment 0: offset 65537 + 0 bytes does not end within memory 0, "
       "which begins with 65536 bytes (1 pages)"},
      {"(module (memory 1) (data (i32.const -1) \"x\"))",
       "data segment 0: offset 4294967295 + 1 bytes does not end within memory "
       "0, which begins with 65536 bytes (1 pages)"},
      {"(module (memory 0) (data (i32.const 0) \"x\"))",
       "data segment 0: offset 0 + 1 bytes does not end within memory 0, which "
       "begins with 0 bytes (0 pages)"},
      {"(module (memory i64 1) (data (i64.const -1) \"xyz\"))",
       "data segment 0: offset 18446744073709551615 + 3 bytes does not end "
       "within memory 0, which begins with 65536 bytes (1 pages)"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Images(c.text).status(),
              absl::OutOfRangeError(
                  absl::StrCat("module 'm': ", std::string(c.error))));
    // As an instance would trap.
    EXPECT_THAT(MemoriesInInterpreter(Module(c.text)).status().ToString(),
                HasSubstr("out of bounds"));
  }
}

TEST(WasmImageTest, AnOffsetThatIsNoConstantIsNamed) {
  const struct {
    std::string_view text;
    std::string_view error;
  } cases[] = {
      {"(module (memory 1) (data (i64.const 1) \"x\"))",
       "its offset \"i64.const 1\" is not a constant expression: it gives i64, "
       "and the addresses of memory 0 are i32"},
      {"(module (memory i64 1) (data (i32.const 1) \"x\"))",
       "its offset \"i32.const 1\" is not a constant expression: it gives i32, "
       "and the addresses of memory 0 are i64"},
      {"(module (memory 1) (data (offset) \"x\"))",
       "its offset \"\" is not a constant expression: it gives 0 values"},
      {"(module (memory 1) (data (offset i32.const 1 i32.const 2) \"x\"))",
       "its offset \"i32.const 1; i32.const 2\" is not a constant expression: "
       "it gives 2 values"},
      {"(module (memory 1) (data (offset i32.const 1 i32.add) \"x\"))",
       "its offset \"i32.const 1; i32.add\" is not a constant expression: "
       "i32.add has less than two operands"},
      {"(module (memory 1)"
       " (data (offset i32.const 1 i64.const 1 i32.add) \"x\"))",
       "its offset \"i32.const 1; i64.const 1; i32.add\" is not a constant "
       "expression: i32.add has operands of another type"},
      {"(module (memory 1)"
       " (data (i32.and (i32.const 1) (i32.const 3)) \"x\"))",
       "its offset \"i32.const 1; i32.const 3; i32.and\" is not a constant "
       "expression: i32.and is not constant"},
      {"(module (memory 1) (data (memory.size) \"x\"))",
       "its offset \"\" is not a constant expression: memory.size is not "
       "constant"},
      {"(module (memory 1) (global $g (mut i32) (i32.const 1))"
       " (data (global.get $g) \"x\"))",
       "its offset \"global.get 0\" is not a constant expression: global 0 is "
       "mutable"},
      {"(module (memory 1) (global $g i32 (memory.size))"
       " (data (global.get $g) \"x\"))",
       "its offset \"global.get 0\" is not a constant expression: global 0 is "
       "not a constant number"},
      {"(module (memory 1) (global $g f32 (f32.const 1))"
       " (data (global.get $g) \"x\"))",
       "its offset \"global.get 0\" is not a constant expression: global 0 is "
       "not a constant number"},
      // A global that comes later.
      {"(module (memory 1) (global $g i32 (global.get 1))"
       " (global $h i32 (i32.const 1)) (data (global.get $g) \"x\"))",
       "its offset \"global.get 0\" is not a constant expression: global 0 is "
       "not a constant number"},
      {"(module (memory 1) (data (global.get 7) \"x\"))",
       "its offset \"\" is not a constant expression: there is no global 7 "
       "before it"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Images(Module(c.text, /*validate=*/false)).status(),
              absl::InvalidArgumentError(absl::StrCat(
                  "module 'm': data segment 0: ", std::string(c.error))));
  }
}

TEST(WasmImageTest, ALongOffsetIsCut) {
  std::string offset = "global.get 0";
  for (int i = 0; i < 10000; ++i) offset += " i32.const 1 i32.add";
  absl::StatusOr<WasmImages> images = Images(
      absl::StrCat("(module (import \"env\" \"base\" (global i32)) (memory 1)"
                   " (data (offset ",
                   offset, ") \"x\"))"));
  ASSERT_TRUE(images.ok()) << images.status();
  ASSERT_EQ(images->unresolved.size(), 1u);
  EXPECT_EQ(images->unresolved[0].offset.size(), 203u);
  EXPECT_THAT(images->unresolved[0].offset, testing::EndsWith("..."));
}

// A module of one memory section with these bytes.
Bytes WithMemorySection(std::initializer_list<int> section) {
  Bytes module;
  for (int byte :
       {0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 5, static_cast<int>(section.size())}) {
    module.push_back(static_cast<std::byte>(byte));
  }
  for (int byte : section) module.push_back(static_cast<std::byte>(byte));
  return module;
}

TEST(WasmImageTest, PageSizesThatWabtCannotReadAreNamed) {
  // One memory, flags 8, one page of 2^0 bytes.
  EXPECT_EQ(Images(WithMemorySection({1, 8, 1, 0})).status(),
            absl::UnimplementedError(
                "module 'm': wabt: 000000c: malformed memory limits flag: 8: "
                "the memory has a page size of its own (custom-page-sizes), "
                "which this version of wabt cannot read; build the module with "
                "pages of 65536 bytes"));
  EXPECT_EQ(Images(WithMemorySection({1, 16, 1})).status(),
            absl::InvalidArgumentError(
                "module 'm': wabt: 000000c: malformed memory limits flag: 16"));
  EXPECT_TRUE(Images(WithMemorySection({1, 0, 1})).ok());
}

TEST(WasmImageTest, AMemoryThatIsTooLargeIsAnError) {
  // 2^48 pages: as many bytes as 64 bits can count, and one.
  EXPECT_EQ(Images("(module (memory i64 0x1000000000000))").status(),
            absl::InvalidArgumentError(
                "module 'm': memory 0 begins with 281474976710656 pages of "
                "65536 bytes; an image has at most 1099511627776"));
  EXPECT_TRUE(Images("(module (memory i64 0x1000000))").ok());
}

TEST(WasmImageTest, FunctionBodiesAreNotLookedAt) {
  Bytes module = Module(
      "(module (memory 1) (func i64.const 0x123456 drop)"
      " (data (i32.const 0) \"data\"))");
  // An instruction that nobody knows.
  const std::vector<std::byte> body = {std::byte{0x42}, std::byte{0xd6},
                                       std::byte{0xe8}, std::byte{0xc8}};
  const auto at =
      std::search(module.begin(), module.end(), body.begin(), body.end());
  ASSERT_NE(at, module.end());
  *at = std::byte{0xff};
  EXPECT_FALSE(MemoriesInInterpreter(module).ok());
  absl::StatusOr<WasmImages> images = Images(module);
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_EQ(images->memories[0].image->stored_pages(), 1u);
}

TEST(WasmImageTest, NoModuleGetsWabtsErrorWithItsOffset) {
  EXPECT_EQ(Images(Bytes{}).status(),
            absl::InvalidArgumentError("module 'm': wabt: 0000000: unable to "
                                       "read uint32_t: magic"));
  Bytes text(12, std::byte{'x'});
  EXPECT_EQ(
      Images(text).status(),
      absl::InvalidArgumentError("module 'm': wabt: 0000004: bad magic value"));
}

TEST(WasmImageTest, EveryCutAndEveryFlippedByteGivesAnImageOrAnError) {
  const Bytes module = Module(
      "(module (import \"env\" \"memory\" (memory 1))"
      " (import \"env\" \"base\" (global i32))"
      " (global i32 (i32.add (global.get 0) (i32.const 300)))"
      " (memory 2) (func $f) (start $f)"
      " (data (i32.const 100) \"one\") (data $p \"two\")"
      " (data (memory 1) (global.get 1) \"three\"))",
      /*validate=*/false);
  ASSERT_TRUE(Images(module).ok());
  int failed = 0;
  const auto look = [&](const Bytes& bytes) {
    absl::StatusOr<WasmImages> images = Images(bytes);
    if (images.ok()) return;
    ++failed;
    EXPECT_THAT(images.status().message(), HasSubstr("module 'm': "));
  };
  for (size_t size = 0; size < module.size(); ++size) {
    look(Bytes(module.begin(), module.begin() + static_cast<int64_t>(size)));
  }
  EXPECT_GT(failed, static_cast<int>(module.size()) / 2);
  for (size_t i = 0; i < module.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes flipped = module;
      flipped[i] ^= static_cast<std::byte>(1 << bit);
      look(flipped);
    }
  }
}

std::string ManySegments(int count) {
  std::string text = "(module (memory 4)";
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "(data (i32.const ", (i * 7919) % 262144, ") \"\\",
                    absl::Hex(i % 255 + 1, absl::kZeroPad2), "\")");
  }
  return text + ")";
}

TEST(WasmImageTest, AHundredThousandSegments) {
  ExpectAsInstantiated(Module(ManySegments(100'000)));
  EXPECT_THAT(Images(ManySegments(100'001)).status().message(),
              HasSubstr("100001 segments"));
}

TEST(WasmImageTest, RandomModulesEqualTheInterpreter) {
  std::mt19937 random(1);
  const auto below = [&](uint32_t end) { return random() % end; };
  for (int round = 0; round < 60; ++round) {
    std::string text = "(module (import \"env\" \"base\" (global i32))";
    const uint32_t memories = below(3) + 1;
    for (uint32_t i = 0; i < memories; ++i) {
      absl::StrAppend(&text, "(memory ", below(3) + 1, ")");
    }
    const uint32_t segments = below(40);
    for (uint32_t i = 0; i < segments; ++i) {
      if (below(8) == 0) {
        absl::StrAppend(&text, "(data \"passive\")");
        continue;
      }
      std::string offset = absl::StrCat("(i32.const ", below(60000), ")");
      if (below(3) == 0) {
        offset = absl::StrCat("(i32.add (global.get 0) (i32.mul (i32.const ",
                              below(30), ") (i32.const ", below(1000), ")))");
      }
      absl::StrAppend(&text, "(data (memory ", below(memories), ") ", offset,
                      " \"", std::string(below(400), 'a' + below(26)), "\")");
    }
    text += ")";
    SCOPED_TRACE(absl::StrCat("round ", round));
    ExpectAsInstantiated(Module(text), {.globals = {{"env.base", 77}}});
  }
}

}  // namespace
}  // namespace firsttouch
