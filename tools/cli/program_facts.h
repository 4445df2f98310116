// What there is to say of a program and its command line: what help, the manual
// page and completions are made of.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_CLI_PROGRAM_FACTS_H_
#define FIRSTTOUCH_TOOLS_CLI_PROGRAM_FACTS_H_

#include <string>
#include <utility>
#include <vector>

namespace firsttouch::cli {

struct Program {
  std::string name;
  std::string version;
  std::string description;  // A sentence or two.
  std::string examples;     // Lines, indented by two.
  // Code and meaning. Those of command_line.h are added.
  std::vector<std::pair<int, std::string>> exit_codes;
  // Further sections of the manual page: title and text, whose paragraphs are
  // separated by empty lines. A paragraph "NAME: text" is an item of a list.
  std::vector<std::pair<std::string, std::string>> manual;
  // Variables that the program reads, for the manual page. Those that all of
  // ours read are added.
  std::vector<std::pair<std::string, std::string>> environment;
  // The program does one thing, for which no command is given.
  bool single = false;
};

// An option or an operand.
struct OptionFacts {
  std::vector<std::string> names;  // The long ones, without "--".
  // "-o,--output=FILE"; of an operand "FILE", or "bash|zsh" where the values
  // are all there is to say.
  std::string head;
  std::string kind;  // What stands for the value: "FILE", "NUMBER".
  std::vector<std::string> values;  // That it takes, where they are known.
  std::string description;
  bool is_operand = false;
  bool takes_value = false;
  bool is_required = false;
  bool may_repeat = false;
};

struct CommandFacts {
  std::string name;
  std::string description;
  std::string examples;
  std::vector<OptionFacts> options;  // Those that help shows.
};

struct ProgramFacts {
  Program program;
  CommandFacts itself;  // What comes without a command.
  // The program's own first, then those that all programs have.
  std::vector<CommandFacts> commands;
  // Those of all programs too, in order.
  std::vector<std::pair<int, std::string>> exit_codes;
};

// "--NAME" of each option.
std::vector<std::string> FlagsOf(const CommandFacts& command);

// Without the full stop.
std::string FirstSentence(const std::string& text);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_PROGRAM_FACTS_H_
