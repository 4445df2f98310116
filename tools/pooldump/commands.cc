#include "firsttouch/tools/pooldump/commands.h"

#include <cstddef>
#include <cstdint>
#include <functional>
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
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/imagetool/commands.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/machine.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/snapshot/core_file.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"
#include "firsttouch/tools/pooldump/snapshot/locate.h"
#include "firsttouch/tools/pooldump/stream.h"
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

Answer WrongUsage(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitUsage;
  answer.error = OneLine(status);
  return answer;
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
    location.set_page_in_bounds(offset / 4096 * 4096 < size_bytes);
  }
  return location;
}

using Locator = std::function<absl::StatusOr<Location>(uint64_t)>;

bool ReadsLog(const Options& options) {
  return options.addresses().empty() ||
         (options.addresses_size() == 1 && options.addresses(0) == "-");
}

absl::StatusOr<LocateReport::Found> FindOne(const Locator& locate,
                                            const AddressInText& one) {
  absl::StatusOr<Location> location = locate(one.address);
  if (!location.ok()) return location.status();
  LocateReport::Found found;
  found.set_line(one.line);
  found.set_text(LocationText(*location));
  *found.mutable_location() = *std::move(location);
  return found;
}

Answer LocateAll(const Options& options, const Locator& locate,
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
    absl::StatusOr<LocateReport::Found> found = FindOne(locate, one);
    if (!found.ok()) return CannotRead(found.status());
    some |= found->location().place() != Location::NO_POOL;
    *report.add_found() = *std::move(found);
  }
  answer.exit_code = some ? kExitOk : kExitBadNews;
  return answer;
}

// Reads a log line by line, and prints each with what is known of it before the
// next is read.
Answer StreamLog(const Options& options, const Locator& locate,
                 const cli::TextStyle& style, const Sink& sink) {
  const absl::StatusOr<Filter> filter = MakeFilter(options);
  if (!filter.ok()) return WrongUsage(filter.status());
  const bool csv = options.format() == CSV;
  Answer answer;
  bool some = false;
  uint64_t number = 0;
  std::string out = csv ? CsvTitlesOf(FoundColumns()) : "";
  const auto take_line = [&](const std::string& line) -> absl::Status {
    ++number;
    if (!csv) absl::StrAppend(&out, line, "\n");
    for (AddressInText& one : AddressesIn(line)) {
      one.line = number;
      absl::StatusOr<LocateReport::Found> found = FindOne(locate, one);
      if (!found.ok()) return found.status();
      const bool in_pool = found->location().place() != Location::NO_POOL;
      some |= in_pool;
      if (!Keeps(*filter, found->location())) continue;
      if (csv) {
        out += CsvLineOf(FoundColumns(), *found);
      } else if (in_pool) {
        out += FoundBelow(*found, style);
      }
    }
    return absl::OkStatus();
  };
  absl::Status lost;
  const absl::Status read = cli::ForEachLineOfInput(
      [&](const std::string& line, bool more_is_read) -> absl::Status {
        absl::Status taken = take_line(line);
        // What is there already is printed before it waits for more.
        if (taken.ok() && !more_is_read) {
          if (const std::string wrong = sink(out); !wrong.empty()) {
            lost = absl::UnavailableError(wrong);
            return lost;
          }
          out.clear();
        }
        return taken;
      });
  if (lost.ok() && !out.empty()) {
    if (const std::string wrong = sink(out); !wrong.empty()) {
      lost = absl::UnavailableError(wrong);
    }
  }
  if (!lost.ok()) {
    answer.exit_code = cli::kExitCannotPrint;
    answer.error = absl::StrCat(lost.message());
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
        [&process](uint64_t address) { return process->Locate(address); },
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
  return run(
      [&](uint64_t address) -> absl::StatusOr<Location> {
        return OnPaper(*layout, name, *base, *size, address);
      },
      options.config().empty() ? "the command line" : options.config());
}

Answer AnswerLocate(const CommandLine& line) {
  return WithLocator(line,
                     [&line](const Locator& locate, const std::string& source) {
                       return LocateAll(line.options, locate, source);
                     });
}

}  // namespace

Answer CannotRead(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitCannotRead;
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
  if (options.command() == Options::LOCATE && ReadsLog(options) &&
      (options.format() == TEXT || options.format() == CSV)) {
    return WithLocator(line, [&](const Locator& locate, const std::string&) {
      return StreamLog(options, locate, style, sink);
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
    default:
      return WrongUsage(absl::InvalidArgumentError("no command is given"));
  }
  if (!answer.error.empty()) return answer;
  const absl::Status status = FilterAndSort(line.options, &answer.report);
  if (!status.ok()) return WrongUsage(status);
  return answer;
}

}  // namespace firsttouch::pooldump
