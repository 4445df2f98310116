// Decodes untrusted pictures, each in a memory of its own: the browser's case.
//
// stb_image is compiled to WebAssembly and by wasm2c to C. One instance is made
// and snapshotted; for each file a slot of a small pool becomes that instance,
// decodes, and is clean again for the next. Beside it, in turn: the same
// decoder in this process, and in a process that is forked for each file. See
// README.md.

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/examples/picture.h"
#include "firsttouch/examples/picture_comparison.h"
#include "firsttouch/examples/picture_forks.h"
#include "firsttouch/examples/picture_sandboxes.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/table.h"

namespace firsttouch::examples {
namespace {

constexpr char kName[] = "image_decoder";
constexpr int kExitWrong = 2;
constexpr int kExitFailed = 4;

struct Words {
  std::string folder;
  uint32_t threads = 2;
  uint32_t sandboxes = 4;
  uint32_t rounds = 5;
};

std::unique_ptr<CLI::App> MakeCommandLine(Words& words) {
  std::unique_ptr<CLI::App> app = cli::MakeApp(
      {.name = kName,
       .version = "0.1.0",
       .description =
           "Decodes the PNG and JPEG files of a folder, each in a sandbox of "
           "its own, and compares pixels and pictures per second with the same "
           "decoder in this process and in a process for each file.",
       .examples = "  image_decoder --threads 2 ~/Pictures\n",
       .exit_codes = {{0, "each picture had the same pixels in each way"},
                      {kExitWrong, "one had not"},
                      {kExitFailed,
                       "the folder cannot be read, or a sandbox not be made"}},
       .single = true});
  app->add_option("FOLDER", words.folder, "The folder of pictures")
      ->type_name("DIRECTORY")
      ->required();
  app->add_option("--threads", words.threads, "Threads that decode")
      ->check(CLI::Range(1, 256));
  app->add_option("--sandboxes", words.sandboxes,
                  "Slots of the pool, at least one for each thread")
      ->check(CLI::Range(1, 1024));
  app->add_option("--rounds", words.rounds,
                  "How often the folder is decoded in each way")
      ->check(CLI::Range(1, 1000));
  return app;
}

std::string RatesText(const std::vector<Way>& ways,
                      const std::vector<WayResult>& results) {
  cli::PlainTable table;
  table.titles = {"way",     "right",      "refused",       "wrong",
                  "skipped", "pictures/s", "of unsandboxed"};
  for (size_t i = 0; i < ways.size(); ++i) {
    const WayResult& result = results[i];
    table.rows.push_back(
        {cli::Value::Text(ways[i].name), cli::Value::Count(result.right),
         cli::Value::Count(result.refused), cli::Value::Count(result.wrong),
         cli::Value::Count(result.skipped),
         cli::Value::Rate(result.pictures_per_second),
         cli::Value::Text(absl::StrFormat(
             "%.2f",
             result.pictures_per_second / results[0].pictures_per_second))});
  }
  return cli::TableText(table, {});
}

// What was not decoded, and why.
std::string ErrorsText(const std::vector<Sample>& samples,
                       const std::vector<Way>& ways,
                       const std::vector<WayResult>& results) {
  cli::PlainTable table;
  table.titles = {"file", "way", "error"};
  for (size_t sample = 0; sample < samples.size(); ++sample) {
    for (size_t way = 0; way < ways.size(); ++way) {
      const std::string& error = results[way].errors[sample];
      if (error.empty()) continue;
      table.rows.push_back(
          {cli::Value::Text(cli::Printable(samples[sample].name)),
           cli::Value::Text(ways[way].name),
           cli::Value::Text(cli::Printable(error))});
    }
  }
  return table.rows.empty() ? ""
                            : absl::StrCat("\n", cli::TableText(table, {}));
}

// Whether every picture was right.
absl::StatusOr<bool> Run(const Words& words) {
  const absl::StatusOr<std::vector<Sample>> samples = ReadSamples(words.folder);
  if (!samples.ok()) return samples.status();
  const absl::StatusOr<std::unique_ptr<PictureSandboxes>> sandboxes =
      PictureSandboxes::Create(words.sandboxes);
  if (!sandboxes.ok()) return sandboxes.status();

  const std::vector<Way> ways = {
      {.name = "unsandboxed", .decode = &DecodeHere, .in_this_process = true},
      {.name = "sandboxed",
       .decode =
           [&](PictureFile file, UsePicture use) {
             return (*sandboxes)->Decode(file, use);
           }},
      {.name = "fork per picture", .decode = &DecodeInFork},
  };
  const uint64_t recycled_before = (*sandboxes)->memories_recycled();
  const absl::StatusOr<std::vector<WayResult>> results = Compare(
      *samples, ways, {.threads = words.threads, .rounds = words.rounds});
  if (!results.ok()) return results.status();
  std::cout << samples->size() << " files, " << words.rounds << " rounds, "
            << words.threads << " threads, " << words.sandboxes
            << " sandboxes, of which "
            << (*sandboxes)->memories_recycled() - recycled_before
            << " times one was recycled.\n\n"
            << RatesText(ways, *results)
            << ErrorsText(*samples, ways, *results);
  bool right = true;
  for (const WayResult& result : *results) right &= result.wrong == 0;
  return right;
}

int Main(const std::vector<std::string>& arguments) {
  Words words;
  const std::unique_ptr<CLI::App> app = MakeCommandLine(words);
  if (const std::optional<cli::Ending> ending = cli::Parse(*app, arguments)) {
    return cli::End(kName, *ending);
  }
  if (words.threads > words.sandboxes) {
    return cli::End(
        kName, {.exit_code = cli::kExitUsage,
                .error = absl::StrCat(
                    "--threads ", words.threads, " is more than --sandboxes ",
                    words.sandboxes, ": each thread needs one")});
  }
  const absl::StatusOr<bool> right = Run(words);
  if (!right.ok()) {
    return cli::End(kName, {.exit_code = kExitFailed,
                            .error = absl::StrCat(right.status().message())});
  }
  if (!std::cout.flush()) {
    return cli::End(kName, {.exit_code = cli::kExitCannotPrint,
                            .error = "standard output cannot be written"});
  }
  return *right ? 0 : kExitWrong;
}

}  // namespace
}  // namespace firsttouch::examples

int main(int argc, char** argv) {
  return firsttouch::examples::Main(
      std::vector<std::string>(argv + 1, argv + argc));
}
