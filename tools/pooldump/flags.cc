#include "firsttouch/tools/pooldump/flags.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/pooldump/app.h"
#include "google/protobuf/descriptor.h"

namespace firsttouch::pooldump {
namespace {

template <typename Enum, typename Parse>
void SetEnum(const std::string& word, Parse parse, Enum* value) {
  // CLI11 has checked that it is one of them.
  if (!word.empty()) parse(absl::AsciiStrToUpper(word), value);
}

Options::Command CommandNumber(const std::string& name) {
  Options::Command command = Options::NO_COMMAND;
  Options::Command_Parse(absl::AsciiStrToUpper(name), &command);
  return command;
}

// Empty: all is well.
std::string TakePid(const std::string& word, Options* options) {
  int32_t pid = 0;
  if (!absl::SimpleAtoi(word, &pid) || pid < 1) {
    return absl::StrCat("\"", word,
                        "\" is not the number of a process (a number from 1 "
                        "on; pidof NAME finds it)");
  }
  options->set_pid(pid);
  return "";
}

// PID_MAX_LIMIT of Linux.
constexpr int32_t kMostPid = 4 << 20;

// What a pool needs to be told of, for `locate` without a process.
bool DescribesPool(const Words& words, const Options& options) {
  return !options.config().empty() || words.pool.contains("instances") ||
         words.pool.contains("max_memory_bytes");
}

// Empty: the options and what is to be located go together.
std::string CheckOnPaper(const Words& words, const Options& options) {
  if (!DescribesPool(words, options)) {
    for (const PoolFlag& flag : PoolFlags()) {
      if (!words.pool.contains(flag.field)) continue;
      return absl::StrCat(
          flag.shown,
          ": it belongs to a pool that --config=FILE or --instances, "
          "--memory-bytes and --guard-bytes describe: give them in place of a "
          "process, or leave out ",
          flag.shown, ", since a process tells where its pools are");
    }
  }
  // No pool lies so low.
  int32_t pid = 0;
  if (!words.targets.empty() && absl::SimpleAtoi(words.targets.front(), &pid) &&
      pid > 0 && pid <= kMostPid) {
    return absl::StrCat(
        "\"", words.targets.front(),
        "\" is the number of a process, and a pool is described besides: leave "
        "out one of them (0x",
        words.targets.front(), " would be an address)");
  }
  return "";
}

std::string TakeTargets(const Words& words, Options* options) {
  std::vector<std::string> targets = words.targets;
  const bool on_paper = options->command() == Options::LOCATE &&
                        (!options->config().empty() || !words.pool.empty());
  if (on_paper) {
    if (std::string wrong = CheckOnPaper(words, *options); !wrong.empty()) {
      return wrong;
    }
  }
  std::string pid = words.pid;
  if (options->command() == Options::LOCATE && !on_paper) {
    if (targets.empty()) {
      return "neither a process nor --config is given; pooldump locate --help "
             "tells more";
    }
    pid = targets.front();
    targets.erase(targets.begin());
  }
  if (!pid.empty()) {
    if (std::string wrong = TakePid(pid, options); !wrong.empty()) return wrong;
  }
  for (const std::string& word : targets) options->add_addresses(word);
  if (options->command() == Options::MAP) {
    uint32_t slot = 0;
    if (!absl::SimpleAtoi(words.slot, &slot)) {
      return absl::StrCat("\"", words.slot,
                          "\" is not the number of a slot (a number from 0 on; "
                          "pooldump live lists them)");
    }
    options->set_slot(slot);
  }
  return "";
}

std::string TakeInterval(const Words& words, Options* options) {
  const bool ps = options->command() == Options::PS;
  options->set_interval_ms(ps ? 500 : 1000);
  if (words.interval.empty()) return "";
  double seconds = 0;
  const bool number = absl::SimpleAtod(words.interval, &seconds);
  if (!number ||
      !((ps && seconds == 0) || (seconds >= 0.1 && seconds <= 3600))) {
    return absl::StrCat("--interval: \"", words.interval,
                        "\" is not a number of seconds from 0.1 to 3600",
                        ps ? ", nor 0" : "");
  }
  options->set_interval_ms(static_cast<uint32_t>(std::lround(seconds * 1000)));
  if (!ps && !options->watch()) options->set_batch(true);
  return "";
}

std::string TakePool(const Words& words, CommandLine* line) {
  PoolConfig& pool = *line->options.mutable_pool();
  for (const PoolFlag& flag : PoolFlags()) {
    const auto given = words.pool.find(flag.field);
    if (given == words.pool.end()) continue;
    const google::protobuf::FieldDescriptor* field =
        PoolConfig::descriptor()->FindFieldByName(flag.field);
    const google::protobuf::Reflection* reflection = pool.GetReflection();
    line->pool_places[flag.field] = flag.shown;
    if (field->cpp_type() ==
        google::protobuf::FieldDescriptor::CPPTYPE_STRING) {
      reflection->SetString(&pool, field, given->second);
      continue;
    }
    uint32_t number = 0;
    if (!absl::SimpleAtoi(given->second, &number)) {
      return absl::StrCat(flag.shown, ": \"", given->second,
                          "\" is not a number from 0 to ",
                          std::numeric_limits<uint32_t>::max());
    }
    reflection->SetUInt32(&pool, field, number);
  }
  return "";
}

std::string FormatName(const Options& options) {
  return absl::AsciiStrToLower(Format_Name(options.format()));
}

// The same, of tables.
std::string CheckTable(const Options& options) {
  if (options.watch() && options.batch()) {
    return "--count is for looks that are printed one below the other: leave "
           "it out, or --watch";
  }
  const bool one_message = options.format() == JSON ||
                           options.format() == TEXTPROTO ||
                           options.format() == PROTO;
  if (one_message && !options.columns().empty()) {
    return absl::StrCat("--columns: ", FormatName(options),
                        " has all fields: take --format=text or csv, or leave "
                        "out --columns");
  }
  if (options.batch() &&
      (options.format() == TEXTPROTO || options.format() == PROTO)) {
    return absl::StrCat("--format=", FormatName(options),
                        " has one look: with --interval and --count take json "
                        "(a line for each look), csv or text");
  }
  return "";
}

// What would do nothing, or harm, is told of.
std::string CheckUse(const Options& options) {
  if (std::string wrong = CheckTable(options); !wrong.empty()) return wrong;
  if (options.command() == Options::LAYOUT && !options.filter().empty() &&
      !options.all()) {
    return "--filter: without --all all slots are one line: add --all, or "
           "leave out --filter";
  }
  const bool picture =
      options.command() == Options::MAP || options.command() == Options::IMAGE;
  if (picture && !options.sort().empty() && options.format() == TEXT) {
    return "--sort: a picture has the order of pages: give another --format, "
           "or leave out --sort";
  }
  if (options.command() == Options::DIFF && options.file() == "-" &&
      options.other_file() == "-") {
    return "BEFORE and AFTER are both standard input: name a file for one of "
           "them";
  }
  if (options.svg().empty() && options.html().empty()) return "";
  if (options.svg() == options.html()) {
    return absl::StrCat("--svg and --html both name ", options.svg(),
                        "; name two files");
  }
  if (options.format() != TEXT &&
      (options.svg() == "-" || options.html() == "-")) {
    return absl::StrCat("--format=", FormatName(options),
                        " and a picture cannot both go to standard output: "
                        "name a file for the picture");
  }
  return "";
}

}  // namespace

CommandLine ParseCommandLine(const std::vector<std::string>& words) {
  CommandLine line;
  Words found;
  const std::unique_ptr<CLI::App> app = MakeApp(&found);
  line.ending = cli::Parse(*app, words);
  if (line.ending.has_value()) return line;
  const std::string command = app->get_subcommands().front()->get_name();
  line.options = found.options;
  line.options.set_command(CommandNumber(command));
  Format format = TEXT;
  SetEnum(found.common.format, Format_Parse, &format);
  line.options.set_format(format);
  Color color = AUTO;
  SetEnum(found.common.color, Color_Parse, &color);
  line.options.set_color(color);
  line.options.set_bytes(found.common.bytes);
  // What grew is why one asks.
  if (line.options.command() == Options::DIFF && line.options.sort().empty()) {
    line.options.set_sort("private");
  }
  std::string wrong = TakeTargets(found, &line.options);
  if (wrong.empty()) wrong = TakeInterval(found, &line.options);
  if (wrong.empty()) wrong = TakePool(found, &line);
  if (wrong.empty()) wrong = CheckUse(line.options);
  if (!wrong.empty()) {
    line.ending = cli::Ending{.exit_code = kExitUsage, .error = wrong};
  }
  return line;
}

}  // namespace firsttouch::pooldump
