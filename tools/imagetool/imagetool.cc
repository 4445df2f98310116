// Builds, shows, compares and ships initialization images. See README.md beside
// this file.

#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/tools/cli/bytes.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/json.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/terminal.h"
#include "firsttouch/tools/imagetool/build.h"
#include "firsttouch/tools/imagetool/commands.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/imagetool/map_picture.h"
#include "firsttouch/tools/imagetool/output_path.h"
#include "firsttouch/tools/imagetool/page_map_report.h"
#include "firsttouch/tools/imagetool/text.h"
#include "firsttouch/tools/picture/picture.h"

namespace firsttouch::imagetool {
namespace {

constexpr char kName[] = "imagetool";

// The answer is "no": images differ, a file does not match its digests.
constexpr int kExitNo = 1;
// Something cannot be read, built or written.
constexpr int kExitFailed = 2;

// Of memories and of pages. More than there can be, and less than what CLI11
// makes of a negative number.
constexpr uint64_t kMostNumber = uint64_t{1} << 40;

constexpr char kFormats[] =
    "text: For people. Sizes are rounded; --bytes prints them in full.\n\n"
    "csv: The main table, a line of names first, sizes in bytes. What is not "
    "known is empty.\n\n"
    "json: One message of tools/imagetool/imagetool.proto, in protobuf's JSON: "
    "numbers of 64 bits are strings.";

std::string ColumnLists() {
  std::string text =
      "Names in csv: those of the fields in tools/imagetool/imagetool.proto, "
      "which explains each.";
  for (const auto& [commands, names] : CsvColumns()) {
    absl::StrAppend(&text, "\n\n", commands, ": ", absl::StrJoin(names, ", "),
                    ".");
  }
  return text;
}

// Everything that command lines say.
struct Words {
  cli::CommonOptions common;
  std::string in;
  std::string out;
  std::vector<std::string> files;
  std::string from = "auto";
  std::optional<uint64_t> memory;
  std::vector<std::string> globals;
  std::optional<uint64_t> imported_memory_pages;
  bool allow_unresolved = false;
  std::string size;
  std::string name;
  std::string comment;
  std::vector<std::string> parents;
  bool no_replace = false;
  bool page_checksums = false;
  int level = PackOptions().level;
  std::string max_size;
  std::string svg;
  std::string html;
  int width = 0;
  bool quiet = false;  // Set by Main: a file goes to standard output.
};

int Fail(int exit_code, const std::string& error) {
  // One line, whatever the library says.
  const std::string line = absl::StrReplaceAll(error, {{"\n", " "}});
  return cli::End(kName,
                  {.exit_code = exit_code, .error = cli::Printable(line)});
}

int Fail(const absl::Status& status, int exit_code = kExitFailed) {
  const std::string error(status.message());
  return Fail(exit_code, error);
}

cli::TextStyle StyleOf(const Words& words) {
  return {.color = cli::WantsColor(words.common.color, STDOUT_FILENO),
          .bytes = words.common.bytes};
}

// The picture, for a MapReport.
absl::StatusOr<std::string> TextFor(const MapReport& report,
                                    const Words& words) {
  picture::TerminalOptions options;
  const int width =
      words.width != 0 ? words.width : cli::TerminalColumns(STDOUT_FILENO, 0);
  if (width != 0) options.columns = static_cast<size_t>(width);
  const int lines = cli::TerminalLines(STDOUT_FILENO, 0);
  if (lines != 0) options.lines = static_cast<size_t>(lines);
  options.color = StyleOf(words).color;
  return TerminalPictureOf(report, options, StyleOf(words));
}

template <typename Report>
absl::StatusOr<std::string> TextFor(const Report& report, const Words& words) {
  return TextOf(report, StyleOf(words));
}

// Prints a report in the format that is asked for.
template <typename Report>
int Print(const absl::StatusOr<Report>& report, const Words& words,
          int exit_code = 0) {
  if (!report.ok()) return Fail(report.status());
  // Standard output has the file.
  if (words.quiet) return exit_code;
  const std::string& format = words.common.format;
  const absl::StatusOr<std::string> text =
      format == "json"  ? cli::AsJson(*report)
      : format == "csv" ? CsvOf(*report)
                        : TextFor(*report, words);
  if (!text.ok()) return Fail(text.status());
  return cli::End(kName, {.exit_code = exit_code, .out = *text});
}

int RunBuild(const Words& words) {
  BuildOptions options;
  if (words.from == "wasm") options.kind = SourceKind::kWasm;
  if (words.from == "raw") options.kind = SourceKind::kRaw;
  if (words.from == "segments") options.kind = SourceKind::kSegments;
  options.memory = words.memory;
  for (const std::string& global : words.globals) {
    if (!ParseGlobal(global, &options.globals)) {
      return Fail(cli::kExitUsage,
                  absl::StrCat("--global: ", global,
                               " is not MODULE.FIELD=NUMBER, such as "
                               "env.__memory_base=1024"));
    }
  }
  options.imported_memory_pages = words.imported_memory_pages;
  options.allow_unresolved = words.allow_unresolved;
  if (!words.size.empty()) {
    const absl::StatusOr<uint64_t> size = cli::ParseBytes("--size", words.size);
    if (!size.ok()) {
      return Fail(size.status(), cli::kExitUsage);
    }
    options.size_bytes = *size;
  }
  options.name = words.name;
  options.comment = words.comment;
  options.parents = words.parents;
  options.replace = !words.no_replace;
  options.page_checksums = words.page_checksums;
  const absl::StatusOr<int64_t> time = BuildTime();
  if (!time.ok()) {
    return Fail(time.status(), cli::kExitUsage);
  }
  options.created_unix_seconds = *time;
  absl::StatusOr<BuildReport> report;
  {
    cli::Progress progress(absl::StrCat("build ", words.out));
    options.progress = progress.Callback();
    report = Build(words.in, words.out, options);
  }
  return Print(report, words);
}

// Calls `run` with options for opening images, and shows progress meanwhile.
template <typename Run>
auto WithProgress(const std::string& what, const Words& words, Run run) {
  cli::Progress progress(what);
  return run(
      OpenOptions{.parents = words.parents, .progress = progress.Callback()});
}

int RunDiff(const Words& words) {
  const absl::StatusOr<DiffReport> report =
      WithProgress("diff", words, [&words](const OpenOptions& options) {
        return Diff(words.in, words.out, options);
      });
  const bool differ =
      report.ok() && (report->different_pages() > 0 ||
                      report->a_size_bytes() != report->b_size_bytes());
  return Print(report, words, differ ? kExitNo : 0);
}

int RunVerify(const Words& words) {
  const absl::StatusOr<VerifyReport> report =
      WithProgress("verify", words, [&words](const OpenOptions& options) {
        return Verify(words.files, options);
      });
  bool bad = false;
  for (const VerifyReport::File& file : report->files()) {
    bad |= !file.error().empty();
  }
  return Print(report, words, bad ? kExitNo : 0);
}

int RunMerge(const Words& words) {
  return Print(WithProgress(absl::StrCat("merge ", words.out), words,
                            [&words](const OpenOptions& options) {
                              return Merge(words.in, words.out, options,
                                           !words.no_replace);
                            }),
               words);
}

int RunPack(const Words& words) {
  const std::string out = words.out.empty() ? PackedName(words.in) : words.out;
  return Print(WithProgress(absl::StrCat("pack ", out), words,
                            [&](const OpenOptions& options) {
                              return Pack(words.in, out,
                                          {.level = words.level,
                                           .replace = !words.no_replace,
                                           .progress = options.progress});
                            }),
               words);
}

int RunUnpack(const Words& words) {
  UnpackOptions unpack;
  unpack.replace = !words.no_replace;
  if (!words.max_size.empty()) {
    const absl::StatusOr<uint64_t> size =
        cli::ParseBytes("--max-size", words.max_size);
    if (!size.ok()) {
      return Fail(size.status(), cli::kExitUsage);
    }
    unpack.max_stored_bytes = *size;
  }
  absl::StatusOr<std::string> out = words.out;
  if (out->empty()) out = UnpackedName(words.in);
  if (!out.ok()) return Fail(out.status());
  return Print(WithProgress(absl::StrCat("unpack ", *out), words,
                            [&](const OpenOptions& options) {
                              unpack.progress = options.progress;
                              return Unpack(words.in, *out, unpack);
                            }),
               words);
}

int RunStats(const Words& words) {
  const absl::StatusOr<StatsReport> report =
      WithProgress("stats", words, [&words](const OpenOptions& options) {
        return Stats(words.files, options);
      });
  const int bad = report->failures_size();
  const int exit_code = Print(report, words, bad > 0 ? kExitFailed : 0);
  if (bad == 0 || exit_code != kExitFailed) return exit_code;
  return Fail(
      kExitFailed,
      absl::StrCat(
          bad, " of ", words.files.size(),
          " files cannot be read, and are not counted: ",
          report->failures(0).error(),
          bad > 1 ? absl::StrCat("; and ", bad - 1, " more, as above") : ""));
}

int RunMap(const Words& words) {
  if (words.common.format != "text" &&
      (words.svg == "-" || words.html == "-")) {
    return Fail(cli::kExitUsage,
                absl::StrCat("--format=", words.common.format,
                             " and a picture cannot both go to standard "
                             "output: name a file for the picture"));
  }
  if (!words.svg.empty() && SameOutput(words.svg, words.html)) {
    return Fail(cli::kExitUsage, absl::StrCat("--svg and --html both name ",
                                              words.svg, "; name two files"));
  }
  absl::StatusOr<MapReport> report = Map(words.in, {words.svg, words.html});
  if (!report.ok()) return Fail(report.status());
  if (!words.svg.empty()) {
    absl::StatusOr<std::string> svg = SvgOf(*report, StyleOf(words));
    if (!svg.ok()) return Fail(svg.status());
    const absl::Status written = WriteTextFile(words.svg, *svg);
    if (!written.ok()) return Fail(written);
    report->set_svg(cli::Printable(words.svg));
  }
  if (!words.html.empty()) {
    absl::StatusOr<std::string> html = HtmlOf(*report, StyleOf(words));
    if (!html.ok()) return Fail(html.status());
    const absl::Status written = WriteTextFile(words.html, *html);
    if (!written.ok()) return Fail(written);
    report->set_html(cli::Printable(words.html));
  }
  // Who asked for files wants no picture beside them.
  const bool files = !words.svg.empty() || !words.html.empty();
  return files && words.common.format == "text" ? 0 : Print(report, words);
}

using Run = std::function<int(const Words&)>;

void AddRequiredFile(CLI::App* command, const char* name, std::string* path,
                     const char* what) {
  command->add_option(name, *path, what)->required()->type_name("FILE");
}

void AddParents(CLI::App* command, Words* words, const char* what) {
  command->add_option("--parent", words->parents, what)
      ->type_name("FILE")
      ->expected(1)
      ->take_all();
}

void AddNoReplace(CLI::App* command, Words* words) {
  command->add_flag("--no-replace", words->no_replace,
                    "Fail if the file to write exists");
}

constexpr char kWritten[] = "The image file to write; - is standard output";
constexpr char kParentOfDelta[] =
    "Where the parent of a delta may be; may be given several times";

void AddBuild(CLI::App* command, Words* words) {
  AddRequiredFile(command, "SOURCE", &words->in, "What to make an image of");
  AddRequiredFile(command, "OUT", &words->out, kWritten);
  command
      ->add_option("--from", words->from,
                   "What SOURCE is: a WebAssembly module, the bytes "
                   "themselves, or a list of segments (SegmentList of "
                   "imagetool.proto, in text format). auto knows modules by "
                   "their first bytes or .wasm, and lists by .textproto")
      ->check(CLI::IsMember({"auto", "wasm", "raw", "segments"}));
  command
      ->add_option("--memory", words->memory,
                   "Of a module with several memories this one only")
      ->check(CLI::Range(kMostNumber))
      ->type_name("NUMBER");
  command
      ->add_option("--global", words->globals,
                   "Value of a global that the module imports, which offsets "
                   "of its segments need; may be given several times")
      ->type_name("MODULE.FIELD=NUMBER")
      ->expected(1)
      ->take_all();
  command
      ->add_option("--imported-memory-pages", words->imported_memory_pages,
                   "Size of memories that the module imports; otherwise the "
                   "least that it asks for")
      ->check(CLI::Range(kMostNumber))
      ->type_name("NUMBER");
  command->add_flag("--allow-unresolved", words->allow_unresolved,
                    "Leave segments out whose offset needs a global that has "
                    "no value");
  command
      ->add_option("--size", words->size,
                   "Size of a raw file's memory, as 16MiB; otherwise the "
                   "file's")
      ->type_name("SIZE");
  command
      ->add_option("--name", words->name,
                   "Name of the image; otherwise the source's")
      ->type_name("TEXT");
  command->add_option("--comment", words->comment, "To be kept in the file")
      ->type_name("TEXT");
  command->add_flag("--page-checksums", words->page_checksums,
                    "Give each stored page a checksum, for a server that "
                    "serves the image page by page (firsttouchd)");
  AddParents(command, words,
             "Make a delta of this image. If that is a delta, too, give its "
             "parents after it");
  AddNoReplace(command, words);
}

void AddFile(CLI::App* command, Words* words) {
  AddRequiredFile(command, "FILE", &words->in, "The image file");
}

void AddFiles(CLI::App* command, Words* words) {
  command->add_option("FILE", words->files, "The image files")
      ->required()
      ->type_name("FILE");
  AddParents(command, words, kParentOfDelta);
}

void AddDiff(CLI::App* command, Words* words) {
  AddRequiredFile(command, "A", &words->in, "An image file");
  AddRequiredFile(command, "B", &words->out, "Another");
  AddParents(command, words, kParentOfDelta);
}

void AddMerge(CLI::App* command, Words* words) {
  AddRequiredFile(command, "DELTA", &words->in, "The delta");
  AddRequiredFile(command, "OUT", &words->out, kWritten);
  AddParents(command, words, kParentOfDelta);
  AddNoReplace(command, words);
}

void AddPack(CLI::App* command, Words* words) {
  AddFile(command, words);
  command
      ->add_option(
          "OUT", words->out,
          "The file to write, - for standard output; otherwise FILE.zst")
      ->type_name("FILE");
  command->add_option("--level", words->level, "Of zstd, 1 to 19")
      ->check(CLI::Range(1, 19))
      ->type_name("NUMBER");
  AddNoReplace(command, words);
}

void AddUnpack(CLI::App* command, Words* words) {
  AddRequiredFile(command, "PACKED", &words->in, "The packed file");
  command
      ->add_option("OUT", words->out,
                   "The file to write, - for standard output; otherwise PACKED "
                   "without .zst")
      ->type_name("FILE");
  command
      ->add_option("--max-size", words->max_size,
                   "The most that stored pages may take, against small files "
                   "that unpack to a full disk; 4GiB if not given")
      ->type_name("SIZE");
  AddNoReplace(command, words);
}

void AddMap(CLI::App* command, Words* words) {
  AddFile(command, words);
  command
      ->add_option("--svg", words->svg,
                   "Write the picture to this file; - is standard output")
      ->type_name("FILE");
  command
      ->add_option("--html", words->html,
                   "Write it to this file, as a page that needs no other one; "
                   "there the pointer tells page and state. - is standard "
                   "output")
      ->type_name("FILE");
  command
      ->add_option("--width", words->width,
                   "Columns of the picture; otherwise what the terminal has")
      ->check(CLI::Range(20, 1000))
      ->type_name("NUMBER");
}

struct Entry {
  cli::Command command;
  void (*add)(CLI::App*, Words*);
  Run run;
};

std::vector<Entry> Entries() {
  return {
      {{"build",
        "Makes an image file. Of a module with several memories it makes one "
        "for each: OUT with .0, .1 and so on in front of its ending.",
        "  imagetool build guest.wasm guest.ftimg\n"
        "  imagetool build heap.bin heap.ftimg --from=raw --size=16MiB\n"
        "  imagetool build segments.textproto guest.ftimg\n"
        "  imagetool build v2.wasm v2.ftimg --parent=v1.ftimg\n"},
       AddBuild,
       RunBuild},
      {{"info",
        "Says what an image file holds, and where it came from. Reads header "
        "and manifest only.",
        "  imagetool info guest.ftimg\n"
        "  imagetool info guest.ftimg --format=json\n"},
       AddFile,
       [](const Words& words) { return Print(Info(words.in), words); }},
      {{"ls",
        "Lists the extents of an image file. An extent is a run of stored "
        "pages with a digest of its own.",
        "  imagetool ls guest.ftimg\n"},
       AddFile,
       [](const Words& words) { return Print(List(words.in), words); }},
      {{"diff",
        "Compares what two images hold, page by page. Exit code 1: they "
        "differ.",
        "  imagetool diff old.ftimg new.ftimg\n"
        "  imagetool diff base.ftimg delta.ftimg --parent=base.ftimg\n"},
       AddDiff,
       RunDiff},
      {{"verify",
        "Checks files against all their digests. Exit code 1: one does not "
        "match, or cannot be read.",
        "  imagetool verify *.ftimg\n"},
       AddFiles,
       RunVerify},
      {{"merge", "Joins a delta and its parents into a file that needs none.",
        "  imagetool merge delta.ftimg whole.ftimg --parent=base.ftimg\n"},
       AddMerge,
       RunMerge},
      {{"pack", "Compresses an image file for shipping. Uses zstd.",
        "  imagetool pack guest.ftimg\n"
        "  imagetool pack guest.ftimg /tmp/guest.zst --level=19\n"},
       AddPack,
       RunPack},
      {{"unpack",
        "Makes an image file of a packed one. All its digests are checked.",
        "  imagetool unpack guest.ftimg.zst\n"},
       AddUnpack,
       RunUnpack},
      {{"stats",
        "Counts pages that are zero, shared and unique over many images.",
        "  imagetool stats *.ftimg\n"},
       AddFiles,
       RunStats},
      {{"map", "Shows which pages are stored, read and written, as a picture.",
        "  imagetool map guest.ftimg\n"
        "  imagetool map guest.ftimg --svg=guest.svg --html=guest.html\n"},
       AddMap,
       RunMap},
  };
}

int Main(const std::vector<std::string>& arguments) {
  const std::unique_ptr<CLI::App> app = cli::MakeApp(
      {.name = kName,
       .version = kVersion,
       .description = "Builds, shows, compares and ships initialization images "
                      "of firsttouch.",
       .examples = "  imagetool build guest.wasm guest.ftimg\n"
                   "  imagetool info guest.ftimg\n"
                   "  imagetool map guest.ftimg --svg=guest.svg\n",
       .exit_codes = {{0, "all is well"},
                      {kExitNo,
                       "diff: the images differ; verify: a file is damaged, or "
                       "cannot be read"},
                      {kExitFailed,
                       "something cannot be read, built or written; nothing "
                       "is left half-written. stats: a file cannot be read, "
                       "the others are counted"}},
       .manual = {{"FORMATS", kFormats}, {"COLUMNS", ColumnLists()}},
       .environment = {{"SOURCE_DATE_EPOCH",
                        "When an image is made, in seconds since 1970, instead "
                        "of now: a build can be repeated to the byte"}}});
  Words words;
  std::vector<std::pair<const CLI::App*, Run>> runs;
  for (const Entry& entry : Entries()) {
    CLI::App* command = cli::AddCommand(app.get(), entry.command);
    entry.add(command, &words);
    cli::AddCommonOptions(command, &words.common, {"text", "json", "csv"});
    runs.emplace_back(command, entry.run);
  }
  if (const auto ending = cli::Parse(*app, arguments)) {
    return cli::End(kName, *ending);
  }
  words.quiet = words.svg == "-" || words.html == "-";
  for (const auto& [command, run] : runs) {
    if (!command->parsed()) continue;
    const std::string name = command->get_name();
    if (words.out == "-" && name != "diff") {
      words.out = OutputPath(words.out);
      words.quiet = true;
    }
    return run(words);
  }
  return cli::kExitUsage;
}

}  // namespace
}  // namespace firsttouch::imagetool

int main(int argc, char** argv) {
  // A file that may not grow is an error that is told, and nothing is left.
  std::signal(SIGXFSZ, SIG_IGN);
  return firsttouch::imagetool::Main(
      std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
