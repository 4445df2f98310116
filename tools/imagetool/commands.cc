#include "firsttouch/tools/imagetool/commands.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file_io.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/wasm/wasm_image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::imagetool {
namespace {

// Whatever a report has of others is fit for a terminal and for JSON: a file's
// name may be any bytes.
using cli::Printable;

// Of a module, a list, or a file that a list names: what is read at once.
constexpr uint64_t kMaxSourceBytes = uint64_t{4} << 30;

// What is behind the last slash.
std::string FileName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

// With the slash; empty: the working directory.
std::string FolderOf(const std::string& path) {
  return path.substr(0, path.size() - FileName(path).size());
}

// Whoever mistypes a name must not lose what is read.
absl::Status CheckOutput(const std::string& in, const std::string& out) {
  struct stat stat_of_in, stat_of_out;
  if (stat(in.c_str(), &stat_of_in) != 0 ||
      stat(out.c_str(), &stat_of_out) != 0 ||
      stat_of_in.st_dev != stat_of_out.st_dev ||
      stat_of_in.st_ino != stat_of_out.st_ino) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", out, "' is the file that is read, '", in,
                   "': name another one to write"));
}

// A regular file that is read from its start. Cut short while it is read, it is
// an error, not a crash.
class SourceFile {
 public:
  static absl::StatusOr<SourceFile> Open(const std::string& path) {
    absl::StatusOr<std::shared_ptr<const int>> fd =
        OpenRegularFile(path, absl::StrCat("'", path, "': "));
    if (!fd.ok()) return fd.status();
    struct stat stat_of;
    if (fstat(**fd, &stat_of) != 0) return absl::ErrnoToStatus(errno, path);
    return SourceFile(path, *std::move(fd),
                      static_cast<uint64_t>(stat_of.st_size));
  }

  uint64_t bytes() const { return bytes_; }

  // Bytes of the file from an offset.
  absl::Status Read(uint64_t offset, std::span<std::byte> into) const {
    while (!into.empty()) {
      const ssize_t got =
          pread(*fd_, into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, path_);
      if (got == 0) {
        return absl::DataLossError(absl::StrCat(
            "'", path_, "' ends at ", offset, " and had ", bytes_,
            " bytes: somebody cuts it short meanwhile; run this again"));
      }
      offset += static_cast<uint64_t>(got);
      into = into.subspan(static_cast<size_t>(got));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> ReadAll() const {
    if (bytes_ > kMaxSourceBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("'", path_, "' has ", bytes_, " bytes; at most ",
                       kMaxSourceBytes, " are read of a file of this kind"));
    }
    std::string text(bytes_, '\0');
    absl::Status read = Read(0, std::as_writable_bytes(std::span(text)));
    if (!read.ok()) return read;
    return text;
  }

 private:
  SourceFile(std::string path, std::shared_ptr<const int> fd, uint64_t bytes)
      : path_(std::move(path)), fd_(std::move(fd)), bytes_(bytes) {}

  std::string path_;
  std::shared_ptr<const int> fd_;
  uint64_t bytes_;
};

uint64_t CountBits(const WorkingSet::Words& words) {
  uint64_t bits = 0;
  for (const uint64_t word : words) {
    bits += static_cast<uint64_t>(std::popcount(word));
  }
  return bits;
}

uint64_t PagesOf(uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes;
}

void SetRange(const PageRun& run, PageRange* range) {
  range->set_first_page(run.first.value());
  range->set_pages(run.length.value());
}

ImageReport ReportOf(const std::string& path, const ImageFileInfo& info) {
  ImageReport report;
  report.set_path(Printable(path));
  report.set_version(info.version);
  report.set_file_bytes(info.file_bytes);
  report.set_disk_bytes(info.disk_bytes);
  report.set_manifest_offset(info.manifest_offset);
  report.set_manifest_bytes(info.manifest_bytes);
  report.set_data_offset(info.data_offset);
  report.set_name(Printable(info.name));
  report.set_size_bytes(info.size_bytes);
  report.set_pages(PagesOf(info.size_bytes));
  report.set_stored_pages(info.stored_pages);
  report.set_extents(info.extents.size());
  uint64_t zeroed = 0;
  for (const PageRun& run : info.zeroed) zeroed += run.length.value();
  report.set_zeroed_pages(zeroed);
  report.set_content(info.content.ToHex());
  if (info.parent) report.set_parent(info.parent->ToHex());
  report.set_written_pages(CountBits(info.written));
  report.set_read_pages(CountBits(info.read));
  report.set_tool(Printable(info.provenance.tool));
  report.set_source(Printable(info.provenance.source));
  report.set_comment(Printable(info.provenance.comment));
  if (info.provenance.source_sha256) {
    report.set_source_sha256(info.provenance.source_sha256->ToHex());
  }
  report.set_created_unix_seconds(info.provenance.created_unix_seconds);
  return report;
}

// Copied and verified: a file that somebody changes meanwhile is an error, not
// a crash or a wrong answer.
OpenImageOptions ForOpening(const OpenOptions& options) {
  OpenImageOptions result;
  result.backing = OpenImageOptions::Backing::kCopied;
  result.verify = OpenImageOptions::Verify::kAll;
  result.progress = options.progress;
  if (options.parents.empty()) return result;
  result.find_parent =
      [parents = options.parents](
          const Digest& content) -> absl::StatusOr<std::string> {
    for (const std::string& path : parents) {
      absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
      if (!info.ok()) return info.status();
      if (info->content == content) return path;
    }
    return absl::NotFoundError(
        absl::StrCat("no file of --parent has the content ", content.ToHex(),
                     "; imagetool info shows a file's"));
  };
  return result;
}

absl::Status WithWayOut(absl::Status status, const OpenOptions& options) {
  if (!absl::IsFailedPrecondition(status) || !options.parents.empty()) {
    return status;
  }
  return absl::FailedPreconditionError(
      absl::StrCat(status.message(), "; name it by --parent=FILE"));
}

absl::StatusOr<ImageRef> Open(const std::string& path,
                              const OpenOptions& options) {
  absl::StatusOr<ImageRef> image = OpenImageFile(path, ForOpening(options));
  if (!image.ok()) return WithWayOut(image.status(), options);
  return image;
}

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

uint64_t DifferentBytes(const std::byte* a, const std::byte* b) {
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < kPageBytes; ++i) bytes += a[i] != b[i] ? 1 : 0;
  return bytes;
}

// Calls `page` for every page that either image stores, ascending.
template <typename Function>
void EachStoredPage(const Image& a, const Image& b, Function page) {
  const uint64_t words =
      std::max(a.stored().word_count(), b.stored().word_count());
  for (uint64_t i = 0; i < words; ++i) {
    uint64_t word = a.stored().Word(i) | b.stored().Word(i);
    for (; word != 0; word &= word - 1) {
      page(PageIndex(i * 64 + static_cast<uint64_t>(std::countr_zero(word))));
    }
  }
}

// Adds a run's pages to a set.
void Insert(const PageRun& run, WorkingSet::Words* words) {
  const uint64_t end = run.end().value();
  if (words->size() * 64 < end) words->resize((end + 63) / 64);
  for (uint64_t page = run.first.value(); page < end; ++page) {
    (*words)[page / 64] |= uint64_t{1} << (page % 64);
  }
}

uint64_t WordAt(const WorkingSet::Words& words, uint64_t index) {
  return index < words.size() ? words[index] : 0;
}

// Where the last page of a set ends.
uint64_t EndOf(const WorkingSet::Words& words) {
  for (size_t i = words.size(); i > 0; --i) {
    if (words[i - 1] == 0) continue;
    return i * 64 - static_cast<uint64_t>(std::countl_zero(words[i - 1]));
  }
  return 0;
}

void AppendRun(uint64_t first, uint64_t pages, MapReport::State state,
               MapReport* report) {
  if (report->runs_size() > 0) {
    MapReport::Run& last = *report->mutable_runs()->rbegin();
    if (last.state() == state) {
      last.mutable_range()->set_pages(last.range().pages() + pages);
      return;
    }
  }
  MapReport::Run& run = *report->add_runs();
  run.mutable_range()->set_first_page(first);
  run.mutable_range()->set_pages(pages);
  run.set_state(state);
}

}  // namespace

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

absl::StatusOr<ImageReport> Info(const std::string& path) {
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  return ReportOf(path, *info);
}

absl::StatusOr<ListReport> List(const std::string& path) {
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  ListReport report;
  for (const ImageExtent& extent : info->extents) {
    ListReport::Extent& entry = *report.add_extents();
    SetRange(extent.pages, entry.mutable_range());
    entry.set_file_offset(info->data_offset +
                          extent.pages.first.value() * kPageBytes);
    entry.set_sha256(extent.digest.ToHex());
  }
  for (const PageRun& run : info->zeroed) SetRange(run, report.add_zeroed());
  return report;
}

absl::StatusOr<DiffReport> Diff(const std::string& a, const std::string& b,
                                const OpenOptions& options) {
  absl::StatusOr<ImageRef> image_a = Open(a, options);
  if (!image_a.ok()) return image_a.status();
  absl::StatusOr<ImageRef> image_b = Open(b, options);
  if (!image_b.ok()) return image_b.status();
  DiffReport report;
  report.set_a(Printable(a));
  report.set_b(Printable(b));
  report.set_a_size_bytes((*image_a)->size_bytes());
  report.set_b_size_bytes((*image_b)->size_bytes());
  uint64_t equal = 0, different = 0;
  EachStoredPage(**image_a, **image_b, [&](PageIndex page) {
    const uint64_t bytes = DifferentBytes((*image_a)->PageBytes(page),
                                          (*image_b)->PageBytes(page));
    if (bytes == 0) {
      ++equal;
      return;
    }
    ++different;
    const DiffReport::Kind kind =
        !(*image_b)->IsStored(page)   ? DiffReport::ONLY_A
        : !(*image_a)->IsStored(page) ? DiffReport::ONLY_B
                                      : DiffReport::CHANGED;
    if (report.ranges_size() > 0) {
      DiffReport::Range& last = *report.mutable_ranges()->rbegin();
      PageRange& range = *last.mutable_range();
      if (last.kind() == kind &&
          range.first_page() + range.pages() == page.value()) {
        range.set_pages(range.pages() + 1);
        last.set_bytes(last.bytes() + bytes);
        return;
      }
    }
    DiffReport::Range& entry = *report.add_ranges();
    entry.mutable_range()->set_first_page(page.value());
    entry.mutable_range()->set_pages(1);
    entry.set_kind(kind);
    entry.set_bytes(bytes);
  });
  report.set_equal_pages(equal);
  report.set_different_pages(different);
  return report;
}

VerifyReport Verify(const std::vector<std::string>& paths,
                    const OpenOptions& options) {
  VerifyReport report;
  for (const std::string& path : paths) {
    VerifyReport::File& file = *report.add_files();
    file.set_path(Printable(path));
    absl::StatusOr<ImageFileInfo> info =
        VerifyImageFile(path, ForOpening(options));
    if (!info.ok()) {
      const std::string error(info.status().message());
      file.set_error(Printable(error));
      continue;
    }
    file.set_stored_pages(info->stored_pages);
    file.set_without_parent(info->parent && options.parents.empty());
  }
  return report;
}

absl::StatusOr<ImageReport> Merge(const std::string& path,
                                  const std::string& out,
                                  const OpenOptions& options, bool replace) {
  absl::Status fits = CheckOutput(path, out);
  if (!fits.ok()) return fits;
  absl::StatusOr<ImageFileInfo> info =
      MergeImageFile(path, out, ForOpening(options), replace);
  if (!info.ok()) return WithWayOut(info.status(), options);
  return ReportOf(out, *info);
}

absl::StatusOr<PackReport> Pack(const std::string& path, const std::string& out,
                                const PackOptions& options) {
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  absl::Status packed = CheckOutput(path, out);
  if (packed.ok()) packed = PackImageFile(path, out, options);
  if (!packed.ok()) return packed;
  struct stat stat_of;
  if (stat(out.c_str(), &stat_of) != 0) return absl::ErrnoToStatus(errno, out);
  PackReport report;
  report.set_path(Printable(out));
  report.set_stored_bytes(info->stored_pages * kPageBytes);
  if (S_ISREG(stat_of.st_mode)) {
    report.set_packed_bytes(static_cast<uint64_t>(stat_of.st_size));
  }
  return report;
}

absl::StatusOr<ImageReport> Unpack(const std::string& packed,
                                   const std::string& out,
                                   const UnpackOptions& options) {
  absl::Status fits = CheckOutput(packed, out);
  if (!fits.ok()) return fits;
  absl::StatusOr<ImageFileInfo> info = UnpackImageFile(packed, out, options);
  if (!info.ok()) {
    // The option is called otherwise on a command line.
    return absl::Status(
        info.status().code(),
        absl::StrReplaceAll(
            info.status().message(),
            {{" (max_stored_bytes)", "; raise --max-size if you trust it"}}));
  }
  return ReportOf(out, *info);
}

StatsReport Stats(const std::vector<std::string>& paths,
                  const OpenOptions& options) {
  // Which image has a page of these contents; kMany: several of them.
  constexpr size_t kMany = ~size_t{0};
  absl::flat_hash_map<Digest, size_t> holders;
  std::vector<std::vector<Digest>> pages(paths.size());
  std::vector<size_t> number;  // In `paths`, of each image of the report.
  StatsReport report;
  uint64_t all = 0, stored = 0, zero = 0;
  for (size_t i = 0; i < paths.size(); ++i) {
    absl::StatusOr<ImageRef> image = Open(paths[i], options);
    if (!image.ok()) {
      StatsReport::Failure& failure = *report.add_failures();
      failure.set_path(Printable(paths[i]));
      failure.set_error(Printable(absl::StrCat(image.status().message())));
      continue;
    }
    EachStoredPage(**image, **image, [&](PageIndex page) {
      const Digest digest = Sha256Of(
          std::span<const std::byte>((*image)->PageBytes(page), kPageBytes));
      const auto [holder, is_new] = holders.emplace(digest, i);
      if (!is_new && holder->second != i) holder->second = kMany;
      pages[i].push_back(digest);
    });
    number.push_back(i);
    StatsReport::Image& entry = *report.add_images();
    entry.set_path(Printable(paths[i]));
    entry.set_pages((*image)->pages().value());
    entry.set_zero_pages(entry.pages() - pages[i].size());
    all += entry.pages();
    stored += pages[i].size();
    zero += entry.zero_pages();
  }
  for (int entered = 0; entered < report.images_size(); ++entered) {
    StatsReport::Image& entry = *report.mutable_images(entered);
    const std::vector<Digest>& digests =
        pages[number[static_cast<size_t>(entered)]];
    uint64_t shared = 0;
    for (const Digest& digest : digests) {
      shared += holders[digest] == kMany ? 1 : 0;
    }
    entry.set_shared_pages(shared);
    entry.set_unique_pages(digests.size() - shared);
  }
  report.set_pages(all);
  report.set_zero_pages(zero);
  report.set_stored_pages(stored);
  report.set_distinct_pages(holders.size());
  return report;
}

absl::StatusOr<MapReport> Map(const std::string& path,
                              const std::vector<std::string>& outputs) {
  for (const std::string& out : outputs) {
    absl::Status fits = CheckOutput(path, out);
    if (!fits.ok()) return fits;
  }
  absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path);
  if (!info.ok()) return info.status();
  MapReport report;
  report.set_path(Printable(path));
  report.set_name(Printable(info->name));
  report.set_pages(PagesOf(info->size_bytes));
  report.set_is_delta(info->parent.has_value());
  WorkingSet::Words stored, zeroed;
  for (const ImageExtent& extent : info->extents) {
    Insert(extent.pages, &stored);
  }
  for (const PageRun& run : info->zeroed) Insert(run, &zeroed);

  const uint64_t end =
      std::max({report.pages(), EndOf(info->written), EndOf(info->read)});
  for (uint64_t page = 0; page < end;) {
    const uint64_t stored_word = WordAt(stored, page / 64);
    const uint64_t zeroed_word = WordAt(zeroed, page / 64);
    const uint64_t written_word = WordAt(info->written, page / 64);
    const uint64_t read_word = WordAt(info->read, page / 64);
    // A memory of 1 TiB is mostly nothing.
    if (page % 64 == 0 && end - page >= 64 &&
        (stored_word | zeroed_word | written_word | read_word) == 0) {
      AppendRun(page, 64, MapReport::ABSENT, &report);
      page += 64;
      continue;
    }
    const auto has = [page](uint64_t word) {
      return ((word >> (page % 64)) & 1) != 0;
    };
    const bool is_stored = has(stored_word);
    const MapReport::State state =
        has(written_word) ? (is_stored ? MapReport::STORED_WRITTEN
                                       : MapReport::ABSENT_WRITTEN)
        : has(read_word)
            ? (is_stored ? MapReport::STORED_READ : MapReport::ABSENT_READ)
        : is_stored        ? MapReport::STORED
        : has(zeroed_word) ? MapReport::ZEROED
                           : MapReport::ABSENT;
    AppendRun(page, 1, state, &report);
    ++page;
  }
  return report;
}

std::string PackedName(const std::string& path) {
  return absl::StrCat(path, ".zst");
}

absl::StatusOr<std::string> UnpackedName(const std::string& packed) {
  if (!absl::EndsWith(packed, ".zst")) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", packed,
                     "' does not end in .zst: name the file that "
                     "it is to become as a second argument"));
  }
  return packed.substr(0, packed.size() - 4);
}

std::string OutputPath(const std::string& path) {
  return path == "-" ? "/dev/stdout" : path;
}

bool SameOutput(const std::string& a, const std::string& b) {
  // Where links lead; the file need not be there.
  const auto place = [](const std::string& path) {
    std::error_code unused;
    return std::filesystem::weakly_canonical(
        std::filesystem::absolute(OutputPath(path), unused), unused);
  };
  if (a.empty() || b.empty()) return false;
  // What cannot be resolved is nowhere.
  return a == b || (!place(a).empty() && place(a) == place(b));
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(OutputPath(path));
  if (!file.ok()) return file.status();
  for (size_t done = 0; done < text.size();) {
    const ssize_t wrote =
        write(file->fd(), text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return absl::ErrnoToStatus(errno, path);
    done += static_cast<size_t>(wrote);
  }
  return file->Commit(/*replace=*/true);
}

}  // namespace firsttouch::imagetool
