#include "firsttouch/tools/pooldump/commands.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/imagetool/commands.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/diff.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/machine.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/rates.h"
#include "firsttouch/tools/pooldump/saved.h"
#include "firsttouch/tools/pooldump/snapshot/core_file.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"
#include "firsttouch/tools/pooldump/snapshot/locate.h"
#include "firsttouch/tools/pooldump/snapshot/pool_choice.h"
#include "firsttouch/tools/pooldump/snapshot/processes.h"
#include "firsttouch/tools/pooldump/stream.h"
#include "firsttouch/uffd/units.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {
namespace {

constexpr size_t kMostLogBytes = size_t{256} << 20;

std::string OneLine(const absl::Status& status) {
  std::string text(status.message());
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

// Fit for JSON, with its lines.
std::string PrintableLines(const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (std::string& line : lines) line = cli::Printable(line);
  return absl::StrJoin(lines, "\n");
}

// The pool of --config and of the flags that are put over it.
absl::StatusOr<PlacedConfig> ConfigOf(const CommandLine& line) {
  PlacedConfig config;
  if (!line.options.config().empty()) {
    absl::StatusOr<PlacedConfig> file = ReadPoolConfig(line.options.config());
    if (!file.ok()) {
      return absl::Status(file.status().code(),
                          absl::StrCat("--config: ", OneLine(file.status())));
    }
    config = *std::move(file);
  }
  Overlay({line.options.pool(), line.pool_places}, config);
  if (line.options.config().empty() && config.places.empty()) {
    return absl::InvalidArgumentError(
        "no pool is described: give --config=FILE, or --instances=N "
        "--memory-bytes=SIZE --guard-bytes=SIZE");
  }
  return config;
}

// What a layout is asked about.
struct LayoutQuestion {
  PlacedConfig config;
  Machine machine;
};

absl::StatusOr<LayoutQuestion> QuestionOf(const CommandLine& line,
                                          Kernel& kernel) {
  absl::StatusOr<PlacedConfig> config = ConfigOf(line);
  if (!config.ok()) return config.status();
  if (line.options.machine().empty()) {
    return LayoutQuestion{*std::move(config), ThisMachine(kernel)};
  }
  absl::StatusOr<Machine> other = ReadMachine(line.options.machine());
  if (!other.ok()) return other.status();
  return LayoutQuestion{*std::move(config), *std::move(other)};
}

Answer AnswerLayout(const CommandLine& line, Kernel& kernel) {
  const absl::StatusOr<LayoutQuestion> question = QuestionOf(line, kernel);
  if (!question.ok()) return WrongUsage(question.status());
  LayoutReportOptions options{.all = line.options.all()};
  // Here already, so that a few of very many slots can be listed.
  absl::StatusOr<Filter> filter = MakeFilter(line.options);
  if (!filter.ok()) return WrongUsage(filter.status());
  options.wanted = *std::move(filter);
  absl::StatusOr<LayoutReport> report =
      MakeLayoutReport(question->config, question->machine, options);
  if (!report.ok()) return WrongUsage(report.status());
  Answer answer;
  answer.exit_code = report->fits() ? kExitOk : kExitBadNews;
  *answer.report.mutable_layout() = *std::move(report);
  return answer;
}

// Prints all ranges of a layout, none of which is kept.
Answer StreamLayout(const CommandLine& line, Kernel& kernel,
                    const cli::TextStyle& style, const Sink& sink) {
  const absl::StatusOr<LayoutQuestion> question = QuestionOf(line, kernel);
  if (!question.ok()) return WrongUsage(question.status());
  const absl::StatusOr<PoolLayout> layout = LayoutOf(question->config);
  if (!layout.ok()) return WrongUsage(layout.status());
  absl::StatusOr<Filter> filter = MakeFilter(line.options);
  if (!filter.ok()) return WrongUsage(filter.status());
  const absl::StatusOr<LayoutReport> report =
      MakeLayoutReport(question->config, question->machine,
                       {.all = true, .wanted = *filter, .leave_out = true});
  if (!report.ok()) return WrongUsage(report.status());
  Answer answer;
  answer.exit_code = report->fits() ? kExitOk : kExitBadNews;
  answer.error = StreamRanges(
      *report, line.options.format(), style,
      [&](const std::function<bool(const LayoutReport::Range&)>& visit) {
        ForEachRange(*layout, report->name(), *filter, visit);
      },
      sink);
  if (!answer.error.empty()) answer.exit_code = cli::kExitCannotPrint;
  return answer;
}

Answer AnswerLive(const Options& options) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return CannotRead(process.status());
  absl::StatusOr<ProcessSnapshot> snapshot =
      process->Snapshot({.pool = options.pool_name()});
  if (!snapshot.ok()) return CannotRead(snapshot.status());
  Answer answer;
  *answer.report.mutable_live() = *std::move(snapshot);
  return answer;
}

Answer AnswerCore(const Options& options) {
  absl::StatusOr<CoreFile> core = CoreFile::Open(options.file());
  if (!core.ok()) return CannotRead(core.status());
  absl::StatusOr<ProcessSnapshot> snapshot =
      core->Snapshot(options.pool_name());
  if (!snapshot.ok()) return CannotRead(snapshot.status());
  Answer answer;
  CoreReport& report = *answer.report.mutable_core();
  report.set_path(cli::Printable(options.file()));
  if (snapshot->has_crash())
    report.set_crash_text(CrashText(snapshot->crash()));
  *report.mutable_process() = *std::move(snapshot);
  return answer;
}

Answer AnswerMap(const Options& options) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return CannotRead(process.status());
  absl::StatusOr<PageMap> pages =
      process->Pages(options.pool_name(), options.slot());
  if (!pages.ok()) return CannotRead(pages.status());
  Answer answer;
  *answer.report.mutable_map() = *std::move(pages);
  return answer;
}

Answer AnswerImage(const Options& options) {
  std::vector<std::string> outputs;
  for (const std::string* path : {&options.svg(), &options.html()}) {
    if (!path->empty()) outputs.push_back(*path);
  }
  absl::StatusOr<imagetool::MapReport> map =
      imagetool::Map(options.file(), outputs);
  if (!map.ok()) return CannotRead(map.status());
  Answer answer;
  *answer.report.mutable_image() = *std::move(map);
  return answer;
}

// What was read of one process for `ps`.
class PsProcess {
 public:
  PsProcess(LiveProcess process, ProcessSnapshot first)
      : process_(std::move(process)), snapshot_(std::move(first)) {
    meter_.Measure(&snapshot_);
  }

  absl::Status LookAgain() {
    absl::StatusOr<ProcessSnapshot> again = process_.Snapshot({.smaps = false});
    if (!again.ok()) return again.status();
    snapshot_ = *std::move(again);
    meter_.Measure(&snapshot_);
    return absl::OkStatus();
  }

  const ProcessSnapshot& snapshot() const { return snapshot_; }

 private:
  LiveProcess process_;
  RateMeter meter_;
  ProcessSnapshot snapshot_;
};

PsReport::Process PsRow(const ProcessSnapshot& snapshot) {
  PsReport::Process row;
  row.set_pid(snapshot.pid());
  row.set_user_id(snapshot.user_id());
  row.set_user(cli::Printable(UserName(snapshot.user_id())));
  row.set_command(snapshot.command());
  row.set_stopped(snapshot.stopped());
  row.set_pools(static_cast<uint32_t>(snapshot.pools_size()));
  for (const PoolSnapshot& pool : snapshot.pools()) {
    const Totals& totals = pool.totals();
    row.set_slots(row.slots() + totals.slots());
    row.set_held(row.held() + totals.held());
    row.set_quarantined(row.quarantined() + totals.quarantined());
    row.set_traps(row.traps() + totals.counters().traps());
    if (totals.has_resident_bytes()) {
      row.set_resident_bytes(row.resident_bytes() + totals.resident_bytes());
      row.set_private_bytes(row.private_bytes() + totals.private_bytes());
    }
    if (totals.has_rates()) {
      row.set_traps_per_second(row.traps_per_second() + totals.rates().traps());
    }
  }
  return row;
}

// Whether what went wrong with a process is worth a line: not that it ended,
// nor that it only inherited the descriptor of another's pool.
bool IsWorthALine(const absl::Status& status, PsReport* report) {
  if (absl::IsPermissionDenied(status)) {
    report->set_forbidden(report->forbidden() + 1);
    return false;
  }
  return !absl::IsNotFound(status) && !absl::IsUnavailable(status);
}

Answer AnswerPs(const Options& options) {
  const absl::StatusOr<ProcessList> list = FindProcesses();
  if (!list.ok()) return CannotRead(list.status());
  Answer answer;
  PsReport& report = *answer.report.mutable_ps();
  report.set_forbidden(list->forbidden);
  const auto tell = [&report](pid_t pid, const absl::Status& status) {
    if (!IsWorthALine(status, &report)) return;
    report.add_warnings(absl::StrCat("process ", pid, ": ", OneLine(status)));
  };
  std::vector<PsProcess> processes;
  for (const pid_t pid : list->pids) {
    absl::StatusOr<LiveProcess> process = LiveProcess::Open(pid);
    if (!process.ok()) {
      tell(pid, process.status());
      continue;
    }
    absl::StatusOr<ProcessSnapshot> first = process->Snapshot(
        {.residency = options.interval_ms() == 0, .smaps = false});
    if (first.ok()) {
      processes.emplace_back(*std::move(process), *std::move(first));
    } else {
      tell(pid, first.status());
    }
  }
  if (options.interval_ms() != 0 && !processes.empty()) {
    absl::SleepFor(absl::Milliseconds(options.interval_ms()));
  }
  for (PsProcess& process : processes) {
    if (options.interval_ms() != 0) {
      const auto pid = static_cast<pid_t>(process.snapshot().pid());
      if (const absl::Status again = process.LookAgain(); !again.ok()) {
        tell(pid, again);
        continue;
      }
    }
    *report.add_processes() = PsRow(process.snapshot());
  }
  return answer;
}

// The process of a report of live or core; null of any other.
ProcessSnapshot* ProcessOf(Report* report) {
  if (report->has_live()) return report->mutable_live();
  if (report->has_core()) return report->mutable_core()->mutable_process();
  return nullptr;
}

// Leaves the pools of a saved process that --pool means.
absl::Status ChoosePools(const Options& options, const std::string& path,
                         ProcessSnapshot* process) {
  google::protobuf::RepeatedPtrField<PoolSnapshot> kept;
  std::vector<PoolName> names;
  for (PoolSnapshot& pool : *process->mutable_pools()) {
    names.push_back({cli::Printable(pool.name()), pool.pool_id()});
    if (IsCalled({pool.name(), pool.pool_id()}, options.pool_name())) {
      kept.Add()->Swap(&pool);
    }
  }
  if (kept.empty() && !names.empty()) {
    return absl::NotFoundError(
        absl::StrCat(cli::Printable(path), " has no pool \"",
                     options.pool_name(), "\"; it has ", PoolNames(names)));
  }
  process->mutable_pools()->Swap(&kept);
  return absl::OkStatus();
}

Answer AnswerShow(const Options& options) {
  absl::StatusOr<Report> saved = ReadReport(options.file());
  if (!saved.ok()) return CannotRead(saved.status());
  if (ProcessSnapshot* const process = ProcessOf(&*saved)) {
    const absl::Status chosen = ChoosePools(options, options.file(), process);
    if (!chosen.ok()) return CannotRead(chosen);
  } else if (!options.pool_name().empty()) {
    return WrongUsage(absl::InvalidArgumentError(
        absl::StrCat(cli::Printable(options.file()),
                     " is no report of live or core: leave out --pool")));
  }
  const bool has_table = saved->has_live() || saved->has_core() ||
                         saved->has_ps() || saved->has_diff();
  if (!has_table && (!options.columns().empty() || options.limit() != 0)) {
    return WrongUsage(absl::InvalidArgumentError(absl::StrCat(
        cli::Printable(options.file()),
        " has no table of slots or processes: leave out --columns and "
        "--limit")));
  }
  Answer answer;
  answer.report = *std::move(saved);
  return answer;
}

// The process of a file that was saved, with the pools that --pool means.
absl::StatusOr<ProcessSnapshot> SavedProcess(const Options& options,
                                             const std::string& path) {
  absl::StatusOr<Report> saved = ReadReport(path);
  if (!saved.ok()) return saved.status();
  ProcessSnapshot* const found = ProcessOf(&*saved);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(cli::Printable(path),
                     " is no report of live or core, which are what diff "
                     "compares"));
  }
  ProcessSnapshot process = std::move(*found);
  absl::Status chosen = ChoosePools(options, path, &process);
  if (!chosen.ok()) return chosen;
  return process;
}

Answer AnswerDiff(const Options& options) {
  const absl::StatusOr<ProcessSnapshot> before =
      SavedProcess(options, options.file());
  if (!before.ok()) return CannotRead(before.status());
  const absl::StatusOr<ProcessSnapshot> after =
      SavedProcess(options, options.other_file());
  if (!after.ok()) return CannotRead(after.status());
  Answer answer;
  DiffReport& report = *answer.report.mutable_diff();
  report = Diff(*before, *after);
  report.set_before_path(cli::Printable(options.file()));
  report.set_path(cli::Printable(options.other_file()));
  return answer;
}

// A location on paper: nothing is known of the slot, but for the size that the
// configuration may give.
Location OnPaper(const PoolLayout& layout, const std::string& name,
                 uint64_t base, uint64_t size_bytes, uint64_t address) {
  Location location = LocateInLayout(layout, base, address);
  if (location.place() != Location::NO_POOL) location.set_pool(name);
  if (size_bytes != 0 && location.place() == Location::MEMORY) {
    location.set_has_slot(true);
    location.set_slot_state(Slot::HELD);
    location.set_size_bytes(size_bytes);
    const auto offset = static_cast<uint64_t>(location.offset_bytes());
    location.set_in_bounds(offset < size_bytes);
    location.set_page_in_bounds(RoundDownToPage(offset) < size_bytes);
  }
  return location;
}

// What addresses are.
struct Locator {
  std::function<absl::StatusOr<Location>(uint64_t)> locate;
  // To be called where time may have passed since.
  std::function<void()> look_anew = [] {};
};

bool ReadsLog(const Options& options) {
  return options.addresses().empty() ||
         (options.addresses_size() == 1 && options.addresses(0) == "-");
}

absl::StatusOr<LocateReport::Found> FindOne(const Locator& locator,
                                            const AddressInText& one) {
  absl::StatusOr<Location> location = locator.locate(one.address);
  if (!location.ok()) return location.status();
  LocateReport::Found found;
  found.set_line(one.line);
  found.set_text(LocationText(*location));
  *found.mutable_location() = *std::move(location);
  return found;
}

Answer LocateAll(const Options& options, const Locator& locator,
                 const std::string& source) {
  Answer answer;
  LocateReport& report = *answer.report.mutable_locate();
  report.set_source(cli::Printable(source));
  std::vector<AddressInText> wanted;
  const bool reads_log = ReadsLog(options);
  if (reads_log) {
    absl::StatusOr<std::string> log = cli::ReadFile("-", kMostLogBytes);
    if (!log.ok()) return CannotRead(log.status());
    wanted = AddressesIn(*log);
    report.set_log(PrintableLines(*log));
  }
  for (int i = 0; !reads_log && i < options.addresses_size(); ++i) {
    const absl::StatusOr<uint64_t> address = ParseAddress(options.addresses(i));
    if (!address.ok()) return WrongUsage(address.status());
    wanted.push_back({*address, 0});
  }
  bool some = false;
  for (const AddressInText& one : wanted) {
    absl::StatusOr<LocateReport::Found> found = FindOne(locator, one);
    if (!found.ok()) return CannotRead(found.status());
    some |= found->location().place() != Location::NO_POOL;
    *report.add_found() = *std::move(found);
  }
  answer.exit_code = some ? kExitOk : kExitBadNews;
  return answer;
}

// What is printed of a log, line by line.
class LogPrinter {
 public:
  virtual ~LogPrinter() = default;
  // Appends what is to be printed of a line and of what was found in it.
  virtual absl::Status Add(const std::string& line,
                           const std::vector<LocateReport::Found>& found,
                           std::string* out) = 0;
  // Appends what Add has kept to print it with more.
  virtual absl::Status Print(std::string*) { return absl::OkStatus(); }
  // Prints what is left, `out` first.
  virtual absl::Status Finish(const std::string& out, const Sink& sink,
                              std::string* wrong) {
    if (!out.empty()) *wrong = sink(out);
    return absl::OkStatus();
  }
};

class TextLog : public LogPrinter {
 public:
  explicit TextLog(const cli::TextStyle& style) : style_(style) {}
  absl::Status Add(const std::string& line,
                   const std::vector<LocateReport::Found>& found,
                   std::string* out) override {
    absl::StrAppend(out, line, "\n");
    for (const LocateReport::Found& one : found) {
      if (one.location().place() != Location::NO_POOL) {
        *out += FoundBelow(one, style_);
      }
    }
    return absl::OkStatus();
  }

 private:
  const cli::TextStyle style_;
};

class CsvLog : public LogPrinter {
 public:
  absl::Status Add(const std::string&,
                   const std::vector<LocateReport::Found>& found,
                   std::string* out) override {
    *out += std::exchange(titles_, "");
    for (const LocateReport::Found& one : found) {
      *out += CsvLineOf(FoundColumns(), one);
    }
    return absl::OkStatus();
  }
  absl::Status Finish(const std::string& out, const Sink& sink,
                      std::string* wrong) override {
    return LogPrinter::Finish(std::exchange(titles_, "") + out, sink, wrong);
  }

 private:
  std::string titles_ = CsvTitlesOf(FoundColumns());
};

class MessageLog : public LogPrinter {
 public:
  explicit MessageLog(LocateStream stream) : stream_(std::move(stream)) {}
  absl::Status Add(const std::string& line,
                   const std::vector<LocateReport::Found>& found,
                   std::string* out) override {
    return stream_.Add(cli::Printable(line), found, out);
  }
  absl::Status Print(std::string* out) override { return stream_.Print(out); }
  absl::Status Finish(const std::string& out, const Sink& sink,
                      std::string* wrong) override {
    if (!out.empty()) *wrong = sink(out);
    return wrong->empty() ? stream_.Finish(sink, wrong) : absl::OkStatus();
  }

 private:
  LocateStream stream_;
};

absl::StatusOr<std::unique_ptr<LogPrinter>> MakeLogPrinter(
    Format format, const std::string& source, const cli::TextStyle& style) {
  if (format == TEXT) return std::make_unique<TextLog>(style);
  if (format == CSV) return std::make_unique<CsvLog>();
  absl::StatusOr<LocateStream> stream =
      LocateStream::Open(format, cli::Printable(source));
  if (!stream.ok()) return stream.status();
  return std::make_unique<MessageLog>(*std::move(stream));
}

// Reads a log line by line, and prints what is known of each before the next is
// read.
Answer StreamLog(const Options& options, const Locator& locator,
                 const std::string& source, const cli::TextStyle& style,
                 const Sink& sink) {
  const absl::StatusOr<Filter> filter = MakeFilter(options);
  if (!filter.ok()) return WrongUsage(filter.status());
  const absl::StatusOr<std::unique_ptr<LogPrinter>> printer =
      MakeLogPrinter(options.format(), source, style);
  if (!printer.ok()) return CannotRead(printer.status());
  Answer answer;
  bool some = false;
  uint64_t number = 0;
  std::string out;
  const auto take_line = [&](const std::string& line) -> absl::Status {
    ++number;
    std::vector<LocateReport::Found> kept;
    for (AddressInText& one : AddressesIn(line)) {
      one.line = number;
      absl::StatusOr<LocateReport::Found> found = FindOne(locator, one);
      if (!found.ok()) return found.status();
      some |= found->location().place() != Location::NO_POOL;
      if (Keeps(*filter, found->location())) kept.push_back(*std::move(found));
    }
    return (*printer)->Add(line, kept, &out);
  };
  std::string wrong;
  absl::Status read = cli::ForEachLineOfInput(
      [&](const std::string& line, bool more_is_read) -> absl::Status {
        absl::Status taken = take_line(line);
        // What is there already is printed before it waits for more.
        if (taken.ok() && !more_is_read) {
          taken = (*printer)->Print(&out);
          wrong = sink(out);
          locator.look_anew();
          out.clear();
          if (!wrong.empty()) return absl::UnavailableError(wrong);
        }
        return taken;
      });
  if (wrong.empty() && read.ok()) {
    read = (*printer)->Finish(out, sink, &wrong);
  } else if (wrong.empty() && !out.empty()) {
    wrong = sink(out);
  }
  if (!wrong.empty()) {
    answer.exit_code = cli::kExitCannotPrint;
    answer.error = wrong;
    return answer;
  }
  if (!read.ok()) return CannotRead(read);
  answer.exit_code = some ? kExitOk : kExitBadNews;
  return answer;
}

// Calls `run` with what locates addresses, and what it is called.
Answer WithLocator(
    const CommandLine& line,
    const std::function<Answer(const Locator&, const std::string&)>& run) {
  const Options& options = line.options;
  if (options.pid() != 0) {
    absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
    if (!process.ok()) return CannotRead(process.status());
    return run(
        {.locate = [&](uint64_t address) { return process->Locate(address); },
         .look_anew = [&] { process->LookAnew(); }},
        absl::StrCat("process ", options.pid()));
  }
  const absl::StatusOr<PlacedConfig> config = ConfigOf(line);
  if (!config.ok()) return WrongUsage(config.status());
  const absl::StatusOr<PoolLayout> layout = LayoutOf(*config);
  if (!layout.ok()) return WrongUsage(layout.status());
  const absl::StatusOr<uint64_t> size = SizeOf(*config, "size_bytes");
  if (!size.ok()) return WrongUsage(size.status());
  if (config->config.base().empty()) {
    return WrongUsage(absl::InvalidArgumentError(
        "where the pool began is not known: give --base=ADDRESS, or base in "
        "the file of --config (a crash log has it, or /proc/PID/maps)"));
  }
  const absl::StatusOr<uint64_t> base = ParseAddress(config->config.base());
  if (!base.ok()) {
    const auto place = config->places.find("base");
    return WrongUsage(absl::InvalidArgumentError(
        absl::StrCat(place == config->places.end() ? "base" : place->second,
                     ": ", base.status().message())));
  }
  const std::string name = config->config.name().empty()
                               ? kUnnamed
                               : cli::Printable(config->config.name());
  return run({.locate = [&](uint64_t address) -> absl::StatusOr<Location> {
               return OnPaper(*layout, name, *base, *size, address);
             }},
             options.config().empty() ? "the command line" : options.config());
}

Answer AnswerLocate(const CommandLine& line) {
  return WithLocator(
      line, [&line](const Locator& locator, const std::string& source) {
        return LocateAll(line.options, locator, source);
      });
}

}  // namespace

Answer CannotRead(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitCannotRead;
  answer.error = OneLine(status);
  return answer;
}

Answer WrongUsage(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitUsage;
  answer.error = OneLine(status);
  return answer;
}

absl::StatusOr<uint64_t> ParseAddress(const std::string& word) {
  const bool prefixed =
      absl::StartsWith(word, "0x") || absl::StartsWith(word, "0X");
  const std::string digits = prefixed ? word.substr(2) : word;
  uint64_t address = 0;
  // SimpleHexAtoi would take signs, blanks and a second prefix.
  if (digits.empty() || digits.size() > 16 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos ||
      !absl::SimpleHexAtoi(digits, &address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", word,
                     "\" is not an address: hexadecimal digits, as in "
                     "0x7f0000011004"));
  }
  return address;
}

std::vector<AddressInText> AddressesIn(const std::string& text) {
  static const auto& pattern =
      *new RE2("\\b(?:0[xX]([0-9a-fA-F]{1,16})|([0-9a-fA-F]{9,16}))\\b");
  std::vector<AddressInText> found;
  re2::StringPiece rest(text);
  const char* counted = text.data();
  uint64_t line = 1;
  std::string prefixed;
  std::string bare;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  while (RE2::FindAndConsume(&rest, pattern, &prefixed, &bare)) {
    for (; counted < rest.data(); ++counted) line += *counted == '\n' ? 1 : 0;
    uint64_t address = 0;
    if (!absl::SimpleHexAtoi(prefixed.empty() ? bare : prefixed, &address)) {
      continue;
    }
    // Once a line is enough.
    if (seen.insert({line, address}).second) found.push_back({address, line});
  }
  return found;
}

std::optional<Answer> Stream(const CommandLine& line, Kernel& kernel,
                             const cli::TextStyle& style, const Sink& sink) {
  const Options& options = line.options;
  // What is sorted has to be kept.
  if (!options.sort().empty()) return std::nullopt;
  if (options.command() == Options::LAYOUT && options.all()) {
    return StreamLayout(line, kernel, style, sink);
  }
  if (options.command() == Options::LOCATE && ReadsLog(options)) {
    return WithLocator(
        line, [&](const Locator& locator, const std::string& source) {
          return StreamLog(options, locator, source, style, sink);
        });
  }
  return std::nullopt;
}

Answer MakeAnswer(const CommandLine& line, Kernel& kernel) {
  Answer answer;
  switch (line.options.command()) {
    case Options::LAYOUT:
      answer = AnswerLayout(line, kernel);
      break;
    case Options::LIVE:
      answer = AnswerLive(line.options);
      break;
    case Options::LOCATE:
      answer = AnswerLocate(line);
      break;
    case Options::CORE:
      answer = AnswerCore(line.options);
      break;
    case Options::MAP:
      answer = AnswerMap(line.options);
      break;
    case Options::IMAGE:
      answer = AnswerImage(line.options);
      break;
    case Options::PS:
      answer = AnswerPs(line.options);
      break;
    case Options::SHOW:
      answer = AnswerShow(line.options);
      break;
    case Options::DIFF:
      answer = AnswerDiff(line.options);
      break;
    default:
      return WrongUsage(absl::InvalidArgumentError("no command is given"));
  }
  if (!answer.error.empty()) return answer;
  const absl::Status status = FilterAndSort(line.options, &answer.report);
  if (!status.ok()) return WrongUsage(status);
  return answer;
}

}  // namespace firsttouch::pooldump
