#include "firsttouch/tools/pooldump/app.h"

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "firsttouch/tools/pooldump/columns.h"

namespace firsttouch::pooldump {
namespace {

const std::array<std::pair<int, std::string>, 3> kExitCodes = {{
    {0, "all is well"},
    {1, "the pool does not fit here, or no address lies in a pool"},
    {2,
     "what was asked about cannot be read: no such process or file, no "
     "permission, no pool, something that is damaged"},
}};

constexpr char kFormats[] =
    "text: For people. On a terminal, tables have the columns that it has room "
    "for.\n\n"
    "csv: The main table, a line of names first, sizes in bytes. What is not "
    "known is empty.\n\n"
    "json: One message, Report of tools/pooldump/pooldump.proto, in protobuf's "
    "JSON: numbers of 64 bits are strings. With --count or --interval "
    "each look is a line.\n\n"
    "textproto: The same message in protobuf's text format.\n\n"
    "proto: The same message in protobuf's binary format.";

template <typename Row>
std::string ColumnNames(const cli::Columns<Row>& columns) {
  std::vector<std::string> names;
  for (const auto& column : columns) {
    names.push_back(
        column.title.empty()
            ? column.name
            : absl::StrCat(column.name, " (in text ", column.title, ")"));
  }
  return absl::StrJoin(names, ", ");
}

std::string ColumnLists() {
  return absl::StrCat(
      "Names for --sort and --columns, and in csv. docs/pooldump.md explains "
      "each.\n\n",
      "layout: ", ColumnNames(RangeColumns()), ".\n\n",
      "live,core: ", ColumnNames(SlotColumns()), ".\n\n",
      "watch: ", ColumnNames(RatedSlotColumns()), ".\n\n",
      "ps: ", ColumnNames(PsColumns()), ".\n\n",
      "diff: ", ColumnNames(DiffColumns()), ".\n\n",
      "images: ", ColumnNames(ImageColumns()), ".\n\n",
      "locate: ", ColumnNames(FoundColumns()), ".\n\n",
      "map: ", ColumnNames(PageRunColumns()), ".\n\n",
      "image: ", ColumnNames(ImageRunColumns()), ".");
}

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
    "  pooldump live 1234 --format=csv > slots.csv\n"
    "  pooldump live 1234 --interval=10 --format=csv >> slots.log\n"
    "  pooldump live 1234 --count=1 --sort=traps/s --limit=10\n"};
const cli::Command kPs = {
    "ps",
    "The processes that have pools: who they belong to, what they hold, and "
    "how often their guests trap. Looks twice, to tell rates.",
    "  pooldump ps\n"
    "  pooldump ps --sort=private --format=csv\n"
    "  pooldump ps --interval=0\n"};
const cli::Command kShow = {
    "show",
    "What a command of pooldump found once, from the file that it was saved "
    "to with --format=proto, json or textproto, as that command prints it.",
    "  pooldump live 1234 --format=proto > before.pb\n"
    "  pooldump show before.pb --sort=private --limit=10\n"};
const cli::Command kDiff = {
    "diff",
    "What changed between two looks at a process that were saved, as for "
    "\"show\": which slots grew, and which changed their state.",
    "  pooldump live 1234 --format=proto > before.pb\n"
    "  pooldump live 1234 --format=proto > after.pb\n"
    "  pooldump diff before.pb after.pb\n"
    "  pooldump diff before.pb after.pb --sort=traps --format=csv\n"};
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
const cli::Command kImage = {"image",
                             "The pages of an image file, as a picture.",
                             "  pooldump image guest.ftimg\n"
                             "  pooldump image guest.ftimg --svg=guest.svg\n"};

// "COLUMN:{slot,state}": what completions propose.
template <typename Row>
std::string ColumnType(const cli::Columns<Row>& columns) {
  std::vector<std::string> names;
  for (const auto& column : columns) names.push_back(column.name);
  return absl::StrCat("COLUMN:{", absl::StrJoin(names, ","), "}");
}

void AddLimit(CLI::App* sub, Words* words) {
  sub->add_option_function<uint32_t>(
         "--limit", [words](uint32_t n) { words->options.set_limit(n); },
         "At most so many rows of a table; sums are still those of all")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
}

// --columns and --limit, for a table of `columns`.
template <typename Row>
void AddTable(CLI::App* sub, const cli::Columns<Row>& columns, Words* words) {
  sub->add_option_function<std::string>(
         "--columns",
         [words](const std::string& names) {
           for (const absl::string_view name : absl::StrSplit(names, ',')) {
             words->options.add_columns(name.data(), name.size());
           }
         },
         "These columns, in this order, with commas between them, also where "
         "the terminal has no room for them; all: all of them")
      ->type_name(ColumnType(columns));
  AddLimit(sub, words);
}

// With --sort, by one of `columns`.
template <typename Row>
CLI::App* AddCommand(CLI::App* app, const cli::Command& command,
                     const cli::Columns<Row>& columns, Words* words) {
  CLI::App* sub = cli::AddCommand(app, command);
  cli::AddCommonOptions(sub, &words->common,
                        {"text", "json", "csv", "textproto", "proto"});
  Options& options = words->options;
  sub->add_option_function<std::string>(
         "--sort", [&options](const std::string& s) { options.set_sort(s); },
         "By this column, the largest first; -COLUMN: the other way round")
      ->type_name(ColumnType(columns));
  return sub;
}

void AddFilter(CLI::App* sub, Words* words, const char* help) {
  Options& options = words->options;
  sub->add_option_function<std::string>(
         "--filter",
         [&options](const std::string& s) { options.set_filter(s); }, help)
      ->type_name("REGEX");
}

constexpr char kFilterSlots[] =
    "Only slots (POOL/SLOT) and images in whose names this regular expression "
    "(RE2) is found";

void AddAll(CLI::App* sub, Words* words, const char* help) {
  sub->add_flag_callback(
      "--all", [words] { words->options.set_all(true); }, help);
}

void AddPool(CLI::App* sub, Words* words) {
  sub->add_option_function<std::string>(
         "--pool",
         [words](const std::string& s) { words->options.set_pool_name(s); },
         "Only the pool of this name; #N: of this number, where several have "
         "the same name")
      ->type_name("NAME");
}

void AddConfig(CLI::App* sub, PoolFlag::Command command, Words* words) {
  sub->add_option_function<std::string>(
         "--config",
         [words](const std::string& s) { words->options.set_config(s); },
         "A file that describes the pool (PoolConfig of pooldump.proto, in "
         "text format); flags are put over it")
      ->type_name("FILE");
  for (const PoolFlag& flag : PoolFlags()) {
    if (flag.command != PoolFlag::kBoth && flag.command != command) continue;
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
         "Write the picture to this file, as SVG; - is standard output")
      ->type_name("FILE");
  sub->add_option_function<std::string>(
         "--html",
         [words](const std::string& s) { words->options.set_html(s); },
         "Write the picture to this file, as a page that needs no other; "
         "pointing at a cell says which pages it is. - is standard output")
      ->type_name("FILE");
  sub->add_option_function<uint32_t>(
         "--width", [words](uint32_t n) { words->options.set_width(n); },
         "Columns of the picture in the terminal; otherwise as many as it has")
      ->type_name("COLUMNS")
      ->check(CLI::Range(20, 1000));
}

}  // namespace

const std::vector<PoolFlag>& PoolFlags() {
  using Flag = PoolFlag;
  static const auto& flags = *new std::vector<PoolFlag>{
      {Flag::kBoth, "name", "--name", "--name", "NAME", "Name of the pool"},
      {Flag::kBoth, "instances", "--instances", "--instances", "N",
       "Instances that the pool can hold at once"},
      {Flag::kBoth, "memories_per_instance", "--memories-per-instance",
       "--memories-per-instance", "N", "Memories of each instance"},
      {Flag::kBoth, "max_memory_bytes", "--memory-bytes,--max-memory-bytes",
       "--memory-bytes", "SIZE",
       "The most that a memory can grow to, as 4GiB (max_memory_bytes)"},
      {Flag::kBoth, "guard_after_bytes", "--guard-bytes,--guard-after-bytes",
       "--guard-bytes", "SIZE", "Guard behind each memory (guard_after_bytes)"},
      {Flag::kBoth, "guard_before_bytes", "--guard-before-bytes",
       "--guard-before-bytes", "SIZE", "Guard in front of the first memory"},
      {Flag::kLayout, "granule_bytes", "--fault-around-bytes,--granule-bytes",
       "--fault-around-bytes", "SIZE",
       "What one fault fills at most (granule_bytes)"},
      {Flag::kLayout, "supply", "--supply", "--supply",
       "NAME:{userfaultfd,mappings-scan,mappings-drop}",
       "userfaultfd, mappings-scan or mappings-drop; otherwise what the "
       "machine allows"},
      {Flag::kLayout, "backing", "--backing", "--backing",
       "NAME:{shared,copied}",
       "shared or copied; otherwise what the machine allows"},
      {Flag::kLayout, "resolve", "--resolve", "--resolve",
       "NAME:{in-thread,handler-thread}", "in-thread or handler-thread"},
      {Flag::kLayout, "largest_static_offset_bytes",
       "--largest-static-offset-bytes", "--largest-static-offset-bytes", "SIZE",
       "The largest constant that guests add to an index: is the guard large "
       "enough?"},
      {Flag::kLayout, "index_bits", "--index-bits", "--index-bits", "N",
       "Bits of an index that guests do not check: 32 for WebAssembly"},
      {Flag::kLocate, "base", "--base", "--base", "ADDRESS",
       "Where the pool begins: from a crash log, or /proc/PID/maps"},
      {Flag::kLocate, "size_bytes", "--size-bytes", "--size-bytes", "SIZE",
       "The size that memories had"},
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
       .exit_codes = {kExitCodes.begin(), kExitCodes.end()},
       .manual = {{"FORMATS", kFormats}, {"COLUMNS", ColumnLists()}}});

  Options& options = words->options;
  CLI::App* layout = AddCommand(app.get(), kLayout, RangeColumns(), words);
  AddConfig(layout, PoolFlag::kLayout, words);
  AddFilter(layout, words,
            "With --all: only slots (POOL/SLOT) in whose names this regular "
            "expression (RE2) is found");
  AddAll(layout, words, "Each slot's ranges, not one line for all of them");
  layout
      ->add_option_function<std::string>(
          "--machine",
          [&options](const std::string& s) { options.set_machine(s); },
          "Ask about this machine instead of the one at hand: what "
          "layout --format=textproto printed there")
      ->type_name("FILE");

  CLI::App* live = AddCommand(app.get(), kLive, RatedSlotColumns(), words);
  AddTable(live, RatedSlotColumns(), words);
  live->add_option("PID", words->pid, "The process")
      ->required()
      ->type_name("PID");
  AddFilter(live, words, kFilterSlots);
  AddPool(live, words);
  AddAll(live, words, "Also slots that were never used");
  live->add_flag_callback(
      "--watch", [&options] { options.set_watch(true); },
      "Repaint the screen, as top does; \"h\" there lists the keys");
  live->add_option(
          "--interval", words->interval,
          "Look again after so many seconds, 0.1 to 3600. With --watch; "
          "otherwise each look is printed, with rates, from the second on")
      ->type_name("SECONDS");
  live->add_option_function<uint32_t>(
          "--count",
          [words](uint32_t n) {
            words->options.set_batch(true);
            words->options.set_count(n);
          },
          "Print so many looks, with rates, one --interval (otherwise a "
          "second) apart, and end; without it, until the process ends")
      ->type_name("N")
      ->check(CLI::PositiveNumber);

  CLI::App* ps = AddCommand(app.get(), kPs, PsColumns(), words);
  AddTable(ps, PsColumns(), words);
  AddFilter(ps, words,
            "Only processes in whose commands or users this regular "
            "expression (RE2) is found");
  ps->add_option(
        "--interval", words->interval,
        "Seconds between the two looks, 0.1 to 3600, otherwise 0.5; 0: look "
        "once, without rates")
      ->type_name("SECONDS");

  CLI::App* locate = AddCommand(app.get(), kLocate, FoundColumns(), words);
  locate
      ->add_option("PID_OR_ADDRESS", words->targets,
                   "The process (not with --config), then addresses")
      ->type_name("PID");
  AddConfig(locate, PoolFlag::kLocate, words);
  AddFilter(locate, words, kFilterSlots);

  CLI::App* core = AddCommand(app.get(), kCore, SlotColumns(), words);
  AddTable(core, SlotColumns(), words);
  core->add_option_function<std::string>(
          "FILE", [&options](const std::string& s) { options.set_file(s); },
          "The core dump")
      ->required()
      ->type_name("FILE");
  AddFilter(core, words, kFilterSlots);
  AddPool(core, words);
  AddAll(core, words, "Also slots that were never used");

  CLI::App* show = AddCommand(app.get(), kShow, RatedSlotColumns(), words);
  show->add_option_function<std::string>(
          "FILE", [&options](const std::string& s) { options.set_file(s); },
          "The file; - is standard input")
      ->required()
      ->type_name("FILE");
  AddTable(show, RatedSlotColumns(), words);
  AddFilter(show, words, kFilterSlots);
  AddPool(show, words);
  AddAll(show, words, "Also slots that were never used");

  CLI::App* diff = AddCommand(app.get(), kDiff, DiffColumns(), words);
  diff->add_option_function<std::string>(
          "BEFORE", [&options](const std::string& s) { options.set_file(s); },
          "The file of the earlier look; - is standard input")
      ->required()
      ->type_name("FILE");
  diff->add_option_function<std::string>(
          "AFTER",
          [&options](const std::string& s) { options.set_other_file(s); },
          "The file of the later look; - is standard input")
      ->required()
      ->type_name("FILE");
  AddTable(diff, DiffColumns(), words);
  AddFilter(diff, words, kFilterSlots);
  AddPool(diff, words);
  AddAll(diff, words, "Also slots that did not change");

  CLI::App* map = AddCommand(app.get(), kMap, PageRunColumns(), words);
  map->add_option("PID", words->pid, "The process")
      ->required()
      ->type_name("PID");
  map->add_option("SLOT", words->slot, "The slot's number")->required();
  AddPool(map, words);
  AddPictures(map, words);

  CLI::App* image = AddCommand(app.get(), kImage, ImageRunColumns(), words);
  image
      ->add_option_function<std::string>(
          "FILE", [&options](const std::string& s) { options.set_file(s); },
          "The image file")
      ->required()
      ->type_name("FILE");
  AddPictures(image, words);

  return app;
}

}  // namespace firsttouch::pooldump
