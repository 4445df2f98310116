#include "firsttouch/init/image_store.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> PageOf(uint64_t seed) {
  std::vector<std::byte> bytes(kPageBytes);
  std::mt19937_64 random(seed);
  for (std::byte& byte : bytes) byte = std::byte(1 + random() % 255);
  return bytes;
}

using Contents = std::map<uint64_t, uint64_t>;  // Page to seed.

ImageRef MakeImage(const Contents& contents, uint64_t pages = 100,
                   const std::string& name = "memory") {
  absl::StatusOr<ImageRef> image = ImageFromWriter(
      {.name = name, .size_bytes = pages * kPageBytes},
      [&](ImagePut put) -> absl::Status {
        for (const auto& [page, seed] : contents) {
          absl::Status status = put(page * kPageBytes, PageOf(seed));
          if (!status.ok()) return status;
        }
        return absl::OkStatus();
      });
  if (!image.ok()) {
    ADD_FAILURE() << image.status();
    std::abort();
  }
  return *image;
}

Contents Numbered(uint64_t pages, uint64_t first_seed) {
  Contents contents;
  for (uint64_t page = 0; page < pages; ++page) {
    contents[page] = first_seed + page;
  }
  return contents;
}

void ExpectHolds(const Image& image, const Contents& contents) {
  ASSERT_EQ(image.stored_pages(), contents.size());
  for (const auto& [page, seed] : contents) {
    ASSERT_TRUE(image.IsStored(PageIndex(page))) << page;
    ASSERT_EQ(std::memcmp(image.PageBytes(PageIndex(page)), PageOf(seed).data(),
                          kPageBytes),
              0)
        << page;
  }
}

// In memory, and over a directory.
class ImageStoreTest : public ::testing::TestWithParam<bool> {
 protected:
  ImageStoreTest() {
    std::string pattern =
        (std::filesystem::path(::testing::TempDir()) / "storeXXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~ImageStoreTest() override { std::filesystem::remove_all(folder_); }

  std::string directory() const { return GetParam() ? folder_ + "/store" : ""; }

  std::unique_ptr<ImageStore> Open(ImageStoreOptions options = {}) {
    options.directory = directory();
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open(options);
    if (!store.ok()) {
      ADD_FAILURE() << store.status();
      std::abort();
    }
    return *std::move(store);
  }

  std::string folder_;
};

INSTANTIATE_TEST_SUITE_P(Places, ImageStoreTest, ::testing::Bool(),
                         [](const auto& place) {
                           return std::string(place.param ? "Directory"
                                                          : "Memory");
                         });

ImageRef PutOrDie(ImageStore& store, const std::string& name,
                  const Image& image) {
  absl::StatusOr<ImageRef> put = store.Put(name, image);
  if (!put.ok()) {
    ADD_FAILURE() << put.status();
    std::abort();
  }
  return *put;
}

TEST_P(ImageStoreTest, GivesBackWhatWasPut) {
  const auto store = Open();
  const Contents contents = {{0, 1}, {1, 2}, {50, 3}, {99, 4}};
  const ImageRef built = MakeImage(contents);
  built->working_set().Replace(std::vector<uint64_t>{5},
                               std::vector<uint64_t>{7});
  ImageRef stored = PutOrDie(*store, "a", *built);
  ExpectHolds(*stored, contents);
  EXPECT_EQ(stored->size_bytes(), built->size_bytes());
  EXPECT_EQ(stored->known_digest(), ContentDigest(*built));
  EXPECT_EQ(store->Get("a").value(), stored);
  EXPECT_EQ(store->GetByDigest(ContentDigest(*built)).value(), stored);
  stored.reset();
  const ImageRef again = store->Get("a").value();
  ExpectHolds(*again, contents);
  EXPECT_THAT(again->working_set().written(), ElementsAre(5));
  EXPECT_THAT(again->working_set().read(), ElementsAre(7));
}

TEST_P(ImageStoreTest, AnImageOfNoPagesIsOneToo) {
  const auto store = Open();
  const ImageRef stored = PutOrDie(*store, "empty", *MakeImage({}, 0));
  EXPECT_EQ(stored->size_bytes(), 0);
  EXPECT_EQ(PutOrDie(*store, "zero", *MakeImage({}, 9))->stored_pages(), 0);
  EXPECT_EQ(store->Stats()->held_pages, 0);
}

TEST_P(ImageStoreTest, FiftyImagesThatShareNineTenthsTakeLessThanEight) {
  const auto store = Open();
  std::vector<ImageRef> in_use;
  for (uint64_t i = 0; i < 50; ++i) {
    Contents contents = Numbered(100, 0);
    if (i > 0) {
      for (uint64_t page = 0; page < 10; ++page) {
        contents[page * 7] = 1'000'000 + i * 10 + page;
      }
    }
    in_use.push_back(
        PutOrDie(*store, absl::StrCat("image", i), *MakeImage(contents)));
    ExpectHolds(*in_use.back(), contents);
  }
  const ImageStoreStats stats = store->Stats().value();
  EXPECT_EQ(stats.images, 50);
  EXPECT_EQ(stats.images_in_use, 50);
  EXPECT_EQ(stats.image_pages, 5000);
  EXPECT_EQ(stats.held_pages, 100 + 49 * 10);
  EXPECT_EQ(stats.pages_shared, 49 * 90);
  EXPECT_LE(stats.held_pages, 8 * 100);
  if (GetParam()) {
    uint64_t on_disk = 0;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(directory())) {
      if (entry.path().extension() == ".ftimg") {
        on_disk += entry.file_size();
      }
    }
    // A page of header and manifest for each segment.
    EXPECT_EQ(on_disk, (stats.held_pages + 50) * kPageBytes);
  }
}

TEST_P(ImageStoreTest, PagesAreSharedWhereverTheyAre) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage({{0, 1}, {1, 2}, {2, 3}}));
  // Elsewhere, the other way round, and twice in one image.
  const Contents contents = {{10, 3}, {20, 1}, {21, 2}, {30, 9}, {40, 9}};
  const ImageRef b = PutOrDie(*store, "b", *MakeImage(contents));
  ExpectHolds(*b, contents);
  EXPECT_EQ(store->Stats()->held_pages, 4);
}

TEST_P(ImageStoreTest, PagesOfOneHashAreComparedBeforeTheyAreShared) {
  const auto store = Open(
      {.page_hash = [](std::span<const std::byte>) { return uint64_t{7}; }});
  const Contents a = {{0, 1}, {1, 2}, {2, 1}};
  const Contents b = {{0, 3}, {1, 1}};
  ExpectHolds(*PutOrDie(*store, "a", *MakeImage(a)), a);
  ExpectHolds(*PutOrDie(*store, "b", *MakeImage(b)), b);
  EXPECT_EQ(store->Stats()->held_pages, 3);
  EXPECT_GT(store->Stats()->hash_collisions, 0);
}

TEST_P(ImageStoreTest, EqualContentsAreOneImageOfTwoNames) {
  const auto store = Open();
  const ImageRef a = PutOrDie(*store, "b", *MakeImage({{0, 1}}));
  EXPECT_EQ(PutOrDie(*store, "a", *MakeImage({{0, 1}})), a);
  const std::vector<ImageStoreEntry> list = store->List().value();
  ASSERT_EQ(list.size(), 1);
  EXPECT_THAT(list[0].names, ElementsAre("a", "b"));
  EXPECT_EQ(list[0].content, ContentDigest(*a));
  EXPECT_EQ(list[0].stored_pages, 1);
  EXPECT_TRUE(list[0].in_use);
  // As large, with the same pages, is not the same.
  EXPECT_NE(PutOrDie(*store, "c", *MakeImage({{0, 1}}, 101)), a);
}

TEST_P(ImageStoreTest, ANameGoesToWhatWasPutLast) {
  const auto store = Open();
  const ImageRef old_one = PutOrDie(*store, "a", *MakeImage({{0, 1}}));
  const ImageRef new_one = PutOrDie(*store, "a", *MakeImage({{0, 2}}));
  EXPECT_EQ(store->Get("a").value(), new_one);
  EXPECT_EQ(store->GetByDigest(ContentDigest(*old_one)).value(), old_one);
}

TEST_P(ImageStoreTest, WhatIsNotThereIsNamed) {
  const auto store = Open();
  EXPECT_THAT(store->Get("b").status().message(),
              HasSubstr("there is no image named 'b'"));
  EXPECT_TRUE(absl::IsNotFound(store->Get("b").status()));
  EXPECT_TRUE(absl::IsNotFound(store->Remove("b")));
  EXPECT_THAT(store->GetByDigest(Digest()).status().message(),
              HasSubstr("there is no image with digest 0000"));
  EXPECT_THAT(store->Put("", *MakeImage({})).status().message(),
              HasSubstr("name '' has 0 bytes; it must have 1 to 80"));
  EXPECT_TRUE(absl::IsInvalidArgument(
      store->Put(std::string(81, 'x'), *MakeImage({})).status()));
  const std::string odd("../x\0/", 6);
  const ImageRef oddly_named = PutOrDie(*store, odd, *MakeImage({{1, 1}}));
  EXPECT_EQ(store->Get(odd).value(), oddly_named);
}

TEST_P(ImageStoreTest, TheLeastRecentlyUsedLeavesAndWhatIsInUseStays) {
  const auto store = Open({.budget_bytes = 25 * kPageBytes});
  ImageRef used = PutOrDie(*store, "used", *MakeImage(Numbered(10, 100)));
  PutOrDie(*store, "old", *MakeImage(Numbered(10, 200)));
  EXPECT_EQ(store->Stats()->held_pages, 20);
  PutOrDie(*store, "new", *MakeImage(Numbered(10, 300)));
  EXPECT_TRUE(absl::IsNotFound(store->Get("old").status()));
  EXPECT_TRUE(store->Get("new").ok());
  EXPECT_EQ(store->Stats()->images_evicted, 1);
  EXPECT_EQ(store->Stats()->held_pages, 20);

  EXPECT_EQ(store->Trim(0).value(), 10 * kPageBytes);
  EXPECT_EQ(store->Stats()->held_pages, 10);
  ExpectHolds(*used, Numbered(10, 100));
  EXPECT_EQ(store->Get("used").value(), used);
  used.reset();
  EXPECT_EQ(store->Trim(0).value(), 10 * kPageBytes);
  const ImageStoreStats stats = store->Stats().value();
  EXPECT_EQ(stats.images + stats.names + stats.segments + stats.held_bytes, 0);
}

TEST_P(ImageStoreTest, WhatHasNoNameLeavesFirst) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 100)));
  PutOrDie(*store, "b", *MakeImage(Numbered(10, 200)));
  ASSERT_TRUE(store->Remove("b").ok());
  EXPECT_EQ(store->Trim(10 * kPageBytes).value(), 10 * kPageBytes);
  EXPECT_TRUE(store->Get("a").ok());
}

TEST_P(ImageStoreTest, PagesStayAsLongAsAnImageHasThem) {
  const auto store = Open();
  PutOrDie(*store, "base", *MakeImage(Numbered(10, 100)));
  Contents changed = Numbered(10, 100);
  changed[3] = 1;
  const ImageRef b = PutOrDie(*store, "changed", *MakeImage(changed));
  EXPECT_EQ(store->Trim(0).value(), 0);
  EXPECT_TRUE(absl::IsNotFound(store->Get("base").status()));
  EXPECT_EQ(store->Stats()->held_pages, 11);
  ExpectHolds(*b, changed);
  // And may be shared anew.
  PutOrDie(*store, "base", *MakeImage(Numbered(10, 100)));
  EXPECT_EQ(store->Stats()->held_pages, 11);
}

TEST_P(ImageStoreTest, ImagesOutliveTheStore) {
  auto store = Open();
  const ImageRef image = PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  store.reset();
  ExpectHolds(*image, Numbered(10, 1));
  image->working_set().LearnWritten(std::vector<uint64_t>{1});
}

TEST_P(ImageStoreTest, WhatTenantsTeachIsKeptWhenTheImageGoes) {
  const auto store = Open();
  ImageRef image = PutOrDie(*store, "a", *MakeImage({{0, 1}}));
  image->working_set().LearnWritten(std::vector<uint64_t>{8});
  image.reset();
  EXPECT_THAT(store->Get("a").value()->working_set().written(), ElementsAre(8));
  ASSERT_TRUE(store->Flush().ok());
  if (GetParam()) {
    EXPECT_THAT(Open()->Get("a").value()->working_set().written(),
                ElementsAre(8));
  }
}

TEST_P(ImageStoreTest, ManyThreadsPutGetAndTrim) {
  const auto store = Open({.budget_bytes = 40 * kPageBytes});
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      for (int i = 0; i < (GetParam() ? 15 : 60); ++i) {
        const uint64_t which = random() % 6;
        Contents contents = Numbered(10, 100);
        contents[0] = 1000 + which;
        const std::string name = absl::StrCat("image", which);
        absl::StatusOr<ImageRef> image = store->Get(name);
        if (absl::IsNotFound(image.status())) {
          image = store->Put(name, *MakeImage(contents));
        }
        if (!image.ok() ||
            std::memcmp((*image)->PageBytes(PageIndex(0)),
                        PageOf(1000 + which).data(), kPageBytes) != 0 ||
            std::memcmp((*image)->PageBytes(PageIndex(9)), PageOf(109).data(),
                        kPageBytes) != 0) {
          ++wrong;
        }
        if (random() % 4 == 0 && !store->Trim(0).ok()) ++wrong;
        if (random() % 4 == 0 && !store->Stats().ok()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(store->Trim(0).ok());
  EXPECT_EQ(store->Stats()->held_pages, 0);
}

class DirectoryStoreTest : public ImageStoreTest {};
INSTANTIATE_TEST_SUITE_P(Directory, DirectoryStoreTest,
                         ::testing::Values(true));

TEST_P(DirectoryStoreTest, AnotherStoreOfTheDirectorySeesTheImages) {
  const auto first = Open();
  const auto second = Open();
  PutOrDie(*first, "a", *MakeImage(Numbered(10, 1)));
  Contents changed = Numbered(10, 1);
  changed[5] = 77;
  ExpectHolds(*second->Get("a").value(), Numbered(10, 1));
  PutOrDie(*second, "b", *MakeImage(changed));
  ExpectHolds(*first->Get("b").value(), changed);
  EXPECT_EQ(first->Stats()->held_pages, 11);
  EXPECT_EQ(first->List()->size(), 2);
}

TEST_P(DirectoryStoreTest, WhatAnotherProcessUsesStays) {
  int ready[2];
  int done[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(done), 0);
  PutOrDie(*Open(), "a", *MakeImage(Numbered(10, 1)));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(done[1]);
    const absl::StatusOr<ImageRef> image = Open()->Get("a");
    char byte = image.ok() ? 'y' : 'n';
    if (write(ready[1], &byte, 1) != 1 || read(done[0], &byte, 1) != 0)
      _exit(1);
    _exit(0);
  }
  close(done[0]);
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  const auto store = Open();
  EXPECT_TRUE(store->List().value()[0].in_use);
  EXPECT_EQ(store->Trim(0).value(), 0);
  EXPECT_TRUE(store->Get("a").ok());
  close(done[1]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(store->List().value()[0].in_use);
  EXPECT_EQ(store->Trim(0).value(), 10 * kPageBytes);
}

TEST_P(DirectoryStoreTest, AnImagePutAnewByAnotherIsReadAnew) {
  const auto first = Open();
  const auto second = Open();
  Contents changed = Numbered(10, 1);
  changed[5] = 77;
  PutOrDie(*first, "a", *MakeImage(Numbered(10, 1)));
  PutOrDie(*first, "b", *MakeImage(changed));  // In two segments.
  ExpectHolds(*second->Get("b").value(), changed);
  EXPECT_TRUE(first->Trim(0).ok());
  PutOrDie(*first, "b", *MakeImage(changed));  // In one.
  ExpectHolds(*second->Get("b").value(), changed);
}

TEST_P(DirectoryStoreTest, ADamagedFileIsNamed) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(directory())) {
    if (entry.path().extension() != ".ftref") continue;
    std::filesystem::permissions(entry.path(),
                                 std::filesystem::perms::owner_all);
    std::fstream file(entry.path(),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(40);
    file.put('\x55');
  }
  const absl::Status status = store->Get("a").status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("does not match its SHA-256"));
  EXPECT_THAT(status.message(), HasSubstr(".ftref"));
}

// Changes a byte of each file of the directory with that ending.
void Damage(const std::string& directory, const std::string& ending,
            std::streamoff at) {
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.path().extension() != ending) continue;
    std::filesystem::permissions(entry.path(),
                                 std::filesystem::perms::owner_all);
    std::fstream file(entry.path(),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put('\x55');
  }
}

TEST_P(DirectoryStoreTest, ADamagedRecordConcernsItsImageAlone) {
  {
    const auto store = Open();
    PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  }
  Damage(directory(), ".ftref", 40);
  const auto store = Open();
  PutOrDie(*store, "b", *MakeImage(Numbered(5, 100)));
  ExpectHolds(*store->Get("b").value(), Numbered(5, 100));
  const auto list = store->List();
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->size(), 1u);
  const auto stats = store->Stats();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->images, 1u);
  EXPECT_EQ(stats->damaged_files, 1u);
  // Put anew, it is whole again.
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  ExpectHolds(*store->Get("a").value(), Numbered(10, 1));
  EXPECT_EQ(store->Stats()->damaged_files, 0u);
}

TEST_P(DirectoryStoreTest, ADamagedSegmentConcernsItsImagesAlone) {
  {
    const auto store = Open();
    PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  }
  Damage(directory(), ".ftimg", 1);  // In its magic.
  const auto store = Open();
  PutOrDie(*store, "b", *MakeImage(Numbered(5, 100)));
  EXPECT_FALSE(store->Get("a").ok());
  EXPECT_EQ(store->List()->size(), 2u);
  EXPECT_EQ(store->Stats()->damaged_files, 1u);
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  ExpectHolds(*store->Get("a").value(), Numbered(10, 1));
  EXPECT_EQ(store->Stats()->damaged_files, 0u);
}

TEST_P(DirectoryStoreTest, ADamagedNameConcernsItselfAlone) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(directory()) / "names")) {
    std::filesystem::permissions(entry.path(),
                                 std::filesystem::perms::owner_all);
    std::ofstream(entry.path()) << "no digest";
  }
  PutOrDie(*store, "b", *MakeImage(Numbered(5, 100)));
  EXPECT_EQ(store->Stats()->names, 1u);
  EXPECT_EQ(store->Stats()->damaged_files, 1u);
  EXPECT_THAT(store->Get("a").status().message(), HasSubstr("holds no digest"));
}

// What is not damaged, but of a newer build, keeps its pages.
TEST_P(DirectoryStoreTest, PagesOfAnImageThatCannotBeReadStay) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(directory()) / "images")) {
    std::filesystem::remove(entry.path());
    // A folder cannot be read as a file, whoever asks.
    std::filesystem::create_directory(entry.path());
  }
  EXPECT_EQ(store->Trim(0).value(), 0u);
  EXPECT_EQ(store->Stats()->segments, 1u);
  EXPECT_EQ(store->Stats()->damaged_files, 1u);
}

TEST_P(DirectoryStoreTest, TemporaryFilesOfKilledWritersAreTakenAway) {
  const auto store = Open();
  std::vector<std::filesystem::path> left;
  for (const char* folder : {"segments", "images", "names"}) {
    left.push_back(std::filesystem::path(directory()) / folder /
                   ".a.ftimg.0123456789abcdef.tmp");
    std::ofstream(left.back()) << "half";
  }
  EXPECT_TRUE(store->Trim(uint64_t{1} << 40).ok());
  for (const auto& path : left) EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_P(DirectoryStoreTest, LinksInTheDirectoryLeadNoWriteElsewhere) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  const std::filesystem::path elsewhere =
      std::filesystem::path(directory()).parent_path() / "elsewhere";
  std::ofstream(elsewhere) << "mine";
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(directory()) / "names")) {
    std::filesystem::remove(entry.path());
    std::filesystem::create_symlink(elsewhere, entry.path());
  }
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  std::string text;
  std::ifstream(elsewhere) >> text;
  EXPECT_EQ(text, "mine");
}

TEST_P(DirectoryStoreTest, WhatADeadProcessLeftIsTakenAway) {
  const auto store = Open();
  PutOrDie(*store, "a", *MakeImage(Numbered(10, 1)));
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(directory()) / "images")) {
    std::filesystem::remove(entry.path());
  }
  EXPECT_EQ(store->Trim(uint64_t{1} << 40).value(), 10 * kPageBytes);
  EXPECT_EQ(store->Stats()->segments, 0);
}

TEST_P(DirectoryStoreTest, ADirectoryThatCannotBeMadeIsNamed) {
  const absl::Status status =
      ImageStore::Open({.directory = folder_ + "/no/such"}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("/no/such'"));
}

TEST(WorkingSetOfANewBuildTest, KeepsWhatStillApplies) {
  const std::unique_ptr<ImageStore> store = ImageStore::Open({}).value();
  std::vector<std::byte> bytes(8 * kPageBytes, std::byte{1});
  const ImageRef first =
      ImageFromBytes({.name = "v1", .size_bytes = bytes.size()}, bytes).value();
  first->working_set().Replace(std::vector<uint64_t>{0b1'0000'0110},
                               std::vector<uint64_t>{0b0'0000'1111});
  ASSERT_TRUE(store->Put("guest", *first).ok());
  // Page 1 is another one, page 2 has gone.
  bytes[kPageBytes] = std::byte{2};
  std::fill(bytes.begin() + 2 * kPageBytes, bytes.begin() + 3 * kPageBytes,
            std::byte{0});
  const ImageRef second =
      ImageFromBytes({.name = "v2", .size_bytes = bytes.size()}, bytes).value();
  const ImageRef kept = store->Put("guest", *second).value();
  EXPECT_TRUE(kept->working_set().known());
  // Page 8 is behind both images: a heap.
  EXPECT_THAT(kept->working_set().written(), ElementsAre(0b1'0000'0000));
  EXPECT_THAT(kept->working_set().read(), ElementsAre(0b0'0000'1001));

  // One that brings its own, and one under another name, get nothing.
  bytes[0] = std::byte{3};
  const ImageRef third =
      ImageFromBytes({.name = "v3", .size_bytes = bytes.size()}, bytes).value();
  EXPECT_FALSE(store->Put("other", *third).value()->working_set().known());
  bytes[0] = std::byte{4};
  const ImageRef fourth =
      ImageFromBytes({.name = "v4", .size_bytes = bytes.size()}, bytes).value();
  fourth->working_set().Replace(std::vector<uint64_t>{0b1'0000},
                                std::vector<uint64_t>{});
  EXPECT_THAT(store->Put("guest", *fourth).value()->working_set().written(),
              ElementsAre(0b1'0000));
}

}  // namespace
}  // namespace firsttouch
