// What imagetool does, without its command line and without printing: each
// function gives the message that is printed as text or JSON.
//
// Errors are those of init/image_file.h and init/wasm/wasm_image.h: one line
// that names the file, the value and the rule. Files are written under their
// name when they are whole, or not at all, and never over what is read. Texts
// in messages have no control characters and are UTF-8, whatever files hold.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"

namespace firsttouch::imagetool {

inline constexpr char kVersion[] = "0.1.0";

enum class SourceKind {
  kAuto,  // A module by its first bytes, a list by its ending .textproto.
  kWasm,
  kRaw,
  kSegments,
};

struct BuildOptions {
  SourceKind kind = SourceKind::kAuto;
  // Of a module with several memories: this one only.
  std::optional<uint64_t> memory;
  // Values of imported globals, and pages of imported memories: see
  // WasmImageOptions.
  std::map<std::string, uint64_t> globals;
  std::optional<uint64_t> imported_memory_pages;
  // Build although segments are left out whose offsets are not known.
  bool allow_unresolved = false;
  // Of a raw file: the memory's, zero behind the file. Default: as the file.
  std::optional<uint64_t> size_bytes;
  std::string name;  // Empty: the source's file name, or what the list says.
  std::string comment;
  std::vector<std::string> parents;  // Not empty: a delta of the first.
  bool replace = true;
  int64_t created_unix_seconds = 0;
  ImageProgress progress;
};

// What the commands that open images need.
struct OpenOptions {
  // Files among which parents are looked for, by their content's digest.
  std::vector<std::string> parents;
  ImageProgress progress;
};

// Of a module with several memories, memory N goes to OUT with ".N" in front of
// its ending. FailedPrecondition: a module without memory, or one with segments
// that are left out and that were not allowed.
absl::StatusOr<BuildReport> Build(const std::string& source,
                                  const std::string& out,
                                  const BuildOptions& options);

absl::StatusOr<ImageReport> Info(const std::string& path);
absl::StatusOr<ListReport> List(const std::string& path);
absl::StatusOr<DiffReport> Diff(const std::string& a, const std::string& b,
                                const OpenOptions& options);
// A file that is damaged or not to be read is part of the report.
VerifyReport Verify(const std::vector<std::string>& paths,
                    const OpenOptions& options);
absl::StatusOr<ImageReport> Merge(const std::string& path,
                                  const std::string& out,
                                  const OpenOptions& options, bool replace);
absl::StatusOr<PackReport> Pack(const std::string& path, const std::string& out,
                                const PackOptions& options);
absl::StatusOr<ImageReport> Unpack(const std::string& packed,
                                   const std::string& out,
                                   const UnpackOptions& options);
StatsReport Stats(const std::vector<std::string>& paths,
                  const OpenOptions& options);
// InvalidArgument if one of `outputs` is the file itself.
absl::StatusOr<MapReport> Map(const std::string& path,
                              const std::vector<std::string>& outputs);

// "a/guest.ftimg": "a/guest.ftimg.zst", and back. FailedPrecondition: packed
// does not end in ".zst".
std::string PackedName(const std::string& path);
absl::StatusOr<std::string> UnpackedName(const std::string& packed);

// Where a file is written that the command line names: "-" is standard output.
std::string OutputPath(const std::string& path);

// Whether two paths name the same output: a file, or standard output. Asks the
// file system about links.
bool SameOutput(const std::string& a, const std::string& b);

// Writes a text under a name, whole or not at all; "-" is standard output.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_
