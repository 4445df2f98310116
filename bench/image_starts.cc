#include "firsttouch/bench/image_starts.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/timing.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
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
using wasm2c::GuestMemory;
using wasm2c::MemoryRequest;
using wasm2c::Wasi;

// The kernel's own ways with a file: the memory's bytes are at `offset` in it.
class FileSource : public wasm2c::MemorySource {
 public:
  FileSource(int fd, uint64_t offset, uint64_t bytes, bool read)
      : fd_(fd), offset_(offset), bytes_(bytes), read_(read) {}

  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override {
    void* const mapped =
        mmap(nullptr, kSqliteMemoryBytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) Die("mmap failed");
    auto* const base = static_cast<std::byte*>(mapped);
    if (read_) {
      for (uint64_t done = 0; done < bytes_;) {
        const ssize_t got = pread(fd_, base + done, bytes_ - done,
                                  static_cast<off_t>(offset_ + done));
        if (got <= 0) Die("pread failed");
        done += static_cast<uint64_t>(got);
      }
    } else if (mmap(base, bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd_,
                    static_cast<off_t>(offset_)) == MAP_FAILED) {
      Die("mmap of the file failed");
    }
    std::vector<std::unique_ptr<GuestMemory>> memories;
    memories.push_back(MakeMappedMemory(
        base, requests[0].size_bytes, kSqliteMemoryBytes,
        [base](uint64_t) { munmap(base, kSqliteMemoryBytes); }));
    return memories;
  }

 private:
  const int fd_;
  const uint64_t offset_;
  const uint64_t bytes_;
  const bool read_;
};

void Request(SqliteGuest& guest, uint64_t rows, const std::string& query) {
  const bool same = query == "same";
  RequestOrDie(guest, same ? SameFound(rows) : rows / 3 + 1,
               same ? SameUpdated(rows) : rows / 2 + 1);
}

struct Pool {
  std::unique_ptr<Service> service;
  std::unique_ptr<wasm2c::PoolMemorySource> source;
};

Pool MakeGuestPool() {
  Pool pool;
  pool.service =
      OrDie(Service::Create({.name = "starts",
                             .layout = wasm2c::LayoutForGuests(
                                 /*instances=*/1, kSqliteMemoryBytes)}));
  pool.source = OrDie(wasm2c::PoolMemorySource::Create(pool.service.get()));
  return pool;
}

}  // namespace

const std::vector<std::string>& AllStartStrategies() {
  static const auto* const strategies = new std::vector<std::string>{
      kWithSetName, kWithoutSetName, kReadFileName, kPrivateFileName};
  return *strategies;
}

void WriteSqliteFiles(uint32_t rows, const std::string& with_set,
                      const std::string& without_set) {
  const Pool pool = MakeGuestPool();
  const std::shared_ptr<const SqliteTemplate> database =
      OrDie(examples::SetUpDatabase(pool.source.get(), rows));
  for (int tenant = 0; tenant < 10; ++tenant) {
    Wasi wasi;
    SqliteGuest guest = OrDie(database->Instantiate(pool.source.get(), &wasi));
    Request(guest, rows, "same");
  }
  const ImageRef image = database->memories().front().image;
  OrDie(WriteImageFile(*image, with_set).status());
  image->working_set().Replace({}, {});
  OrDie(WriteImageFile(*image, without_set).status());
}

StartRow StartSqlite(const std::string& strategy, const std::string& file,
                     uint32_t rows, const std::string& query) {
  // What has nothing to do with the memory: the program's own pages, and the
  // instance around the memory.
  std::shared_ptr<const SqliteTemplate> fresh;
  {
    const std::unique_ptr<wasm2c::PlainMemorySource> source =
        OrDie(wasm2c::PlainMemorySource::Create(
            {.slots = 1,
             .max_memory_bytes = kSqliteMemoryBytes,
             .method = wasm2c::PlainMethod::kEagerCopy}));
    fresh = OrDie(examples::FreshInstance(source.get()));
    constexpr uint32_t kFewRows = 100;
    const std::shared_ptr<const SqliteTemplate> other =
        OrDie(examples::SetUpDatabase(source.get(), kFewRows));
    Wasi wasi;
    SqliteGuest guest = OrDie(other->Instantiate(source.get(), &wasi));
    Request(guest, kFewRows, query);
  }
  const ImageFileInfo info = OrDie(ReadImageFileInfo(file));
  TicksToNs(1);  // Calibrates.

  StartRow start;
  start.set_query(query);
  start.set_way(strategy);
  Pool pool;
  UniqueFd fd;
  std::unique_ptr<FileSource> plain;
  wasm2c::MemorySource* source = nullptr;
  MemoryRequest request{.image = nullptr, .size_bytes = info.size_bytes};
  const bool ours = strategy == kWithSetName || strategy == kWithoutSetName;
  uint64_t begin = NowTicks();
  if (ours) {
    pool = MakeGuestPool();
    start.set_pool_ns(NsSince(begin));
    begin = NowTicks();
    request.image = OrDie(OpenImageFile(file));
    start.set_open_ns(NsSince(begin));
    source = pool.source.get();
  } else {
    fd = UniqueFd(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) Die(absl::StrCat("cannot open ", file));
    start.set_open_ns(NsSince(begin));
    plain = std::make_unique<FileSource>(fd.get(), info.data_offset,
                                         RoundUpToPage(info.size_bytes),
                                         strategy == kReadFileName);
    source = plain.get();
  }

  begin = NowTicks();
  Wasi wasi;
  const std::shared_ptr<const SqliteTemplate> database =
      OrDie(fresh->WithMemories({&request, 1}));
  SqliteGuest guest = OrDie(database->Instantiate(source, &wasi));
  start.set_bind_ns(NsSince(begin));

  const uint64_t faults = ours ? pool.service->Stats().faults() : 0;
  const uint64_t kernel_faults = MinorFaults();
  begin = NowTicks();
  Request(guest, rows, query);
  start.set_query_ns(NsSince(begin));
  start.set_all_ns(start.open_ns() + start.bind_ns() + start.query_ns());
  start.set_kernel_faults(static_cast<double>(MinorFaults() - kernel_faults));
  if (ours) {
    start.set_faults(
        static_cast<double>(pool.service->Stats().faults() - faults));
  }
  return start;
}

SizeRow StartPlain(const std::string& file) {
  const ImageFileInfo info = OrDie(ReadImageFileInfo(file));
  TicksToNs(1);  // Calibrates.
  SizeRow row;
  const std::unique_ptr<Service> service = OrDie(Service::Create(
      {.name = "starts",
       .layout = {.instances = 1,
                  .max_memory_bytes = RoundUpToPage(info.size_bytes),
                  .guard_after_bytes = 1 << 20}}));
  uint64_t begin = NowTicks();
  const ImageRef image = OrDie(OpenImageFile(file));
  row.set_open_ns(NsSince(begin));
  begin = NowTicks();
  const Memory memory =
      OrDie(service->Acquire({.image = image, .size_bytes = info.size_bytes}));
  row.set_bind_ns(NsSince(begin));
  begin = NowTicks();
  const volatile std::byte* const last = memory.base() + info.size_bytes - 1;
  if (*last == std::byte{0}) Die("the last byte is not the image's");
  row.set_touch_ns(NsSince(begin));
  row.set_bytes(info.size_bytes);
  row.set_open_and_bind_ns(row.open_ns() + row.bind_ns());
  return row;
}

}  // namespace firsttouch::bench
