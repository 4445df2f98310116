// The C interface from C++: every function once as it is meant, and with what
// must be an error.

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/registry.h"
#include "firsttouch/service/options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::capi {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPage = FT_PAGE_BYTES;

// Fails with the error's text.
#define ASSERT_FT_OK(call)                                         \
  do {                                                             \
    ft_error error = FT_ERROR_INIT;                                \
    ft_error* const e = &error;                                    \
    ASSERT_EQ(call, FT_OK) << ft_status_name(error.status) << ": " \
                           << error.message;                       \
  } while (false)

ft_layout_options SmallLayout(uint32_t instances) {
  ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
  layout.instances = instances;
  layout.max_memory_bytes = 64 * kPage;
  layout.guard_after_bytes = 16 * kPage;
  return layout;
}

// A pool that is destroyed at the end of the test.
class Pool {
 public:
  explicit Pool(uint32_t instances) : Pool(instances, FT_POOL_OPTIONS_INIT) {}
  Pool(uint32_t instances, ft_pool_options options)
      : Pool(SmallLayout(instances), options) {}
  Pool(ft_layout_options layout, ft_pool_options options) {
    options.layout = &layout;
    ft_error error = FT_ERROR_INIT;
    EXPECT_EQ(ft_pool_create(&options, &pool_, &error), FT_OK) << error.message;
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() { ft_pool_destroy(pool_, nullptr); }

  ft_pool handle() const { return pool_; }

  // A memory of some bytes.
  ft_memory Acquire(uint64_t size_bytes, unsigned char** base = nullptr,
                    ft_image image = {}) const {
    ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
    options.size_bytes = size_bytes;
    options.image = image;
    return Acquire(options, base);
  }
  ft_memory Acquire(const ft_memory_options& options,
                    unsigned char** base) const {
    ft_memory memory = {};
    void* at = nullptr;
    ft_error error = FT_ERROR_INIT;
    EXPECT_EQ(ft_memory_acquire(pool_, &options, &memory, &at, &error), FT_OK)
        << error.message;
    if (base != nullptr) *base = static_cast<unsigned char*>(at);
    return memory;
  }

 private:
  ft_pool pool_ = {};
};

ft_image ImageOf(const std::string& text, uint64_t size_bytes = 4 * kPage) {
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.name = "text";
  options.size_bytes = size_bytes;
  ft_image image = {};
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(
      ft_image_from_bytes(&options, text.data(), text.size(), &image, &error),
      FT_OK)
      << error.message;
  return image;
}

std::string TextAt(ft_image image, uint64_t offset_bytes, size_t length) {
  std::string text(length, '?');
  EXPECT_EQ(ft_image_read(image, offset_bytes, text.data(), length, nullptr),
            FT_OK);
  return text;
}

bool Same(ft_memory a, ft_memory b) {
  return a.entry == b.entry && a.serial == b.serial;
}

// --- Version, layout ---------------------------------------------------------

TEST(Version, IsThatOfTheHeaderAndOfTheModule) {
  EXPECT_STREQ(ft_version(), FT_VERSION_STRING);
  EXPECT_EQ(ft_version_number(), FT_VERSION_MAJOR * 1000000u +
                                     FT_VERSION_MINOR * 1000u +
                                     FT_VERSION_PATCH);
  std::ostringstream parts;
  parts << FT_VERSION_MAJOR << '.' << FT_VERSION_MINOR << '.'
        << FT_VERSION_PATCH;
  EXPECT_EQ(parts.str(), FT_VERSION_STRING);
  std::ifstream module("MODULE.bazel");
  std::stringstream text;
  text << module.rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("name = \"firsttouch\",\n    version = \"" +
                                    std::string(FT_VERSION_STRING) + "\""));
}

TEST(Status, HasANameForEachCode) {
  EXPECT_STREQ(ft_status_name(FT_OK), "OK");
  EXPECT_STREQ(ft_status_name(FT_ERROR_INVALID_HANDLE), "INVALID_HANDLE");
  EXPECT_STREQ(ft_status_name(FT_ERROR_UNAUTHENTICATED), "UNAUTHENTICATED");
  EXPECT_STREQ(ft_status_name(12345), "UNKNOWN");
}

TEST(Layout, IsThatOfCpp) {
  ft_layout_options options = FT_LAYOUT_OPTIONS_INIT;
  ASSERT_FT_OK(ft_layout_wasm32(10, &options, e));
  EXPECT_EQ(options.instances, 10u);
  EXPECT_EQ(options.max_memory_bytes, uint64_t{4} << 30);
  ft_layout layout = FT_LAYOUT_INIT;
  ASSERT_FT_OK(ft_layout_compute(&options, &layout, e));
  EXPECT_EQ(layout.slots, 10u);
  EXPECT_EQ(layout.memory_bytes, uint64_t{4} << 30);
  EXPECT_EQ(layout.reservation_bytes,
            layout.first_memory_offset_bytes + 10 * layout.slot_stride_bytes);

  options.instances = 0;
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_layout_compute(&options, &layout, &error),
            FT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(error.status, FT_ERROR_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("instances"));
}

// --- Errors ------------------------------------------------------------------

TEST(Error, IsNotWrittenWhereNothingFails) {
  ft_error error;
  memset(&error, 0x5a, sizeof error);
  const ft_error before = error;
  ft_layout_options options = FT_LAYOUT_OPTIONS_INIT;
  EXPECT_EQ(ft_layout_wasm32(1, &options, &error), FT_OK);
  EXPECT_EQ(memcmp(&error, &before, sizeof error), 0);
}

TEST(Error, IsCutToTheRoomThatTheCallerHas) {
  struct {
    size_t struct_size = 16 + 8;
    ft_status status = 0;
    uint32_t message_length = 0;
    std::array<char, 16> message = {};
  } small;
  static_assert(offsetof(ft_error, message) == 16);
  small.message.fill('#');
  EXPECT_EQ(ft_pool_destroy({}, reinterpret_cast<ft_error*>(&small)),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(small.status, FT_ERROR_INVALID_HANDLE);
  EXPECT_GT(small.message_length, 7u);
  EXPECT_STREQ(small.message.data(), "ft_pool");
  EXPECT_EQ(small.message[8], '#');

  // Without room for any text nothing is written.
  small.struct_size = 16;
  small.status = 77;
  EXPECT_EQ(ft_pool_destroy({}, reinterpret_cast<ft_error*>(&small)),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(small.status, 77);
}

TEST(Error, MayHaveALongerText) {
  std::vector<char> room(10000, '#');
  auto* const error = reinterpret_cast<ft_error*>(room.data());
  error->struct_size = room.size();
  EXPECT_EQ(ft_pool_destroy({}, error), FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(strlen(error->message), error->message_length);
}

// --- Structs of other versions -----------------------------------------------

TEST(Struct, OfALaterVersionIsTakenWhereWhatIsNewIsZero) {
  struct {
    ft_layout_options known = FT_LAYOUT_OPTIONS_INIT;
    uint64_t new_field = 0;
  } later;
  later.known = SmallLayout(2);
  later.known.struct_size = sizeof later;
  ft_layout layout = FT_LAYOUT_INIT;
  ASSERT_FT_OK(ft_layout_compute(&later.known, &layout, e));
  EXPECT_EQ(layout.slots, 2u);

  later.new_field = 1;
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_layout_compute(&later.known, &layout, &error),
            FT_ERROR_STRUCT_SIZE);
  EXPECT_THAT(error.message, HasSubstr("struct_size 64"));
}

TEST(Struct, OfNoVersionIsRefused) {
  ft_layout_options options = SmallLayout(2);
  ft_layout layout = FT_LAYOUT_INIT;
  for (const size_t size :
       {size_t{0}, size_t{8}, sizeof options - 1, size_t{5000}, SIZE_MAX}) {
    options.struct_size = size;
    EXPECT_EQ(ft_layout_compute(&options, &layout, nullptr),
              FT_ERROR_STRUCT_SIZE)
        << size;
  }
  options.struct_size = sizeof options;
  layout.struct_size = 0;
  EXPECT_EQ(ft_layout_compute(&options, &layout, nullptr),
            FT_ERROR_STRUCT_SIZE);
}

TEST(Struct, ThatIsFilledMayBeOfALaterVersion) {
  struct {
    ft_layout known = FT_LAYOUT_INIT;
    uint64_t new_field = 17;
  } later;
  later.known.struct_size = sizeof later;
  const ft_layout_options options = SmallLayout(2);
  ASSERT_FT_OK(ft_layout_compute(&options, &later.known, e));
  EXPECT_EQ(later.known.slots, 2u);
  EXPECT_EQ(later.known.struct_size, sizeof later);
  EXPECT_EQ(later.new_field, 17u);
}

// --- Handles -----------------------------------------------------------------

TEST(Handle, OfNothingIsAnError) {
  const std::vector<ft_memory> wrong = {
      {}, {1, 1}, {UINT64_MAX, UINT64_MAX}, {uint64_t{0xf2} << 56, 1}};
  for (const ft_memory memory : wrong) {
    EXPECT_EQ(ft_memory_release(memory, nullptr), FT_ERROR_INVALID_HANDLE);
    EXPECT_EQ(ft_memory_reset(memory, nullptr), FT_ERROR_INVALID_HANDLE);
    EXPECT_EQ(ft_memory_grow(memory, 1, nullptr), FT_ERROR_INVALID_HANDLE);
    EXPECT_EQ(ft_memory_base(memory), nullptr);
    EXPECT_EQ(ft_memory_size(memory), 0u);
    EXPECT_EQ(ft_pool_destroy({memory.entry, memory.serial}, nullptr),
              FT_ERROR_INVALID_HANDLE);
    EXPECT_EQ(ft_image_release({memory.entry, memory.serial}, nullptr),
              FT_ERROR_INVALID_HANDLE);
  }
}

TEST(Handle, OfAReleasedMemoryStaysWrongWhenItsSlotIsLeasedAgain) {
  const Pool pool(1);
  const ft_memory first = pool.Acquire(kPage);
  ASSERT_FT_OK(ft_memory_release(first, e));
  EXPECT_EQ(ft_memory_release(first, nullptr), FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_memory_base(first), nullptr);

  const ft_memory second = pool.Acquire(kPage);
  EXPECT_EQ(second.entry, first.entry);
  EXPECT_FALSE(Same(first, second));
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_memory_release(first, &error), FT_ERROR_INVALID_HANDLE);
  EXPECT_THAT(error.message, HasSubstr("ft_memory_release"));
  EXPECT_THAT(error.message, HasSubstr("was released"));
  EXPECT_NE(ft_memory_base(second), nullptr);
  ASSERT_FT_OK(ft_memory_release(second, e));
}

TEST(Handle, OfAFreeSlotCannotBeForged) {
  const Pool pool(1);
  const ft_memory memory = pool.Acquire(kPage);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  EXPECT_EQ(ft_memory_base({memory.entry, memory.serial + 1}), nullptr);
  // Another slot than the pool has.
  EXPECT_EQ(ft_memory_base({memory.entry + 1, 1}), nullptr);
}

TEST(Handle, OfOneKindIsNoneOfAnother) {
  const Pool pool(1);
  const ft_image image = ImageOf("x");
  const ft_memory memory = pool.Acquire(kPage);
  EXPECT_EQ(ft_memory_base({pool.handle().entry, pool.handle().serial}),
            nullptr);
  EXPECT_EQ(ft_memory_base({image.entry, image.serial}), nullptr);
  EXPECT_EQ(ft_image_release({memory.entry, memory.serial}, nullptr),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_pool_trim({memory.entry, memory.serial}, nullptr, nullptr),
            FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Handle, OfADestroyedPoolIsAnError) {
  const ft_layout_options layout = SmallLayout(1);
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.layout = &layout;
  ft_pool first = {};
  ASSERT_FT_OK(ft_pool_create(&options, &first, e));
  ASSERT_FT_OK(ft_pool_destroy(first, e));
  EXPECT_EQ(ft_pool_destroy(first, nullptr), FT_ERROR_INVALID_HANDLE);
  // The next pool has its place.
  ft_pool second = {};
  ASSERT_FT_OK(ft_pool_create(&options, &second, e));
  EXPECT_EQ(second.entry, first.entry);
  ft_memory memory = {};
  EXPECT_EQ(ft_memory_acquire(first, nullptr, &memory, nullptr, nullptr),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_pool_trim(first, nullptr, nullptr), FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_pool_destroy(second, e));
}

TEST(Handle, OfAMemoryIsGoodAfterItsPoolAndNotInTheNextPool) {
  ft_memory memory = {};
  unsigned char* base = nullptr;
  {
    const Pool pool(2);
    memory = pool.Acquire(kPage, &base);
    base[0] = 7;
  }
  EXPECT_EQ(ft_memory_base(memory), base);
  EXPECT_EQ(base[0], 7);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  EXPECT_EQ(ft_memory_release(memory, nullptr), FT_ERROR_INVALID_HANDLE);
  // In the same place, with the same slot.
  const Pool pool(2);
  const ft_memory later = pool.Acquire(kPage);
  EXPECT_EQ(ft_memory_release(memory, nullptr), FT_ERROR_INVALID_HANDLE);
  EXPECT_FALSE(Same(memory, later));
  ASSERT_FT_OK(ft_memory_release(later, e));
}

TEST(Handle, OfAReleasedImageIsAnError) {
  const ft_image image = ImageOf("x");
  ft_image second = {};
  ASSERT_FT_OK(ft_image_duplicate(image, &second, e));
  ASSERT_FT_OK(ft_image_release(image, e));
  EXPECT_EQ(ft_image_release(image, nullptr), FT_ERROR_INVALID_HANDLE);
  char byte = 0;
  EXPECT_EQ(ft_image_read(image, 0, &byte, 1, nullptr),
            FT_ERROR_INVALID_HANDLE);
  // The other is one of its own.
  EXPECT_EQ(TextAt(second, 0, 1), "x");
  const Pool pool(1);
  ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
  options.image = image;
  ft_memory memory = {};
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(
      ft_memory_acquire(pool.handle(), &options, &memory, nullptr, &error),
      FT_ERROR_INVALID_HANDLE);
  EXPECT_THAT(error.message, HasSubstr("image"));
  ASSERT_FT_OK(ft_image_release(second, e));
}

TEST(Handle, ThereAreManyOfImages) {
  std::vector<ft_image> images(3000);
  const ft_image image = ImageOf("many");
  for (ft_image& copy : images) {
    ASSERT_FT_OK(ft_image_duplicate(image, &copy, e));
  }
  ASSERT_FT_OK(ft_image_release(image, e));
  EXPECT_EQ(TextAt(images.back(), 0, 4), "many");
  for (const ft_image copy : images) ASSERT_FT_OK(ft_image_release(copy, e));
}

// --- Nulls -------------------------------------------------------------------

TEST(Null, IsAnErrorThatNamesTheParameter) {
  ft_error error = FT_ERROR_INIT;
  const auto refused = [&](ft_status status) {
    return status == FT_ERROR_INVALID_ARGUMENT &&
           strstr(error.message, "NULL") != nullptr;
  };
  ft_pool pool = {};
  ft_image image = {};
  ft_memory memory = {};
  ft_pool_options pool_options = FT_POOL_OPTIONS_INIT;
  const ft_image_options image_options = FT_IMAGE_OPTIONS_INIT;
  const ft_source_options source = FT_SOURCE_OPTIONS_INIT;
  ft_layout layout = FT_LAYOUT_INIT;
  EXPECT_TRUE(refused(ft_layout_wasm32(1, nullptr, &error)));
  EXPECT_TRUE(refused(ft_layout_compute(nullptr, &layout, &error)));
  EXPECT_TRUE(refused(ft_pool_create(nullptr, &pool, &error)));
  EXPECT_TRUE(refused(ft_pool_create(&pool_options, nullptr, &error)));
  EXPECT_TRUE(refused(ft_pool_create(&pool_options, &pool, &error)));
  EXPECT_TRUE(refused(ft_pool_get_info(pool, nullptr, &error)));
  EXPECT_TRUE(refused(ft_pool_get_layout(pool, nullptr, &error)));
  EXPECT_TRUE(refused(ft_pool_fault_latency_ns(pool, 0.5, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_from_bytes(nullptr, "", 0, &image, &error)));
  EXPECT_TRUE(
      refused(ft_image_from_bytes(&image_options, "", 0, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_image_from_bytes(&image_options, nullptr, 1, &image, &error)));
  EXPECT_TRUE(refused(
      ft_image_from_segments(&image_options, nullptr, 1, &image, &error)));
  EXPECT_TRUE(refused(ft_image_from_callback(&image_options, nullptr, nullptr,
                                             &image, &error)));
  EXPECT_TRUE(refused(
      ft_image_with_pages(&image_options, {}, nullptr, 1, &image, &error)));
  EXPECT_TRUE(
      refused(ft_image_from_source(&image_options, nullptr, &image, &error)));
  EXPECT_TRUE(
      refused(ft_image_from_source(&image_options, &source, &image, &error)));
  EXPECT_TRUE(refused(ft_image_open(nullptr, nullptr, &image, &error)));
  EXPECT_TRUE(refused(ft_image_open("/", nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_write(image, nullptr, nullptr, &error)));
  ft_pending_file pending = {};
  EXPECT_TRUE(
      refused(ft_image_prepare(image, nullptr, nullptr, &pending, &error)));
  EXPECT_TRUE(refused(ft_image_prepare(image, "/", nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_inspect(
      nullptr, [](void*, const ft_file_info*) {}, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_inspect("/", nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_verify(nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_merge(nullptr, "/", nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_merge("/", nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_pack(nullptr, "/", 0, &error)));
  EXPECT_TRUE(refused(ft_image_pack("/", nullptr, 0, &error)));
  EXPECT_TRUE(refused(ft_image_unpack(nullptr, "/", 0, &error)));
  EXPECT_TRUE(refused(ft_image_unpack("/", nullptr, 0, &error)));
  EXPECT_TRUE(refused(ft_image_get_info(image, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_get_digest(image, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_read(image, 0, nullptr, 1, &error)));
  EXPECT_TRUE(refused(ft_image_get_parent(image, nullptr, &error)));
  EXPECT_TRUE(refused(ft_image_duplicate(image, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_memory_acquire(pool, nullptr, nullptr, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_memory_acquire_instance(pool, nullptr, 1, &memory, &error)));
  EXPECT_TRUE(refused(ft_memory_get_info(memory, nullptr, &error)));
  EXPECT_TRUE(refused(ft_memory_count_pages(memory, nullptr, &error)));
  EXPECT_TRUE(refused(ft_memory_snapshot(memory, "", 0, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_run_guarded(memory, nullptr, nullptr, nullptr, &error)));
  ft_store store = {};
  EXPECT_TRUE(refused(ft_store_open(nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_store_put(store, nullptr, image, &image, &error)));
  EXPECT_TRUE(refused(ft_store_get(store, nullptr, &image, &error)));
  EXPECT_TRUE(refused(ft_store_get(store, "", nullptr, &error)));
  EXPECT_TRUE(refused(ft_store_get_by_digest(store, nullptr, &image, &error)));
  EXPECT_TRUE(refused(ft_store_remove(store, nullptr, &error)));
  EXPECT_TRUE(refused(ft_store_list(store, nullptr, nullptr, &error)));
  ft_stack_pool stacks = {};
  ft_table_pool tables = {};
  const ft_stack_pool_options stack_options = FT_STACK_POOL_OPTIONS_INIT;
  const ft_table_pool_options table_options = FT_TABLE_POOL_OPTIONS_INIT;
  EXPECT_TRUE(refused(ft_stack_pool_create(nullptr, &stacks, &error)));
  EXPECT_TRUE(refused(ft_stack_pool_create(&stack_options, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_stack_acquire(stacks, 0, nullptr, nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_table_pool_create(nullptr, &tables, &error)));
  EXPECT_TRUE(refused(ft_table_pool_create(&table_options, nullptr, &error)));
  EXPECT_TRUE(
      refused(ft_table_acquire(tables, 0, 0, nullptr, nullptr, &error)));
  EXPECT_TRUE(refused(ft_stack_pool_get_info(stacks, nullptr, &error)));
  EXPECT_TRUE(refused(ft_stack_pool_get_layout(stacks, nullptr, &error)));
  EXPECT_TRUE(refused(ft_table_pool_get_info(tables, nullptr, &error)));
  EXPECT_TRUE(refused(ft_table_pool_get_layout(tables, nullptr, &error)));
  EXPECT_EQ(ft_locate(nullptr, nullptr), FT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(ft_handle_signal(SIGSEGV, nullptr, nullptr), FT_FAULT_NOT_MINE);
  ft_signals_fill_mask(nullptr);
}

// --- Pools -------------------------------------------------------------------

TEST(Pool, TellsWhatItIs) {
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.name = "told";
  const Pool pool(3, options);
  ft_pool_info info = FT_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_pool_get_info(pool.handle(), &info, e));
  EXPECT_NE(info.base, 0u);
  ft_layout layout = FT_LAYOUT_INIT;
  ASSERT_FT_OK(ft_pool_get_layout(pool.handle(), &layout, e));
  EXPECT_EQ(layout.slots, 3u);
  EXPECT_EQ(layout.memory_bytes, 64 * kPage);

  size_t length = 0;
  ASSERT_FT_OK(ft_pool_describe(pool.handle(), nullptr, 0, &length, e));
  std::string text(length + 1, '?');
  ASSERT_FT_OK(
      ft_pool_describe(pool.handle(), text.data(), text.size(), nullptr, e));
  EXPECT_EQ(strlen(text.c_str()), length);
  EXPECT_THAT(text, HasSubstr("told"));
  // Cut, with a NUL.
  std::array<char, 5> cut = {};
  ASSERT_FT_OK(
      ft_pool_describe(pool.handle(), cut.data(), cut.size(), &length, e));
  EXPECT_EQ(std::string(cut.data()), text.substr(0, 4));
}

TEST(Pool, CountsAsJson) {
  const Pool pool(2);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(kPage, &base);
  base[0] = 1;
  std::string text(4096, '\0');
  size_t length = 0;
  ASSERT_FT_OK(
      ft_pool_stats_json(pool.handle(), text.data(), text.size(), &length, e));
  text.resize(length);
  EXPECT_EQ(text.front(), '{');
  EXPECT_EQ(text.back(), '}');
  EXPECT_THAT(text, HasSubstr("\"slots\": 2, \"slots_in_use\": 1"));
  EXPECT_THAT(text, HasSubstr("\"handovers\": 0"));
  EXPECT_THAT(text, HasSubstr("\"fault_latency\": [0, "));
  std::string of_slot(4096, '\0');
  ASSERT_FT_OK(
      ft_memory_stats_json(memory, of_slot.data(), of_slot.size(), &length, e));
  EXPECT_THAT(of_slot, HasSubstr("\"kernel_calls\": "));
  uint64_t ns = 0;
  ASSERT_FT_OK(ft_pool_fault_latency_ns(pool.handle(), 0.5, &ns, e));
  EXPECT_EQ(ft_pool_fault_latency_ns(pool.handle(), 1.5, &ns, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Pool, TakesEachOption) {
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.supply = FT_SUPPLY_MAPPINGS;
  options.scan = FT_NO;
  options.strategy = FT_STRATEGY_RANDOM;
  options.retained_cycles = 10;
  options.flags = FT_POOL_RETAINED_PAGES_LIMIT | FT_POOL_RESIDENT_BUDGET |
                  FT_POOL_UNPUBLISHED | FT_POOL_IN_CORE_DUMP;
  const Pool pool(1, options);
  ft_pool_info info = FT_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_pool_get_info(pool.handle(), &info, e));
  EXPECT_EQ(info.supply, FT_SUPPLY_MAPPINGS);
  EXPECT_EQ(info.scan, FT_NO);
  EXPECT_NE(info.serves_kernel_faults, 0u);
}

TEST(Pool, TakesWhatMemoryIsWorth) {
  const auto asked_for = [](const ft_pool_options& options) {
    const Pool pool(1, options);
    return FindPool(pool.handle())->service().options().retained_bytes_per_us;
  };
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.retained_bytes_per_us = 1000;
  EXPECT_EQ(asked_for(options), ServiceOptions().retained_bytes_per_us);
  options.flags = FT_POOL_RETAINED_BYTES_PER_US;
  EXPECT_EQ(asked_for(options), 1000u);
  options.retained_bytes_per_us = 0;
  EXPECT_EQ(asked_for(options), 0u);
}

TEST(Pool, TakesOptionsFromBeforeTheyHadWhatMemoryIsWorth) {
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.struct_size = offsetof(ft_pool_options, retained_bytes_per_us);
  options.retained_bytes_per_us = 1000;  // not the caller's to set
  const Pool pool(1, options);
  EXPECT_EQ(FindPool(pool.handle())->service().options().retained_bytes_per_us,
            ServiceOptions().retained_bytes_per_us);
}

TEST(Pool, RefusesWhatItDoesNotKnow) {
  const ft_layout_options layout = SmallLayout(1);
  const auto refused = [&](auto set, const char* field) {
    ft_pool_options options = FT_POOL_OPTIONS_INIT;
    options.layout = &layout;
    set(options);
    ft_pool pool = {};
    ft_error error = FT_ERROR_INIT;
    EXPECT_EQ(ft_pool_create(&options, &pool, &error),
              FT_ERROR_INVALID_ARGUMENT)
        << field;
    EXPECT_THAT(error.message, HasSubstr(field));
  };
  refused([](ft_pool_options& o) { o.flags = 1u << 31; }, "flags");
  refused([](ft_pool_options& o) { o.supply = 9; }, "supply");
  refused([](ft_pool_options& o) { o.backing = 9; }, "backing");
  refused([](ft_pool_options& o) { o.faults = -1; }, "faults");
  refused([](ft_pool_options& o) { o.tracking = 9; }, "tracking");
  refused([](ft_pool_options& o) { o.scan = 9; }, "scan");
  refused([](ft_pool_options& o) { o.strategy = 9; }, "strategy");
  refused([](ft_pool_options& o) { o.signals = 9; }, "signals");
  refused([](ft_pool_options& o) { o.name = ""; }, "name");
}

TEST(Pool, GivesPagesBack) {
  const Pool pool(1);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(8 * kPage, &base);
  memset(base, 1, 8 * kPage);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  uint64_t freed = 0;
  ASSERT_FT_OK(ft_pool_trim(pool.handle(), &freed, e));
  ASSERT_FT_OK(ft_pool_trim(pool.handle(), nullptr, e));
}

// --- Images ------------------------------------------------------------------

TEST(Image, FromBytes) {
  const ft_image image = ImageOf("hello");
  EXPECT_EQ(TextAt(image, 0, 5), "hello");
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(image, &info, e));
  EXPECT_NE(info.id, 0u);
  EXPECT_EQ(info.size_bytes, 4 * kPage);
  EXPECT_EQ(info.stored_pages, 1u);
  EXPECT_EQ(info.has_source, 0u);
  std::array<char, 16> name = {};
  ASSERT_FT_OK(ft_image_get_name(image, name.data(), name.size(), nullptr, e));
  EXPECT_STREQ(name.data(), "text");
  char byte = 0;
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_image_read(image, 4 * kPage, &byte, 1, &error),
            FT_ERROR_OUT_OF_RANGE);
  ft_image parent = {};
  EXPECT_EQ(ft_image_get_parent(image, &parent, &error), FT_ERROR_NOT_FOUND);
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Image, FromSegmentsAndWithPages) {
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 4 * kPage;
  const std::array<ft_segment, 2> segments = {
      {{.offset_bytes = 10, .bytes = "abc", .length = 3},
       {.offset_bytes = 2 * kPage, .bytes = "def", .length = 3}}};
  ft_image image = {};
  ASSERT_FT_OK(ft_image_from_segments(&options, segments.data(), 2, &image, e));
  EXPECT_EQ(TextAt(image, 10, 3), "abc");
  EXPECT_EQ(TextAt(image, 2 * kPage, 3), "def");

  const std::string xs(kPage, 'x');
  const std::array<ft_page, 2> pages = {
      {{.page = 0, .bytes = nullptr}, {.page = 1, .bytes = xs.data()}}};
  ft_image changed = {};
  ASSERT_FT_OK(
      ft_image_with_pages(&options, image, pages.data(), 2, &changed, e));
  EXPECT_EQ(TextAt(changed, 10, 3), std::string(3, '\0'));
  EXPECT_EQ(TextAt(changed, kPage, 1), "x");
  EXPECT_EQ(TextAt(changed, 2 * kPage, 3), "def");

  ft_error error = FT_ERROR_INIT;
  options.size_bytes = kPage;
  ft_image none = {};
  EXPECT_EQ(ft_image_from_segments(&options, segments.data(), 2, &none, &error),
            FT_ERROR_OUT_OF_RANGE);
  EXPECT_EQ(none.entry, 0u);
  ASSERT_FT_OK(ft_image_release(image, e));
  ASSERT_FT_OK(ft_image_release(changed, e));
}

TEST(Image, FromACallback) {
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 3 * kPage;
  uint64_t refused = UINT64_MAX;
  const ft_fill_page fill = [](void* user, uint64_t page, void* bytes) {
    if (page == *static_cast<uint64_t*>(user)) {
      return ft_status{FT_ERROR_ABORTED};
    }
    static_cast<char*>(bytes)[0] = static_cast<char>('a' + page);
    return ft_status{FT_OK};
  };
  ft_image image = {};
  ASSERT_FT_OK(ft_image_from_callback(&options, fill, &refused, &image, e));
  EXPECT_EQ(TextAt(image, 2 * kPage, 1), "c");
  ASSERT_FT_OK(ft_image_release(image, e));
  refused = 1;
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_image_from_callback(&options, fill, &refused, &image, &error),
            FT_ERROR_ABORTED);
  EXPECT_THAT(error.message, HasSubstr("callback fill returned 10"));
}

struct Source {
  std::atomic<int> fetches{0};
  std::atomic<int> destroyed{0};
  std::atomic<ft_status> answer{FT_OK};

  static ft_status Fetch(void* user, uint64_t first, uint64_t pages,
                         void* bytes) {
    auto* const source = static_cast<Source*>(user);
    ++source->fetches;
    for (uint64_t i = 0; i < pages; ++i) {
      static_cast<unsigned char*>(bytes)[i * kPage] =
          static_cast<unsigned char>(first + i + 1);
    }
    return source->answer;
  }
  static void Destroy(void* user) { ++static_cast<Source*>(user)->destroyed; }

  ft_source_options Options() {
    ft_source_options options = FT_SOURCE_OPTIONS_INIT;
    options.fetch = &Fetch;
    options.destroy = &Destroy;
    options.user = this;
    options.chunk_pages = 1;
    return options;
  }
};

TEST(Image, FromASource) {
  Source source;
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.name = "made";
  options.size_bytes = 8 * kPage;
  const ft_source_options from = source.Options();
  ft_image image = {};
  ASSERT_FT_OK(ft_image_from_source(&options, &from, &image, e));
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(image, &info, e));
  if (info.has_source == 0) GTEST_SKIP() << "no userfaultfd here";
  EXPECT_EQ(source.fetches, 0);
  {
    const Pool pool(1);
    unsigned char* base = nullptr;
    const ft_memory memory = pool.Acquire(8 * kPage, &base, image);
    EXPECT_EQ(base[5 * kPage], 6);
    ASSERT_FT_OK(ft_memory_release(memory, e));
  }
  ASSERT_FT_OK(ft_image_fetch_early(image, 6, 100, e));
  EXPECT_EQ(TextAt(image, 7 * kPage, 1), "\x08");

  // What fails is a trap that says why, and is asked for again.
  source.answer = FT_ERROR_UNAVAILABLE;
  char byte = 0;
  EXPECT_NE(ft_image_read(image, 0, &byte, 1, nullptr), FT_OK);
  source.answer = FT_OK;
  EXPECT_EQ(TextAt(image, 0, 1), "\x01");

  EXPECT_EQ(source.destroyed, 0);
  ASSERT_FT_OK(ft_image_release(image, e));
  EXPECT_EQ(source.destroyed, 1);
}

TEST(Image, OfASourceThatIsRefusedDestroysIt) {
  Source source;
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 8 * kPage;
  ft_source_options from = source.Options();
  from.threads = 1000;
  ft_image image = {};
  EXPECT_EQ(ft_image_from_source(&options, &from, &image, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(source.destroyed, 1);
}

TEST(Image, FromASourceAllAtOnce) {
  Source source;
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 8 * kPage;
  ft_source_options from = source.Options();
  from.all_at_once = 1;
  const ft_page_run run = {.first = 2, .length = 2};
  from.stored = &run;
  from.stored_count = 1;
  ft_image image = {};
  ASSERT_FT_OK(ft_image_from_source(&options, &from, &image, e));
  EXPECT_EQ(source.destroyed, 1);
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(image, &info, e));
  EXPECT_EQ(info.stored_pages, 2u);
  ASSERT_FT_OK(ft_image_release(image, e));
}

std::string PathOf(const std::string& name) {
  return std::string(getenv("TEST_TMPDIR")) + "/" + name;
}

TEST(ImageFile, IsWrittenOpenedAndChecked) {
  const ft_image image = ImageOf("hello");
  const std::string path = PathOf("hello.ftimg");
  ft_write_options write = FT_WRITE_OPTIONS_INIT;
  write.tool = "capi_test";
  int told = 0;
  write.user = &told;
  write.progress = [](void* user, uint64_t, uint64_t) {
    ++*static_cast<int*>(user);
  };
  ASSERT_FT_OK(ft_image_write(image, path.c_str(), &write, e));
  EXPECT_GT(told, 0);
  write.flags = FT_WRITE_NEW;
  EXPECT_EQ(ft_image_write(image, path.c_str(), &write, nullptr),
            FT_ERROR_ALREADY_EXISTS);
  write.flags = 1 << 20;
  EXPECT_EQ(ft_image_write(image, path.c_str(), &write, nullptr),
            FT_ERROR_INVALID_ARGUMENT);

  ASSERT_FT_OK(ft_image_verify(path.c_str(), nullptr, e));
  ft_image opened = {};
  ASSERT_FT_OK(ft_image_open(path.c_str(), nullptr, &opened, e));
  EXPECT_EQ(TextAt(opened, 0, 5), "hello");
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(opened, &info, e));
  EXPECT_EQ(info.is_file_backed, 1u);
  std::array<uint8_t, FT_DIGEST_BYTES> a = {};
  std::array<uint8_t, FT_DIGEST_BYTES> b = {};
  ASSERT_FT_OK(ft_image_get_digest(image, a.data(), e));
  ASSERT_FT_OK(ft_image_get_digest(opened, b.data(), e));
  EXPECT_EQ(a, b);
  ASSERT_FT_OK(ft_image_release(opened, e));

  ft_open_options open = FT_OPEN_OPTIONS_INIT;
  open.flags = FT_OPEN_COPY | FT_OPEN_VERIFY;
  open.name = "renamed";
  ASSERT_FT_OK(ft_image_open(path.c_str(), &open, &opened, e));
  std::array<char, 16> name = {};
  ASSERT_FT_OK(ft_image_get_name(opened, name.data(), name.size(), nullptr, e));
  EXPECT_STREQ(name.data(), "renamed");
  ASSERT_FT_OK(ft_image_release(opened, e));

  const std::string packed = PathOf("hello.ftimg.zst");
  const std::string unpacked = PathOf("again.ftimg");
  ASSERT_FT_OK(ft_image_pack(path.c_str(), packed.c_str(), 3, e));
  ASSERT_FT_OK(ft_image_unpack(packed.c_str(), unpacked.c_str(), 0, e));
  ASSERT_FT_OK(ft_image_verify(unpacked.c_str(), nullptr, e));
  EXPECT_EQ(
      ft_image_unpack(packed.c_str(), PathOf("no.ftimg").c_str(), 1, nullptr),
      FT_ERROR_RESOURCE_EXHAUSTED);

  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_image_open(PathOf("none").c_str(), nullptr, &opened, &error),
            FT_ERROR_NOT_FOUND);
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(ImageFile, OfADeltaFindsItsParent) {
  const ft_image parent = ImageOf("hello");
  const std::string parent_path = PathOf("parent.ftimg");
  ASSERT_FT_OK(ft_image_write(parent, parent_path.c_str(), nullptr, e));
  const Pool pool(1);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(4 * kPage, &base, parent);
  base[kPage] = 'w';
  ft_image delta = {};
  ASSERT_FT_OK(
      ft_memory_snapshot(memory, "later", FT_SNAPSHOT_DELTA, &delta, e));
  base[kPage] = 'v';
  ASSERT_FT_OK(ft_memory_release(memory, e));
  ft_image found = {};
  ASSERT_FT_OK(ft_image_get_parent(delta, &found, e));
  ft_write_options write = FT_WRITE_OPTIONS_INIT;
  write.parent = found;
  const std::string path = PathOf("delta.ftimg");
  ASSERT_FT_OK(ft_image_write(delta, path.c_str(), &write, e));

  ft_image opened = {};
  EXPECT_EQ(ft_image_open(path.c_str(), nullptr, &opened, nullptr),
            FT_ERROR_FAILED_PRECONDITION);
  ft_open_options open = FT_OPEN_OPTIONS_INIT;
  open.user = const_cast<char*>(parent_path.c_str());
  open.find_parent = [](void* user, const uint8_t*, char* into,
                        size_t capacity) {
    EXPECT_LT(strlen(static_cast<char*>(user)), capacity);
    strcpy(into, static_cast<char*>(user));
    return ft_status{FT_OK};
  };
  ASSERT_FT_OK(ft_image_open(path.c_str(), &open, &opened, e));
  EXPECT_EQ(TextAt(opened, 0, 5), "hello");
  EXPECT_EQ(TextAt(opened, kPage, 1), "w");
  const std::string merged = PathOf("merged.ftimg");
  ASSERT_FT_OK(ft_image_merge(path.c_str(), merged.c_str(), &open, e));
  ASSERT_FT_OK(ft_image_verify(merged.c_str(), nullptr, e));
  for (const ft_image image : {parent, delta, found, opened}) {
    ASSERT_FT_OK(ft_image_release(image, e));
  }
}

// What ft_image_inspect tells, in values of its own.
struct FileFacts {
  int visits = 0;
  ft_file_info info = {};
  std::vector<std::string> texts;
  std::vector<uint64_t> stored;  // first, length, ...
  std::vector<uint64_t> zeroed;
  std::vector<uint64_t> written;
  std::vector<uint64_t> read;
  std::string source_digest;

  static void Visit(void* user, const ft_file_info* info) {
    auto& facts = *static_cast<FileFacts*>(user);
    ++facts.visits;
    facts.info = *info;
    facts.texts = {info->name, info->tool, info->source, info->comment};
    for (size_t i = 0; i < info->extent_count; ++i) {
      facts.stored.push_back(info->extents[i].first);
      facts.stored.push_back(info->extents[i].length);
    }
    for (size_t i = 0; i < info->zeroed_count; ++i) {
      facts.zeroed.push_back(info->zeroed[i].first);
      facts.zeroed.push_back(info->zeroed[i].length);
    }
    facts.written.assign(info->written, info->written + info->written_count);
    facts.read.assign(info->read, info->read + info->read_count);
    if (info->source_digest != nullptr) {
      facts.source_digest.assign(
          reinterpret_cast<const char*>(info->source_digest), FT_DIGEST_BYTES);
    }
  }
};

TEST(ImageFile, IsLookedInto) {
  const ft_image image = ImageOf("hello");
  const std::array<uint64_t, 1> written = {0b101};
  const std::array<uint64_t, 1> read = {0b10};
  ASSERT_FT_OK(ft_image_replace_working_set(image, written.data(), 1,
                                            read.data(), 1, e));
  const std::string source_digest(FT_DIGEST_BYTES, 's');
  ft_write_options write = FT_WRITE_OPTIONS_INIT;
  write.tool = "capi_test 1";
  write.source = "hello";
  write.created_unix_seconds = 1234567890;
  write.source_digest = reinterpret_cast<const uint8_t*>(source_digest.data());
  const std::string path = PathOf("looked_into.ftimg");
  ASSERT_FT_OK(ft_image_write(image, path.c_str(), &write, e));
  FileFacts facts;
  ASSERT_FT_OK(ft_image_inspect(path.c_str(), &FileFacts::Visit, &facts, e));
  EXPECT_EQ(facts.visits, 1);
  EXPECT_EQ(facts.info.struct_size, sizeof(ft_file_info));
  EXPECT_EQ(facts.info.version, 1u);
  EXPECT_EQ(facts.info.is_delta, 0u);
  EXPECT_EQ(facts.info.size_bytes, 4 * kPage);
  EXPECT_EQ(facts.info.stored_pages, 1u);
  EXPECT_EQ(facts.info.data_offset % kPage, 0u);
  EXPECT_GE(facts.info.file_bytes, facts.info.data_offset + kPage);
  EXPECT_GT(facts.info.disk_bytes, 0u);
  EXPECT_GT(facts.info.manifest_bytes, 0u);
  EXPECT_LT(facts.info.manifest_offset, facts.info.data_offset);
  EXPECT_EQ(facts.info.created_unix_seconds, 1234567890);
  EXPECT_EQ(facts.texts,
            (std::vector<std::string>{"text", "capi_test 1", "hello", ""}));
  EXPECT_EQ(facts.stored, (std::vector<uint64_t>{0, 1}));
  EXPECT_TRUE(facts.zeroed.empty());
  EXPECT_EQ(facts.written, (std::vector<uint64_t>{0b101}));
  EXPECT_EQ(facts.read, (std::vector<uint64_t>{0b10}));
  EXPECT_EQ(facts.source_digest, source_digest);
  std::array<uint8_t, FT_DIGEST_BYTES> content = {};
  ASSERT_FT_OK(ft_image_get_digest(image, content.data(), e));
  EXPECT_EQ(memcmp(facts.info.content, content.data(), content.size()), 0);

  // A delta, whose parent need not be there, and has one page that it has not.
  const std::string zeroes(kPage, '\0');
  const ft_page page = {.page = 0, .bytes = zeroes.data()};
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 4 * kPage;
  ft_image changed = {};
  ASSERT_FT_OK(ft_image_with_pages(&options, image, &page, 1, &changed, e));
  write = FT_WRITE_OPTIONS_INIT;
  write.parent = image;
  ASSERT_FT_OK(ft_image_write(changed, path.c_str(), &write, e));
  FileFacts delta;
  ASSERT_FT_OK(ft_image_inspect(path.c_str(), &FileFacts::Visit, &delta, e));
  EXPECT_EQ(delta.info.is_delta, 1u);
  EXPECT_EQ(memcmp(delta.info.parent, content.data(), content.size()), 0);
  EXPECT_EQ(delta.info.stored_pages, 0u);
  EXPECT_EQ(delta.zeroed, (std::vector<uint64_t>{0, 1}));
  EXPECT_EQ(delta.info.source_digest, nullptr);

  std::ofstream(PathOf("no_image")) << "no image";
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_image_inspect(PathOf("no_image").c_str(), &FileFacts::Visit,
                             &delta, &error),
            FT_ERROR_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("no_image"));
  EXPECT_EQ(ft_image_inspect(PathOf("none").c_str(), &FileFacts::Visit, &delta,
                             nullptr),
            FT_ERROR_NOT_FOUND);
  EXPECT_EQ(delta.visits, 1);
  for (const ft_image held : {image, changed}) {
    ASSERT_FT_OK(ft_image_release(held, e));
  }
}

TEST(ImageFile, IsPreparedAndAppearsWhenItIsCommitted) {
  const ft_image image = ImageOf("hello");
  const std::string path = PathOf("prepared.ftimg");
  ft_pending_file pending = {};
  ASSERT_FT_OK(ft_image_prepare(image, path.c_str(), nullptr, &pending, e));
  EXPECT_EQ(ft_image_verify(path.c_str(), nullptr, nullptr),
            FT_ERROR_NOT_FOUND);
  ASSERT_FT_OK(ft_pending_file_drop(pending, e));
  EXPECT_EQ(ft_pending_file_commit(pending, nullptr), FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_image_verify(path.c_str(), nullptr, nullptr),
            FT_ERROR_NOT_FOUND);

  ASSERT_FT_OK(ft_image_prepare(image, path.c_str(), nullptr, &pending, e));
  ASSERT_FT_OK(ft_pending_file_commit(pending, e));
  ASSERT_FT_OK(ft_image_verify(path.c_str(), nullptr, e));
  EXPECT_EQ(ft_pending_file_commit(pending, nullptr), FT_ERROR_INVALID_HANDLE);
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_pending_file_drop(pending, &error), FT_ERROR_INVALID_HANDLE);
  EXPECT_THAT(error.message, HasSubstr("of no pending file"));

  ft_write_options write = FT_WRITE_OPTIONS_INIT;
  write.flags = FT_WRITE_NEW;
  ASSERT_FT_OK(ft_image_prepare(image, path.c_str(), &write, &pending, e));
  EXPECT_EQ(ft_pending_file_commit(pending, nullptr), FT_ERROR_ALREADY_EXISTS);
  EXPECT_EQ(ft_pending_file_commit(pending, nullptr), FT_ERROR_INVALID_HANDLE);
  write.struct_size = 8;
  EXPECT_EQ(ft_image_prepare(image, path.c_str(), &write, &pending, nullptr),
            FT_ERROR_STRUCT_SIZE);
  EXPECT_EQ(ft_image_prepare({}, path.c_str(), nullptr, &pending, nullptr),
            FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Image, KeepsAWorkingSet) {
  const ft_image image = ImageOf("x");
  const std::array<uint64_t, 1> written = {0b101};
  ASSERT_FT_OK(ft_image_learn_working_set(image, FT_PAGES_WRITTEN,
                                          written.data(), 1, e));
  std::array<uint64_t, 4> words = {};
  size_t count = 0;
  ASSERT_FT_OK(ft_image_get_working_set(image, FT_PAGES_WRITTEN, words.data(),
                                        words.size(), &count, e));
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(words[0], 0b101u);
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(image, &info, e));
  EXPECT_EQ(info.has_working_set, 1u);
  ASSERT_FT_OK(ft_image_replace_working_set(image, nullptr, 0, nullptr, 0, e));
  ASSERT_FT_OK(
      ft_image_get_working_set(image, FT_PAGES_READ, nullptr, 0, &count, e));
  EXPECT_EQ(count, 0u);
  EXPECT_EQ(ft_image_get_working_set(image, 7, nullptr, 0, &count, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(ft_image_learn_working_set(image, 7, nullptr, 0, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  ASSERT_FT_OK(ft_image_release(image, e));
}

// --- Memories ----------------------------------------------------------------

TEST(Memory, IsCleanForTheNext) {
  const Pool pool(1);
  const ft_image image = ImageOf("hello");
  for (int i = 0; i < 50; ++i) {
    unsigned char* base = nullptr;
    const ft_memory memory = pool.Acquire(8 * kPage, &base, image);
    EXPECT_EQ(memcmp(base, "hello", 6), 0);
    EXPECT_EQ(base[6 * kPage], 0);
    strcpy(reinterpret_cast<char*>(base), "secret");
    base[6 * kPage] = 1;
    EXPECT_EQ(ft_memory_base(memory), base);
    EXPECT_EQ(ft_memory_size(memory), 8 * kPage);
    ASSERT_FT_OK(ft_memory_release(memory, e));
  }
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Memory, KeepsItsImageWhenTheHandleIsReleased) {
  const Pool pool(1);
  const ft_image image = ImageOf("hello");
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(4 * kPage, &base, image);
  ASSERT_FT_OK(ft_image_release(image, e));
  EXPECT_EQ(memcmp(base, "hello", 6), 0);
  base[0] = 'j';
  ASSERT_FT_OK(ft_memory_reset(memory, e));
  EXPECT_EQ(memcmp(base, "hello", 6), 0);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Memory, GrowsAndIsReset) {
  const Pool pool(1);
  const ft_memory memory = pool.Acquire(kPage);
  uint64_t before = 0;
  ASSERT_FT_OK(ft_memory_grow_by(memory, kPage, &before, e));
  EXPECT_EQ(before, kPage);
  ASSERT_FT_OK(ft_memory_grow(memory, 5 * kPage, e));
  ft_memory_info info = FT_MEMORY_INFO_INIT;
  ASSERT_FT_OK(ft_memory_get_info(memory, &info, e));
  EXPECT_EQ(info.size_bytes, 5 * kPage);
  EXPECT_EQ(info.max_bytes, 64 * kPage);
  EXPECT_EQ(info.instance, 0u);
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_memory_grow(memory, 65 * kPage, &error),
            FT_ERROR_RESOURCE_EXHAUSTED);
  EXPECT_EQ(ft_memory_grow(memory, 0, &error), FT_ERROR_INVALID_ARGUMENT);
  ASSERT_FT_OK(ft_memory_reset(memory, e));
  EXPECT_EQ(ft_memory_size(memory), kPage);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Memory, WithoutOptionsHasNoBytes) {
  const Pool pool(1);
  ft_memory memory = {};
  ASSERT_FT_OK(ft_memory_acquire(pool.handle(), nullptr, &memory, nullptr, e));
  EXPECT_EQ(ft_memory_size(memory), 0u);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Memory, IsReadyForASystemCall) {
  const Pool pool(1);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(4 * kPage, &base);
  const int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(zero, 0);
  ASSERT_FT_OK(ft_memory_make_ready(memory, 100, kPage, FT_WRITE, e));
  EXPECT_EQ(read(zero, base + 100, kPage), static_cast<ssize_t>(kPage));
  close(zero);
  EXPECT_EQ(ft_memory_make_ready(memory, 0, 5 * kPage, FT_READ, nullptr),
            FT_ERROR_OUT_OF_RANGE);
  EXPECT_EQ(ft_memory_make_ready(memory, 0, 1, 9, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  ft_memory_pages pages = FT_MEMORY_PAGES_INIT;
  ASSERT_FT_OK(ft_memory_count_pages(memory, &pages, e));
  EXPECT_GE(pages.touched, 2u);
  ASSERT_FT_OK(ft_memory_drop_at_release(memory, e));
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Memory, BecomesAnImage) {
  const Pool pool(1);
  unsigned char* base = nullptr;
  ft_memory memory = pool.Acquire(4 * kPage, &base);
  strcpy(reinterpret_cast<char*>(base + kPage), "state");
  ft_image image = {};
  ASSERT_FT_OK(ft_memory_snapshot(memory, nullptr, 0, &image, e));
  EXPECT_EQ(ft_memory_snapshot(memory, nullptr, 2, &image, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  memory = pool.Acquire(0, &base, image);
  EXPECT_STREQ(reinterpret_cast<char*>(base + kPage), "state");
  ASSERT_FT_OK(ft_memory_release(memory, e));
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Memory, ComesAsAnInstance) {
  ft_layout_options layout = SmallLayout(2);
  layout.memories_per_instance = 2;
  const Pool pool(layout, FT_POOL_OPTIONS_INIT);
  ft_memory_options one = FT_MEMORY_OPTIONS_INIT;
  one.size_bytes = kPage;
  ft_memory_options two = one;
  two.size_bytes = 2 * kPage;
  const std::array<const ft_memory_options*, 2> options = {&one, &two};
  std::array<ft_memory, 2> first = {};
  std::array<ft_memory, 2> second = {};
  ASSERT_FT_OK(ft_memory_acquire_instance(pool.handle(), options.data(), 2,
                                          first.data(), e));
  ASSERT_FT_OK(ft_memory_acquire_instance(pool.handle(), options.data(), 2,
                                          second.data(), e));
  EXPECT_EQ(ft_memory_size(first[1]), 2 * kPage);
  ft_memory_info info = FT_MEMORY_INFO_INIT;
  ASSERT_FT_OK(ft_memory_get_info(second[1], &info, e));
  EXPECT_EQ(info.memory_index, 1u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(ft_memory_base(second[1])), info.base);
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_memory_acquire_instance(pool.handle(), options.data(), 2,
                                       second.data(), &error),
            FT_ERROR_RESOURCE_EXHAUSTED);
  EXPECT_EQ(ft_memory_acquire_instance(pool.handle(), options.data(), 1,
                                       second.data(), &error),
            FT_ERROR_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("memories_per_instance"));
  for (const ft_memory memory : first) {
    ASSERT_FT_OK(ft_memory_release(memory, e));
  }
  for (const ft_memory memory : second) {
    ASSERT_FT_OK(ft_memory_release(memory, e));
  }
}

TEST(Memory, IsWaitedFor) {
  const Pool pool(1);
  const ft_memory held = pool.Acquire(kPage);
  ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
  ft_memory memory = {};
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(
      ft_memory_acquire(pool.handle(), &options, &memory, nullptr, &error),
      FT_ERROR_RESOURCE_EXHAUSTED);
  EXPECT_THAT(error.message, HasSubstr("slots are taken"));
  options.wait_ns = 1000;
  EXPECT_EQ(
      ft_memory_acquire(pool.handle(), &options, &memory, nullptr, &error),
      FT_ERROR_RESOURCE_EXHAUSTED);
  std::thread releases(
      [&] { EXPECT_EQ(ft_memory_release(held, nullptr), FT_OK); });
  options.wait_ns = -1;
  ASSERT_FT_OK(ft_memory_acquire(pool.handle(), &options, &memory, nullptr, e));
  releases.join();
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

// --- Traps -------------------------------------------------------------------

volatile unsigned char g_sink = 0;

void ReadAt(void* address) {
  g_sink = *static_cast<volatile unsigned char*>(address);
}

void WriteAt(void* address) {
  *static_cast<volatile unsigned char*>(address) = 1;
}

TEST(Guarded, ReturnsTheTrap) {
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.name = "guarded";
  const Pool pool(2, options);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(kPage, &base);
  ASSERT_FT_OK(ft_run_guarded(memory, WriteAt, base + 7, nullptr, e));
  EXPECT_EQ(base[7], 1);
  for (int i = 0; i < 100; ++i) {
    ft_trap trap = FT_TRAP_INIT;
    ft_error error = FT_ERROR_INIT;
    ASSERT_EQ(ft_run_guarded(memory, WriteAt, base + kPage + 3, &trap, &error),
              FT_ERROR_TRAPPED);
    EXPECT_EQ(trap.offset_bytes, static_cast<int64_t>(kPage + 3));
    EXPECT_EQ(trap.size_bytes, kPage);
    EXPECT_EQ(trap.access, FT_WRITE);
    EXPECT_EQ(trap.os_error, 0);
    EXPECT_EQ(trap.address, reinterpret_cast<uintptr_t>(base + kPage + 3));
    EXPECT_EQ(trap.leased, 1u);
    EXPECT_STREQ(trap.pool_name, "guarded");
    EXPECT_EQ(trap.ucontext, nullptr);
    EXPECT_THAT(error.message, HasSubstr("out of bounds write at offset 4099"));
    EXPECT_EQ(
        ft_run_guarded(memory, ReadAt, base + 2 * kPage, nullptr, nullptr),
        FT_ERROR_TRAPPED);
  }
  ft_trap small = FT_TRAP_INIT;
  small.struct_size = 8;
  EXPECT_EQ(ft_run_guarded(memory, WriteAt, base, &small, nullptr),
            FT_ERROR_STRUCT_SIZE);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  EXPECT_EQ(ft_run_guarded(memory, WriteAt, base, nullptr, nullptr),
            FT_ERROR_INVALID_HANDLE);
}

TEST(Guarded, SaysWhyAPageCannotBeHad) {
  Source source;
  source.answer = FT_ERROR_UNAVAILABLE;
  ft_image_options options = FT_IMAGE_OPTIONS_INIT;
  options.size_bytes = 8 * kPage;
  const ft_source_options from = source.Options();
  ft_image image = {};
  ASSERT_FT_OK(ft_image_from_source(&options, &from, &image, e));
  ft_image_info info = FT_IMAGE_INFO_INIT;
  ASSERT_FT_OK(ft_image_get_info(image, &info, e));
  if (info.has_source == 0) GTEST_SKIP() << "no userfaultfd here";
  const Pool pool(1);
  ft_memory_options wanted = FT_MEMORY_OPTIONS_INIT;
  wanted.image = image;
  ft_memory memory = {};
  void* base = nullptr;
  if (ft_memory_acquire(pool.handle(), &wanted, &memory, &base, nullptr) !=
      FT_OK) {
    GTEST_SKIP() << "the supply here needs all pages at bind";
  }
  ft_trap trap = FT_TRAP_INIT;
  EXPECT_EQ(ft_run_guarded(memory, ReadAt, base, &trap, nullptr),
            FT_ERROR_TRAPPED);
  EXPECT_EQ(trap.os_error, EHOSTDOWN);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  ASSERT_FT_OK(ft_image_release(image, e));
}

struct Sandbox {
  sigjmp_buf leave;
  ft_trap trap = FT_TRAP_INIT;
  int calls = 0;
};

ft_trap_action Leave(const ft_trap* trap, void* user) {
  auto* const sandbox = static_cast<Sandbox*>(user);
  ++sandbox->calls;
  sandbox->trap = *trap;
  siglongjmp(sandbox->leave, 1);
}

ft_trap_action Decline(const ft_trap* trap, void* user) {
  EXPECT_EQ(trap->struct_size, sizeof(ft_trap));
  ++*static_cast<int*>(user);
  return FT_TRAP_UNHANDLED;
}

TEST(TrapCallback, OfTheMemoryIsCalledAndThenThePools) {
  Sandbox sandbox;
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  options.trap_callback = Leave;
  options.trap_user = &sandbox;
  const Pool pool(2, options);
  int declined = 0;
  ft_memory_options wanted = FT_MEMORY_OPTIONS_INIT;
  wanted.size_bytes = kPage;
  wanted.trap_callback = Decline;
  wanted.trap_user = &declined;
  unsigned char* other_base = nullptr;
  const ft_memory other = pool.Acquire(wanted, &other_base);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(wanted, &base);
  volatile int traps = 0;
  while (traps < 3) {
    if (sigsetjmp(sandbox.leave, 0) == 0) WriteAt(base + kPage);
    traps = traps + 1;
  }
  EXPECT_EQ(declined, 3);
  EXPECT_EQ(sandbox.calls, 3);
  EXPECT_EQ(sandbox.trap.offset_bytes, static_cast<int64_t>(kPage));
  EXPECT_NE(sandbox.trap.ucontext, nullptr);
  ft_memory_info info = FT_MEMORY_INFO_INIT;
  ASSERT_FT_OK(ft_memory_get_info(memory, &info, e));
  EXPECT_EQ(sandbox.trap.instance, info.instance);
  ASSERT_FT_OK(ft_memory_release(memory, e));
  ASSERT_FT_OK(ft_memory_release(other, e));
}

ft_trap_action GrowForIt(const ft_trap*, void* user) {
  // Of this memory growing is one store; not async-signal-safe in general.
  return ft_memory_grow(*static_cast<ft_memory*>(user), 2 * kPage, nullptr) ==
                 FT_OK
             ? FT_TRAP_RESUME
             : FT_TRAP_UNHANDLED;
}

TEST(TrapCallback, MayMakeTheTouchLegal) {
  ft_pool_options options = FT_POOL_OPTIONS_INIT;
  const Pool pool(1, options);
  ft_pool_info info = FT_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_pool_get_info(pool.handle(), &info, e));
  if (info.supply != FT_SUPPLY_USERFAULTFD) GTEST_SKIP() << "no userfaultfd";
  ft_memory memory = {};
  ft_memory_options wanted = FT_MEMORY_OPTIONS_INIT;
  wanted.size_bytes = kPage;
  wanted.trap_callback = GrowForIt;
  wanted.trap_user = &memory;
  unsigned char* base = nullptr;
  memory = pool.Acquire(wanted, &base);
  WriteAt(base + kPage);
  EXPECT_EQ(base[kPage], 1);
  EXPECT_EQ(ft_memory_size(memory), 2 * kPage);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

// --- Signals -----------------------------------------------------------------

std::atomic<int> g_resolved{0};

void HostHandler(int signal, siginfo_t* info, void* context) {
  if (ft_handle_signal(signal, info, context) == FT_FAULT_RESOLVED) {
    ++g_resolved;
    return;
  }
  _exit(9);
}

TEST(Signals, MayBeTheHosts) {
  struct sigaction action = {};
  action.sa_sigaction = HostHandler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  ft_signals_fill_mask(&action.sa_mask);
  EXPECT_EQ(sigismember(&action.sa_mask, SIGALRM), 1);
  EXPECT_EQ(sigismember(&action.sa_mask, SIGSEGV), 0);
  struct sigaction bus = {};
  struct sigaction segv = {};
  sigaction(SIGBUS, &action, &bus);
  sigaction(SIGSEGV, &action, &segv);
  {
    ft_pool_options options = FT_POOL_OPTIONS_INIT;
    options.signals = FT_SIGNALS_HOST;
    const Pool pool(1, options);
    ft_pool_info info = FT_POOL_INFO_INIT;
    ASSERT_FT_OK(ft_pool_get_info(pool.handle(), &info, e));
    unsigned char* base = nullptr;
    const ft_memory memory = pool.Acquire(kPage, &base);
    base[0] = 1;
    if (info.supply == FT_SUPPLY_USERFAULTFD) {
      EXPECT_GT(g_resolved, 0);
    }
    ASSERT_FT_OK(ft_memory_release(memory, e));
  }
  sigaction(SIGBUS, &bus, nullptr);
  sigaction(SIGSEGV, &segv, nullptr);
}

TEST(Signals, AreInstalledAndTakenOut) {
  ASSERT_FT_OK(ft_signals_install(e));
  ASSERT_FT_OK(ft_signals_check(e));
  ASSERT_FT_OK(ft_signals_uninstall(e));
  EXPECT_EQ(ft_signals_uninstall(nullptr), FT_ERROR_FAILED_PRECONDITION);
}

TEST(Signals, OfAThreadAreLookedAt) {
  std::thread([] {
    EXPECT_EQ(ft_thread_check(nullptr), FT_ERROR_FAILED_PRECONDITION);
    ASSERT_FT_OK(ft_thread_prepare(e));
    ASSERT_FT_OK(ft_thread_check(e));
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &bus, nullptr);
    ft_error error = FT_ERROR_INIT;
    EXPECT_EQ(ft_thread_prepare(&error), FT_ERROR_FAILED_PRECONDITION);
    EXPECT_THAT(error.message, HasSubstr("SIGBUS"));
  }).join();
}

TEST(Locate, FindsTheMemory) {
  const Pool pool(2);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(kPage, &base);
  ft_location at = FT_LOCATION_INIT;
  EXPECT_EQ(ft_locate(base + 5, &at), FT_OK);
  EXPECT_EQ(at.place, FT_PLACE_MEMORY);
  EXPECT_EQ(at.in_bounds, 1u);
  EXPECT_EQ(at.offset_bytes, 5);
  EXPECT_EQ(ft_locate(&at, &at), FT_OK);
  EXPECT_EQ(at.place, FT_PLACE_NO_POOL);
  at.struct_size = 1;
  EXPECT_EQ(ft_locate(base, &at), FT_ERROR_STRUCT_SIZE);
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

// --- Stores, stacks, tables --------------------------------------------------

TEST(Store, KeepsImagesByName) {
  for (const std::string& directory : {std::string(), PathOf("store")}) {
    ft_store_options options = FT_STORE_OPTIONS_INIT;
    if (!directory.empty()) options.directory = directory.c_str();
    ft_store store = {};
    ASSERT_FT_OK(ft_store_open(&options, &store, e));
    const ft_image image = ImageOf("hello");
    ft_image kept = {};
    ASSERT_FT_OK(ft_store_put(store, "greeting", image, &kept, e));
    EXPECT_EQ(TextAt(kept, 0, 5), "hello");
    ASSERT_FT_OK(ft_store_put(store, "second name", image, nullptr, e));
    EXPECT_EQ(ft_store_put(store, "", image, nullptr, nullptr),
              FT_ERROR_INVALID_ARGUMENT);
    EXPECT_EQ(ft_store_put(store, "x", {}, nullptr, nullptr),
              FT_ERROR_INVALID_HANDLE);
    std::vector<std::string> names;
    ASSERT_FT_OK(ft_store_list(
        store,
        [](void* user, const ft_store_entry* entry) {
          for (size_t i = 0; i < entry->name_count; ++i) {
            static_cast<std::vector<std::string>*>(user)->push_back(
                entry->names[i]);
          }
          EXPECT_EQ(entry->size_bytes, 4 * kPage);
        },
        &names, e));
    EXPECT_THAT(names, testing::ElementsAre("greeting", "second name"));

    std::array<uint8_t, FT_DIGEST_BYTES> digest = {};
    ASSERT_FT_OK(ft_image_get_digest(image, digest.data(), e));
    ft_image got = {};
    ASSERT_FT_OK(ft_store_get_by_digest(store, digest.data(), &got, e));
    ASSERT_FT_OK(ft_image_release(got, e));
    ASSERT_FT_OK(ft_store_get(store, "greeting", &got, e));
    EXPECT_EQ(TextAt(got, 0, 5), "hello");
    EXPECT_EQ(ft_store_get(store, "none", &got, nullptr), FT_ERROR_NOT_FOUND);
    std::array<char, 1000> stats = {};
    ASSERT_FT_OK(
        ft_store_stats_json(store, stats.data(), stats.size(), nullptr, e));
    EXPECT_THAT(stats.data(), HasSubstr("\"images\": 1, "));

    ASSERT_FT_OK(ft_store_remove(store, "second name", e));
    for (const ft_image one : {image, kept, got}) {
      ASSERT_FT_OK(ft_image_release(one, e));
    }
    ASSERT_FT_OK(ft_store_flush(store, e));
    uint64_t freed = 0;
    ASSERT_FT_OK(ft_store_trim(store, 0, &freed, e));
    EXPECT_GT(freed, 0u);
    ASSERT_FT_OK(ft_store_close(store, e));
    EXPECT_EQ(ft_store_close(store, nullptr), FT_ERROR_INVALID_HANDLE);
    EXPECT_EQ(ft_store_flush(store, nullptr), FT_ERROR_INVALID_HANDLE);
  }
}

TEST(Stack, IsCleanForTheNext) {
  ft_stack_pool_options options = FT_STACK_POOL_OPTIONS_INIT;
  options.name = "stacks";
  options.stacks = 1;
  options.stack_bytes = 16 * kPage;
  ft_stack_pool pool = {};
  ASSERT_FT_OK(ft_stack_pool_create(&options, &pool, e));
  ft_stack first = {};
  void* base = nullptr;
  void* top = nullptr;
  ASSERT_FT_OK(ft_stack_acquire(pool, 0, &first, &base, &top, e));
  EXPECT_EQ(static_cast<char*>(top) - static_cast<char*>(base),
            static_cast<ptrdiff_t>(16 * kPage));
  static_cast<char*>(top)[-1] = 1;
  ft_stack second = {};
  EXPECT_EQ(ft_stack_acquire(pool, 0, &second, nullptr, nullptr, nullptr),
            FT_ERROR_RESOURCE_EXHAUSTED);
  ASSERT_FT_OK(ft_stack_release(first, e));
  EXPECT_EQ(ft_stack_release(first, nullptr), FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_stack_acquire(pool, 0, &second, nullptr, &top, e));
  EXPECT_EQ(static_cast<char*>(top)[-1], 0);
  // The pool goes with the last stack.
  ASSERT_FT_OK(ft_stack_pool_destroy(pool, e));
  EXPECT_EQ(ft_stack_acquire(pool, 0, &first, nullptr, nullptr, nullptr),
            FT_ERROR_INVALID_HANDLE);
  static_cast<char*>(top)[-1] = 1;
  ASSERT_FT_OK(ft_stack_release(second, e));
  options.strategy = 9;
  EXPECT_EQ(ft_stack_pool_create(&options, &pool, nullptr),
            FT_ERROR_INVALID_ARGUMENT);
}

TEST(Stack, PoolTellsWhatItIsAndCounts) {
  ft_stack_pool_options options = FT_STACK_POOL_OPTIONS_INIT;
  options.stacks = 3;
  options.stack_bytes = 16 * kPage;
  options.guard_bytes = 2 * kPage;
  ft_stack_pool pool = {};
  ASSERT_FT_OK(ft_stack_pool_create(&options, &pool, e));
  ft_stack stack = {};
  void* base = nullptr;
  ASSERT_FT_OK(ft_stack_acquire(pool, 0, &stack, &base, nullptr, e));
  ft_stack_pool_info info = FT_STACK_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_stack_pool_get_info(pool, &info, e));
  EXPECT_EQ(info.stacks, 3u);
  EXPECT_EQ(info.in_use, 1u);
  EXPECT_EQ(info.quarantined, 0u);
  EXPECT_THAT(info.guards,
              testing::AnyOf(FT_GUARDS_MARKERS, FT_GUARDS_MPROTECT));
  ft_layout layout = FT_LAYOUT_INIT;
  ASSERT_FT_OK(ft_stack_pool_get_layout(pool, &layout, e));
  EXPECT_EQ(layout.slots, 3u);
  EXPECT_EQ(layout.memory_bytes, 16 * kPage);
  const uint64_t from_first = reinterpret_cast<uintptr_t>(base) - info.base -
                              layout.first_memory_offset_bytes;
  EXPECT_EQ(from_first % layout.slot_stride_bytes, 0u);
  EXPECT_LT(from_first / layout.slot_stride_bytes, 3u);

  info.struct_size = 8;
  EXPECT_EQ(ft_stack_pool_get_info(pool, &info, nullptr), FT_ERROR_STRUCT_SIZE);
  layout.struct_size = 8;
  EXPECT_EQ(ft_stack_pool_get_layout(pool, &layout, nullptr),
            FT_ERROR_STRUCT_SIZE);
  ASSERT_FT_OK(ft_stack_release(stack, e));
  info = FT_STACK_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_stack_pool_get_info(pool, &info, e));
  EXPECT_EQ(info.in_use, 0u);
  ASSERT_FT_OK(ft_stack_pool_destroy(pool, e));
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_stack_pool_get_info(pool, &info, &error),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_THAT(error.message, HasSubstr("of no pool of stacks"));
  EXPECT_EQ(ft_stack_pool_get_layout({}, &layout, nullptr),
            FT_ERROR_INVALID_HANDLE);
}

TEST(Table, PoolTellsWhatItIsAndCounts) {
  ft_table_pool_options options = FT_TABLE_POOL_OPTIONS_INIT;
  options.tables = 2;
  options.max_elements = 1000;
  options.element_bytes = 16;
  ft_table_pool pool = {};
  ASSERT_FT_OK(ft_table_pool_create(&options, &pool, e));
  ft_table table = {};
  void* data = nullptr;
  ASSERT_FT_OK(ft_table_acquire(pool, 10, 0, &table, &data, e));
  ft_table_pool_info info = FT_TABLE_POOL_INFO_INIT;
  ASSERT_FT_OK(ft_table_pool_get_info(pool, &info, e));
  EXPECT_EQ(info.max_elements, 1000u);
  EXPECT_EQ(info.element_bytes, 16u);
  EXPECT_EQ(info.tables, 2u);
  EXPECT_EQ(info.in_use, 1u);
  EXPECT_EQ(info.quarantined, 0u);
  ft_layout layout = FT_LAYOUT_INIT;
  ASSERT_FT_OK(ft_table_pool_get_layout(pool, &layout, e));
  EXPECT_EQ(layout.slots, 2u);
  EXPECT_EQ(layout.memory_bytes, 4 * kPage);
  const uint64_t from_first = reinterpret_cast<uintptr_t>(data) - info.base -
                              layout.first_memory_offset_bytes;
  EXPECT_EQ(from_first % layout.slot_stride_bytes, 0u);
  EXPECT_LT(from_first / layout.slot_stride_bytes, 2u);

  info.struct_size = 8;
  EXPECT_EQ(ft_table_pool_get_info(pool, &info, nullptr), FT_ERROR_STRUCT_SIZE);
  layout.struct_size = 8;
  EXPECT_EQ(ft_table_pool_get_layout(pool, &layout, nullptr),
            FT_ERROR_STRUCT_SIZE);
  ASSERT_FT_OK(ft_table_release(table, e));
  ASSERT_FT_OK(ft_table_pool_destroy(pool, e));
  ft_error error = FT_ERROR_INIT;
  EXPECT_EQ(ft_table_pool_get_info(pool, &info, &error),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_THAT(error.message, HasSubstr("of no pool of tables"));
  EXPECT_EQ(ft_table_pool_get_layout({}, &layout, nullptr),
            FT_ERROR_INVALID_HANDLE);
}

TEST(Table, IsCleanForTheNextAndGrows) {
  ft_table_pool_options options = FT_TABLE_POOL_OPTIONS_INIT;
  options.tables = 2;
  options.max_elements = 1000;
  ft_table_pool pool = {};
  ASSERT_FT_OK(ft_table_pool_create(&options, &pool, e));
  ft_table table = {};
  void* data = nullptr;
  ASSERT_FT_OK(ft_table_acquire(pool, 10, 0, &table, &data, e));
  static_cast<void**>(data)[9] = data;
  ASSERT_FT_OK(ft_table_grow(table, 1000, e));
  EXPECT_EQ(static_cast<void**>(data)[999], nullptr);
  EXPECT_EQ(ft_table_grow(table, 1001, nullptr), FT_ERROR_INVALID_ARGUMENT);
  ASSERT_FT_OK(ft_table_release(table, e));
  EXPECT_EQ(ft_table_grow(table, 1, nullptr), FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_table_acquire(pool, 10, 0, &table, &data, e));
  EXPECT_EQ(static_cast<void**>(data)[9], nullptr);
  ASSERT_FT_OK(ft_table_pool_destroy(pool, e));
  ASSERT_FT_OK(ft_table_release(table, e));
  EXPECT_EQ(ft_table_release(table, nullptr), FT_ERROR_INVALID_HANDLE);
}

TEST(Table, HandlesAreOfTheirKind) {
  const ft_image image = ImageOf("x");
  EXPECT_EQ(ft_store_close({image.entry, image.serial}, nullptr),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_stack_release({image.entry, image.serial}, nullptr),
            FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_table_release({}, nullptr), FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_stack_pool_destroy({}, nullptr), FT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(ft_table_pool_destroy({}, nullptr), FT_ERROR_INVALID_HANDLE);
  ASSERT_FT_OK(ft_image_release(image, e));
}

// --- Processes and threads ---------------------------------------------------

TEST(Fork, LeavesThePoolToTheParent) {
  const Pool pool(2);
  unsigned char* base = nullptr;
  const ft_memory memory = pool.Acquire(kPage, &base);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ft_memory another = {};
    const bool ok =
        ft_memory_acquire(pool.handle(), nullptr, &another, nullptr, nullptr) ==
            FT_ERROR_FAILED_PRECONDITION &&
        ft_memory_grow(memory, 2 * kPage, nullptr) ==
            FT_ERROR_FAILED_PRECONDITION;
    _exit(ok ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  base[0] = 1;
  ASSERT_FT_OK(ft_memory_release(memory, e));
}

TEST(Threads, HaveMemoriesOfTheirOwn) {
  constexpr int kThreads = 4;
  const Pool pool(kThreads);
  const ft_image image = ImageOf("hello");
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        unsigned char* base = nullptr;
        const ft_memory memory = pool.Acquire(4 * kPage, &base, image);
        ASSERT_EQ(memcmp(base, "hello", 6), 0);
        memset(base, i, 2 * kPage);
        ASSERT_FT_OK(ft_memory_release(memory, e));
        ASSERT_EQ(ft_memory_release(memory, nullptr), FT_ERROR_INVALID_HANDLE);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_FT_OK(ft_image_release(image, e));
}

TEST(Threads, MayReleaseWhenThePoolIsGone) {
  constexpr int kThreads = 4;
  std::vector<ft_memory> memories;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  {
    const Pool pool(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      unsigned char* base = nullptr;
      const ft_memory memory = pool.Acquire(kPage, &base);
      threads.emplace_back([memory, base] {
        base[0] = 1;
        EXPECT_EQ(ft_memory_release(memory, nullptr), FT_OK);
      });
      memories.push_back(memory);
    }
  }
  for (std::thread& thread : threads) thread.join();
  // Not before: a handle that is used again while the last memory of its pool
  // is released is the caller's race.
  for (const ft_memory memory : memories) {
    EXPECT_EQ(ft_memory_release(memory, nullptr), FT_ERROR_INVALID_HANDLE);
  }
}

}  // namespace
}  // namespace firsttouch::capi
