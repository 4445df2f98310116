#include "firsttouch/tools/imagetool/opening.h"

#include <sys/stat.h>

#include <bit>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::imagetool {
namespace {

using cli::Printable;

uint64_t CountBits(const WorkingSet::Words& words) {
  uint64_t bits = 0;
  for (const uint64_t word : words) {
    bits += static_cast<uint64_t>(std::popcount(word));
  }
  return bits;
}

}  // namespace

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

uint64_t PagesOf(uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes;
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
  report.set_page_checksums(!info.page_checksums.empty());
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

}  // namespace firsttouch::imagetool
