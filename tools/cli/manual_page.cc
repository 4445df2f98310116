#include "firsttouch/tools/cli/manual_page.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/program_facts.h"

namespace firsttouch::cli {
namespace {

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

std::string Operands(const CommandFacts& command) {
  std::string out;
  for (const OptionFacts& option : command.options) {
    if (!option.is_operand) continue;
    const std::string name = absl::StrCat("\\fI", Roff(option.head), "\\fR",
                                          option.may_repeat ? "..." : "");
    absl::StrAppend(&out, " ",
                    option.is_required ? name : absl::StrCat("[", name, "]"));
  }
  return out;
}

// Operands, then options.
std::string ManualOptions(const CommandFacts& command) {
  std::string out;
  std::vector<OptionFacts> options = command.options;
  std::stable_partition(
      options.begin(), options.end(),
      [](const OptionFacts& option) { return option.is_operand; });
  for (const OptionFacts& option : options) {
    absl::StrAppend(&out, ".TP\n\\fB", Roff(option.head), "\\fR\n",
                    Roff(option.description), ".\n");
    // Where the head does not show them.
    if (!option.values.empty() && !absl::StrContains(option.kind, '|')) {
      absl::StrAppend(
          &out, "One of: ", Roff(absl::StrJoin(option.values, ", ")), ".\n");
    }
  }
  return out;
}

std::string Example(const std::string& text) {
  if (text.empty()) return "";
  return absl::StrCat(".PP\nExamples:\n.PP\n.nf\n", Roff(text), ".fi\n");
}

}  // namespace

std::string ManualPageOf(const ProgramFacts& app) {
  const Program& program = app.program;
  std::string out = absl::StrCat(
      ".TH ", Upper(program.name), " 1 \"\" \"firsttouch ", program.version,
      "\" \"User Commands\"\n.SH NAME\n", program.name, " \\- ",
      Roff(Lower(FirstSentence(program.description))), "\n.SH SYNOPSIS\n");
  std::vector<std::string> synopses;
  if (program.single) {
    synopses.push_back(
        absl::StrCat(".B ", program.name, "\n[\\fIOPTION\\fR...]\n"));
  }
  for (const CommandFacts& command : app.commands) {
    synopses.push_back(absl::StrCat(".B ", program.name, " ", command.name,
                                    "\n[\\fIOPTION\\fR...]", Operands(command),
                                    "\n"));
  }
  out += absl::StrJoin(synopses, ".br\n");
  absl::StrAppend(&out, ".SH DESCRIPTION\n", Roff(program.description), "\n",
                  ".SH OPTIONS\n", ManualOptions(app.itself),
                  Example(program.examples));
  for (const CommandFacts& command : app.commands) {
    absl::StrAppend(&out, ".SH \"",
                    Upper(absl::StrCat(program.name, " ", command.name)),
                    "\"\n", Roff(command.description), "\n",
                    ManualOptions(command), Example(command.examples));
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
  for (const auto& [code, meaning] : app.exit_codes) {
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

}  // namespace firsttouch::cli
