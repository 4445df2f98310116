#include "firsttouch/tools/cli/command_line.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/nearest.h"
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

// `text` broken at blanks; its first line begins at column `first`.
std::string Wrap(const std::string& text, size_t first, size_t indent) {
  std::string out;
  size_t column = first;
  for (const std::string& word :
       std::vector<std::string>(absl::StrSplit(text, ' ', absl::SkipEmpty()))) {
    if (column > indent && column + 1 + word.size() > kHelpColumns) {
      absl::StrAppend(&out, "\n", std::string(indent, ' '));
      column = indent;
    } else if (!out.empty()) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out;
}

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

std::string FirstSentence(const std::string& text) {
  const size_t end = text.find(". ");
  if (end != std::string::npos) return text.substr(0, end);
  return absl::EndsWith(text, ".") ? text.substr(0, text.size() - 1) : text;
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
    return Wrap(app->get_description(), 0, 0) + "\n\n";
  }

 private:
  static std::string Entry(const std::string& head, const std::string& text) {
    std::string line = absl::StrCat("  ", head, "  ");
    if (line.size() > kHelpIndent) {
      line = absl::StrCat("  ", head, "\n", std::string(kHelpIndent, ' '));
    } else {
      line.resize(kHelpIndent, ' ');
    }
    return absl::StrCat(line, Wrap(text, kHelpIndent, kHelpIndent), "\n");
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

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : OptionsOf(app)) {
    for (const std::string& name : option->get_lnames()) {
      flags.push_back("--" + name);
    }
  }
  return flags;
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
  const std::vector<std::string> flags = FlagsOf(scope);
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

// What completes a value, as words of compgen.
std::string BashAction(const CLI::Option& option) {
  const std::vector<std::string> values = ValuesOf(option);
  if (!values.empty()) {
    return absl::StrCat("-W '", absl::StrJoin(values, " "), "'");
  }
  const std::string kind = KindOf(option);
  if (kind == "FILE") return "-f";
  if (kind == "PID") return "-W \"$(cd /proc && echo [0-9]*)\"";
  return kind == "DIRECTORY" ? "-d" : "";
}

std::string BashCompletions(const CLI::App& app) {
  std::string options;
  std::string operands;
  std::string flags;
  std::string valued;
  std::vector<const CLI::App*> all = Commands(app);
  // Options without a command, of a program that needs none.
  all.push_back(&app);
  for (const CLI::App* command : all) {
    const std::string name = command == &app ? "*" : command->get_name();
    std::vector<std::string> with_value;
    size_t operand = 0;
    for (const CLI::Option* option : OptionsOf(*command)) {
      const std::string action = BashAction(*option);
      if (IsPositional(*option)) {
        const std::string number =
            option->get_expected_max() > 1 ? "*" : absl::StrCat(operand++);
        if (action.empty()) continue;
        absl::StrAppend(&operands, "        ", name, ":", number, ") action=(",
                        action, ") ;;\n");
        continue;
      }
      if (!TakesValue(*option)) continue;
      for (const std::string& flag : option->get_lnames()) {
        with_value.push_back("--" + flag);
        // Some values nobody can guess; they are no operands either.
        absl::StrAppend(&options, "    ", name, ":--", flag, ") ",
                        action.empty() ? std::string("return")
                                       : absl::StrCat("action=(", action, ")"),
                        " ;;\n");
      }
    }
    absl::StrAppend(&flags, "        ", name, ") action=(-W '",
                    absl::StrJoin(FlagsOf(*command), " "), "') ;;\n");
    absl::StrAppend(&valued, "    ", name, ") valued=' ",
                    absl::StrJoin(with_value, " "), " ' ;;\n");
  }
  return absl::StrReplaceAll(
      R"(# bash completions of NAME. Source them, or put them into
# ~/.local/share/bash-completion/completions/NAME
_NAME() {
  local current="${COMP_WORDS[COMP_CWORD]}"
  local previous="${COMP_WORDS[COMP_CWORD-1]}"
  local command="${COMP_WORDS[1]}"
  local valued=''
  local -a action=()
  local -i i operand=0
  COMPREPLY=()
  # "--format=js" comes as three words where "=" breaks words.
  if [[ "$current" == "=" ]]; then
    current=""
  elif [[ "$previous" == "=" ]]; then
    previous="${COMP_WORDS[COMP_CWORD-2]}"
  fi
  case "$command:$previous" in
OPTIONS  esac
  # Options that take a value: the next word is no operand.
  case "$command" in
VALUED  esac
  for (( i = 2; i < COMP_CWORD; ++i )); do
    [[ "${COMP_WORDS[i]}" == [-=]* || "${COMP_WORDS[i-1]}" == "=" ||
       "$valued" == *" ${COMP_WORDS[i-1]} "* ]] || (( ++operand ))
  done
  if (( ${#action[@]} == 0 )); then
    if (( COMP_CWORD == 1 )); then
      action=(-W 'COMMANDS TOP')
      [[ "$current" == -* ]] || action=(-W 'COMMANDS')
    elif [[ "$current" == -* ]]; then
      case "$command" in
FLAGS      esac
    else
      case "$command:$operand" in
OPERANDS      esac
    fi
  fi
  (( ${#action[@]} == 0 )) ||
    mapfile -t COMPREPLY < <(compgen "${action[@]}" -- "$current")
}
complete -o filenames -F _NAME NAME
)",
      {{"OPTIONS", options},
       {"OPERANDS", operands},
       {"FLAGS", flags},
       {"VALUED", valued},
       {"COMMANDS", absl::StrJoin(CommandNames(app), " ")},
       {"TOP", absl::StrJoin(FlagsOf(app), " ")},
       {"NAME", app.get_name()}});
}

// For a string in single quotes inside [...] of _arguments.
std::string ZshText(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
}

std::string ZshAction(const CLI::Option& option) {
  const std::vector<std::string> values = ValuesOf(option);
  if (!values.empty()) {
    return absl::StrCat("(", absl::StrJoin(values, " "), ")");
  }
  const std::string kind = KindOf(option);
  if (kind == "FILE") return "_files";
  if (kind == "PID") return "_pids";
  return kind == "DIRECTORY" ? "_files -/" : " ";
}

// The arguments of _arguments for a command.
std::string ZshArguments(const CLI::App& command) {
  std::string out;
  for (const CLI::Option* option : OptionsOf(command)) {
    const std::string value =
        absl::StrCat(":", KindOf(*option), ":", ZshAction(*option));
    if (IsPositional(*option)) {
      absl::StrAppend(&out, "      '",
                      option->get_expected_max() > 1 ? "*" : "", value, "'\n");
    }
    for (const std::string& name : option->get_lnames()) {
      absl::StrAppend(&out, "      '--", name, TakesValue(*option) ? "=[" : "[",
                      ZshText(option->get_description()), "]",
                      TakesValue(*option) ? value : "", "'\n");
    }
  }
  return out;
}

std::string ZshCompletions(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : Commands(app)) {
    absl::StrAppend(&commands, "    '", command->get_name(), ":",
                    ZshText(FirstSentence(command->get_description())), "'\n");
    absl::StrAppend(&cases, "    ", command->get_name(), ") arguments=(\n",
                    ZshArguments(*command), "    ) ;;\n");
  }
  return absl::StrReplaceAll(
      R"(#compdef NAME
# zsh completions of NAME. Put them into a folder of $fpath, as _NAME
_NAME() {
  local -a commands arguments
  commands=(
COMMANDS  )
  if (( CURRENT == 2 )) && [[ ${words[2]} != -* ]]; then
    _describe command commands
    return
  fi
  case ${words[2]} in
CASES    *) _arguments \
TOP      && return ;;
  esac
  (( ${#arguments} )) || return 1
  shift words
  (( CURRENT-- ))
  _arguments $arguments
}
# Loaded by its name, this file is the body of _NAME; sourced, it is not.
if [[ "${funcstack[1]}" == _NAME ]]; then
  _NAME "$@"
else
  compdef _NAME NAME
fi
)",
      {{"COMMANDS", commands},
       {"CASES", cases},
       {"TOP", absl::StrReplaceAll(ZshArguments(app), {{"'\n", "' \\\n"}})},
       {"NAME", app.get_name()}});
}

// --- The manual page ---

std::string Roff(const std::string& text) {
  std::string out = absl::StrReplaceAll(
      text, {{"\\", "\\e"}, {"-", "\\-"}, {"'", "\\(aq"}, {"\n.", "\n\\&."}});
  if (!out.empty() && out.front() == '.') out.insert(0, "\\&");
  return out;
}

std::string Upper(std::string text) {
  absl::AsciiStrToUpper(&text);
  return text;
}

// As the title of a manual page begins.
std::string Lower(std::string text) {
  if (!text.empty()) {
    text.front() =
        absl::ascii_tolower(static_cast<unsigned char>(text.front()));
  }
  return text;
}

std::string Operands(const CLI::App& command) {
  std::string out;
  for (const CLI::Option* option : OptionsOf(command)) {
    if (!IsPositional(*option)) continue;
    const std::string name =
        absl::StrCat("\\fI", Roff(OperandName(*option)), "\\fR",
                     option->get_expected_max() > 1 ? "..." : "");
    absl::StrAppend(
        &out, " ",
        option->get_required() ? name : absl::StrCat("[", name, "]"));
  }
  return out;
}

// Operands, then options.
std::string ManualOptions(const CLI::App& command) {
  std::string out;
  std::vector<const CLI::Option*> options = OptionsOf(command);
  std::stable_partition(
      options.begin(), options.end(),
      [](const CLI::Option* option) { return IsPositional(*option); });
  for (const CLI::Option* option : options) {
    const std::vector<std::string> values = ValuesOf(*option);
    const std::string head =
        IsPositional(*option) ? OperandName(*option) : Head(*option);
    absl::StrAppend(&out, ".TP\n\\fB", Roff(head), "\\fR\n",
                    Roff(option->get_description()), ".\n");
    // Where the head does not show them.
    if (!values.empty() && !absl::StrContains(KindOf(*option), '|')) {
      absl::StrAppend(&out, "One of: ", Roff(absl::StrJoin(values, ", ")),
                      ".\n");
    }
  }
  return out;
}

std::string Example(const std::string& text) {
  if (text.empty()) return "";
  return absl::StrCat(".PP\nExamples:\n.PP\n.nf\n", Roff(text), ".fi\n");
}

// Those of all programs too, in order.
std::vector<std::pair<int, std::string>> ExitCodes(const Program& program) {
  std::vector<std::pair<int, std::string>> codes = program.exit_codes;
  codes.emplace_back(kExitUsage, "the command line is wrong");
  codes.emplace_back(kExitCannotPrint, "standard output cannot be written");
  std::sort(codes.begin(), codes.end());
  return codes;
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
                    Wrap(meaning, 6, 6), "\n");
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
  const auto& described = static_cast<const DescribedApp&>(app);
  const Program& program = described.program();
  std::string out = absl::StrCat(
      ".TH ", Upper(program.name), " 1 \"\" \"firsttouch ", program.version,
      "\" \"User Commands\"\n.SH NAME\n", program.name, " \\- ",
      Roff(Lower(FirstSentence(program.description))), "\n.SH SYNOPSIS\n");
  std::vector<std::string> synopses;
  if (program.single) {
    synopses.push_back(
        absl::StrCat(".B ", program.name, "\n[\\fIOPTION\\fR...]\n"));
  }
  for (const CLI::App* command : Commands(app)) {
    synopses.push_back(
        absl::StrCat(".B ", program.name, " ", command->get_name(),
                     "\n[\\fIOPTION\\fR...]", Operands(*command), "\n"));
  }
  out += absl::StrJoin(synopses, ".br\n");
  absl::StrAppend(&out, ".SH DESCRIPTION\n", Roff(program.description), "\n",
                  ".SH OPTIONS\n", ManualOptions(app),
                  Example(program.examples));
  for (const CLI::App* command : Commands(app)) {
    absl::StrAppend(&out, ".SH \"",
                    Upper(absl::StrCat(program.name, " ", command->get_name())),
                    "\"\n", Roff(command->get_description()), "\n",
                    ManualOptions(*command),
                    Example(described.examples().at(command->get_name())));
  }
  for (const auto& [title, text] : program.manual) {
    absl::StrAppend(&out, ".SH \"", title, "\"\n");
    bool first = true;
    for (const std::string& paragraph : std::vector<std::string>(
             absl::StrSplit(text, "\n\n", absl::SkipEmpty()))) {
      const size_t colon = paragraph.find(": ");
      if (colon != std::string::npos && paragraph.find(' ') > colon) {
        absl::StrAppend(&out, ".TP\n\\fB", Roff(paragraph.substr(0, colon)),
                        "\\fR\n", Roff(paragraph.substr(colon + 2)), "\n");
      } else {
        absl::StrAppend(&out, first ? "" : ".PP\n", Roff(paragraph), "\n");
      }
      first = false;
    }
  }
  out += ".SH \"EXIT STATUS\"\n";
  for (const auto& [code, meaning] : ExitCodes(program)) {
    absl::StrAppend(&out, ".TP\n", code, "\n", Roff(meaning), ".\n");
  }
  out += ".SH ENVIRONMENT\n";
  std::vector<std::pair<std::string, std::string>> variables =
      program.environment;
  variables.emplace_back("NO_COLOR",
                         "If it is set and not empty, there are no colours, "
                         "unless --color=always asks for them");
  variables.emplace_back(
      "TERM", "If it is not set, or dumb, a terminal gets no colours");
  for (const auto& [name, text] : variables) {
    absl::StrAppend(&out, ".TP\n", Roff(name), "\n", Roff(text), ".\n");
  }
  return out;
}

std::string Completions(const CLI::App& app, const std::string& shell) {
  return shell == "zsh" ? ZshCompletions(app) : BashCompletions(app);
}

}  // namespace firsttouch::cli
