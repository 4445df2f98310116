#include "firsttouch/tools/cli/command_line.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>

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
  if (!values.empty()) return absl::StrJoin(values, "|");
  return type.substr(0, type.find(':'));
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

std::string FirstSentence(const std::string& text) {
  const size_t end = text.find(". ");
  if (end != std::string::npos) return text.substr(0, end);
  return absl::EndsWith(text, ".") ? text.substr(0, text.size() - 1) : text;
}

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option,
                          bool is_positional) const override {
    const std::vector<std::string> values = ValuesOf(*option);
    return Entry(is_positional ? values.empty() ? option->get_name(true)
                                                : absl::StrJoin(values, "|")
                               : Head(*option),
                 option->get_description());
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

std::vector<const CLI::App*> Commands(const CLI::App& app) {
  return app.get_subcommands(
      [](const CLI::App* command) { return !command->get_name().empty(); });
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : Commands(app)) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
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
  if (command == nullptr && word != nullptr) {
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
  if (command == nullptr) {
    return absl::StrCat("no command is given; ", help, " --help lists them");
  }
  return absl::StrCat(
      Printable(absl::StrReplaceAll(error.what(), {{"\n", " "}})), "; ", help,
      " --help tells more");
}

// What completes a value, as words of compgen.
std::string BashAction(const CLI::Option& option) {
  const std::vector<std::string> values = ValuesOf(option);
  if (!values.empty()) {
    return absl::StrCat("-W '", absl::StrJoin(values, " "), "'");
  }
  const std::string kind = KindOf(option);
  if (kind == "FILE") return "-f";
  return kind == "DIRECTORY" ? "-d" : "";
}

std::string BashCompletions(const CLI::App& app) {
  std::string options;
  std::string operands;
  std::string flags;
  for (const CLI::App* command : Commands(app)) {
    const std::string& name = command->get_name();
    absl::StrAppend(&flags, "      ", name, ") action=(-W '",
                    absl::StrJoin(FlagsOf(*command), " "), "') ;;\n");
    for (const CLI::Option* option : command->get_options()) {
      const std::string action = BashAction(*option);
      if (action.empty()) {
        // A value that nobody can guess; not an operand.
        for (const std::string& flag : option->get_lnames()) {
          if (!TakesValue(*option)) break;
          absl::StrAppend(&options, "    ", name, ":--", flag, ") return ;;\n");
        }
        continue;
      }
      if (IsPositional(*option)) {
        // One kind of operand a command is enough of a model for a shell.
        if (absl::StrContains(operands, absl::StrCat("      ", name, ") "))) {
          continue;
        }
        absl::StrAppend(&operands, "      ", name, ") action=(", action,
                        ") ;;\n");
      }
      for (const std::string& flag : option->get_lnames()) {
        absl::StrAppend(&options, "    ", name, ":--", flag, ") action=(",
                        action, ") ;;\n");
      }
    }
  }
  return absl::StrReplaceAll(
      R"(# bash completions of NAME. Source them, or put them into
# ~/.local/share/bash-completion/completions/NAME
_NAME() {
  local current="${COMP_WORDS[COMP_CWORD]}"
  local previous="${COMP_WORDS[COMP_CWORD-1]}"
  local command="${COMP_WORDS[1]}"
  local -a action=()
  COMPREPLY=()
  # "--format=js" comes as three words where "=" breaks words.
  if [[ "$current" == "=" ]]; then
    current=""
  elif [[ "$previous" == "=" ]]; then
    previous="${COMP_WORDS[COMP_CWORD-2]}"
  fi
  case "$command:$previous" in
OPTIONS  esac
  if (( ${#action[@]} == 0 )); then
    if (( COMP_CWORD == 1 )); then
      action=(-W 'COMMANDS --help --version')
    elif [[ "$current" == -* ]]; then
      case "$command" in
FLAGS      esac
    else
      case "$command" in
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
       {"COMMANDS", absl::StrJoin(CommandNames(app), " ")},
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
  return kind == "DIRECTORY" ? "_files -/" : " ";
}

std::string ZshCompletions(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : Commands(app)) {
    absl::StrAppend(&commands, "    '", command->get_name(), ":",
                    ZshText(FirstSentence(command->get_description())), "'\n");
    absl::StrAppend(&cases, "    ", command->get_name(), ") arguments=(\n");
    for (const CLI::Option* option : command->get_options()) {
      const std::string value =
          absl::StrCat(":", KindOf(*option), ":", ZshAction(*option));
      if (IsPositional(*option)) {
        absl::StrAppend(&cases, "      '",
                        option->get_expected_max() > 1 ? "*" : "", value,
                        "'\n");
      }
      for (const std::string& name : option->get_lnames()) {
        absl::StrAppend(&cases, "      '--", name,
                        TakesValue(*option) ? "=[" : "[",
                        ZshText(option->get_description()), "]",
                        TakesValue(*option) ? value : "", "'\n");
      }
    }
    absl::StrAppend(&cases, "    ) ;;\n");
  }
  return absl::StrReplaceAll(
      R"(#compdef NAME
# zsh completions of NAME. Put them into a folder of $fpath, as _NAME
_NAME() {
  local -a commands arguments
  commands=(
COMMANDS  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case ${words[2]} in
CASES  esac
  shift words
  (( CURRENT-- ))
  _arguments $arguments
}
compdef _NAME NAME
)",
      {{"COMMANDS", commands}, {"CASES", cases}, {"NAME", app.get_name()}});
}

}  // namespace

std::unique_ptr<CLI::App> MakeApp(const Program& program) {
  auto app = std::make_unique<CLI::App>(program.description, program.name);
  app->set_help_flag("-h,--help", "Print this help and end");
  app->set_version_flag("--version",
                        absl::StrCat(program.name, " ", program.version),
                        "Print the version and end");
  app->require_subcommand(1);
  app->formatter(std::make_shared<HelpFormatter>());
  std::string codes = "\nExit codes:\n";
  for (const auto& [code, meaning] : program.exit_codes) {
    absl::StrAppend(&codes, "  ", code, std::string(code < 10 ? 3 : 2, ' '),
                    Wrap(meaning, 6, 6), "\n");
  }
  absl::StrAppend(&codes, "  ", kExitUsage, "  the command line is wrong\n",
                  "  ", kExitCannotPrint,
                  "  standard output cannot be written\n");
  app->footer(absl::StrCat("Examples:\n", program.examples, "\n", program.name,
                           " COMMAND --help tells more.\n", codes));
  CLI::App* completions = AddCommand(
      app.get(), {.name = kCompletions,
                  .description = "Prints completions for a shell.",
                  .examples = absl::StrCat("  source <(", program.name,
                                           " completions bash)\n")});
  completions->add_option("SHELL", "The shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  return app;
}

CLI::App* AddCommand(CLI::App* app, const Command& command) {
  CLI::App* added = app->add_subcommand(command.name, command.description);
  added->footer(absl::StrCat("Examples:\n", command.examples));
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
  try {
    // CLI11 takes them from the back.
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));
  } catch (const CLI::CallForHelp&) {
    const CLI::App* command = CommandOf(app, words);
    return Ending{.out = command == nullptr ? app.help()
                                            : command->help(app.get_name())};
  } catch (const CLI::CallForVersion& version) {
    return Ending{.out = absl::StrCat(version.what(), "\n")};
  } catch (const CLI::ParseError& error) {
    return Ending{.exit_code = kExitUsage, .error = Explain(app, words, error)};
  }
  const CLI::App* command = app.get_subcommands().front();
  if (command->get_name() != kCompletions) return std::nullopt;
  return Ending{
      .out = Completions(app, command->get_option("SHELL")->results().front())};
}

int End(const std::string& program, const Ending& ending) {
  std::string error = ending.error;
  int exit_code = ending.exit_code;
  if (const std::string wrong = WriteOut(ending.out); !wrong.empty()) {
    error = wrong;
    exit_code = kExitCannotPrint;
  }
  if (!error.empty()) {
    std::fprintf(stderr, "%s: %s\n", program.c_str(), error.c_str());
  }
  return exit_code;
}

std::string Completions(const CLI::App& app, const std::string& shell) {
  return shell == "zsh" ? ZshCompletions(app) : BashCompletions(app);
}

}  // namespace firsttouch::cli
