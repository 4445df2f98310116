#include "firsttouch/tools/cli/completions.h"

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/program_facts.h"

namespace firsttouch::cli {
namespace {

// What completes a value, as words of compgen.
std::string BashAction(const OptionFacts& option) {
  const std::vector<std::string> values = option.values;
  if (!values.empty()) {
    return absl::StrCat("-W '", absl::StrJoin(values, " "), "'");
  }
  const std::string kind = option.kind;
  if (kind == "FILE") return "-f";
  if (kind == "PID") return "-W \"$(cd /proc && echo [0-9]*)\"";
  return kind == "DIRECTORY" ? "-d" : "";
}

std::string BashCompletions(const ProgramFacts& app) {
  std::string options;
  std::string operands;
  std::string flags;
  std::string valued;
  std::vector<const CommandFacts*> all;
  std::vector<std::string> names;
  for (const CommandFacts& command : app.commands) {
    all.push_back(&command);
    names.push_back(command.name);
  }
  // Options without a command, of a program that needs none.
  all.push_back(&app.itself);
  for (const CommandFacts* command : all) {
    const std::string name = command == &app.itself ? "*" : command->name;
    std::vector<std::string> with_value;
    size_t operand = 0;
    for (const OptionFacts& option : command->options) {
      const std::string action = BashAction(option);
      if (option.is_operand) {
        const std::string number =
            option.may_repeat ? "*" : absl::StrCat(operand++);
        if (action.empty()) continue;
        absl::StrAppend(&operands, "        ", name, ":", number, ") action=(",
                        action, ") ;;\n");
        continue;
      }
      if (!option.takes_value) continue;
      for (const std::string& flag : option.names) {
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
       {"COMMANDS", absl::StrJoin(names, " ")},
       {"TOP", absl::StrJoin(FlagsOf(app.itself), " ")},
       {"NAME", app.program.name}});
}

// For a string in single quotes inside [...] of _arguments.
std::string ZshText(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
}

std::string ZshAction(const OptionFacts& option) {
  const std::vector<std::string> values = option.values;
  if (!values.empty()) {
    return absl::StrCat("(", absl::StrJoin(values, " "), ")");
  }
  const std::string kind = option.kind;
  if (kind == "FILE") return "_files";
  if (kind == "PID") return "_pids";
  return kind == "DIRECTORY" ? "_files -/" : " ";
}

// The arguments of _arguments for a command.
std::string ZshArguments(const CommandFacts& command) {
  std::string out;
  for (const OptionFacts& option : command.options) {
    const std::string value =
        absl::StrCat(":", option.kind, ":", ZshAction(option));
    if (option.is_operand) {
      absl::StrAppend(&out, "      '", option.may_repeat ? "*" : "", value,
                      "'\n");
    }
    for (const std::string& name : option.names) {
      absl::StrAppend(&out, "      '--", name, option.takes_value ? "=[" : "[",
                      ZshText(option.description), "]",
                      option.takes_value ? value : "", "'\n");
    }
  }
  return out;
}

std::string ZshCompletions(const ProgramFacts& app) {
  std::string commands;
  std::string cases;
  for (const CommandFacts& command : app.commands) {
    absl::StrAppend(&commands, "    '", command.name, ":",
                    ZshText(FirstSentence(command.description)), "'\n");
    absl::StrAppend(&cases, "    ", command.name, ") arguments=(\n",
                    ZshArguments(command), "    ) ;;\n");
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
       {"TOP",
        absl::StrReplaceAll(ZshArguments(app.itself), {{"'\n", "' \\\n"}})},
       {"NAME", app.program.name}});
}

}  // namespace

std::string CompletionsOf(const ProgramFacts& app, const std::string& shell) {
  return shell == "zsh" ? ZshCompletions(app) : BashCompletions(app);
}

}  // namespace firsttouch::cli
