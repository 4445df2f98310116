// Images of modules as they are shipped, against wabt's interpreter.
//
//   real_modules_test <name>=<file>...
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/wasm/test_modules.h"
#include "firsttouch/init/wasm/wasm_image.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// What is known of a module; a reader that leaves half of it out would be
// noticed even if the interpreter did the same.
struct Expected {
  uint64_t pages = 0;
  uint64_t active_segments = 0;
  uint64_t stored_pages = 0;
  uint64_t passive_segments = 0;
  bool imports_memory = false;
  // Where the host puts its data.
  std::map<std::string, uint64_t> globals;
};

const std::map<std::string, Expected>& Modules() {
  static const auto& modules = *new std::map<std::string, Expected>{
      {"avif_decoder", {256, 374, 85}},
      // With threads, the start function copies passive segments.
      {"avif_encoder_threads", {256, 0, 0, 468, true}},
      {"box2d", {256, 29, 3}},
      // Close to the most segments that engines take.
      {"esbuild", {95, 98450, 1204}},
      {"pyodide", {480, 14579, 884}},
      {"sqlite", {256, 402, 25, 0, true}},
      {"tree_sitter", {512, 1, 4, 0, true, {{"env.__memory_base", 1024}}}},
  };
  return modules;
}

class RealModuleTest : public testing::Test {
 public:
  RealModuleTest(std::string name, std::string path)
      : name_(std::move(name)), path_(std::move(path)) {}

  void TestBody() override {
    const auto known = Modules().find(name_);
    ASSERT_NE(known, Modules().end()) << name_;
    const Expected& expected = known->second;
    std::ifstream in(path_, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    ASSERT_FALSE(text.empty()) << path_;
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    const Bytes module(begin, begin + text.size());

    absl::StatusOr<WasmImages> images =
        ImagesFromWasm({.name = name_, .globals = expected.globals}, module);
    ASSERT_TRUE(images.ok()) << images.status();
    EXPECT_TRUE(images->unresolved.empty());
    EXPECT_EQ(images->passive.size(), expected.passive_segments);
    ASSERT_EQ(images->memories.size(), 1u);
    const WasmMemory& memory = images->memories[0];
    EXPECT_EQ(memory.initial_pages, expected.pages);
    EXPECT_EQ(memory.active_segments, expected.active_segments);
    EXPECT_EQ(memory.import.has_value(), expected.imports_memory);
    EXPECT_EQ(memory.image->stored_pages(), expected.stored_pages);

    absl::StatusOr<std::vector<Bytes>> instantiated =
        MemoriesInInterpreter(module, {expected.globals});
    ASSERT_TRUE(instantiated.ok()) << instantiated.status();
    ASSERT_EQ(instantiated->size(), 1u);
    Bytes contents(memory.image->size_bytes());
    ASSERT_TRUE(memory.image->Read(0, contents).ok());
    // Not EXPECT_EQ, which would print megabytes.
    EXPECT_TRUE(contents == (*instantiated)[0]);
  }

 private:
  const std::string name_;
  const std::string path_;
};

}  // namespace
}  // namespace firsttouch

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc < 2) {
    std::fputs("usage: real_modules_test <name>=<file>...\n", stderr);
    return 2;
  }
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string path = argument.substr(equals + 1);
    testing::RegisterTest("RealModuleTest", name.c_str(), nullptr, nullptr,
                          __FILE__, __LINE__, [=]() -> testing::Test* {
                            return new firsttouch::RealModuleTest(name, path);
                          });
  }
  return RUN_ALL_TESTS();
}
