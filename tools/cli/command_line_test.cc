#include "firsttouch/tools/cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace firsttouch::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A program with two commands.
struct Example {
  Example() {
    app = MakeApp({.name = "cook",
                   .version = "1",
                   .description = "Cooks. Nothing else.",
                   .examples = "  cook boil egg\n",
                   .exit_codes = {{0, "it is ready"}, {1, "it is burnt"}},
                   .environment = {{"SALT", "How much"}}});
    boil = AddCommand(app.get(), {.name = "boil",
                                  .description = "Boils. In water.",
                                  .examples = "  cook boil egg\n"});
    AddCommonOptions(boil, &common, {"text", "json"});
    boil->add_option("--minutes", minutes, "How long")->type_name("NUMBER");
    boil->add_option("FILE", file, "What")->required()->type_name("FILE");
    AddCommand(app.get(), {.name = "broil", .description = "Broils."});
  }

  // The error of a command line that is wrong.
  std::string Error(const std::vector<std::string>& words) {
    const std::optional<Ending> ending = Parse(*app, words);
    if (!ending.has_value()) return "";
    EXPECT_EQ(ending->exit_code, kExitUsage);
    EXPECT_EQ(ending->out, "");
    return ending->error;
  }

  std::unique_ptr<CLI::App> app;
  CLI::App* boil = nullptr;
  CommonOptions common;
  std::string file;
  int minutes = 0;
};

TEST(CommandLineTest, OptionsAndOperandsArrive) {
  Example cook;
  EXPECT_FALSE(Parse(*cook.app, {"boil", "--format=json", "broil", "--bytes"}));
  EXPECT_TRUE(cook.boil->parsed());
  EXPECT_EQ(cook.common.format, "json");
  EXPECT_EQ(cook.common.color, "auto");
  EXPECT_TRUE(cook.common.bytes);
  // A file may be named as a command.
  EXPECT_EQ(cook.file, "broil");
}

TEST(CommandLineTest, WhatIsMisspeltIsNamedWithTheNearest) {
  EXPECT_EQ(Example().Error({"bol", "egg"}),
            "there is no command bol; did you mean boil?");
  EXPECT_EQ(Example().Error({"quarrel"}),
            "there is no command quarrel; cook --help lists them");
  EXPECT_EQ(Example().Error({"boil", "--fromat=json", "egg"}),
            "there is no option --fromat; did you mean --format?");
  EXPECT_EQ(Example().Error({"boil", "--pressure", "egg"}),
            "there is no option --pressure; cook boil --help lists them");
  EXPECT_EQ(Example().Error({"--versoin"}),
            "there is no option --versoin; did you mean --version?");
}

TEST(CommandLineTest, WhatIsMissingOrWrongIsOneLine) {
  EXPECT_EQ(Example().Error({}), "no command is given; cook --help lists them");
  EXPECT_EQ(Example().Error({""}),
            "there is no command \"\"; cook --help lists them");
  EXPECT_EQ(Example().Error({"boil"}),
            "FILE is required; cook boil --help tells more");
  EXPECT_EQ(Example().Error({"boil", "egg", "--format=xml"}),
            "--format: xml not in {text,json}; cook boil --help tells more");
  // The next word is not its value.
  EXPECT_EQ(Example().Error({"boil", "--format=", "egg"}),
            "--format= has no value: give it one, or leave --format out");
  EXPECT_EQ(Example().Error({"boil", "--format=", "--bytes", "egg"}),
            "--format= has no value: give it one, or leave --format out");
  EXPECT_THAT(Example().Error({"boil", "egg", "--", "--format="}),
              Not(HasSubstr("has no value")));
  EXPECT_THAT(Example().Error({"boil", "egg", "spoon\nfork"}),
              HasSubstr("spoon fork"));
  EXPECT_THAT(Example().Error({"boil", "egg", "\033[31m"}), HasSubstr("?[31m"));
}

TEST(CommandLineTest, HelpHasExamplesAndExitCodes) {
  Example cook;
  const std::optional<Ending> ending = Parse(*cook.app, {"--help"});
  ASSERT_TRUE(ending.has_value());
  EXPECT_EQ(ending->exit_code, 0);
  EXPECT_THAT(ending->out, HasSubstr("Exit codes:\n  0   it is ready\n"
                                     "  1   it is burnt\n"
                                     "  64  the command line is wrong\n"
                                     "  74  standard output cannot be "
                                     "written\n"));
  EXPECT_THAT(ending->out, HasSubstr("Examples:\n  cook boil egg\n"));
  // Its own commands come first.
  EXPECT_THAT(ending->out, HasSubstr("Usage: cook [OPTIONS] COMMAND\n"));
  EXPECT_THAT(ending->out,
              HasSubstr("\nCommands:\n  boil                    Boils\n"
                        "  broil                   Broils\n"
                        "  help                    Prints the help of a "
                        "command\n"));

  Example again;
  const std::optional<Ending> of_command =
      Parse(*again.app, {"boil", "--help"});
  ASSERT_TRUE(of_command.has_value());
  EXPECT_THAT(of_command->out, HasSubstr("--format=text|json"));
  EXPECT_THAT(of_command->out, HasSubstr("  --bytes   "));
  EXPECT_THAT(of_command->out, HasSubstr("Boils. In water."));
  // A flag takes no value, and one blank line is enough.
  EXPECT_THAT(of_command->out, HasSubstr("  --bytes    "));
  EXPECT_THAT(of_command->out, HasSubstr("-h,--help    "));
  EXPECT_THAT(of_command->out, Not(HasSubstr("\n\n\n")));
}

TEST(CommandLineTest, HelpIsACommandToo) {
  const auto out = [](const std::vector<std::string>& words) {
    return Parse(*Example().app, words)->out;
  };
  EXPECT_EQ(out({"help"}), out({"--help"}));
  EXPECT_EQ(out({"help", "boil"}), out({"boil", "--help"}));
  EXPECT_EQ(Example().Error({"help", "biol"}),
            "there is no command biol; did you mean boil?");
}

TEST(CommandLineTest, TheManualPageHasEverything) {
  const std::string page = Parse(*Example().app, {"manual"})->out;
  EXPECT_THAT(page, HasSubstr(".TH COOK 1"));
  EXPECT_THAT(page, HasSubstr("\\fB\\-\\-format=text|json\\fR"));
  EXPECT_THAT(page, HasSubstr(".SH \"COOK BOIL\""));
  EXPECT_THAT(page, HasSubstr(".TP\n1\nit is burnt.\n"));
  EXPECT_THAT(page, HasSubstr(".TP\n74\nstandard output cannot be written"));
  EXPECT_THAT(page, HasSubstr(".SH NAME\ncook \\- cooks\n"));
  EXPECT_THAT(page, HasSubstr(".SH ENVIRONMENT\n.TP\nSALT\nHow much.\n"));
  // Operands before options, as they stand on the command line.
  EXPECT_LT(page.find("\\fBFILE\\fR"), page.find("\\-\\-minutes"));
}

TEST(CommandLineTest, AProgramMayDoOneThingOnly) {
  auto app = MakeApp({.name = "boil", .version = "1", .single = true});
  std::string minutes;
  app->add_option("--minutes", minutes, "How long")->type_name("NUMBER");
  EXPECT_FALSE(Parse(*app, {"--minutes=3"}));
  EXPECT_EQ(minutes, "3");
  EXPECT_FALSE(Parse(*app, {}));
  EXPECT_EQ(Parse(*app, {"egg"})->error,
            "there is no command egg; boil --help lists them");
  EXPECT_THAT(Parse(*app, {"completions", "bash"})->out,
              HasSubstr("--minutes"));
  // An option that is not to be seen leaves no gap.
  app->add_option("--secret", minutes, "Not told")->group("");
  EXPECT_THAT(Parse(*app, {"--help"})->out, Not(HasSubstr("\n\n\n")));
}

TEST(CommandLineTest, CompletionsKnowOptionsAndTheirValues) {
  Example cook;
  const std::string bash = Completions(*cook.app, "bash");
  EXPECT_THAT(bash, HasSubstr("boil:--format) action=(-W 'text json') ;;\n"));
  EXPECT_THAT(bash, HasSubstr("        boil:0) action=(-f) ;;\n"));
  EXPECT_THAT(bash,
              HasSubstr("    boil) valued=' --format --color --minutes '"));
  EXPECT_THAT(bash, HasSubstr("help:0) action=(-W 'boil broil help manual "
                              "completions') ;;\n"));
  EXPECT_THAT(bash, HasSubstr("boil:--minutes) return ;;\n"));
  EXPECT_THAT(bash, Not(HasSubstr("boil:--bytes)")));
  EXPECT_THAT(bash, HasSubstr("complete -o filenames -F _cook cook\n"));
  const std::string zsh = Completions(*cook.app, "zsh");
  EXPECT_THAT(zsh, HasSubstr("'--format=[What to print]:text|json:(text "
                             "json)'\n"));
  EXPECT_THAT(zsh, HasSubstr("':FILE:_files'\n"));
  EXPECT_THAT(zsh, HasSubstr("'--bytes[Sizes"));
}

}  // namespace
}  // namespace firsttouch::cli
