#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "bench/peers/guest.h"
#include "bench/peers/rows.h"
#include "bench/peers/ways.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/page_cache.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/integrations/wasm2c/plain_memory.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/wasi.h"
#include "firsttouch/service/service.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

using examples::SqliteGuest;
using examples::SqliteTemplate;
using wasm2c::Wasi;

// Has `body` done by a child of this process, which stays as fresh as it was.
void InChild(absl::FunctionRef<void()> body) {
  const pid_t child = fork();
  if (child < 0) Die("fork failed");
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) {
    Die("what a row needs could not be made");
  }
}

// A file in the directory of the request, which `make` writes if it is not
// there.
std::string FileOf(const Request& request, const std::string& name,
                   absl::FunctionRef<void(const std::string&)> make) {
  std::string path = absl::StrCat(request.Text("directory"), "/", name);
  if (!std::filesystem::exists(path)) InChild([&] { make(path); });
  return path;
}

// The kernel's own ways with a file, in which the memory's bytes are.
class FileSlot : public CycleSlot {
 public:
  FileSlot(const std::string& file, const ImageFileInfo& info, bool read)
      : fd_(open(file.c_str(), O_RDONLY | O_CLOEXEC)),
        offset_(static_cast<off_t>(info.data_offset)),
        bytes_(RoundUpToPage(info.size_bytes)),
        read_(read) {
    if (!fd_) Die(absl::StrCat("cannot open ", file));
  }

  std::byte* Acquire(const ImageRef&) override {
    base_ = mmap(nullptr, kSqliteMemoryBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) Die("mmap failed");
    auto* const base = static_cast<std::byte*>(base_);
    for (uint64_t done = 0; read_ && done < bytes_;) {
      const ssize_t got = pread(fd_.get(), base + done, bytes_ - done,
                                offset_ + static_cast<off_t>(done));
      if (got <= 0) Die("pread failed");
      done += static_cast<uint64_t>(got);
    }
    if (!read_ && mmap(base, bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd_.get(),
                       offset_) == MAP_FAILED) {
      Die("mmap of the file failed");
    }
    return base;
  }
  void Release(std::optional<PageList>, uint64_t) override {
    munmap(base_, kSqliteMemoryBytes);
  }

 private:
  const UniqueFd fd_;
  const off_t offset_;
  const uint64_t bytes_;
  const bool read_;
  void* base_ = nullptr;
};

Way OpenGuestPool() {
  return OrDie(
      OpenWay("firsttouch",
              wasm2c::LayoutForGuests(/*instances=*/1, kSqliteMemoryBytes),
              kSqliteMemoryBytes));
}

// SQLite's memory after its set-up, with what ten tenants have taught, or
// without.
void WriteSqlite(uint64_t rows, bool with_set, const std::string& file) {
  const Way pool = OpenGuestPool();
  const auto source = pool.NewSource();
  const auto database =
      OrDie(examples::SetUpDatabase(source.get(), static_cast<uint32_t>(rows)));
  for (int tenant = 0; tenant < 10; ++tenant) {
    Wasi wasi;
    SqliteGuest guest = OrDie(database->Instantiate(source.get(), &wasi));
    RequestOrDie(guest, rows, 0);
  }
  const ImageRef image = database->memories().front().image;
  if (!with_set) image->working_set().Replace({}, {});
  OrDie(WriteImageFile(*image, file).status());
}

// A file all of whose pages are stored.
std::string FullFile(const Request& request) {
  const uint64_t mib = request.Number("mib", 1);
  return FileOf(
      request, absl::StrCat(mib, ".ftimg"), [&](const std::string& path) {
        OrDie(WriteImageFile(*PatternImage(mib << 20), path).status());
      });
}

// Bytes on the disk, as the file system has allocated them.
uint64_t BytesOnDisk(const std::string& directory) {
  uint64_t bytes = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(directory)) {
    struct stat status = {};
    stat(entry.path().c_str(), &status);
    bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

}  // namespace

// The first request of a process.
void StartRound(const std::string& way, const Request& request,
                Answer& answer) {
  const bool with_set = way == "firsttouch";
  const bool ours = with_set || way == "no-set";
  if (!ours && way != "read-file" && way != "map-file") {
    Die(absl::StrCat(way, ": there is no such way to start"));
  }
  const uint64_t rows = request.Number("rows", 20'000);
  // The request that has taught the working set, or another one.
  const uint64_t number = request.Text("pages") == "same" ? 0 : 1;
  const std::string file = FileOf(
      request, with_set ? "with.ftimg" : "no.ftimg",
      [&](const std::string& path) { WriteSqlite(rows, with_set, path); });
  const ImageFileInfo info = OrDie(ReadImageFileInfo(file));
  answer.Number("cached_pages",
                request.Text("cache") == "cold" ? DropFromPageCache(file) : 0);
  // The same request to another database, in other memory, before anything is
  // measured: what is measured is memory, not the program's own pages, nor the
  // instance around the memory.
  const auto other_source = OrDie(wasm2c::PlainMemorySource::Create(
      {.slots = 1,
       .max_memory_bytes = kSqliteMemoryBytes,
       .method = wasm2c::PlainMethod::kEagerCopy}));
  const auto fresh = OrDie(examples::FreshInstance(other_source.get()));
  constexpr uint32_t kFewRows = 100;
  const auto other =
      OrDie(examples::SetUpDatabase(other_source.get(), kFewRows));
  Wasi other_wasi;
  SqliteGuest other_guest =
      OrDie(other->Instantiate(other_source.get(), &other_wasi));
  RequestOrDie(other_guest, kFewRows, number);

  Way pool;
  std::unique_ptr<wasm2c::MemorySource> source;
  wasm2c::MemoryRequest memory{.image = nullptr, .size_bytes = info.size_bytes};
  uint64_t begun = NowTicks();
  if (ours) {
    pool = OpenGuestPool();
    source = pool.NewSource();
    answer.Number("create_ns", NsSince(begun));
    begun = NowTicks();
    memory.image = OrDie(OpenImageFile(file));
  } else {
    source =
        SourceOf(std::make_unique<FileSlot>(file, info, way == "read-file"),
                 kSqliteMemoryBytes);
  }
  const uint64_t opened = NowTicks();
  Wasi wasi;
  const auto database = OrDie(fresh->WithMemories({&memory, 1}));
  SqliteGuest guest = OrDie(database->Instantiate(source.get(), &wasi));
  const uint64_t bound = NowTicks();
  const auto faults = [&] {
    return Faults() + (ours ? pool.pool->Stats().faults() : 0);
  };
  const uint64_t faults_before = faults();
  const uint64_t asked = NowTicks();
  RequestOrDie(guest, rows, number);
  const double query_ns = NsSince(asked);
  answer.Number("faults", faults() - faults_before);
  answer.Number("cycles", 1);
  answer.Number("open_ns", TicksToNs(opened - begun));
  answer.Number("bind_ns", TicksToNs(bound - opened));
  answer.Number("query_ns", query_ns);
  answer.Number("all_ns", TicksToNs(bound - begun) + query_ns);
}

// Open, bind and touch of a file of `mib`, to ask once in a process.
void OpenRound(const std::string&, const Request& request, Answer& answer) {
  const std::string file = FullFile(request);
  const ImageFileInfo info = OrDie(ReadImageFileInfo(file));
  const auto service = OrDie(Service::Create(
      {.name = "starts", .layout = OneSlot(RoundUpToPage(info.size_bytes))}));
  const uint64_t begun = NowTicks();
  const ImageRef image = OrDie(OpenImageFile(file));
  const uint64_t opened = NowTicks();
  const Memory memory =
      OrDie(service->Acquire({.image = image, .size_bytes = info.size_bytes}));
  const uint64_t bound = NowTicks();
  const volatile std::byte* const last = memory.base() + info.size_bytes - 1;
  if (*last == std::byte{0}) Die("the last byte is not the image's");
  answer.Number("touch_ns", NsSince(bound));
  answer.Number("open_ns", TicksToNs(opened - begun));
  answer.Number("bind_ns", TicksToNs(bound - opened));
  answer.Number("all_ns", TicksToNs(bound - begun));
}

// Bytes of `images` that share nine tenths of their pages.
void StoreRound(const std::string&, const Request& request, Answer& answer) {
  const uint64_t images = request.Number("images", 50);
  const uint64_t bytes = request.Number("mib", 4) << 20;
  const ImageRef base = PatternImage(bytes, 1);
  const std::string directory = NewFolder(request.Text("directory"), "store");
  const std::unique_ptr<ImageStore> store =
      OrDie(ImageStore::Open({.directory = directory + "store"}));
  uint64_t one = 0;
  for (uint64_t i = 0; i < images; ++i) {
    // Every tenth page is the image's own.
    const ImageRef own = PatternImage(bytes, static_cast<uint32_t>(2 + i));
    std::vector<PageData> pages;
    for (uint64_t page = 0; page < bytes / kPageBytes; page += 10) {
      pages.push_back({PageIndex(page), own->PageBytes(PageIndex(page))});
    }
    const ImageRef image = OrDie(
        ImageWithPages({.name = absl::StrCat("image ", i), .size_bytes = bytes},
                       base.get(), pages));
    if (i == 0) {
      const std::string file = directory + "one.ftimg";
      OrDie(WriteImageFile(*image, file).status());
      one = OrDie(ReadImageFileInfo(file)).disk_bytes;
    }
    OrDie(store->Put(image->name(), *image).status());
  }
  OrDie(store->Flush());
  const auto stored = static_cast<double>(BytesOnDisk(directory + "store"));
  answer.Number("files", stored / static_cast<double>(one));
  std::filesystem::remove_all(directory);
}

// `what` with an image of `mib`.
void BuildRound(const std::string&, const Request& request, Answer& answer) {
  using Options = OpenImageOptions;
  const std::string what = request.Text("what");
  const std::string file = FullFile(request);
  const ImageRef image = PatternImage(request.Number("mib", 1) << 20);
  const uint64_t bytes = image->pages().bytes();
  const uint64_t begun = NowTicks();
  if (what == "bytes") {
    OrDie(ImageFromBytes({.name = "built", .size_bytes = bytes},
                         {image->data(), bytes})
              .status());
  } else if (what == "write") {
    OrDie(WriteImageFile(*image, file + ".written").status());
  } else if (what == "verify") {
    OrDie(OpenImageFile(file, {.verify = Options::Verify::kAll}).status());
  } else if (what == "copy") {
    OrDie(OpenImageFile(file, {.backing = Options::Backing::kCopied}).status());
  } else {
    Die(absl::StrCat("what=", what, " makes no image"));
  }
  answer.Number("mean_ns", NsSince(begun));
}

}  // namespace firsttouch::bench
