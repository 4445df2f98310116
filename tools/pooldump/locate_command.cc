#include "firsttouch/tools/pooldump/locate_command.h"

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
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/layout_command.h"
#include "firsttouch/tools/pooldump/location_text.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"
#include "firsttouch/tools/pooldump/snapshot/locate.h"
#include "firsttouch/tools/pooldump/stream.h"
#include "firsttouch/uffd/units.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {
namespace {

constexpr size_t kMostLogBytes = size_t{256} << 20;

// Fit for JSON, with its lines.
std::string PrintableLines(const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  for (std::string& line : lines) line = cli::Printable(line);
  return absl::StrJoin(lines, "\n");
}

// "0x7f00", "7f00": hexadecimal in either case. InvalidArgument otherwise.
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

// All addresses in a text: "0x" and up to 16 hexadecimal digits, or 9 to 16
// such digits that stand alone. In their order, with the line, from 1.
struct AddressInText {
  uint64_t address = 0;
  uint64_t line = 0;
};
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

}  // namespace

Answer AnswerLocate(const CommandLine& line) {
  return WithLocator(
      line, [&line](const Locator& locator, const std::string& source) {
        return LocateAll(line.options, locator, source);
      });
}

std::optional<Answer> StreamLocate(const CommandLine& line,
                                   const cli::TextStyle& style,
                                   const Sink& sink) {
  if (!ReadsLog(line.options)) return std::nullopt;
  return WithLocator(
      line, [&](const Locator& locator, const std::string& source) {
        return StreamLog(line.options, locator, source, style, sink);
      });
}

}  // namespace firsttouch::pooldump
