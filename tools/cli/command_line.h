// Command lines of programs with commands ("imagetool info FILE"), on CLI11:
// what all of ours have in common.
//
//   std::unique_ptr<CLI::App> app = cli::MakeApp({.name = "imagetool", ...});
//   CLI::App* info = cli::AddCommand(app.get(), {.name = "info", ...});
//   cli::AddCommonOptions(info, &common, {"text", "json"});
//   info->add_option("FILE", file, "The image file")->type_name("FILE");
//   if (auto ending = cli::Parse(*app, words)) return cli::End("imagetool",
//       *ending);
//   if (info->parsed()) ...
//
// What completions know: values that an option takes (CLI::IsMember, or a type
// name "COLUMN:{slot,state}", whose values are proposals), and the type names
// FILE, DIRECTORY and PID.
//
// Threads: one.

#ifndef FIRSTTOUCH_TOOLS_CLI_COMMAND_LINE_H_
#define FIRSTTOUCH_TOOLS_CLI_COMMAND_LINE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "firsttouch/tools/cli/program_facts.h"

namespace firsttouch::cli {

// The command line is wrong (EX_USAGE of sysexits.h).
inline constexpr int kExitUsage = 64;
// What there is to say cannot be printed (EX_IOERR).
inline constexpr int kExitCannotPrint = 74;

struct Command {
  std::string name;
  std::string description;  // The list of commands has its first sentence.
  std::string examples;
};

// What every command takes.
struct CommonOptions {
  std::string format = "text";
  std::string color = "auto";
  bool bytes = false;  // Sizes in bytes, not in binary units.
};

// With --help, --version, and the commands "help [COMMAND]", "manual" and
// "completions bash|zsh".
std::unique_ptr<CLI::App> MakeApp(const Program& program);

CLI::App* AddCommand(CLI::App* app, const Command& command);

// --format (one of `formats`), --color and --bytes. `options` is borrowed.
void AddCommonOptions(CLI::App* command, CommonOptions* options,
                      const std::vector<std::string>& formats);

// How a program ends that has nothing to do.
struct Ending {
  int exit_code = 0;
  std::string out;
  std::string error;  // One line, without the program's name.
};

// Reads a command line (without the program's name). Nothing: one command has
// been parsed, or none of a program that needs none. Otherwise help, version,
// manual or completions were asked for, or what is wrong, with the nearest name
// there is.
std::optional<Ending> Parse(CLI::App& app,
                            const std::vector<std::string>& words);

// Prints what an ending has to say, an error as "PROGRAM: ERROR", and gives the
// exit code: kExitCannotPrint if it cannot be printed.
int End(const std::string& program, const Ending& ending);

// The manual page in roff, of all commands and options.
std::string ManualPage(const CLI::App& app);

// The completions for "bash" or "zsh", to be sourced.
std::string Completions(const CLI::App& app, const std::string& shell);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_COMMAND_LINE_H_
