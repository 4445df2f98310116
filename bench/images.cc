// What an image file costs: to start from, by its size, to store many, to make.
//
//   bazel run -c opt //bench:images
//   bazel run -c opt //bench:images -- --format=json
//   bazel run //bench:images -- --quick
//
// Each sample of a start is a process of its own, made by fork and exec, in
// which strategies take turns. The page cache is warm unless the table says
// cold: then the file was dropped from it (posix_fadvise) before each sample,
// as far as the kernel obeys. It exits with 0 whether a goal was reached or
// not.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/image_starts.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/timing.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
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
namespace {

// A folder that goes away with everything in it.
class Folder {
 public:
  Folder() {
    std::string parent = absl::GetFlag(FLAGS_directory);
    if (parent.empty()) parent = std::filesystem::temp_directory_path();
    path_ = absl::StrCat(parent, "/firsttouch_images.XXXXXX");
    if (mkdtemp(path_.data()) == nullptr) {
      Die(absl::StrCat("--directory: cannot make a folder in ", parent));
    }
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string File(const std::string& name) const {
    return absl::StrCat(path_, "/", name);
  }

 private:
  std::string path_;
};

std::string OwnProgram() {
  std::error_code error;
  std::string path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) Die("cannot read /proc/self/exe");
  return path;
}

// What a child of this program with these flags prints: a row of one sample,
// as a message.
template <typename Row>
Row RunChild(const Words& flags) {
  std::string command = absl::StrCat("'", OwnProgram(), "'");
  for (const std::string& flag : flags) {
    absl::StrAppend(&command, " '--", flag, "'");
  }
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) Die("cannot start a process");
  char buffer[4096];
  const size_t got = fread(buffer, 1, sizeof buffer, pipe);
  Row row;
  if (pclose(pipe) != 0 || got == 0 ||
      !row.ParseFromArray(buffer, static_cast<int>(got))) {
    Die(absl::StrCat("a sample failed: ", command));
  }
  return row;
}

void DropFromPageCache(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Die(absl::StrCat("cannot open ", path));
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
}

void MeasureStarts(const Folder& folder, int rounds, uint32_t rows, bool cold,
                   const Words& queries, ImagesReport& report) {
  const std::string with = folder.File("with.ftimg");
  const std::string without = folder.File("without.ftimg");
  WriteSqliteFiles(rows, with, without);
  for (const std::string& query : queries) {
    std::vector<std::vector<StartRow>> samples(AllStartStrategies().size());
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < samples.size(); ++i) {
        const std::string& strategy = AllStartStrategies()[i];
        const std::string& file = strategy == kWithSetName ? with : without;
        if (cold) DropFromPageCache(file);
        samples[i].push_back(RunChild<StartRow>(
            {absl::StrCat("child=", strategy), absl::StrCat("file=", file),
             absl::StrCat("query=", query), absl::StrCat("rows=", rows)}));
      }
    }
    for (const std::vector<StartRow>& of_strategy : samples) {
      StartRow& row = *report.add_starts();
      row = MedianRow(of_strategy);
      row.set_page_cache(cold ? "cold" : "warm");
    }
  }
}

// An image whose pages all differ, also from those of other seeds.
ImageRef DenseImage(uint64_t bytes, uint32_t seed) {
  return OrDie(ImageFromWriter(
      {.name = "dense", .size_bytes = bytes}, [&](ImagePut put) {
        std::vector<uint64_t> chunk((1 << 20) / sizeof(uint64_t));
        uint64_t state = seed * 0x9e3779b97f4a7c15 + 1;
        for (uint64_t at = 0; at < bytes; at += 1 << 20) {
          for (uint64_t& word : chunk) {
            state = state * 6364136223846793005 + 1442695040888963407;
            word = state | 0x0101010101010101;
          }
          absl::Status status =
              put(at, std::as_bytes(std::span(chunk))
                          .first(std::min<uint64_t>(1 << 20, bytes - at)));
          if (!status.ok()) return status;
        }
        return absl::OkStatus();
      }));
}

void MeasureSizes(const Folder& folder, int rounds, bool quick,
                  ImagesReport& report) {
  std::vector<uint64_t> sizes = {1 << 20, 64 << 20, uint64_t{1} << 30};
  if (quick) sizes = {1 << 20, 4 << 20};
  std::vector<std::vector<SizeRow>> samples(sizes.size());
  for (const uint64_t size : sizes) {
    OrDie(WriteImageFile(*DenseImage(size, 1),
                         folder.File(absl::StrCat(size, ".ftimg")))
              .status());
  }
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      samples[i].push_back(RunChild<SizeRow>(
          {"child=size", absl::StrCat("file=", folder.File(absl::StrCat(
                                                   sizes[i], ".ftimg")))}));
    }
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    *report.add_sizes() = MedianRow(samples[i]);
    unlink(folder.File(absl::StrCat(sizes[i], ".ftimg")).c_str());
  }
}

uint64_t BytesOnDisk(const std::string& path) {
  uint64_t bytes = 0;
  const auto add = [&](const std::string& file) {
    struct stat status;
    if (stat(file.c_str(), &status) == 0) {
      bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  };
  add(path);
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(path)) {
      add(entry.path());
    }
  }
  return bytes;
}

void MeasureStored(const Folder& folder, bool quick, ImagesReport& report) {
  const int images = quick ? 5 : 50;
  const uint64_t bytes = quick ? 1 << 20 : 4 << 20;
  StoredImages& stored = *report.mutable_stored();
  stored.set_images(images);
  stored.set_image_bytes(bytes);
  stored.set_shared_part(0.9);
  const ImageRef base = DenseImage(bytes, 1);
  const std::string directory = folder.File("store");
  const std::unique_ptr<ImageStore> store =
      OrDie(ImageStore::Open({.directory = directory}));
  uint64_t all = 0;
  for (int i = 0; i < images; ++i) {
    // Every tenth page is the image's own.
    const ImageRef own = DenseImage(bytes, 2 + i);
    std::vector<PageData> pages;
    for (uint64_t page = 0; page < bytes / kPageBytes; page += 10) {
      pages.push_back({PageIndex(page), own->PageBytes(PageIndex(page))});
    }
    const ImageRef image = OrDie(
        ImageWithPages({.name = absl::StrCat("image ", i), .size_bytes = bytes},
                       base.get(), pages));
    const std::string file = folder.File("one.ftimg");
    OrDie(WriteImageFile(*image, file).status());
    const uint64_t one = BytesOnDisk(file);
    all += one;
    if (i == 0) stored.set_one_file_bytes(one);
    OrDie(store->Put(image->name(), *image).status());
  }
  OrDie(store->Flush());
  stored.set_all_files_bytes(all);
  stored.set_store_bytes(BytesOnDisk(directory));
}

void MeasureBuilds(const Folder& folder, int rounds, bool quick,
                   ImagesReport& report) {
  const uint64_t bytes = quick ? 1 << 20 : 64 << 20;
  const ImageRef image = DenseImage(bytes, 1);
  const std::string file = folder.File("build.ftimg");
  OrDie(WriteImageFile(*image, file).status());
  const auto measure = [&](const std::string& what, auto run) {
    std::vector<double> ms;
    for (int round = 0; round < std::min(rounds, 7); ++round) {
      const auto begin = std::chrono::steady_clock::now();
      run();
      ms.push_back(std::chrono::duration<double, std::milli>(
                       std::chrono::steady_clock::now() - begin)
                       .count());
    }
    BuildRow& row = *report.add_builds();
    row.set_what(what);
    row.set_bytes(bytes);
    row.set_ms_per_mib(Median(ms) / static_cast<double>(bytes >> 20));
  };
  measure("build from bytes", [&] {
    OrDie(ImageFromBytes({.name = "built", .size_bytes = bytes},
                         {image->data(), bytes})
              .status());
  });
  measure("write, with digests, synced", [&] {
    OrDie(WriteImageFile(*image, folder.File("written.ftimg")).status());
  });
  measure("open and verify all", [&] {
    OrDie(OpenImageFile(file, {.verify = OpenImageOptions::Verify::kAll})
              .status());
  });
  measure("open as a copy", [&] {
    OrDie(OpenImageFile(file, {.backing = OpenImageOptions::Backing::kCopied})
              .status());
  });
}

int Child() {
  const std::string child = absl::GetFlag(FLAGS_child);
  const std::string file = absl::GetFlag(FLAGS_file);
  if (child == "size") {
    std::cout << StartPlain(file).SerializeAsString();
  } else {
    std::cout << StartSqlite(child, file, absl::GetFlag(FLAGS_rows),
                             absl::GetFlag(FLAGS_query))
                     .SerializeAsString();
  }
  return 0;
}

// The row of the plain mapping that goes with `like`.
const StartRow* PlainOf(const ImagesReport& report, const StartRow& like) {
  for (const StartRow& row : report.starts()) {
    if (row.page_cache() == like.page_cache() && row.query() == like.query() &&
        row.way() == kPrivateFileName) {
      return &row;
    }
  }
  return nullptr;
}

std::string Size(uint64_t bytes) {
  return bytes >= uint64_t{1} << 30 ? absl::StrCat(bytes >> 30, " GiB")
         : bytes >= 1 << 20         ? absl::StrCat(bytes >> 20, " MiB")
                                    : absl::StrCat(bytes >> 10, " KiB");
}

void AddGoal(ImagesReport& report, const std::string& name,
             const std::string& where, const std::string& other, double bound,
             std::optional<double> measured) {
  Goal& goal = *report.add_goals();
  goal.set_name(name);
  goal.set_where(where);
  goal.set_other(other);
  goal.set_bound(bound);
  Judge(goal, measured);
}

// Of what the report has. What was not measured has none.
void AddGoals(ImagesReport& report) {
  for (const StartRow& row : report.starts()) {
    const StartRow* const plain = PlainOf(report, row);
    // Only of the same rows is it asked: nobody can know of others.
    if (row.way() == kWithSetName && row.page_cache() == "warm" &&
        row.query() == "same" && plain != nullptr) {
      AddGoal(report, "first query / the other's", "same rows",
              kPrivateFileName, 0.7, RatioOfRounds(&row, plain, "query_ns"));
    }
  }
  for (int i = 1; i < report.sizes_size(); ++i) {
    const SizeRow& least = report.sizes(0);
    const SizeRow& row = report.sizes(i);
    AddGoal(report, "open + bind / that of a small file", Size(row.bytes()),
            Size(least.bytes()), 1.5,
            RatioOfRounds(&row, &least, "open_and_bind_ns"));
  }
  if (report.has_stored() && report.stored().one_file_bytes() > 0) {
    const StoredImages& stored = report.stored();
    AddGoal(report, "bytes stored / those of one image",
            absl::StrCat(stored.images(), " images"), "one file", 8,
            static_cast<double>(stored.store_bytes()) /
                static_cast<double>(stored.one_file_bytes()));
  }
}

// The starts with the page cache and the query of `like`.
std::string StartsText(const ImagesReport& report, const StartRow& like) {
  std::vector<Words> lines = {
      {"", "open", "bind", "query", "all", "pool", "faults", "kernel", "x"}};
  for (const StartRow& row : report.starts()) {
    if (row.page_cache() != like.page_cache() || row.query() != like.query()) {
      continue;
    }
    Words& line = lines.emplace_back(Words{row.way()});
    for (const char* field :
         {"open_ns", "bind_ns", "query_ns", "all_ns", "pool_ns"}) {
      line.push_back(Thousandths(row, field));
    }
    line.push_back(Short(row.faults()));
    line.push_back(Short(row.kernel_faults()));
    line.push_back(
        Short(RatioOfRounds(&row, PlainOf(report, row), "query_ns")));
  }
  return absl::StrCat(
      "\nSQLite from a file, page cache ", like.page_cache(), ", ",
      like.query() == "same" ? "the rows that taught the working set"
                             : "other rows than those that taught",
      "\n", TableText(lines));
}

std::string ToText(const ImagesReport& report) {
  std::string text = absl::StrCat(
      MachineText(report.machine()), report.rounds(),
      " rounds; a new process for each sample; times in us, medians\n");
  for (const StartRow& row : report.starts()) {
    // Each table begins with this strategy.
    if (row.way() != AllStartStrategies()[0]) continue;
    absl::StrAppend(&text, StartsText(report, row));
  }
  if (report.starts_size() > 0) {
    absl::StrAppend(
        &text,
        "faults, kernel: of the first query, resolved by the pool, by the "
        "kernel\nx: the first query as a multiple of ",
        kPrivateFileName, "'s\n");
  }
  if (report.sizes_size() > 0) {
    std::vector<Words> lines = {{"", "open", "bind", "touch"}};
    for (const SizeRow& row : report.sizes()) {
      lines.push_back({Size(row.bytes()), Thousandths(row, "open_ns"),
                       Thousandths(row, "bind_ns"),
                       Thousandths(row, "touch_ns")});
    }
    absl::StrAppend(&text, "\nopen + bind by size, all pages stored\n",
                    TableText(lines));
  }
  if (report.has_stored()) {
    const StoredImages& stored = report.stored();
    absl::StrAppend(&text, "\n", stored.images(), " images of ",
                    Size(stored.image_bytes()), " that share ",
                    Short(stored.shared_part() * 100), " % of their pages\n",
                    "one file ", stored.one_file_bytes(), " bytes, ",
                    stored.images(), " files ", stored.all_files_bytes(),
                    ", the store ", stored.store_bytes(), "\n");
  }
  if (report.builds_size() > 0) {
    std::vector<Words> lines = {{"making images", "ms a MiB"}};
    for (const BuildRow& row : report.builds()) {
      lines.push_back({absl::StrCat(row.what(), ", ", Size(row.bytes())),
                       Short(row.ms_per_mib())});
    }
    absl::StrAppend(&text, "\n", TableText(lines));
  }
  if (report.goals_size() > 0) {
    absl::StrAppend(&text, "\ngoals: medians of the ratios within a round\n",
                    GoalsText(report.goals()));
  }
  return text;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage("What image files cost.");
  absl::ParseCommandLine(argc, argv);
  if (!absl::GetFlag(FLAGS_child).empty()) return Child();
  CheckFormat();
  const bool quick = absl::GetFlag(FLAGS_quick);
  int rounds = absl::GetFlag(FLAGS_rounds);
  if (rounds < 0) Die("--rounds must be at least 1");
  if (rounds == 0) rounds = quick ? 1 : 31;
  const uint32_t rows = quick ? 500 : absl::GetFlag(FLAGS_rows);

  ImagesReport report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(rounds);
  report.set_default_options(DescribeDefaultOptions());
  {
    const Folder folder;
    for (const std::string& table : absl::GetFlag(FLAGS_tables)) {
      if (table == "start") {
        MeasureStarts(folder, rounds, rows, /*cold=*/false, {"same", "other"},
                      report);
      } else if (table == "cold") {
        MeasureStarts(folder, std::min(rounds, 11), rows, /*cold=*/true,
                      {"same"}, report);
      } else if (table == "size") {
        MeasureSizes(folder, rounds, quick, report);
      } else if (table == "store") {
        MeasureStored(folder, quick, report);
      } else if (table == "build") {
        MeasureBuilds(folder, rounds, quick, report);
      } else {
        Die(absl::StrCat("--tables: ", table,
                         " is none of start, cold, size, store, build"));
      }
    }
  }
  AddGoals(report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
