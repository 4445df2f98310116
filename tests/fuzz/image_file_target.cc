#include "tests/fuzz/image_file_target.h"

#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Larger memories are decoded, but no file is made for them.
constexpr uint64_t kMaxFileBytes = uint64_t{16} << 20;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "image_file_target: %s\n", what);
  std::abort();
}

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// A header that fits this manifest, whatever is in it.
ImageHeader HeaderOf(std::string_view manifest) {
  ImageManifest parsed;
  uint64_t size_bytes = 0;
  if (parsed.ParseFromArray(manifest.data(),
                            static_cast<int>(manifest.size()))) {
    size_bytes = std::min(parsed.size_bytes(), kMaxImageBytes);
  }
  return HeaderFor(manifest, size_bytes);
}

void ReadManifest(std::string_view manifest) {
  const absl::StatusOr<ImageFileInfo> info =
      DecodeManifest(HeaderOf(manifest), Bytes(manifest));
  if (!info.ok()) {
    Check(!info.status().message().empty(), "an error without a text");
    return;
  }
  Check(CheckWritable(*info).ok(), "what was read may not be written");
  const std::string again = EncodeManifest(*info);
  const absl::StatusOr<ImageFileInfo> second =
      DecodeManifest(HeaderFor(again, info->size_bytes), Bytes(again));
  Check(second.ok(), "what was written cannot be read");
  Check(EncodeManifest(*second) == again, "a second reading reads otherwise");
  Check(second->content == info->content && second->extents == info->extents,
        "a second reading reads other contents");
}

// A file without a name, under the one that it has all the same.
class FileOf {
 public:
  explicit FileOf(std::string_view bytes)
      : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    Check(fd_ >= 0 && write(fd_, bytes.data(), bytes.size()) ==
                          static_cast<ssize_t>(bytes.size()),
          "no memfd");
  }
  ~FileOf() { close(fd_); }
  FileOf(const FileOf&) = delete;
  FileOf& operator=(const FileOf&) = delete;

  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  int fd_;
};

void ReadFile(std::string_view bytes) {
  const FileOf file(bytes);
  const absl::StatusOr<ImageRef> mapped = OpenImageFile(file.path());
  const absl::StatusOr<ImageFileInfo> verified = VerifyImageFile(file.path());
  if (!mapped.ok()) return;
  uint64_t sum = 0;
  const PageMap& stored = (*mapped)->stored();
  for (auto run = stored.NextRun(PageIndex(0)); run.has_value();
       run = stored.NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) {
      sum += std::to_integer<uint64_t>((*mapped)->PageBytes(page)[sum % 4096]);
    }
  }
  const absl::StatusOr<ImageRef> copy =
      OpenImageFile(file.path(), {.backing = OpenImageOptions::Backing::kCopied,
                                  .verify = OpenImageOptions::Verify::kAll});
  Check(!verified.ok() || copy.ok(), "verified, and yet not copied");
}

std::string FileFrom(std::string_view manifest, std::string_view data) {
  const ImageHeader header = HeaderOf(manifest);
  if (header.file_bytes > kMaxFileBytes) return "";
  std::string file = EncodeHeader(header);
  file += manifest;
  file.resize(header.file_bytes);
  const uint64_t room = header.file_bytes - header.data_offset;
  file.replace(header.data_offset, std::min<uint64_t>(data.size(), room),
               data.substr(0, room));
  return file;
}

void ReadPacked(std::string_view manifest, std::string_view data) {
  std::string inner = EncodeHeader(HeaderOf(manifest));
  inner += manifest;
  inner += data;
  std::string packed(ZSTD_compressBound(inner.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), inner.data(),
                              inner.size(), 1));
  const FileOf file(packed);
  const std::string path =
      (std::filesystem::temp_directory_path() /
       absl::StrCat("firsttouch_fuzz.", getpid(), ".ftimg"))
          .string();
  const absl::StatusOr<ImageFileInfo> info =
      UnpackImageFile(file.path(), path, {.max_stored_bytes = kMaxFileBytes});
  Check(info.ok() == (access(path.c_str(), F_OK) == 0),
        "a file where there was an error, or none where there was none");
  if (!info.ok()) return;
  // Stored zero pages are allowed; all else has been checked on the way.
  const absl::Status verified = VerifyImageFile(path).status();
  Check(verified.ok() || absl::IsInvalidArgument(verified),
        "what was unpacked does not match its digests");
  unlink(path.c_str());
}

}  // namespace

void ReadAsImageFile(std::span<const uint8_t> input) {
  if (input.empty()) return;
  const std::string_view rest(reinterpret_cast<const char*>(input.data()) + 1,
                              input.size() - 1);
  switch (input[0] % 4) {
    case 0:
      ReadFile(rest);
      return;
    case 1:
      ReadManifest(rest);
      return;
    default: {
      if (rest.size() < 2) return;
      const size_t length = std::min<size_t>(
          static_cast<uint8_t>(rest[0]) + 256 * static_cast<uint8_t>(rest[1]),
          rest.size() - 2);
      const std::string_view manifest = rest.substr(2, length);
      const std::string_view data = rest.substr(2 + length);
      if (input[0] % 4 == 2) {
        ReadFile(FileFrom(manifest, data));
      } else {
        ReadPacked(manifest, data);
      }
    }
  }
}

std::vector<std::string> ImageFileSeeds() {
  std::vector<std::string> seeds;
  ImageFileInfo info;
  info.name = "seed";
  info.size_bytes = 3 * kPageBytes - 7;
  info.provenance.tool = "fuzz";
  info.written = {5};
  const std::string page(kPageBytes, 'p');
  info.extents = {{{PageIndex(1), PageCount(1)}, Sha256Of(page)}};
  for (const bool delta : {false, true}) {
    if (delta) {
      info.parent = Sha256Of(std::string_view("parent"));
      info.zeroed = {{PageIndex(2), PageCount(1)}};
      info.content = Sha256Of(std::string_view("whole"));
    } else {
      info.content = ContentDigest(info.size_bytes, info.extents);
    }
    const std::string manifest = EncodeManifest(info);
    const std::string length = {static_cast<char>(manifest.size() % 256),
                                static_cast<char>(manifest.size() / 256)};
    seeds.push_back(std::string(1, '\0') +
                    FileFrom(manifest, std::string(kPageBytes, '\0') + page));
    seeds.push_back("\1" + manifest);
    seeds.push_back("\2" + length + manifest + std::string(kPageBytes, '\0') +
                    page);
    seeds.push_back("\3" + length + manifest + page);
  }
  return seeds;
}

}  // namespace firsttouch
