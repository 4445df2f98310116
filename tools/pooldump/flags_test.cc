#include "firsttouch/tools/pooldump/flags.h"

#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "firsttouch/tools/pooldump/app.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Options Expect(const std::string& text) {
  Options options;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &options));
  return options;
}

// The options of a command line that is right.
Options Parsed(const std::vector<std::string>& words) {
  const CommandLine line = ParseCommandLine(words);
  EXPECT_FALSE(line.ending.has_value()) << line.ending->error;
  return line.options;
}

std::string ErrorOf(const std::vector<std::string>& words) {
  const CommandLine line = ParseCommandLine(words);
  if (!line.ending.has_value()) return "";
  EXPECT_EQ(line.ending->exit_code, kExitUsage);
  EXPECT_EQ(line.ending->error.find('\n'), std::string::npos);
  EXPECT_THAT(line.ending->out, IsEmpty());
  return line.ending->error;
}

TEST(Flags, AreTheOptionsMessage) {
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"layout", "--instances=3", "--memory-bytes", "4GiB",
              "--guard-bytes=2GiB", "--format=json", "--color=always",
              "--bytes", "--all", "--filter=x", "--sort=-bytes"}),
      Expect(R"pb(command: LAYOUT
                  format: JSON
                  color: ALWAYS
                  bytes: true
                  filter: "x"
                  sort: "-bytes"
                  all: true
                  interval_ms: 1000
                  pool {
                    instances: 3
                    max_memory_bytes: "4GiB"
                    guard_after_bytes: "2GiB"
                  })pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"live", "1234", "--pool=a", "--watch", "--interval=0.25"}),
      Expect(R"pb(command: LIVE
                  pid: 1234
                  pool_name: "a"
                  watch: true
                  interval_ms: 250
                  pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"live", "7", "--count=3", "--columns=slot,traps/s", "--limit=5"}),
      Expect(R"pb(command: LIVE
                  pid: 7
                  batch: true
                  count: 3
                  columns: "slot"
                  columns: "traps/s"
                  limit: 5
                  interval_ms: 1000
                  pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(Parsed({"live", "7", "--interval=2"}),
                                         Expect(R"pb(command: LIVE
                                                     pid: 7
                                                     batch: true
                                                     interval_ms: 2000
                                                     pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(Parsed({"ps", "--interval=0"}),
                                         Expect(R"pb(command: PS
                                                     pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(Parsed({"diff", "a", "b"}),
                                         Expect(R"pb(command: DIFF
                                                     file: "a"
                                                     other_file: "b"
                                                     sort: "private"
                                                     interval_ms: 1000
                                                     pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"locate", "1234", "0x7f00", "-"}), Expect(R"pb(command: LOCATE
                                                             pid: 1234
                                                             addresses: "0x7f00"
                                                             addresses: "-"
                                                             interval_ms: 1000
                                                             pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"locate", "--config=f", "0x1234", "7f0000001234"}),
      Expect(R"pb(command: LOCATE
                  config: "f"
                  addresses: "0x1234"
                  addresses: "7f0000001234"
                  interval_ms: 1000
                  pool {})pb")));
  EXPECT_TRUE(MessageDifferencer::Equals(
      Parsed({"map", "1", "7", "--svg=a", "--html=b", "--width=80"}),
      Expect(R"pb(command: MAP
                  pid: 1
                  slot: 7
                  svg: "a"
                  html: "b"
                  width: 80
                  interval_ms: 1000
                  pool {})pb")));
}

TEST(Flags, SayWhatIsWrongInOneLine) {
  EXPECT_EQ(ErrorOf({"live", "0"}),
            "\"0\" is not the number of a process (a number from 1 on; pidof "
            "NAME finds it)");
  EXPECT_THAT(ErrorOf({"live", "99999999999"}), HasSubstr("is not the number"));
  EXPECT_THAT(ErrorOf({"live", "1", "--interval=0"}),
              HasSubstr("from 0.1 to 3600"));
  EXPECT_THAT(ErrorOf({"live", "1", "--limit=0"}), HasSubstr("--limit"));
  EXPECT_THAT(ErrorOf({"live", "1", "--count=x"}), HasSubstr("--count"));
  EXPECT_THAT(ErrorOf({"ps", "--interval=-1"}),
              HasSubstr("from 0.1 to 3600, nor 0"));
  EXPECT_THAT(ErrorOf({"diff", "a"}), HasSubstr("AFTER is required"));
  EXPECT_EQ(ErrorOf({"diff", "-", "-"}),
            "BEFORE and AFTER are both standard input: name a file for one of "
            "them");
  EXPECT_THAT(ErrorOf({"live", "1", "--interval=nan"}),
              HasSubstr("from 0.1 to 3600"));
  EXPECT_THAT(ErrorOf({"locate"}), HasSubstr("neither a process nor --config"));
  EXPECT_EQ(ErrorOf({"locate", "1234", "0x7f00", "--base=0x7000"}),
            "--base: it belongs to a pool that --config=FILE or --instances, "
            "--memory-bytes and --guard-bytes describe: give them in place of "
            "a process, or leave out --base, since a process tells where its "
            "pools are");
  EXPECT_THAT(ErrorOf({"locate", "1234", "--size-bytes=64KiB"}),
              HasSubstr("--size-bytes: it belongs to a pool"));
  EXPECT_EQ(ErrorOf({"locate", "1234", "0x7f00", "--config=f"}),
            "\"1234\" is the number of a process, and a pool is described "
            "besides: leave out one of them (0x1234 would be an address)");
  EXPECT_THAT(ErrorOf({"map", "1", "7", "--width=3"}), HasSubstr("--width"));
  EXPECT_THAT(ErrorOf({"live", "1", "--formt=json"}),
              HasSubstr("there is no option --formt; did you mean --format?"));
  EXPECT_THAT(ErrorOf({"live"}), HasSubstr("PID is required"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("no command is given"));
  EXPECT_THAT(ErrorOf({"--format=json"}),
              HasSubstr("there is no option --format; pooldump --help"));
}

TEST(Flags, HelpHasExamplesAndExitCodesIn80Columns) {
  std::vector<std::vector<std::string>> calls = {{"--help"}};
  for (const char* command : {"layout", "live", "ps", "show", "diff", "locate",
                              "core", "map", "image"}) {
    calls.push_back({command, "--help"});
  }
  for (const std::vector<std::string>& words : calls) {
    const CommandLine line = ParseCommandLine(words);
    ASSERT_TRUE(line.ending.has_value());
    EXPECT_EQ(line.ending->exit_code, kExitOk);
    EXPECT_THAT(line.ending->out, HasSubstr("Example"));
    size_t start = 0;
    while (start < line.ending->out.size()) {
      const size_t end = line.ending->out.find('\n', start);
      const std::string text = line.ending->out.substr(start, end - start);
      EXPECT_LE(text.size(), 80u) << text;
      EXPECT_TRUE(text.empty() || text.back() != ' ') << text;
      start = end + 1;
    }
  }
}

// Every option of every command, as "--name".
std::vector<std::string> AllFlags(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::App* command :
       app.get_subcommands([](const CLI::App*) { return true; })) {
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        flags.push_back("--" + name);
      }
    }
  }
  return flags;
}

TEST(Manual, HasEveryOptionAndCommand) {
  Words words;
  const auto app = MakeApp(&words);
  const std::string page =
      absl::StrReplaceAll(cli::ManualPage(*app), {{"\\-", "-"}});
  const std::vector<std::string> flags = AllFlags(*app);
  EXPECT_GT(flags.size(), 50u);
  for (const std::string& flag : flags) EXPECT_THAT(page, HasSubstr(flag));
  for (const char* command : {"LAYOUT", "LIVE", "PS", "SHOW", "DIFF", "LOCATE",
                              "CORE", "MAP", "IMAGE", "HELP"}) {
    EXPECT_THAT(page, HasSubstr(std::string(".SH \"POOLDUMP ") + command));
  }
  // Values, formats, columns, and all exit codes.
  EXPECT_THAT(page, HasSubstr("One of: userfaultfd, mappings-scan"));
  EXPECT_THAT(page, HasSubstr(".SH \"FORMATS\""));
  EXPECT_THAT(page, HasSubstr("kernel-calls (in text calls)"));
  for (const char* code :
       {".TP\n0\n", ".TP\n1\n", ".TP\n2\n", ".TP\n64\n", ".TP\n74\n"}) {
    EXPECT_THAT(page, HasSubstr(code));
  }
}

TEST(Help, HasNoOptionOfAnotherCommand) {
  const auto help = [](const char* command) {
    return ParseCommandLine({"help", command}).ending->out;
  };
  EXPECT_EQ(help("live"), ParseCommandLine({"live", "--help"}).ending->out);
  EXPECT_THAT(help("layout"), Not(HasSubstr("--base")));
  EXPECT_THAT(help("layout"), Not(HasSubstr("--size-bytes")));
  EXPECT_THAT(help("locate"), Not(HasSubstr("--supply")));
  EXPECT_THAT(help("locate"), Not(HasSubstr("--pool=")));
  EXPECT_THAT(help("map"), Not(HasSubstr("--filter")));
  EXPECT_THAT(help("image"), HasSubstr("guest.ftimg"));
}

TEST(Flags, WhatWouldDoNothingIsToldOf) {
  EXPECT_THAT(ErrorOf({"live", "1", "--watch", "--count=2"}),
              HasSubstr("--count is for looks that are printed"));
  EXPECT_THAT(ErrorOf({"live", "1", "--columns=slot", "--format=json"}),
              HasSubstr("--columns: json has all fields"));
  EXPECT_THAT(ErrorOf({"live", "1", "--count=2", "--format=proto"}),
              HasSubstr("--format=proto has one look"));
  EXPECT_THAT(ErrorOf({"layout", "--instances=1", "--filter=x"}),
              HasSubstr("add --all"));
  EXPECT_THAT(ErrorOf({"map", "1", "2", "--sort=pages"}),
              HasSubstr("a picture has the order of pages"));
  EXPECT_THAT(ErrorOf({"map", "1", "2", "--svg=a", "--html=a"}),
              HasSubstr("both name a; name two files"));
  EXPECT_THAT(ErrorOf({"map", "1", "2", "--svg=-", "--format=json"}),
              HasSubstr("cannot both go to standard output"));
  EXPECT_THAT(ErrorOf({"liev", "1"}), HasSubstr("did you mean live?"));
  EXPECT_THAT(ErrorOf({"help", "mpa"}), HasSubstr("did you mean map?"));
}

TEST(Completion, HasEveryOption) {
  Words words;
  const auto app = MakeApp(&words);
  for (const char* shell : {"bash", "zsh"}) {
    const std::string script = cli::Completions(*app, shell);
    for (const std::string& flag : AllFlags(*app)) {
      EXPECT_THAT(script, HasSubstr(flag)) << shell;
    }
  }
}

TEST(PoolFlags, HaveEveryFieldOfThePool) {
  std::string fields;
  for (const PoolFlag& flag : PoolFlags())
    fields += flag.field + std::string(" ");
  const google::protobuf::Descriptor* pool = PoolConfig::descriptor();
  for (int i = 0; i < pool->field_count(); ++i) {
    EXPECT_THAT(fields, HasSubstr(pool->field(i)->name() + " "));
  }
}

}  // namespace
}  // namespace firsttouch::pooldump
