// What it costs to have memory filled by a server in another process: until
// processes have touched what an earlier one was seen to touch of an image,
// beside a mapping of the file of their own, and a server as Firecracker's
// example is; and what one fault costs.
//
//   bazel run -c opt //bench:serve
//   bazel run -c opt //bench:serve -- --format=json
//   bazel run //bench:serve -- --quick
//
// README.md says how it is measured. It exits with 0 whether a goal was reached
// or not.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/page_cache.h"
#include "firsttouch/bench/serve.pb.h"
#include "firsttouch/bench/serve_guests.h"
#include "firsttouch/bench/serve_report.h"
#include "firsttouch/uffd/units.h"

using firsttouch::bench::Words;

ABSL_FLAG(Words, tables, Words({"guests", "fault"}),
          "which tables to make: guests, fault");
ABSL_FLAG(Words, patterns, Words({"sequential", "random"}),
          "in which order pages are touched: sequential, random");
ABSL_FLAG(Words, touches, Words({"written", "read"}),
          "how each page is touched first: written, read");
ABSL_FLAG(Words, caches, Words({"warm", "cold"}), "page caches: warm, cold");
ABSL_FLAG(Words, guests, Words({"1", "8", "64"}), "guests at once");
ABSL_FLAG(int32_t, rounds, 0,
          "samples with one guest; 11 by default. With more, fewer");
ABSL_FLAG(std::string, directory, "",
          "where the image goes, on a disk for a cold page cache; a folder of "
          "the usual temporary ones by default");
ABSL_FLAG(bool, quick, false,
          "to see that everything works: little of everything, and the numbers "
          "mean nothing");

namespace firsttouch::bench {

// Rows that are compared with each other, for people.
std::string Situation(const ServeRow& row) {
  return absl::StrCat(row.pattern(), ", ", row.page_cache(), ", each page ",
                      row.touch(), ", ", row.guests(),
                      row.guests() == 1 ? " guest" : " guests");
}

namespace {

constexpr const char* kGuestWays[] = {kMappingName,   kExampleName, kSetName,
                                      kUncheckedName, kNoSetName,   kLimitName};
constexpr const char* kFaultWays[] = {kBareLoopName, kPageName};

struct Sizes {
  uint64_t image_bytes = uint64_t{256} << 20;
  uint64_t touched_bytes = uint64_t{16} << 20;
  int rounds = 11;
};

int RoundsFor(int rounds, int guests) {
  const int most = guests == 1 ? rounds : guests <= 8 ? 5 : 3;
  return std::min(rounds, most);
}

void Measure(const ServedFile& file, const TouchPattern& pattern,
             const ServeRow& situation, const std::vector<std::string>& ways,
             int rounds, ServeReport& report) {
  const auto sample = [&](size_t i) -> std::optional<ServeRow> {
    ServeRow row = situation;
    row.set_way(ways[i]);
    return SampleGuests(file, pattern, row);
  };
  AddMedians(TakeTurns<ServeRow>(rounds, ways.size(), sample),
             report.mutable_rows());
}

// Nothing where the page cache can be emptied of the file; otherwise why not.
std::string WhyNeverCold(const ServedFile& file) {
  file.FillPageCache();
  const uint64_t left = DropFromPageCache(file.path()) * kPageBytes;
  if (left * 100 <= file.bytes()) return "";
  return absl::StrCat("page cache cold: ", Size(left), " of ", file.path(),
                      " stay in the page cache; is it on a disk?");
}

void MeasureAll(const std::string& folder, const Sizes& sizes,
                ServeReport& report) {
  const Words tables =
      Checked(absl::GetFlag(FLAGS_tables), "tables", {"guests", "fault"});
  const Words patterns = Checked(absl::GetFlag(FLAGS_patterns), "patterns",
                                 {"sequential", "random"});
  const Words touches =
      Checked(absl::GetFlag(FLAGS_touches), "touches", {"written", "read"});
  Words caches =
      Checked(absl::GetFlag(FLAGS_caches), "caches", {"warm", "cold"});
  const ServedFile file(folder + "guest.ftimg", sizes.image_bytes);
  const uint64_t pages = sizes.touched_bytes / kPageBytes;
  if (const std::string why = WhyNeverCold(file); !why.empty()) {
    report.add_skipped(why);
    std::erase(caches, "cold");
  }
  ServeRow row;
  if (std::count(tables.begin(), tables.end(), "guests") > 0) {
    for (const std::string& pattern : patterns) {
      const TouchPattern touched =
          RecordPattern(file, pattern == "sequential", pages);
      row.set_pattern(pattern);
      for (const std::string& cache : caches) {
        row.set_page_cache(cache);
        for (const std::string& touch : touches) {
          row.set_touch(touch);
          for (const std::string& word : absl::GetFlag(FLAGS_guests)) {
            int32_t guests = 0;
            if (!absl::SimpleAtoi(word, &guests) || guests < 1 || guests > 64) {
              Die(absl::StrCat("--guests: ", word, " is not in 1 to 64"));
            }
            row.set_guests(guests);
            Measure(file, touched, row,
                    {std::begin(kGuestWays), std::end(kGuestWays)},
                    RoundsFor(sizes.rounds, guests), report);
          }
        }
      }
    }
  }
  if (std::count(tables.begin(), tables.end(), "fault") > 0) {
    row.set_pattern("random");
    row.set_page_cache("warm");
    row.set_touch("read");
    row.set_guests(1);
    Measure(file, RecordPattern(file, /*sequential=*/false, pages), row,
            {std::begin(kFaultWays), std::end(kFaultWays)}, sizes.rounds,
            report);
  }
}

// Of what the report has. What was not measured has none.
void AddGoals(ServeReport& report) {
  const auto add = [&](const std::string& name, const ServeRow& row,
                       const std::string& other, double bound,
                       std::optional<double> measured) {
    AddGoal(name,
            absl::StrCat(row.guests(), " ",
                         row.pattern() == "sequential" ? "seq." : row.pattern(),
                         " ", row.page_cache(), " ", row.touch()),
            other, bound, measured, report.mutable_goals());
  };
  const auto ratio = [&](const ServeRow& row, const std::string& way,
                         const std::string& field) {
    return RatioOfRounds(&row, RowBeside(report.rows(), row, way), field);
  };
  for (const std::string& way : Words{kSetName, kUncheckedName}) {
    for (const std::string& other : Words{kMappingName, kExampleName}) {
      for (const ServeRow& row : report.rows()) {
        const bool cold = row.page_cache() == "cold";
        // Without a disk there is nothing to be checked.
        if (row.way() != way || (way == kUncheckedName && !cold)) continue;
        const double bound = other == kExampleName       ? 0.25
                             : cold && row.guests() > 8  ? 0.7
                             : cold                      ? 0.5
                             : row.pattern() == "random" ? 1.0
                                                         : 0.5;
        add(absl::StrCat(way, ": time / the other's"), row, other, bound,
            ratio(row, other, "all_ms"));
      }
    }
  }
  const ServeRow* one = nullptr;
  for (const ServeRow& row : report.rows()) {
    if (row.way() == kPageName) {
      add("a fault / the other's", row, kBareLoopName, 1.3,
          ratio(row, kBareLoopName, "page_ns"));
    }
    if (row.way() != kSetName) continue;
    if (row.guests() == 1) {
      one = &row;
    } else if (one != nullptr) {
      constexpr char kName[] = "memory of the server / for one guest";
      add(kName, row, "written to", 1.1,
          RatioOfRounds(&row, one, "server_kib"));
      add(kName, row, "mapped", 1.1,
          RatioOfRounds(&row, one, "server_pss_kib"));
    }
  }
}

std::string ToText(const ServeReport& report) {
  const auto line = [&](const ServeRow& row) -> Line {
    const bool fault = row.way() == kPageName || row.way() == kBareLoopName;
    return {
        Situation(row),
        row.way(),
        {{"all", "all_ms"},
         {"ready", "ready_ms"},
         {"a page", "page_ns"},
         {"flt", "faults"},
         {"copied", "copied"},
         {"early", "early"},
         {"kernel", "kernel_faults"},
         {"before", "cached_mib_before"},
         {"after", "cached_mib_after"},
         {"KiB", "server_kib"}},
        fault ? "page_ns" : "all_ms",
        RowBeside(report.rows(), row, fault ? kBareLoopName : kMappingName)};
  };
  std::string text = absl::StrCat(
      MachineText(report.machine()), report.rounds(),
      " rounds (with more guests fewer); image ", Size(report.image_bytes()),
      ", touched ", Size(report.touched_bytes()),
      " of each guest\n"
      "all, ready: ms until the last guest has done, until one can begin\n"
      "a page: ns for each page touched; the rest for one guest\n"
      "flt, copied, early: answered by a server, pages copied in all, "
      "early\n"
      "kernel: page faults (getrusage)\n"
      "cached: MiB of the image in the page cache, before\n"
      "KiB: that all servers have written to; x: all (a page) / the first "
      "row's\n");
  for (const std::string& skipped : report.skipped()) {
    absl::StrAppend(&text,
                    Wrapped(absl::StrCat("not possible here: ", skipped)));
  }
  return absl::StrCat(
      text, TablesText<ServeRow>(report.rows(), line),
      GoalsText("goals: medians of the ratios within a round", report.goals()));
}

int Main(int argc, char** argv) {
  ParseFlags(argc, argv, "Memory that a server in another process fills.");
  Sizes sizes;
  if (absl::GetFlag(FLAGS_quick)) {
    sizes = {.image_bytes = 4 << 20, .touched_bytes = 256 << 10, .rounds = 1};
    absl::SetFlag(&FLAGS_guests, {"1", "3"});
  }
  const int rounds = absl::GetFlag(FLAGS_rounds);
  if (rounds < 0) Die("--rounds must be at least 1");
  if (rounds > 0) sizes.rounds = rounds;
  auto report = NewReport<ServeReport>(sizes.rounds);
  report.set_image_bytes(sizes.image_bytes);
  report.set_touched_bytes(sizes.touched_bytes);
  const std::string folder =
      NewFolder(absl::GetFlag(FLAGS_directory), "firsttouch_serve");
  MeasureAll(folder, sizes, report);
  std::filesystem::remove_all(folder);
  AddGoals(report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
