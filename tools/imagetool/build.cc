#include "firsttouch/tools/imagetool/build.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/wasm/wasm_image.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/imagetool/opening.h"
#include "firsttouch/tools/imagetool/output_path.h"
#include "firsttouch/tools/imagetool/source_file.h"

namespace firsttouch::imagetool {
namespace {

using cli::Printable;

// A file that a list names.
absl::StatusOr<std::string> ReadNamedFile(const std::string& list,
                                          const std::string& name) {
  const bool absolute = absl::StartsWith(name, "/");
  absl::StatusOr<SourceFile> file =
      SourceFile::Open(absl::StrCat(absolute ? "" : FolderOf(list), name));
  if (!file.ok()) return file.status();
  return file->ReadAll();
}

absl::StatusOr<ImageRef> FromSegments(const std::string& path,
                                      const std::string& text,
                                      const std::string& name) {
  SegmentList list;
  absl::Status parsed = cli::ParseText(path, text, &list, nullptr);
  if (!parsed.ok()) return parsed;
  std::vector<std::string> files;  // Not moved while segments point into it.
  files.reserve(static_cast<size_t>(list.segments_size()));
  std::vector<DataSegment> segments;
  segments.reserve(static_cast<size_t>(list.segments_size()));
  for (const Segment& segment : list.segments()) {
    const std::string* bytes = &segment.data();
    if (segment.source_case() == Segment::kFile) {
      absl::StatusOr<std::string> read = ReadNamedFile(path, segment.file());
      if (!read.ok()) {
        return absl::Status(
            read.status().code(),
            absl::StrCat("'", path, "': segment ", segments.size(), ": ",
                         read.status().message()));
      }
      files.push_back(*std::move(read));
      bytes = &files.back();
    }
    segments.push_back({.offset_bytes = segment.offset_bytes(),
                        .bytes = std::as_bytes(std::span(*bytes))});
  }
  std::string image_name = name.empty() ? list.name() : name;
  if (image_name.empty()) image_name = FileName(path);
  image_name = Printable(image_name);
  return ImageFromSegments(
      {.name = image_name, .size_bytes = list.size_bytes()}, segments);
}

// Piece by piece: of a large file nothing but its pages is kept.
absl::StatusOr<ImageRef> FromRaw(const std::string& path,
                                 const SourceFile& file,
                                 const std::string& name,
                                 const BuildOptions& options, Digest* digest) {
  const uint64_t size = options.size_bytes.value_or(file.bytes());
  if (size < file.bytes()) {
    return absl::OutOfRangeError(absl::StrCat(
        "--size ", size, " is less than the ", file.bytes(), " bytes of '",
        path, "': a memory cannot hold less than its image"));
  }
  constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
  Sha256 sha;
  absl::StatusOr<ImageRef> image = ImageFromWriter(
      {.name = name, .size_bytes = size}, [&](ImagePut put) -> absl::Status {
        std::vector<std::byte> buffer(std::min(kChunkBytes, file.bytes()));
        for (uint64_t done = 0; done < file.bytes();) {
          const std::span<std::byte> chunk = std::span(buffer).first(
              std::min<uint64_t>(buffer.size(), file.bytes() - done));
          absl::Status status = file.Read(done, chunk);
          if (status.ok()) status = put(done, chunk);
          if (!status.ok()) return status;
          sha.Update(chunk);
          done += chunk.size();
          if (options.progress) options.progress(done, file.bytes());
        }
        return absl::OkStatus();
      });
  *digest = sha.Finish();
  return image;
}

absl::StatusOr<SourceKind> KindOf(const std::string& path,
                                  const SourceFile& file, SourceKind asked) {
  if (asked != SourceKind::kAuto) return asked;
  if (absl::EndsWith(path, ".textproto")) return SourceKind::kSegments;
  constexpr char kMagic[4] = {'\0', 'a', 's', 'm'};
  char start[4] = {};
  absl::Status read =
      file.Read(0, std::as_writable_bytes(std::span(start).first(
                       std::min<uint64_t>(sizeof(start), file.bytes()))));
  if (!read.ok()) return read;
  if (absl::EndsWith(path, ".wasm") ||
      std::equal(std::begin(start), std::end(start), std::begin(kMagic))) {
    return SourceKind::kWasm;
  }
  // Any file is an image of bytes, a mistaken one as well.
  return absl::InvalidArgumentError(absl::StrCat(
      "'", path, "' is no WebAssembly module, and does not end in .textproto",
      absl::EndsWith(path, ".wat")
          ? ": make a module of it by wat2wasm"
          : ": say what it is by --from=raw, where its bytes are the memory, "
            "or by --from=segments"));
}

// Several files cannot become one stream.
absl::Status CheckSeveral(const std::string& out) {
  struct stat facts;
  const bool stream = out == OutputPath("-") ||
                      (stat(out.c_str(), &facts) == 0 &&
                       !S_ISREG(facts.st_mode) && !S_ISDIR(facts.st_mode));
  if (!stream) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "'", out,
      "' is no regular file, and the module has several memories, each of "
      "which becomes a file: choose one by --memory=NUMBER"));
}

// What Commit would find when other files have their names already.
absl::Status CheckIsNew(const std::string& path) {
  struct stat facts;
  if (lstat(path.c_str(), &facts) != 0) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("file '", path,
                   "' exists and is not to be replaced; take it away or "
                   "choose another name"));
}

// "dir/guest.ftimg", 2: "dir/guest.2.ftimg".
std::string Numbered(const std::string& path, uint64_t number) {
  const std::string name = FileName(path);
  size_t dot = name.rfind('.');
  if (dot == std::string::npos || dot == 0) dot = name.size();
  return absl::StrCat(FolderOf(path), name.substr(0, dot), ".", number,
                      name.substr(dot));
}

// One image of a source, on its way into a file.
struct Output {
  ImageRef image;
  std::string path;
  std::string source;
  const WasmMemory* memory = nullptr;
  uint64_t index = 0;
};

absl::StatusOr<std::vector<Output>> OutputsOf(const std::string& source,
                                              const std::string& out,
                                              const WasmImages& images,
                                              const BuildOptions& options) {
  const size_t count = images.memories.size();
  if (count == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "'", source, "': the module has no memory, so there is no image"));
  }
  if (options.memory && *options.memory >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--memory ", *options.memory, ": '", source, "' has ", count,
        count == 1 ? " memory" : " memories", ", and they count from 0"));
  }
  if (!images.unresolved.empty() && !options.allow_unresolved) {
    const WasmSegment& first = images.unresolved.front();
    return absl::FailedPreconditionError(absl::StrCat(
        "'", source, "': the offset of data segment ", first.index, " (",
        first.bytes, " bytes) depends on the imported global ", first.needs,
        "; give it by --global=", first.needs,
        "=NUMBER, or leave such segments out by --allow-unresolved"));
  }
  if (count > 1 && !options.memory) {
    absl::Status fits = CheckSeveral(out);
    if (!fits.ok()) return fits;
  }
  std::vector<Output> outputs;
  for (uint64_t i = 0; i < count; ++i) {
    if (options.memory && *options.memory != i) continue;
    const bool several = !options.memory && count > 1;
    outputs.push_back(
        {.image = images.memories[i].image,
         .path = several ? Numbered(out, i) : out,
         .source = absl::StrCat(Printable(FileName(source)), ", memory ", i),
         .memory = &images.memories[i],
         .index = i});
  }
  return outputs;
}

void Describe(const Output& output, BuildReport::Memory* report) {
  const WasmMemory& memory = *output.memory;
  report->set_index(output.index);
  if (memory.import) {
    report->set_import(Printable(
        absl::StrCat(memory.import->module, ".", memory.import->field)));
  }
  report->set_initial_pages(memory.initial_pages);
  report->set_page_bytes(memory.page_bytes);
  report->set_shared(memory.is_shared);
  report->set_is_64(memory.is_64);
  report->set_segments(memory.active_segments);
}

void DescribeLeftOut(const WasmImages& images, BuildReport* report) {
  for (const auto* segments : {&images.passive, &images.unresolved}) {
    for (const WasmSegment& segment : *segments) {
      BuildReport::LeftOut& entry = *report->add_left_out();
      entry.set_index(segment.index);
      entry.set_bytes(segment.bytes);
      entry.set_passive(segments == &images.passive);
      entry.set_offset(Printable(segment.offset));
      entry.set_needs(Printable(segment.needs));
    }
  }
  report->set_has_start(images.start_function.has_value());
}

// What is kept in the file is text in one line.
absl::Status CheckText(const char* option, const std::string& text) {
  if (Printable(text) == text) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(option, " \"", Printable(text),
                   "\" is no line of text in UTF-8: control characters and "
                   "other bytes are not kept"));
}

absl::Status CheckOptions(const BuildOptions& options, SourceKind kind) {
  for (const auto& [option, text] : {std::pair("--name", options.name),
                                     std::pair("--comment", options.comment)}) {
    absl::Status fits = CheckText(option, text);
    if (!fits.ok()) return fits;
  }
  if (options.size_bytes && kind != SourceKind::kRaw) {
    return absl::InvalidArgumentError(
        "--size is for raw files; a module and a list of segments say "
        "themselves how large the memory is");
  }
  const bool for_wasm = options.memory || options.imported_memory_pages ||
                        options.allow_unresolved || !options.globals.empty();
  if (for_wasm && kind != SourceKind::kWasm) {
    return absl::InvalidArgumentError(
        "--memory, --global, --imported-memory-pages and --allow-unresolved "
        "are for WebAssembly modules; --from=wasm says that the source is one");
  }
  return absl::OkStatus();
}

}  // namespace

bool ParseGlobal(const std::string& text,
                 std::map<std::string, uint64_t>* out) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) return false;
  const std::string value = text.substr(equals + 1);
  uint64_t number = 0;
  int64_t negative = 0;
  if (absl::StartsWith(value, "-") && absl::SimpleAtoi(value, &negative)) {
    number = static_cast<uint64_t>(negative);
  } else if (!absl::SimpleAtoi(value, &number) &&
             !(absl::StartsWith(value, "0x") &&
               absl::SimpleHexAtoi(value, &number))) {
    return false;
  }
  (*out)[text.substr(0, equals)] = number;
  return true;
}

absl::StatusOr<int64_t> BuildTime() {
  const char* epoch = std::getenv("SOURCE_DATE_EPOCH");
  if (epoch == nullptr || *epoch == '\0') {
    return static_cast<int64_t>(std::time(nullptr));
  }
  int64_t seconds = 0;
  if (absl::SimpleAtoi(epoch, &seconds)) return seconds;
  return absl::InvalidArgumentError(
      absl::StrCat("SOURCE_DATE_EPOCH=", epoch,
                   " is not a number of seconds; correct it or unset it"));
}

absl::StatusOr<BuildReport> Build(const std::string& source,
                                  const std::string& out,
                                  const BuildOptions& options) {
  absl::StatusOr<SourceFile> file = SourceFile::Open(source);
  if (!file.ok()) return file.status();
  const absl::StatusOr<SourceKind> kind = KindOf(source, *file, options.kind);
  if (!kind.ok()) return kind.status();
  absl::Status fits = CheckOptions(options, *kind);
  if (fits.ok()) fits = CheckOutput(source, out);
  if (!fits.ok()) return fits;
  const std::string name =
      options.name.empty() ? Printable(FileName(source)) : options.name;
  WriteImageFileOptions write;
  write.replace = options.replace;
  write.page_checksums = options.page_checksums;
  write.progress = options.progress;
  if (!options.parents.empty()) {
    absl::StatusOr<ImageRef> parent =
        Open(options.parents.front(), {.parents = options.parents});
    if (!parent.ok()) return parent.status();
    write.parent = *std::move(parent);
  }

  BuildReport report;
  WasmImages images;  // Outputs point into it.
  std::vector<Output> outputs;
  Digest source_digest;
  if (*kind == SourceKind::kRaw) {
    absl::StatusOr<ImageRef> image =
        FromRaw(source, *file, name, options, &source_digest);
    if (!image.ok()) return image.status();
    outputs.push_back({.image = *std::move(image),
                       .path = out,
                       .source = Printable(FileName(source))});
  } else {
    absl::StatusOr<std::string> bytes = file->ReadAll();
    if (!bytes.ok()) return bytes.status();
    source_digest = Sha256Of(*bytes);
    if (*kind == SourceKind::kWasm) {
      absl::StatusOr<WasmImages> read = ImagesFromWasm(
          {.name = name,
           .globals = options.globals,
           .imported_memory_pages = options.imported_memory_pages},
          std::as_bytes(std::span(*bytes)));
      if (!read.ok()) return read.status();
      images = *std::move(read);
      absl::StatusOr<std::vector<Output>> of_memories =
          OutputsOf(source, out, images, options);
      if (!of_memories.ok()) return of_memories.status();
      outputs = *std::move(of_memories);
    } else {
      absl::StatusOr<ImageRef> image =
          FromSegments(source, *bytes, options.name);
      if (!image.ok()) return image.status();
      outputs.push_back({.image = *std::move(image),
                         .path = out,
                         .source = Printable(FileName(source))});
    }
  }

  // All files, or none.
  std::vector<PendingImageFile> files;
  for (const Output& output : outputs) {
    if (!options.replace && outputs.size() > 1) {
      absl::Status is_new = CheckIsNew(output.path);
      if (!is_new.ok()) return is_new;
    }
    write.provenance = {.tool = absl::StrCat("imagetool ", kVersion),
                        .source = output.source,
                        .comment = options.comment,
                        .source_sha256 = source_digest,
                        .created_unix_seconds = options.created_unix_seconds};
    absl::StatusOr<PendingImageFile> pending =
        PrepareImageFile(*output.image, output.path, write);
    if (!pending.ok()) return pending.status();
    files.push_back(*std::move(pending));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Output& output = outputs[i];
    absl::StatusOr<ImageFileInfo> info = std::move(files[i]).Commit();
    if (!info.ok()) return info.status();
    BuildReport::Built& built = *report.add_built();
    *built.mutable_image() = ReportOf(output.path, *info);
    if (output.memory != nullptr) Describe(output, built.mutable_memory());
  }
  DescribeLeftOut(images, &report);
  return report;
}

}  // namespace firsttouch::imagetool
