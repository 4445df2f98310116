// What an image file costs: to start from, by its size, to store many, to make.
//
//   bazel run -c opt //bench:images
//   bazel run -c opt //bench:images -- --format=json
//   bazel run //bench:images -- --quick
//
// README.md says how it is measured and what the tables are. It exits with 0
// whether a goal was reached or not.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/report.pb.h"
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

using firsttouch::bench::Words;

ABSL_FLAG(Words, tables, Words({"start", "cold", "size", "store", "build"}),
          "which tables to make: start, cold, size, store, build");
ABSL_FLAG(int32_t, rounds, 0, "samples of each strategy; 31 by default");
ABSL_FLAG(std::string, directory, "",
          "where the files go, which are some GiB; a folder of the usual "
          "temporary ones by default");
ABSL_FLAG(bool, quick, false,
          "to see that everything works: little of everything, and the numbers "
          "mean nothing");
// For the processes that this one starts.
ABSL_FLAG(std::string, child, "", "for the program's own use");
ABSL_FLAG(std::string, file, "", "for the program's own use");
ABSL_FLAG(std::string, query, "same", "for the program's own use");
ABSL_FLAG(uint32_t, rows, 20'000, "rows of SQLite's table");

namespace firsttouch::bench {

// Rows that are compared with each other, for people.
std::string Situation(const StartRow& row) {
  return absl::StrCat("SQLite from a file, page cache ", row.page_cache(), ", ",
                      row.query() == "same"
                          ? "the rows that taught the working set"
                          : "other rows than those that taught");
}

namespace {

using examples::SqliteGuest;
using examples::SqliteTemplate;
using wasm2c::Wasi;

// How SQLite's memory comes from a file.
constexpr char kWithSetName[] = "working set";
constexpr char kWithoutSetName[] = "no working set";
constexpr char kReadFileName[] = "read into memory";
constexpr char kPrivateFileName[] = "plain private mapping";
constexpr const char* kStarts[] = {kWithSetName, kWithoutSetName, kReadFileName,
                                   kPrivateFileName};

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

struct Pool {
  std::unique_ptr<Service> service;
  std::unique_ptr<wasm2c::MemorySource> source;
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

// `query`: "same", the rows that the working set was taught with, or "other".
void Request(SqliteGuest& guest, uint64_t rows, const std::string& query) {
  RequestOrDie(guest, rows, query == "same" ? 0 : 1);
}

// In this process, which should have done nothing else yet: SQLite from `file`
// by one strategy. Before anything is measured, the same request is made to
// another database, in other memory: what is measured is memory, not the
// program's own pages, nor the instance around the memory.
StartRow StartSqlite(const std::string& strategy, const std::string& file,
                     uint32_t rows, const std::string& query) {
  std::shared_ptr<const SqliteTemplate> fresh;
  {
    const auto source = OrDie(wasm2c::PlainMemorySource::Create(
        {.slots = 1,
         .max_memory_bytes = kSqliteMemoryBytes,
         .method = wasm2c::PlainMethod::kEagerCopy}));
    fresh = OrDie(examples::FreshInstance(source.get()));
    constexpr uint32_t kFewRows = 100;
    const auto other = OrDie(examples::SetUpDatabase(source.get(), kFewRows));
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
  wasm2c::MemoryRequest request{.image = nullptr,
                                .size_bytes = info.size_bytes};
  const bool ours = strategy == kWithSetName || strategy == kWithoutSetName;
  uint64_t begin = NowTicks();
  if (ours) {
    pool = MakeGuestPool();
    start.set_pool_ns(NsSince(begin));
    begin = NowTicks();
    request.image = OrDie(OpenImageFile(file));
  } else {
    pool.source = SourceOf(
        std::make_unique<FileSlot>(file, info, strategy == kReadFileName),
        kSqliteMemoryBytes);
  }
  start.set_open_ns(NsSince(begin));

  begin = NowTicks();
  Wasi wasi;
  const auto database = OrDie(fresh->WithMemories({&request, 1}));
  SqliteGuest guest = OrDie(database->Instantiate(pool.source.get(), &wasi));
  start.set_bind_ns(NsSince(begin));

  const auto faults = [&] {
    return ours ? static_cast<double>(pool.service->Stats().faults()) : 0;
  };
  const double faults_before = faults();
  const uint64_t kernel_faults = MinorFaults();
  begin = NowTicks();
  Request(guest, rows, query);
  start.set_query_ns(NsSince(begin));
  start.set_all_ns(start.open_ns() + start.bind_ns() + start.query_ns());
  start.set_kernel_faults(static_cast<double>(MinorFaults() - kernel_faults));
  start.set_faults(faults() - faults_before);
  return start;
}

// The same without a guest: open, bind, and a read of the last byte.
SizeRow StartPlain(const std::string& file) {
  const ImageFileInfo info = OrDie(ReadImageFileInfo(file));
  TicksToNs(1);  // Calibrates.
  SizeRow row;
  const auto service = OrDie(Service::Create(
      {.name = "starts", .layout = OneSlot(RoundUpToPage(info.size_bytes))}));
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

// Writes a row of one sample to standard output, as a message.
int Child(const std::string& child) {
  const std::string file = absl::GetFlag(FLAGS_file);
  const bool written =
      child == "size"
          ? StartPlain(file).SerializeToFileDescriptor(STDOUT_FILENO)
          : StartSqlite(child, file, absl::GetFlag(FLAGS_rows),
                        absl::GetFlag(FLAGS_query))
                .SerializeToFileDescriptor(STDOUT_FILENO);
  return written ? 0 : 1;
}

// What a child of this program with these flags prints: a row of one sample,
// as a message.
template <typename Row>
Row RunChild(const Words& flags) {
  std::string command = absl::StrCat("/proc/", getpid(), "/exe");
  for (const std::string& flag : flags) {
    absl::StrAppend(&command, " '--", flag, "'");
  }
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) Die("cannot start a process");
  Row row;
  const bool parsed = row.ParseFromFileDescriptor(fileno(pipe));
  if (pclose(pipe) != 0 || !parsed) {
    Die(absl::StrCat("a sample failed: ", command));
  }
  return row;
}

void DropFromPageCache(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) Die(absl::StrCat("cannot open ", path));
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
}

// SQLite's memory after its set-up, with what ten tenants have taught, and
// without.
void WriteSqliteFiles(uint32_t rows, const std::string& with_set,
                      const std::string& without_set) {
  const Pool pool = MakeGuestPool();
  const auto database = OrDie(examples::SetUpDatabase(pool.source.get(), rows));
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

void MeasureStarts(const std::string& folder, int rounds, uint32_t rows,
                   const std::string& page_cache, const Words& queries,
                   ImagesReport& report) {
  const std::string with = folder + "with.ftimg";
  const std::string without = folder + "without.ftimg";
  WriteSqliteFiles(rows, with, without);
  for (const std::string& query : queries) {
    const auto start = [&](size_t i) -> std::optional<StartRow> {
      const std::string& file = kStarts[i] == kWithSetName ? with : without;
      if (page_cache == "cold") DropFromPageCache(file);
      StartRow row = RunChild<StartRow>(
          {absl::StrCat("child=", kStarts[i]), absl::StrCat("file=", file),
           absl::StrCat("query=", query), absl::StrCat("rows=", rows)});
      row.set_page_cache(page_cache);
      return row;
    };
    AddMedians(TakeTurns<StartRow>(rounds, std::size(kStarts), start),
               report.mutable_starts());
  }
}

void MeasureSizes(const std::string& folder, int rounds, bool quick,
                  ImagesReport& report) {
  std::vector<uint64_t> sizes = {1 << 20, 64 << 20, uint64_t{1} << 30};
  if (quick) sizes = {1 << 20, 4 << 20};
  Words files;
  for (const uint64_t size : sizes) {
    files.push_back(absl::StrCat(folder, size, ".ftimg"));
    OrDie(WriteImageFile(*PatternImage(size, 1), files.back()).status());
  }
  const auto start = [&](size_t i) -> std::optional<SizeRow> {
    return RunChild<SizeRow>({"child=size", absl::StrCat("file=", files[i])});
  };
  AddMedians(TakeTurns<SizeRow>(rounds, sizes.size(), start),
             report.mutable_sizes());
  for (const std::string& file : files) unlink(file.c_str());
}

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

void MeasureStored(const std::string& folder, bool quick,
                   ImagesReport& report) {
  const int images = quick ? 5 : 50;
  const uint64_t bytes = quick ? 1 << 20 : 4 << 20;
  StoredImages& stored = *report.mutable_stored();
  stored.set_images(images);
  stored.set_image_bytes(bytes);
  stored.set_shared_part(0.9);
  const ImageRef base = PatternImage(bytes, 1);
  const std::string directory = folder + "store";
  const std::unique_ptr<ImageStore> store =
      OrDie(ImageStore::Open({.directory = directory}));
  uint64_t all = 0;
  for (int i = 0; i < images; ++i) {
    // Every tenth page is the image's own.
    const ImageRef own = PatternImage(bytes, 2 + i);
    std::vector<PageData> pages;
    for (uint64_t page = 0; page < bytes / kPageBytes; page += 10) {
      pages.push_back({PageIndex(page), own->PageBytes(PageIndex(page))});
    }
    const ImageRef image = OrDie(
        ImageWithPages({.name = absl::StrCat("image ", i), .size_bytes = bytes},
                       base.get(), pages));
    const std::string file = folder + "one.ftimg";
    OrDie(WriteImageFile(*image, file).status());
    const uint64_t one = OrDie(ReadImageFileInfo(file)).disk_bytes;
    all += one;
    if (i == 0) stored.set_one_file_bytes(one);
    OrDie(store->Put(image->name(), *image).status());
  }
  OrDie(store->Flush());
  stored.set_all_files_bytes(all);
  stored.set_store_bytes(BytesOnDisk(directory));
}

void MeasureBuilds(const std::string& folder, int rounds, bool quick,
                   ImagesReport& report) {
  using Options = OpenImageOptions;
  const uint64_t bytes = quick ? 1 << 20 : 64 << 20;
  const ImageRef image = PatternImage(bytes, 1);
  const std::string file = folder + "build.ftimg";
  OrDie(WriteImageFile(*image, file).status());
  const std::pair<const char*, std::function<absl::Status()>> builds[] = {
      {"build from bytes",
       [&] {
         return ImageFromBytes({.name = "built", .size_bytes = bytes},
                               {image->data(), bytes})
             .status();
       }},
      {"write, with digests, synced",
       [&] {
         return WriteImageFile(*image, folder + "written.ftimg").status();
       }},
      {"open and verify all",
       [&] {
         return OpenImageFile(file, {.verify = Options::Verify::kAll}).status();
       }},
      {"open as a copy",
       [&] {
         return OpenImageFile(file, {.backing = Options::Backing::kCopied})
             .status();
       }},
  };
  const auto build = [&](size_t i) -> std::optional<BuildRow> {
    const uint64_t begin = NowTicks();
    OrDie(builds[i].second());
    const double ms = NsSince(begin) / 1e6;
    BuildRow row;
    row.set_what(builds[i].first);
    row.set_bytes(bytes);
    row.set_ms_per_mib(ms / static_cast<double>(bytes >> 20));
    return row;
  };
  AddMedians(TakeTurns<BuildRow>(std::min(rounds, 7), std::size(builds), build),
             report.mutable_builds());
}

// Of what the report has. What was not measured has none.
void AddGoals(ImagesReport& report) {
  const auto add = [&](const std::string& name, const std::string& where,
                       const std::string& other, double bound,
                       std::optional<double> measured) {
    AddGoal(name, where, other, bound, /*at_least=*/false, measured,
            std::nullopt, report.mutable_goals());
  };
  for (const StartRow& row : report.starts()) {
    // Only of the same rows is it asked: nobody can know of others.
    if (row.way() != kWithSetName || row.page_cache() != "warm" ||
        row.query() != "same") {
      continue;
    }
    add("first query / the other's", "same rows", kPrivateFileName, 0.7,
        RatioOfRounds(&row, RowBeside(report.starts(), row, kPrivateFileName),
                      "query_ns"));
  }
  for (int i = 1; i < report.sizes_size(); ++i) {
    const SizeRow& least = report.sizes(0);
    const SizeRow& row = report.sizes(i);
    add("open + bind / that of a small file", Size(row.bytes()),
        Size(least.bytes()), 1.5,
        RatioOfRounds(&row, &least, "open_and_bind_ns"));
  }
  const StoredImages& stored = report.stored();
  if (stored.one_file_bytes() > 0) {
    add("bytes stored / those of one image",
        absl::StrCat(stored.images(), " images"), "one file", 8,
        static_cast<double>(stored.store_bytes()) /
            static_cast<double>(stored.one_file_bytes()));
  }
}

std::string ToText(const ImagesReport& report) {
  constexpr double kUs = 1000;
  const Column open = {"open", "open_ns", kUs};
  const Column bind = {"bind", "bind_ns", kUs};
  const auto start = [&](const StartRow& row) -> Line {
    return {Situation(row),
            row.way(),
            {open,
             bind,
             {"query", "query_ns", kUs},
             {"all", "all_ns", kUs},
             {"pool", "pool_ns", kUs},
             {"faults", "faults"},
             {"kernel", "kernel_faults"}},
            "query_ns",
            RowBeside(report.starts(), row, kPrivateFileName)};
  };
  const auto size = [&](const SizeRow& row) -> Line {
    return {"open + bind by size, all pages stored",
            Size(row.bytes()),
            {open, bind, {"touch", "touch_ns", kUs}}};
  };
  const auto build = [&](const BuildRow& row) -> Line {
    return {"making images",
            absl::StrCat(row.what(), ", ", Size(row.bytes())),
            {{"ms a MiB", "ms_per_mib"}}};
  };
  std::string text = absl::StrCat(
      MachineText(report.machine()), report.rounds(),
      " rounds; a new process for each sample; times in us, medians\n",
      TablesText<StartRow>(report.starts(), start));
  if (report.starts_size() > 0) {
    absl::StrAppend(
        &text,
        "faults, kernel: of the first query, resolved by the pool, by the "
        "kernel\nx: the first query as a multiple of ",
        kPrivateFileName, "'s\n");
  }
  absl::StrAppend(&text, TablesText<SizeRow>(report.sizes(), size));
  if (report.has_stored()) {
    const StoredImages& stored = report.stored();
    absl::StrAppend(&text, "\n", stored.images(), " images of ",
                    Size(stored.image_bytes()), " that share ",
                    Short(stored.shared_part() * 100), " % of their pages\n",
                    "one file ", stored.one_file_bytes(), " bytes, ",
                    stored.images(), " files ", stored.all_files_bytes(),
                    ", the store ", stored.store_bytes(), "\n");
  }
  return absl::StrCat(
      text, TablesText<BuildRow>(report.builds(), build),
      GoalsText("goals: medians of the ratios within a round", report.goals()));
}

int Main(int argc, char** argv) {
  ParseFlags(argc, argv, "What image files cost.");
  const std::string child = absl::GetFlag(FLAGS_child);
  if (!child.empty()) return Child(child);
  const Words tables = Checked(absl::GetFlag(FLAGS_tables), "tables",
                               {"start", "cold", "size", "store", "build"});
  const bool quick = absl::GetFlag(FLAGS_quick);
  int rounds = absl::GetFlag(FLAGS_rounds);
  if (rounds < 0) Die("--rounds must be at least 1");
  if (rounds == 0) rounds = quick ? 1 : 31;
  const uint32_t rows = quick ? 500 : absl::GetFlag(FLAGS_rows);

  auto report = NewReport<ImagesReport>(rounds);
  report.set_default_options(DescribeDefaultOptions());
  const std::string folder =
      NewFolder(absl::GetFlag(FLAGS_directory), "firsttouch_images");
  for (const std::string& table : tables) {
    if (table == "start") {
      MeasureStarts(folder, rounds, rows, "warm", {"same", "other"}, report);
    } else if (table == "cold") {
      MeasureStarts(folder, std::min(rounds, 11), rows, "cold", {"same"},
                    report);
    } else if (table == "size") {
      MeasureSizes(folder, rounds, quick, report);
    } else if (table == "store") {
      MeasureStored(folder, quick, report);
    } else {
      MeasureBuilds(folder, rounds, quick, report);
    }
  }
  std::filesystem::remove_all(folder);
  AddGoals(report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
