// `imagetool build`: images of modules, of files of bytes, and of lists of
// segments.
//
// commands.h has what is true of all commands. Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_BUILD_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_BUILD_H_

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
  bool page_checksums = false;  // See WriteImageFileOptions.
  int64_t created_unix_seconds = 0;
  ImageProgress progress;
};

// "NAME=NUMBER", a number as C writes it: 1024, -8, 0x400. False: it is not.
bool ParseGlobal(const std::string& text, std::map<std::string, uint64_t>* out);

// Now, unless the environment says when (reproducible-builds.org).
absl::StatusOr<int64_t> BuildTime();

// Of a module with several memories, memory N goes to OUT with ".N" in front of
// its ending. FailedPrecondition: a module without memory, or one with segments
// that are left out and that were not allowed.
absl::StatusOr<BuildReport> Build(const std::string& source,
                                  const std::string& out,
                                  const BuildOptions& options);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_BUILD_H_
