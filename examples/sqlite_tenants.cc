// SQLite for many tenants in a few sandboxes of one pool.
//
// SQLite is compiled to WebAssembly and by wasm2c to C. One instance opens a
// database, fills it and is snapshotted; every tenant starts from there, does
// its work, and leaves its slot to the next tenant. This is done, and measured,
// in each way of supplying memory that this machine allows. See README.md.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "examples/report.pb.h"
#include "firsttouch/examples/report_text.h"
#include "firsttouch/examples/supply.h"
#include "firsttouch/examples/system_calls.h"
#include "firsttouch/examples/tenants.h"
#include "firsttouch/uffd/units.h"
#include "google/protobuf/util/json_util.h"

ABSL_FLAG(uint32_t, tenants, 2000, "how many tenants are served in each way");
ABSL_FLAG(uint32_t, slots, 64, "sandboxes in the pool, 1 to 8192");
ABSL_FLAG(int32_t, threads, -1,
          "threads that run tenants, 1 to the number of slots; by default one "
          "for each core");
ABSL_FLAG(std::string, resolve, "all",
          "who resolves faults: in-thread, handler-thread, or all of them "
          "beside the kernel's own ways");
ABSL_FLAG(std::string, format, "text", "text or json");
ABSL_FLAG(uint64_t, seed, 1, "what the tenants' parameters are made from");
ABSL_FLAG(uint32_t, rows, 20000,
          "rows of the table that every tenant finds, 1 to 1000000");
ABSL_FLAG(std::string, way, "",
          "only this way of supplying memory, by its name in the JSON, e.g. "
          "shared/in-thread");
ABSL_FLAG(std::string, image, "",
          "start from this image file, which --save_image has made, instead of "
          "setting the database up; --rows is then what the file has");
ABSL_FLAG(std::string, save_image, "",
          "write the database's memory to this file at the end, with what the "
          "tenants have taught about the pages they touch");
ABSL_FLAG(bool, count_system_calls, true,
          "count all system calls, in a second run of each way under ptrace");

namespace firsttouch::examples {
namespace {

// The exit codes of the process.
enum ExitCode {
  kAllRight = 0,
  kBadFlags = 1,
  kWrongAnswer = 2,
  kNoWay = 3,
  kFailed = 4,
};

constexpr char kUsage[] =
    R"(Serves SQLite to many tenants in a few sandboxes, in each way of supplying
memory that this machine allows, and compares the ways.

Exit codes:
  0  every answer was right, every slot was clean for its next tenant
  1  a flag is not right; stderr says which
  2  a wrong answer, a row of another tenant, or a byte left behind
  3  none of the ways asked for is possible here; the output says why
  4  something else failed; stderr says what
)";

constexpr uint32_t kMaxSlots = 8192;  // more than 8 GiB of addresses each
constexpr uint64_t kMaxMemoryBytes = 64 << 20;
// The limit in the runs that count system calls, each of which costs two stops.
constexpr uint32_t kMaxCountedTenants = 5000;

// The documented flags, in order.
constexpr std::string_view kFlags[] = {"tenants",
                                       "slots",
                                       "threads",
                                       "resolve",
                                       "format",
                                       "seed",
                                       "rows",
                                       "way",
                                       "image",
                                       "save_image",
                                       "count_system_calls"};

// Prints the text of --help.
void PrintHelp() {
  std::cout << kUsage << "\nFlags:\n";
  for (std::string_view name : kFlags) {
    const absl::CommandLineFlag* flag =
        absl::FindCommandLineFlag(absl::string_view(name.data(), name.size()));
    std::cout << "  --" << name << "  " << flag->Help()
              << " (default: " << flag->DefaultValue() << ")\n";
  }
}

// Losing output is a failure.
bool WroteOut() {
  if (std::cout.flush()) return true;
  // The stream does not tell which write failed, and why.
  std::cerr << "sqlite_tenants: standard output cannot be written\n";
  return false;
}

struct Options {
  TenantOptions tenants;
  std::vector<Way> ways;
  bool json = false;
  bool count_system_calls = true;
  std::string image;       // Empty: the database is set up.
  std::string save_image;  // Empty: nothing is written.
};

absl::StatusOr<Options> OptionsFromFlags() {
  Options options;
  options.tenants.tenants = absl::GetFlag(FLAGS_tenants);
  options.tenants.slots = absl::GetFlag(FLAGS_slots);
  options.tenants.seed = absl::GetFlag(FLAGS_seed);
  options.tenants.rows = absl::GetFlag(FLAGS_rows);
  options.count_system_calls = absl::GetFlag(FLAGS_count_system_calls);
  options.image = absl::GetFlag(FLAGS_image);
  options.save_image = absl::GetFlag(FLAGS_save_image);

  const auto bad = [](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (options.tenants.tenants == 0) {
    return bad("--tenants=0: at least 1 tenant is needed");
  }
  if (options.tenants.slots == 0 || options.tenants.slots > kMaxSlots) {
    return bad("--slots=", options.tenants.slots, ": 1 to ", kMaxSlots,
               " slots are possible");
  }
  if (options.tenants.rows == 0 || options.tenants.rows > 1'000'000) {
    return bad("--rows=", options.tenants.rows,
               ": 1 to 1000000 rows are possible");
  }
  const int32_t threads = absl::GetFlag(FLAGS_threads);
  if (threads == -1) {
    options.tenants.threads = std::clamp(std::thread::hardware_concurrency(),
                                         1u, options.tenants.slots);
  } else if (threads < 1) {
    return bad("--threads=", threads, ": at least 1 thread is needed");
  } else if (static_cast<uint32_t>(threads) > options.tenants.slots) {
    return bad("--threads=", threads,
               " is more than --slots=", options.tenants.slots,
               ": each thread needs a slot");
  } else {
    options.tenants.threads = static_cast<uint32_t>(threads);
  }

  const std::string resolve = absl::GetFlag(FLAGS_resolve);
  if (resolve != "all" && resolve != "in-thread" &&
      resolve != "handler-thread") {
    return bad("--resolve=", resolve,
               ": in-thread, handler-thread or all are possible");
  }
  const std::string only = absl::GetFlag(FLAGS_way);
  for (Way way : AllWays()) {
    if (!only.empty() && FullName(way) != only) continue;
    // The kernel's own ways are for comparison, whatever resolves the faults.
    const bool by_handler =
        way == Way::kSharedHandlerThread || way == Way::kCopiedHandlerThread;
    const bool by_thread =
        way == Way::kSharedInThread || way == Way::kCopiedInThread;
    if (resolve == "in-thread" && by_handler) continue;
    if (resolve == "handler-thread" && by_thread) continue;
    options.ways.push_back(way);
  }
  if (options.ways.empty()) {
    return bad("--way=", only, " with --resolve=", resolve,
               ": there is no such way");
  }

  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    return bad("--format=", format, ": text or json are possible");
  }
  options.json = format == "json";
  return options;
}

// Shows progress on a terminal; nothing elsewhere.
class Progress {
 public:
  Progress() : on_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() { Clear(); }

  void Say(const std::string& text) {
    if (!on_) return;
    std::cerr << "\r\033[K" << text << std::flush;
    dirty_ = true;
  }
  void Clear() {
    if (dirty_) std::cerr << "\r\033[K" << std::flush;
    dirty_ = false;
  }

 private:
  const bool on_;
  bool dirty_ = false;
};

// A status in one line.
std::string OneLine(const absl::Status& status) {
  return absl::StrReplaceAll(status.message(), {{"\n", "; "}});
}

// The value at `part` (0 to 1) of the sorted values; 0 if there are none.
double Quantile(const std::vector<double>& sorted, double part) {
  if (sorted.empty()) return 0;
  const auto last = static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<size_t>(std::lround(part * last))];
}

// Calls `use` with a source of one memory, in the first way that works.
absl::Status WithOneMemory(
    absl::FunctionRef<absl::Status(wasm2c::MemorySource*)> use) {
  absl::Status last;
  for (Way way : AllWays()) {
    absl::StatusOr<std::unique_ptr<Supply>> supply =
        Supply::Create(way, /*slots=*/1, kMaxMemoryBytes);
    if (!supply.ok()) {
      last = supply.status();
      continue;
    }
    return use((*supply)->source());
  }
  return last;
}

// Sets the database up, or opens it; also returns its number of rows.
absl::StatusOr<OpenedDatabase> MakeDatabase(const Options& options) {
  OpenedDatabase made;
  absl::Status status =
      WithOneMemory([&](wasm2c::MemorySource* source) -> absl::Status {
        if (!options.image.empty()) {
          absl::StatusOr<OpenedDatabase> opened =
              OpenDatabase(source, options.image);
          if (!opened.ok()) return opened.status();
          made = *std::move(opened);
          return absl::OkStatus();
        }
        absl::StatusOr<std::shared_ptr<const SqliteTemplate>> database =
            SetUpDatabase(source, options.tenants.rows);
        if (!database.ok()) return database.status();
        made = {*std::move(database), options.tenants.rows};
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return made;
}

// Runs this program again, in one way, and counts its system calls. Where that
// is not possible, `not_counted` says why.
void CountAllSystemCalls(const Options& options, Way way,
                         sqlite_tenants::Way* result,
                         std::string* not_counted) {
  const uint32_t tenants =
      std::min(options.tenants.tenants, kMaxCountedTenants);
  absl::StatusOr<SystemCalls> calls =
      CountSystemCalls({"/proc/self/exe", absl::StrCat("--tenants=", tenants),
                        absl::StrCat("--slots=", options.tenants.slots),
                        absl::StrCat("--threads=", options.tenants.threads),
                        absl::StrCat("--seed=", options.tenants.seed),
                        absl::StrCat("--rows=", options.tenants.rows),
                        absl::StrCat("--image=", options.image),
                        absl::StrCat("--way=", std::string(FullName(way))),
                        "--nocount_system_calls", "--format=json"});
  if (!calls.ok()) {
    *not_counted = OneLine(calls.status());
    return;
  }
  if (calls->exit_status != kAllRight) {
    *not_counted =
        absl::StrCat("the counted run ended with ", calls->exit_status);
    return;
  }
  result->set_system_calls(static_cast<double>(calls->total) / tenants);
  for (const auto& [name, count] : calls->by_name) {
    (*result->mutable_system_calls_by_name())[name] =
        static_cast<double>(count) / tenants;
  }
}

// Serves all tenants in one way and fills its column.
absl::Status RunWay(const Options& options, Way way,
                    const SqliteTemplate& database, Supply& supply,
                    Progress* progress, sqlite_tenants::Way* result) {
  const std::string name(FullName(way));
  const SupplyCounts before = supply.Counts();
  BeginCountedPart();
  absl::StatusOr<TenantResults> served = ServeTenants(
      database, supply.source(), options.tenants, [&](uint32_t done) {
        progress->Say(absl::StrCat(name, ": ", done, " of ",
                                   options.tenants.tenants, " tenants"));
      });
  EndCountedPart();
  if (!served.ok()) return served.status();
  const SupplyCounts after = supply.Counts();

  result->set_tenants(served->tenants);
  result->set_trapped(served->trapped);
  result->set_answers(served->answers);
  result->set_wrong_answers(served->wrong_answers);
  result->set_foreign_rows(served->foreign_rows);
  result->set_seconds(served->seconds);
  result->set_tenants_per_second(served->tenants / served->seconds);
  std::vector<double> handovers = std::move(served->recycle_ns);
  std::sort(handovers.begin(), handovers.end());
  result->set_handover_median_us(Quantile(handovers, 0.5) / 1000);
  result->set_handover_p99_us(Quantile(handovers, 0.99) / 1000);
  const auto per_tenant = [&](uint64_t SupplyCounts::*count) {
    return static_cast<double>(after.*count - before.*count) / served->tenants;
  };
  result->set_minor_faults(per_tenant(&SupplyCounts::minor_faults));
  result->set_missing_read_faults(
      per_tenant(&SupplyCounts::missing_read_faults));
  result->set_missing_write_faults(
      per_tenant(&SupplyCounts::missing_write_faults));
  result->set_write_protect_faults(
      per_tenant(&SupplyCounts::write_protect_faults));
  result->set_kernel_page_faults(per_tenant(&SupplyCounts::kernel_page_faults));
  result->set_supply_calls(per_tenant(&SupplyCounts::kernel_calls));
  result->set_traps(static_cast<double>(served->trapped) / served->tenants);
  for (const std::string& error : served->errors) {
    progress->Clear();
    std::cerr << name << ": " << error << "\n";
  }

  progress->Say(absl::StrCat(name, ": measuring memory"));
  {
    absl::StatusOr<std::vector<Occupant>> occupants =
        FillSlots(database, supply.source(), options.tenants);
    if (!occupants.ok()) return occupants.status();
    absl::StatusOr<uint64_t> anonymous = supply.AnonymousBytes();
    if (!anonymous.ok()) return anonymous.status();
    result->set_private_bytes_per_slot(*anonymous / options.tenants.slots);
    uint64_t eager = 0;
    for (const Occupant& occupant : *occupants) {
      eager += occupant.guest.memory().size;
    }
    result->set_eager_copy_bytes_per_slot(eager / options.tenants.slots);
  }
  progress->Say(absl::StrCat(name, ": comparing every byte"));
  absl::StatusOr<CleanCheck> clean =
      CompareSlots(database, supply.source(), options.tenants.slots);
  if (!clean.ok()) return clean.status();
  result->set_compared_bytes(clean->compared_bytes);
  result->set_differing_bytes(clean->differing_bytes);
  return absl::OkStatus();
}

// Whether all values of the column are as they must be.
bool IsRight(const sqlite_tenants::Way& way, const Options& options) {
  return way.tenants() == options.tenants.tenants && way.wrong_answers() == 0 &&
         way.foreign_rows() == 0 && way.differing_bytes() == 0;
}

int Run(Options options) {
  Progress progress;
  sqlite_tenants::Report report;
  report.set_tenants(options.tenants.tenants);
  report.set_slots(options.tenants.slots);
  report.set_threads(options.tenants.threads);
  report.set_seed(options.tenants.seed);

  progress.Say("setting up the database");
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<OpenedDatabase> made = MakeDatabase(options);
  if (!made.ok()) {
    progress.Clear();
    std::cerr << "sqlite_tenants: " << OneLine(made.status()) << "\n";
    return kFailed;
  }
  options.tenants.rows = made->rows;
  const SqliteTemplate& database = *made->database;
  report.set_setup_ms(std::chrono::duration<double, std::milli>(
                          std::chrono::steady_clock::now() - start)
                          .count());
  const wasm2c::MemoryRequest& memory = database.memories().front();
  report.set_image_bytes(memory.size_bytes);
  report.set_image_stored_bytes(memory.image->stored_pages() * kPageBytes);

  bool right = true;
  std::string not_counted;
  for (Way way : options.ways) {
    absl::StatusOr<std::unique_ptr<Supply>> supply =
        Supply::Create(way, options.tenants.slots, kMaxMemoryBytes);
    if (!supply.ok()) {
      sqlite_tenants::Skipped* skipped = report.add_skipped();
      skipped->set_name(std::string(FullName(way)));
      skipped->set_reason(OneLine(supply.status()));
      continue;
    }
    sqlite_tenants::Way* result = report.add_ways();
    result->set_name(std::string(FullName(way)));
    if (absl::Status ran =
            RunWay(options, way, database, **supply, &progress, result);
        !ran.ok()) {
      progress.Clear();
      std::cerr << "sqlite_tenants: " << FullName(way) << ": " << OneLine(ran)
                << "\n";
      return kFailed;
    }
    supply->reset();
    if (options.count_system_calls) {
      progress.Say(
          absl::StrCat(std::string(FullName(way)), ": counting system calls"));
      CountAllSystemCalls(options, way, result, &not_counted);
    }
    right = right && IsRight(*result, options);
  }
  if (!options.save_image.empty()) {
    progress.Say("writing the image file");
    absl::Status saved = WithOneMemory([&](wasm2c::MemorySource* source) {
      return SaveDatabase(database, source, options.save_image);
    });
    if (!saved.ok()) {
      progress.Clear();
      std::cerr << "sqlite_tenants: --save_image: " << OneLine(saved) << "\n";
      return kFailed;
    }
  }
  progress.Clear();

  if (options.json) {
    google::protobuf::util::JsonPrintOptions json;
    json.add_whitespace = true;
    json.always_print_primitive_fields = true;
    json.preserve_proto_field_names = true;
    std::string text;
    if (!google::protobuf::util::MessageToJsonString(report, &text, json)
             .ok()) {
      std::cerr << "sqlite_tenants: cannot print the report as JSON\n";
      return kFailed;
    }
    std::cout << text;
  } else {
    std::cout << ReportAsText(report);
  }
  if (!WroteOut()) return kFailed;
  if (!not_counted.empty()) {
    std::cerr << "sqlite_tenants: system calls are not counted: " << not_counted
              << "\n";
  }
  if (!right) {
    std::cerr << "sqlite_tenants: something was wrong, see above\n";
    return kWrongAnswer;
  }
  return report.ways().empty() ? kNoWay : kAllRight;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(kUsage);
  for (int i = 1; i < argc; ++i) {
    // absl prints the flags of all libraries, and exits with a failure.
    const std::string_view argument = argv[i];
    if (argument == "--help" || argument == "-help" || argument == "-h") {
      PrintHelp();
      return WroteOut() ? kAllRight : kFailed;
    }
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    std::cerr << "sqlite_tenants: '" << rest[1]
              << "': only flags are expected; see --help\n";
    return kBadFlags;
  }
  absl::StatusOr<Options> options = OptionsFromFlags();
  if (!options.ok()) {
    std::cerr << "sqlite_tenants: " << options.status().message() << "\n";
    return kBadFlags;
  }
  return Run(*options);
}

}  // namespace
}  // namespace firsttouch::examples

int main(int argc, char** argv) {
  return firsttouch::examples::Main(argc, argv);
}
