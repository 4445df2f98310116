#include "firsttouch/tools/pooldump/app.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace firsttouch::pooldump {
namespace {

const std::array<std::pair<int, std::string>, 3> kExitCodes = {{
    {0, "all is well"},
    {1, "the pool does not fit here, or no address lies in a pool"},
    {2,
     "what was asked about cannot be read: no such process or file, no "
     "permission, no pool, something that is damaged"},
}};

constexpr char kDescription[] =
    "Shows pools of firsttouch on paper, alive, and after a crash.";

const cli::Command kLayout = {
    "layout",
    "The layout of a pool, without creating anything: what each byte of the "
    "address space is for, what it costs, and whether it fits here.",
    "  pooldump layout --instances=1000 --memory-bytes=4GiB "
    "--guard-bytes=2GiB\n"
    "  pooldump layout --config=pool.textproto --instances=20000\n"
    "  pooldump layout --config=pool.textproto --all --filter='/7$'\n"};
const cli::Command kLive = {
    "live",
    "The pools of a running process, slot by slot. The process is neither "
    "stopped nor changed. Its owner and root may.",
    "  pooldump live 1234\n"
    "  pooldump live 1234 --sort=private --filter=sqlite\n"
    "  pooldump live 1234 --watch\n"
    "  pooldump live 1234 --format=csv > slots.csv\n"};
const cli::Command kLocate = {
    "locate",
    "What addresses are: pool, slot, offset, page and its state, in bounds or "
    "not, and the image's page behind it. Without an address, or with \"-\", "
    "reads a text (a crash log) from standard input and says it of each "
    "address in it.",
    "  pooldump locate 1234 0x7f0000011004\n"
    "  pooldump locate 1234 < crash.log\n"
    "  pooldump locate --config=pool.textproto --base=0x7f0000000000 "
    "0x7f0000011004\n"};
const cli::Command kCore = {
    "core",
    "The pools in a core dump, and where the address lies that ended the "
    "process.",
    "  pooldump core core.1234\n"
    "  pooldump core core.1234 --filter=sqlite --format=json\n"};
const cli::Command kMap = {"map", "The pages of one slot, as a picture.",
                           "  pooldump map 1234 7\n"
                           "  pooldump map 1234 7 --html=slot7.html\n"
                           "  pooldump map 1234 7 --format=csv\n"};
const cli::Command kImage = {
    "image", "The pages of an image file, as a picture.",
    "  pooldump image guest.ftimage\n"
    "  pooldump image guest.ftimage --svg=guest.svg\n"};

CLI::App* AddCommand(CLI::App* app, const cli::Command& command, Words* words) {
  CLI::App* sub = cli::AddCommand(app, command);
  cli::AddCommonOptions(sub, &words->common,
                        {"text", "json", "csv", "textproto", "proto"});
  Options& options = words->options;
  sub->add_option_function<std::string>(
         "--filter",
         [&options](const std::string& s) { options.set_filter(s); },
         "Only slots (POOL/SLOT) and images in whose names this regular "
         "expression (RE2) is found")
      ->type_name("REGEX");
  sub->add_option_function<std::string>(
         "--sort", [&options](const std::string& s) { options.set_sort(s); },
         "By this column, the largest first; -COLUMN: the other way round")
      ->type_name("COLUMN");
  return sub;
}

void AddAll(CLI::App* sub, Words* words, const char* help) {
  sub->add_flag_callback(
      "--all", [words] { words->options.set_all(true); }, help);
}

void AddPool(CLI::App* sub, Words* words) {
  sub->add_option_function<std::string>(
         "--pool",
         [words](const std::string& s) { words->options.set_pool_name(s); },
         "Only the pool of this name")
      ->type_name("NAME");
}

void AddConfig(CLI::App* sub, Words* words) {
  sub->add_option_function<std::string>(
         "--config",
         [words](const std::string& s) { words->options.set_config(s); },
         "A file that describes the pool (PoolConfig of pooldump.proto, in "
         "text format); flags are put over it")
      ->type_name("FILE");
  for (const PoolFlag& flag : PoolFlags()) {
    const std::string field = flag.field;
    sub->add_option_function<std::string>(
           flag.flags,
           [words, field](const std::string& s) { words->pool[field] = s; },
           flag.help)
        ->type_name(flag.type);
  }
}

void AddPictures(CLI::App* sub, Words* words) {
  sub->add_option_function<std::string>(
         "--svg", [words](const std::string& s) { words->options.set_svg(s); },
         "Write the picture to this file, as SVG")
      ->type_name("FILE");
  sub->add_option_function<std::string>(
         "--html",
         [words](const std::string& s) { words->options.set_html(s); },
         "Write the picture to this file, as a page that needs no other; "
         "pointing at a block says which pages it is")
      ->type_name("FILE");
  sub->add_option_function<uint32_t>(
         "--width", [words](uint32_t n) { words->options.set_width(n); },
         "Columns of the picture in the terminal; otherwise as many as it has")
      ->type_name("COLUMNS")
      ->check(CLI::Range(20, 1000));
}

std::string OptionHead(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) {
    names.push_back("-" + name);
  }
  for (const std::string& name : option.get_lnames()) {
    names.push_back("--" + name);
  }
  std::string head = absl::StrJoin(names, ", ");
  if (names.empty()) head = option.get_name(true);
  if (option.get_expected_max() > 0 && !names.empty() &&
      option.get_type_size_max() > 0) {
    const std::string type = option.get_type_name();
    absl::StrAppend(&head, "=", type.substr(0, type.find(':')));
  }
  return head;
}

std::string Roff(const std::string& text) {
  std::string out = absl::StrReplaceAll(
      text, {{"\\", "\\\\"}, {"-", "\\-"}, {"'", "\\(aq"}, {"\n.", "\n\\&."}});
  if (!out.empty() && out.front() == '.') out.insert(0, "\\&");
  return out;
}

std::vector<const CLI::App*> Commands(const CLI::App& app) {
  return app.get_subcommands(
      [](const CLI::App* sub) { return !sub->get_name().empty(); });
}

}  // namespace

const std::vector<PoolFlag>& PoolFlags() {
  static const auto& flags = *new std::vector<PoolFlag>{
      {"name", "--name", "--name", "NAME", "Name of the pool"},
      {"instances", "--instances", "--instances", "N",
       "Instances that the pool can hold at once"},
      {"memories_per_instance", "--memories-per-instance",
       "--memories-per-instance", "N", "Memories of each instance"},
      {"max_memory_bytes", "--memory-bytes,--max-memory-bytes",
       "--memory-bytes", "SIZE",
       "The most that a memory can grow to, as 4GiB (max_memory_bytes)"},
      {"guard_after_bytes", "--guard-bytes,--guard-after-bytes",
       "--guard-bytes", "SIZE", "Guard behind each memory (guard_after_bytes)"},
      {"guard_before_bytes", "--guard-before-bytes", "--guard-before-bytes",
       "SIZE", "Guard in front of the first memory"},
      {"granule_bytes", "--granule-bytes", "--granule-bytes", "SIZE",
       "What one fault fills at most"},
      {"supply", "--supply", "--supply", "NAME",
       "userfaultfd, mappings-scan or mappings-drop; otherwise what the "
       "machine allows"},
      {"backing", "--backing", "--backing", "NAME",
       "shared or copied; otherwise what the machine allows"},
      {"resolve", "--resolve", "--resolve", "NAME",
       "in-thread or handler-thread"},
      {"largest_static_offset_bytes", "--largest-static-offset-bytes",
       "--largest-static-offset-bytes", "SIZE",
       "The largest constant that guests add to an index: is the guard large "
       "enough?"},
      {"index_bits", "--index-bits", "--index-bits", "N",
       "Bits of an index that guests do not check: 32 for WebAssembly"},
      {"base", "--base", "--base", "ADDRESS",
       "Where the pool begins, for locate"},
      {"size_bytes", "--size-bytes", "--size-bytes", "SIZE",
       "The size that memories had, for locate"},
  };
  return flags;
}

std::unique_ptr<CLI::App> MakeApp(Words* words) {
  auto app = cli::MakeApp(
      {.name = "pooldump",
       .version = "0.1.0",
       .description = kDescription,
       .examples = "  pooldump layout --instances=1000 --memory-bytes=4GiB "
                   "--guard-bytes=2GiB\n"
                   "  pooldump live $(pidof server) --watch\n"
                   "  pooldump locate $(pidof server) < crash.log\n",
       .exit_codes = {kExitCodes.begin(), kExitCodes.end()}});

  Options& options = words->options;
  CLI::App* layout = AddCommand(app.get(), kLayout, words);
  AddConfig(layout, words);
  AddAll(layout, words, "Each slot's ranges, not one line for all of them");
  layout
      ->add_option_function<std::string>(
          "--machine",
          [&options](const std::string& s) { options.set_machine(s); },
          "Ask about this machine instead of the one at hand: what "
          "layout --format=textproto printed there")
      ->type_name("FILE");

  CLI::App* live = AddCommand(app.get(), kLive, words);
  live->add_option("PID", words->pid, "The process")->required();
  AddPool(live, words);
  AddAll(live, words, "Also slots that were never used");
  live->add_flag_callback(
      "--watch", [&options] { options.set_watch(true); },
      "Repaint the screen, as top does; \"h\" there lists the keys");
  live->add_option("--interval", words->interval,
                   "Seconds from one look to the next, 0.1 to 3600")
      ->type_name("SECONDS");

  CLI::App* locate = AddCommand(app.get(), kLocate, words);
  locate->add_option("PID_OR_ADDRESS", words->targets,
                     "The process (not with --config), then addresses");
  AddConfig(locate, words);
  AddPool(locate, words);

  CLI::App* core = AddCommand(app.get(), kCore, words);
  core->add_option_function<std::string>(
          "FILE", [&options](const std::string& s) { options.set_file(s); },
          "The core dump")
      ->required();
  AddPool(core, words);
  AddAll(core, words, "Also slots that were never used");

  CLI::App* map = AddCommand(app.get(), kMap, words);
  map->add_option("PID", words->pid, "The process")->required();
  map->add_option("SLOT", words->slot, "The slot's number")->required();
  AddPool(map, words);
  AddPictures(map, words);

  CLI::App* image = AddCommand(app.get(), kImage, words);
  image
      ->add_option_function<std::string>(
          "FILE", [&options](const std::string& s) { options.set_file(s); },
          "The image file")
      ->required();
  AddPictures(image, words);

  cli::AddCommand(app.get(), {.name = "manual",
                              .description = "Prints the manual page.",
                              .examples = "  pooldump manual | man -l -\n"});
  return app;
}

std::string ManualPage(const CLI::App& app) {
  std::string out = absl::StrCat(
      ".TH POOLDUMP 1 \"\" \"firsttouch 0.1.0\" \"User Commands\"\n"
      ".SH NAME\npooldump \\- shows pools of firsttouch\n"
      ".SH SYNOPSIS\n");
  for (const CLI::App* command : Commands(app)) {
    std::string operands;
    for (const CLI::Option* option : command->get_options()) {
      if (option->get_lnames().empty() && option->get_snames().empty()) {
        absl::StrAppend(&operands, " \\fI", Roff(option->get_name(true)),
                        "\\fR");
      }
    }
    absl::StrAppend(&out, ".B pooldump ", command->get_name(),
                    "\n[\\fIOPTION\\fR...]", operands, "\n.br\n");
  }
  absl::StrAppend(&out, ".SH DESCRIPTION\n", Roff(kDescription), "\n");
  for (const CLI::App* command : Commands(app)) {
    absl::StrAppend(&out, ".SH \"POOLDUMP ",
                    absl::AsciiStrToUpper(command->get_name()), "\"\n",
                    Roff(command->get_description()), "\n");
    for (const CLI::Option* option : command->get_options()) {
      absl::StrAppend(&out, ".TP\n\\fB", Roff(OptionHead(*option)), "\\fR\n",
                      Roff(option->get_description()), ".\n");
    }
    for (const cli::Command* known :
         {&kLayout, &kLive, &kLocate, &kCore, &kMap, &kImage}) {
      if (command->get_name() != known->name) continue;
      absl::StrAppend(&out, ".PP\n.nf\n", Roff(known->examples), ".fi\n");
    }
  }
  absl::StrAppend(&out, ".SH \"EXIT STATUS\"\n");
  for (const auto& [code, meaning] : kExitCodes) {
    absl::StrAppend(&out, ".TP\n", code, "\n", Roff(meaning), ".\n");
  }
  absl::StrAppend(
      &out,
      ".TP\n64\nThe command line, or a file that describes a pool, is wrong.\n"
      ".SH ENVIRONMENT\n.TP\nNO_COLOR\nIf it is set and not empty, there are "
      "no colours, unless \\-\\-color=always asks for them.\n"
      ".SH \"SEE ALSO\"\nThe columns are explained in docs/pooldump.md, the "
      "formats for programs in tools/pooldump/pooldump.proto.\n");
  return out;
}

}  // namespace firsttouch::pooldump
