#include "firsttouch/tools/cli/command_line.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/completions.h"
#include "firsttouch/tools/cli/manual_page.h"
#include "firsttouch/tools/cli/nearest.h"
#include "firsttouch/tools/cli/program_facts.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/terminal.h"

namespace firsttouch::cli {
namespace {

constexpr size_t kHelpColumns = 80;
constexpr size_t kHelpIndent = 26;
constexpr char kCompletions[] = "completions";
constexpr char kHelp[] = "help";
constexpr char kManual[] = "manual";

// An App, with what help and the manual page need beside it.
class DescribedApp : public CLI::App {
 public:
  explicit DescribedApp(const Program& program)
      : CLI::App(program.description, program.name), program_(program) {}

  const Program& program() const { return program_; }
  // Of each command, by its name.
  std::map<std::string, std::string>& examples() { return examples_; }
  const std::map<std::string, std::string>& examples() const {
    return examples_;
  }

 private:
  const Program program_;
  std::map<std::string, std::string> examples_;
};

bool IsPositional(const CLI::Option& option) {
  return option.get_lnames().empty() && option.get_snames().empty();
}

bool TakesValue(const CLI::Option& option) {
  // A flag has a type too, but expects no value.
  return option.get_expected_max() > 0 && option.get_type_size_max() > 0;
}

// Of an option with CLI::IsMember: "TEXT:{text,json}" is its type.
std::vector<std::string> ValuesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t begin = type.find('{');
  const size_t end = type.find('}');
  if (begin == std::string::npos || end == std::string::npos) return {};
  return absl::StrSplit(type.substr(begin + 1, end - begin - 1), ',');
}

// "FILE", "NUMBER": what stands for the value in help.
std::string KindOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const std::vector<std::string> values = ValuesOf(option);
  std::string name = type.substr(0, type.find(':'));
  const bool named = !name.empty() && name != "TEXT" && name[0] != '{';
  if (!values.empty() && !named) return absl::StrJoin(values, "|");
  return name;
}

// "-o,--output=FILE"
std::string Head(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) {
    names.push_back("-" + name);
  }
  for (const std::string& name : option.get_lnames()) {
    names.push_back("--" + name);
  }
  return absl::StrCat(
      absl::StrJoin(names, ","),
      TakesValue(option) ? absl::StrCat("=", KindOf(option)) : std::string());
}

// "FILE", or "bash|zsh" where the values are all there is to say.
std::string OperandName(const CLI::Option& option) {
  const std::string kind = KindOf(option);
  return absl::StrContains(kind, '|') ? kind : option.get_name(true);
}

// The program's own first, then those that all programs have.
std::vector<const CLI::App*> Commands(const CLI::App& app) {
  std::vector<const CLI::App*> commands = app.get_subcommands(
      [](const CLI::App* command) { return !command->get_name().empty(); });
  std::stable_partition(
      commands.begin(), commands.end(), [](const CLI::App* command) {
        const std::string& name = command->get_name();
        return name != kHelp && name != kManual && name != kCompletions;
      });
  return commands;
}

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() {
    label("SUBCOMMAND", "COMMAND");
    label("Positionals", "Operands");
  }

  std::string make_option(const CLI::Option* option,
                          bool is_positional) const override {
    return Entry(is_positional ? OperandName(*option) : Head(*option),
                 option->get_description());
  }
  std::string make_subcommands(const CLI::App* app,
                               CLI::AppFormatMode) const override {
    std::string out;
    for (const CLI::App* command : Commands(*app)) {
      out += make_subcommand(command);
    }
    return out.empty() ? "" : absl::StrCat("\nCommands:\n", out);
  }
  std::string make_subcommand(const CLI::App* command) const override {
    return Entry(command->get_name(),
                 FirstSentence(command->get_description()));
  }
  std::string make_description(const CLI::App* app) const override {
    return WrappedAt(kHelpColumns, 0, app->get_description()) + "\n\n";
  }

 private:
  static std::string Entry(const std::string& head, const std::string& text) {
    std::string line = absl::StrCat("  ", head, "  ");
    if (line.size() > kHelpIndent) {
      line = absl::StrCat("  ", head, "\n", std::string(kHelpIndent, ' '));
    } else {
      line.resize(kHelpIndent, ' ');
    }
    return absl::StrCat(line, WrappedAt(kHelpColumns, kHelpIndent, text), "\n");
  }
};

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : Commands(app)) {
    names.push_back(command->get_name());
  }
  return names;
}

// Those that help shows.
std::vector<const CLI::Option*> OptionsOf(const CLI::App& app) {
  return app.get_options(
      [](const CLI::Option* option) { return !option->get_group().empty(); });
}

// Those of all programs too, in order.
std::vector<std::pair<int, std::string>> ExitCodes(const Program& program) {
  std::vector<std::pair<int, std::string>> codes = program.exit_codes;
  codes.emplace_back(kExitUsage, "the command line is wrong");
  codes.emplace_back(kExitCannotPrint, "standard output cannot be written");
  std::sort(codes.begin(), codes.end());
  return codes;
}

CommandFacts FactsOf(const CLI::App& command) {
  CommandFacts facts;
  facts.name = command.get_name();
  facts.description = command.get_description();
  for (const CLI::Option* option : OptionsOf(command)) {
    facts.options.push_back(
        {.names = option->get_lnames(),
         .head = IsPositional(*option) ? OperandName(*option) : Head(*option),
         .kind = KindOf(*option),
         .values = ValuesOf(*option),
         .description = option->get_description(),
         .is_operand = IsPositional(*option),
         .takes_value = TakesValue(*option),
         .is_required = option->get_required(),
         .may_repeat = option->get_expected_max() > 1});
  }
  return facts;
}

ProgramFacts FactsOfAll(const CLI::App& app) {
  const auto& described = static_cast<const DescribedApp&>(app);
  ProgramFacts facts = {.program = described.program(),
                        .itself = FactsOf(app),
                        .exit_codes = ExitCodes(described.program())};
  for (const CLI::App* command : Commands(app)) {
    facts.commands.push_back(FactsOf(*command));
    facts.commands.back().examples =
        described.examples().at(command->get_name());
  }
  return facts;
}

// The first word that is no option.
const std::string* CommandWord(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (!absl::StartsWith(word, "-")) return &word;
  }
  return nullptr;
}

const CLI::App* CommandOf(const CLI::App& app,
                          const std::vector<std::string>& words) {
  const std::string* word = CommandWord(words);
  for (const CLI::App* command : Commands(app)) {
    if (word != nullptr && command->get_name() == *word) return command;
  }
  return nullptr;
}

std::string NoSuch(const std::string& what, const std::string& word,
                   const std::vector<std::string>& names,
                   const std::string& help) {
  const std::string nearest = Nearest(word, names);
  return absl::StrCat(
      "there is no ", what, " ",
      word.empty() ? std::string("\"\"") : Printable(word), "; ",
      nearest.empty() ? absl::StrCat(help, " --help lists them")
                      : absl::StrCat("did you mean ", nearest, "?"));
}

// CLI11 names at most the word that it does not like.
std::string Explain(const CLI::App& app, const std::vector<std::string>& words,
                    const CLI::ParseError& error) {
  const CLI::App* command = CommandOf(app, words);
  const std::string* word = CommandWord(words);
  const bool single = app.get_require_subcommand_min() == 0;
  if (command == nullptr && word != nullptr &&
      (!single || dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr)) {
    return NoSuch("command", *word, CommandNames(app), app.get_name());
  }
  const CLI::App& scope = command == nullptr ? app : *command;
  const std::string help = command == nullptr
                               ? app.get_name()
                               : absl::StrCat(app.get_name(), " ", *word);
  const std::vector<std::string> flags = FlagsOf(FactsOf(scope));
  for (const std::string& flag : words) {
    if (flag == "--") break;
    if (!absl::StartsWith(flag, "--")) continue;
    const std::string name = flag.substr(0, flag.find('='));
    if (std::find(flags.begin(), flags.end(), name) == flags.end()) {
      return NoSuch("option", name, flags, help);
    }
  }
  if (command == nullptr && !single) {
    return absl::StrCat("no command is given; ", help, " --help lists them");
  }
  return absl::StrCat(
      Printable(absl::StrReplaceAll(error.what(), {{"\n", " "}})), "; ", help,
      " --help tells more");
}

// The help of the program, or of the command that is named.
std::string HelpOf(const CLI::App& app, const CLI::App* command) {
  // App::help gives that of the command that has been parsed.
  const std::string help = command != nullptr ? command->help(app.get_name())
                                              : app.get_formatter()->make_help(
                                                    &app, app.get_name(),
                                                    CLI::AppFormatMode::Normal);
  // CLI11 separates groups of options by empty lines, hidden ones too.
  return absl::StrReplaceAll(help, {{"\n\n\n", "\n\n"}});
}

}  // namespace

std::unique_ptr<CLI::App> MakeApp(const Program& program) {
  auto app = std::make_unique<DescribedApp>(program);
  app->set_help_flag("-h,--help", "Print this help and end");
  app->set_version_flag("--version",
                        absl::StrCat(program.name, " ", program.version),
                        "Print the version and end");
  if (program.single) {
    app->require_subcommand(0, 1);
  } else {
    app->require_subcommand(1);
  }
  app->formatter(std::make_shared<HelpFormatter>());
  std::string codes = "\nExit codes:\n";
  for (const auto& [code, meaning] : ExitCodes(program)) {
    absl::StrAppend(&codes, "  ", code, std::string(code < 10 ? 3 : 2, ' '),
                    WrappedAt(kHelpColumns, 6, meaning), "\n");
  }
  const std::string more =
      program.single
          ? ""
          : absl::StrCat("\n", program.name, " COMMAND --help tells more.\n");
  app->footer(absl::StrCat("Examples:\n", program.examples, more, codes));
  AddCommand(app.get(), {.name = kHelp,
                         .description = "Prints the help of a command.",
                         .examples = absl::StrCat("  ", program.name, " help ",
                                                  kCompletions, "\n")})
      ->add_option("COMMAND", "The command; otherwise the program's help");
  AddCommand(app.get(), {.name = kManual,
                         .description = "Prints the manual page.",
                         .examples = absl::StrCat("  ", program.name,
                                                  " manual | man -l -\n")});
  AddCommand(app.get(), {.name = kCompletions,
                         .description = "Prints completions for a shell.",
                         .examples = absl::StrCat("  source <(", program.name,
                                                  " completions bash)\n")})
      ->add_option("SHELL", "The shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  return app;
}

CLI::App* AddCommand(CLI::App* app, const Command& command) {
  CLI::App* added = app->add_subcommand(command.name, command.description);
  if (!command.examples.empty()) {
    added->footer(absl::StrCat("Examples:\n", command.examples));
  }
  static_cast<DescribedApp*>(app)->examples()[command.name] = command.examples;
  // "help" knows all of them.
  if (command.name != kHelp) {
    app->get_subcommand(kHelp)->get_option("COMMAND")->type_name(
        absl::StrCat("COMMAND:{", absl::StrJoin(CommandNames(*app), ","), "}"));
  }
  return added;
}

void AddCommonOptions(CLI::App* command, CommonOptions* options,
                      const std::vector<std::string>& formats) {
  command->add_option("--format", options->format, "What to print")
      ->check(CLI::IsMember(formats));
  command
      ->add_option("--color", options->color,
                   "Colours: auto is on a terminal, unless NO_COLOR is set")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  command->add_flag("--bytes", options->bytes,
                    "Sizes in bytes, instead of KiB, MiB and so on");
}

std::optional<Ending> Parse(CLI::App& app,
                            const std::vector<std::string>& words) {
  // Of "--option=", as a script with an empty variable has it, CLI11 would take
  // the next word for the value.
  for (const std::string& word : words) {
    if (word == "--") break;
    if (!absl::StartsWith(word, "--") || word.find('=') != word.size() - 1) {
      continue;
    }
    return Ending{.exit_code = kExitUsage,
                  .error = absl::StrCat(
                      Printable(word), " has no value: give it one, or leave ",
                      Printable(word.substr(0, word.size() - 1)), " out")};
  }
  try {
    // CLI11 takes them from the back.
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));
  } catch (const CLI::CallForHelp&) {
    return Ending{.out = HelpOf(app, CommandOf(app, words))};
  } catch (const CLI::CallForVersion& version) {
    return Ending{.out = absl::StrCat(version.what(), "\n")};
  } catch (const CLI::ParseError& error) {
    return Ending{.exit_code = kExitUsage, .error = Explain(app, words, error)};
  }
  const std::vector<CLI::App*> parsed = app.get_subcommands();
  if (parsed.empty()) return std::nullopt;
  const CLI::App& command = *parsed.front();
  const std::string& name = command.get_name();
  if (name == kCompletions) {
    return Ending{.out = Completions(
                      app, command.get_option("SHELL")->results().front())};
  }
  if (name == kManual) return Ending{.out = ManualPage(app)};
  if (name != kHelp) return std::nullopt;
  const std::vector<std::string> asked =
      command.get_option("COMMAND")->results();
  const CLI::App* const about = CommandOf(app, asked);
  if (!asked.empty() && about == nullptr) {
    return Ending{.exit_code = kExitUsage,
                  .error = NoSuch("command", asked.front(), CommandNames(app),
                                  app.get_name())};
  }
  return Ending{.out = HelpOf(app, about)};
}

int End(const std::string& program, const Ending& ending) {
  std::string error = ending.error;
  int exit_code = ending.exit_code;
  if (const std::string wrong = WriteOut(ending.out); !wrong.empty()) {
    error = wrong;
    exit_code = kExitCannotPrint;
  }
  if (!error.empty()) {
    // The names of files in it may be anybody's.
    std::fprintf(stderr, "%s: %s\n", program.c_str(), Printable(error).c_str());
  }
  return exit_code;
}

std::string ManualPage(const CLI::App& app) {
  return ManualPageOf(FactsOfAll(app));
}

std::string Completions(const CLI::App& app, const std::string& shell) {
  return CompletionsOf(FactsOfAll(app), shell);
}

}  // namespace firsttouch::cli
