#include "firsttouch/init/image_format.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Where the fields of the header are.
constexpr size_t kVersionAt = 8;
constexpr size_t kHeaderBytesAt = 12;
constexpr size_t kManifestOffsetAt = 16;
constexpr size_t kManifestBytesAt = 24;
constexpr size_t kManifestShaAt = 32;
constexpr size_t kDataOffsetAt = 64;
constexpr size_t kDataBytesAt = 72;
constexpr size_t kFileBytesAt = 80;
constexpr size_t kReservedAt = 88;
constexpr size_t kHeaderShaAt = 96;

constexpr uint64_t kMaxWorkingSetBytes = WorkingSet::kMaxPages / 8;

void Put(std::string& bytes, size_t at, uint64_t value, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    bytes[at + i] = static_cast<char>(value >> (8 * i));
  }
}

uint64_t Get(std::span<const std::byte> bytes, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value |= std::to_integer<uint64_t>(bytes[at + i]) << (8 * i);
  }
  return value;
}

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Digest DigestAt(std::span<const std::byte> bytes, size_t at) {
  return *Digest::FromBytes(Text(bytes.subspan(at, Digest::kBytes)));
}

std::string_view Raw(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), Digest::kBytes};
}

std::string Assign(const Digest& digest) { return std::string(Raw(digest)); }

// Where data begin behind a manifest of this length.
uint64_t DataOffset(uint64_t manifest_bytes) {
  return PagesRoundedUp(kImageHeaderBytes + manifest_bytes).bytes();
}

std::string RunText(const PageRun& run) {
  return absl::StrCat("pages [", run.first.value(), ", ", run.end().value(),
                      ")");
}

// The runs that two lists of numbers describe: ascending, within the memory,
// no two overlapping. `what` names one of them.
absl::StatusOr<std::vector<PageRun>> Runs(
    const google::protobuf::RepeatedField<uint64_t>& first_page,
    const google::protobuf::RepeatedField<uint64_t>& pages, PageCount limit,
    const char* what) {
  if (first_page.size() != pages.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "manifest: ", first_page.size(), " of ", what, "_first_page and ",
        pages.size(), " of ", what, "_pages; there must be as many"));
  }
  if (static_cast<uint64_t>(pages.size()) > kMaxImageExtents) {
    return absl::ResourceExhaustedError(
        absl::StrCat("manifest: ", pages.size(), " of ", what,
                     "_pages exceed the limit of ", kMaxImageExtents));
  }
  std::vector<PageRun> runs;
  runs.reserve(pages.size());
  uint64_t past = 0;
  for (int i = 0; i < pages.size(); ++i) {
    const uint64_t first = first_page[i];
    const uint64_t length = pages[i];
    if (length == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("manifest: ", what, " ", i, " at page ", first,
                       " has no pages; it must have at least one"));
    }
    if (first > limit.value() || length > limit.value() - first) {
      return absl::InvalidArgumentError(absl::StrCat(
          "manifest: ", what, " ", i, ": page ", first, " + ", length,
          " pages exceeds the memory's ", limit.value(), " pages"));
    }
    if (first < past) {
      return absl::InvalidArgumentError(absl::StrCat(
          "manifest: ", what, " ", i, " begins at page ", first, ", and ", what,
          " ", i - 1, " (", RunText(runs.back()), ") ends at page ", past,
          "; they must ascend and not overlap"));
    }
    runs.push_back({PageIndex(first), PageCount(length)});
    past = first + length;
  }
  return runs;
}

absl::Status CheckExtentCuts(std::span<const PageRun> runs, PageCount pages) {
  const uint64_t block = ExtentBlockPages(pages);
  for (size_t i = 0; i < runs.size(); ++i) {
    const uint64_t first = runs[i].first.value();
    const uint64_t last = runs[i].end().value() - 1;
    if (first / block != last / block) {
      return absl::InvalidArgumentError(absl::StrCat(
          "manifest: extent ", i, " (", RunText(runs[i]),
          ") crosses a multiple of ", block, " pages; cut it there"));
    }
    if (i > 0 && runs[i - 1].end() == runs[i].first && first % block != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "manifest: extents ", i - 1, " (", RunText(runs[i - 1]), ") and ", i,
          " (", RunText(runs[i]), ") touch; extents are cut at multiples of ",
          block, " pages only"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDisjoint(std::span<const PageRun> zeroed,
                           std::span<const PageRun> extents) {
  size_t e = 0;
  for (size_t z = 0; z < zeroed.size(); ++z) {
    while (e < extents.size() && extents[e].end() <= zeroed[z].first) ++e;
    if (e < extents.size() && extents[e].first < zeroed[z].end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("manifest: zeroed ", z, " (", RunText(zeroed[z]),
                       ") overlaps extent ", e, " (", RunText(extents[e]),
                       "); a page is zero or stored"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const char* field, uint64_t bytes, uint64_t limit) {
  if (bytes <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "manifest: ", field, " has ", bytes, " bytes; the limit is ", limit));
}

absl::Status CheckTexts(const ImageFileInfo& info) {
  const std::pair<const char*, const std::string*> texts[] = {
      {"name", &info.name},
      {"provenance.tool", &info.provenance.tool},
      {"provenance.source", &info.provenance.source},
      {"provenance.comment", &info.provenance.comment},
  };
  for (const auto& [field, text] : texts) {
    absl::Status status = CheckLength(field, text->size(), kMaxProvenanceBytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<WorkingSet::Words> Words(const std::string& bytes,
                                        const char* field) {
  if (absl::Status status =
          CheckLength(field, bytes.size(), kMaxWorkingSetBytes);
      !status.ok()) {
    return status;
  }
  if (bytes.size() % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: ", field, " has ", bytes.size(),
                     " bytes; it must be a multiple of 8"));
  }
  WorkingSet::Words words(bytes.size() / 8);
  const auto raw = std::as_bytes(std::span(bytes.data(), bytes.size()));
  for (size_t i = 0; i < words.size(); ++i) words[i] = Get(raw, 8 * i, 8);
  return words;
}

std::string WordBytes(const WorkingSet::Words& words) {
  std::string bytes(words.size() * 8, '\0');
  for (size_t i = 0; i < words.size(); ++i) Put(bytes, 8 * i, words[i], 8);
  return bytes;
}

// A digest that must be there, or may be.
absl::StatusOr<std::optional<Digest>> OptionalDigest(const std::string& bytes,
                                                     const char* field) {
  if (bytes.empty()) return std::optional<Digest>();
  const std::optional<Digest> digest = Digest::FromBytes(bytes);
  if (digest.has_value()) return digest;
  return absl::InvalidArgumentError(
      absl::StrCat("manifest: ", field, " has ", bytes.size(),
                   " bytes; it must have ", Digest::kBytes, " or none"));
}

}  // namespace

ImageHeader HeaderFor(std::string_view manifest, uint64_t size_bytes) {
  ImageHeader header;
  header.manifest_bytes = manifest.size();
  header.manifest_sha256 = Sha256Of(manifest);
  header.data_offset = DataOffset(manifest.size());
  header.data_bytes = PagesRoundedUp(size_bytes).bytes();
  header.file_bytes = header.data_offset + header.data_bytes;
  return header;
}

std::string EncodeHeader(const ImageHeader& header) {
  std::string bytes(kImageHeaderBytes, '\0');
  std::memcpy(bytes.data(), kImageMagic, sizeof kImageMagic);
  Put(bytes, kVersionAt, header.version, 4);
  Put(bytes, kHeaderBytesAt, kImageHeaderBytes, 4);
  Put(bytes, kManifestOffsetAt, header.manifest_offset, 8);
  Put(bytes, kManifestBytesAt, header.manifest_bytes, 8);
  bytes.replace(kManifestShaAt, Digest::kBytes, Raw(header.manifest_sha256));
  Put(bytes, kDataOffsetAt, header.data_offset, 8);
  Put(bytes, kDataBytesAt, header.data_bytes, 8);
  Put(bytes, kFileBytesAt, header.file_bytes, 8);
  const std::string_view covered = bytes;
  const Digest digest = Sha256Of(covered.substr(0, kHeaderShaAt));
  bytes.replace(kHeaderShaAt, Digest::kBytes, Raw(digest));
  return bytes;
}

absl::StatusOr<ImageHeader> DecodeHeader(std::span<const std::byte> bytes) {
  const std::string_view text = Text(bytes).substr(0, kImageHeaderBytes);
  const std::string_view magic(reinterpret_cast<const char*>(kImageMagic),
                               sizeof kImageMagic);
  const std::string_view start = text.substr(0, magic.size());
  if (start != magic.substr(0, start.size())) {
    constexpr std::string_view kZstdMagic = "\x28\xb5\x2f\xfd";
    return absl::InvalidArgumentError(absl::StrCat(
        "header: begins with ",
        absl::BytesToHexString(absl::string_view(start.data(), start.size())),
        ", not with the ",
        absl::BytesToHexString(absl::string_view(magic.data(), magic.size())),
        " of an image file",
        start.substr(0, 4) == kZstdMagic
            ? "; it is compressed: unpack it first (imagetool unpack)"
            : ""));
  }
  if (text.size() < kImageHeaderBytes) {
    return absl::DataLossError(
        absl::StrCat("header: the file ends after ", text.size(),
                     " bytes; a header has ", kImageHeaderBytes));
  }
  ImageHeader header;
  header.version = static_cast<uint32_t>(Get(bytes, kVersionAt, 4));
  if (header.version != kImageFileVersion) {
    return absl::UnimplementedError(
        absl::StrCat("header: format version ", header.version,
                     "; this build reads version ", kImageFileVersion));
  }
  const Digest told = DigestAt(bytes, kHeaderShaAt);
  const Digest computed = Sha256Of(bytes.first(kHeaderShaAt));
  if (told != computed) {
    return absl::DataLossError(absl::StrCat(
        "header: its first ", kHeaderShaAt, " bytes have SHA-256 ",
        computed.ToHex(), ", and it says ", told.ToHex(), "; it was changed"));
  }
  if (const uint64_t size = Get(bytes, kHeaderBytesAt, 4);
      size != kImageHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header: header_bytes ", size, " is not ", kImageHeaderBytes));
  }
  header.manifest_offset = Get(bytes, kManifestOffsetAt, 8);
  header.manifest_bytes = Get(bytes, kManifestBytesAt, 8);
  header.manifest_sha256 = DigestAt(bytes, kManifestShaAt);
  header.data_offset = Get(bytes, kDataOffsetAt, 8);
  header.data_bytes = Get(bytes, kDataBytesAt, 8);
  header.file_bytes = Get(bytes, kFileBytesAt, 8);
  if (header.manifest_offset != kImageHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header: manifest_offset ", header.manifest_offset,
                     " is not ", kImageHeaderBytes));
  }
  if (header.manifest_bytes > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("header: manifest_bytes ", header.manifest_bytes,
                     " exceeds the limit of ", kMaxManifestBytes));
  }
  if (const uint64_t offset = DataOffset(header.manifest_bytes);
      header.data_offset != offset) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header: data_offset ", header.data_offset, " is not ", offset,
        ", the first multiple of ", kPageBytes, " behind the manifest"));
  }
  if (header.data_bytes > kMaxImageBytes ||
      header.data_bytes % kPageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header: data_bytes ", header.data_bytes, " is not a multiple of ",
        kPageBytes, " up to ", kMaxImageBytes));
  }
  if (header.file_bytes != header.data_offset + header.data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header: file_bytes ", header.file_bytes, " is not data_offset ",
        header.data_offset, " + data_bytes ", header.data_bytes));
  }
  if (const uint64_t reserved = Get(bytes, kReservedAt, 8); reserved != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("header: the reserved bytes at offset ", kReservedAt,
                     " hold ", reserved, "; they must be 0"));
  }
  return header;
}

std::string EncodeManifest(const ImageFileInfo& info) {
  ImageManifest manifest;
  manifest.set_format_version(info.version);
  manifest.set_page_bytes(kPageBytes);
  manifest.set_size_bytes(info.size_bytes);
  manifest.set_name(info.name);
  std::string digests;
  digests.reserve(info.extents.size() * Digest::kBytes);
  for (const ImageExtent& extent : info.extents) {
    manifest.add_extent_first_page(extent.pages.first.value());
    manifest.add_extent_pages(extent.pages.length.value());
    digests.append(Raw(extent.digest));
  }
  manifest.set_extent_sha256(std::move(digests));
  manifest.set_content_sha256(Assign(info.content));
  if (info.parent.has_value()) {
    manifest.set_parent_content_sha256(Assign(*info.parent));
  }
  for (const PageRun& run : info.zeroed) {
    manifest.add_zeroed_first_page(run.first.value());
    manifest.add_zeroed_pages(run.length.value());
  }
  manifest.mutable_page_xxh3()->Add(info.page_checksums.begin(),
                                    info.page_checksums.end());
  manifest.set_working_set_written(WordBytes(info.written));
  manifest.set_working_set_read(WordBytes(info.read));
  if (info.provenance != ImageProvenance()) {
    ImageProvenanceManifest& provenance = *manifest.mutable_provenance();
    provenance.set_tool(info.provenance.tool);
    provenance.set_source(info.provenance.source);
    provenance.set_comment(info.provenance.comment);
    if (info.provenance.source_sha256.has_value()) {
      provenance.set_source_sha256(Assign(*info.provenance.source_sha256));
    }
    provenance.set_created_unix_seconds(info.provenance.created_unix_seconds);
  }
  return manifest.SerializeAsString();
}

absl::Status CheckWritable(const ImageFileInfo& info) {
  if (absl::Status status = CheckTexts(info); !status.ok()) return status;
  const size_t runs = std::max(info.extents.size(), info.zeroed.size());
  if (runs > kMaxImageExtents) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "its pages are scattered over ", runs, " extents, more than the ",
        kMaxImageExtents, " of a file"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ImageFileInfo> DecodeManifest(const ImageHeader& header,
                                             std::span<const std::byte> bytes) {
  if (const Digest computed = Sha256Of(bytes);
      computed != header.manifest_sha256) {
    return absl::DataLossError(
        absl::StrCat("manifest: its ", bytes.size(), " bytes at offset ",
                     header.manifest_offset, " have SHA-256 ", computed.ToHex(),
                     ", and the header says ", header.manifest_sha256.ToHex(),
                     "; it was changed"));
  }
  ImageManifest manifest;
  if (bytes.size() > std::numeric_limits<int>::max() ||
      !manifest.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: the ", bytes.size(), " bytes at offset ",
                     header.manifest_offset,
                     " are no protobuf of type firsttouch.ImageManifest"));
  }

  ImageFileInfo info;
  info.version = manifest.format_version();
  if (info.version != header.version) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: format_version ", info.version,
                     " is not the header's ", header.version));
  }
  if (manifest.page_bytes() != kPageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("manifest: page_bytes ",
                                                   manifest.page_bytes(),
                                                   " is not ", kPageBytes));
  }
  info.size_bytes = manifest.size_bytes();
  // Before it is rounded up, which may wrap.
  if (info.size_bytes > kMaxImageBytes ||
      PagesRoundedUp(info.size_bytes).bytes() != header.data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: size_bytes ", info.size_bytes,
                     ", rounded up to pages, is not the header's data_bytes ",
                     header.data_bytes));
  }
  const PageCount pages = PagesRoundedUp(info.size_bytes);
  info.file_bytes = header.file_bytes;
  info.manifest_offset = header.manifest_offset;
  info.manifest_bytes = header.manifest_bytes;
  info.data_offset = header.data_offset;
  info.name = manifest.name();
  const ImageProvenanceManifest& provenance = manifest.provenance();
  info.provenance.tool = provenance.tool();
  info.provenance.source = provenance.source();
  info.provenance.comment = provenance.comment();
  info.provenance.created_unix_seconds = provenance.created_unix_seconds();
  if (absl::Status status = CheckTexts(info); !status.ok()) return status;
  absl::StatusOr<std::optional<Digest>> source =
      OptionalDigest(provenance.source_sha256(), "provenance.source_sha256");
  if (!source.ok()) return source.status();
  info.provenance.source_sha256 = *source;

  absl::StatusOr<std::vector<PageRun>> runs = Runs(
      manifest.extent_first_page(), manifest.extent_pages(), pages, "extent");
  if (!runs.ok()) return runs.status();
  if (absl::Status status = CheckExtentCuts(*runs, pages); !status.ok()) {
    return status;
  }
  if (manifest.extent_sha256().size() != runs->size() * Digest::kBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "manifest: extent_sha256 has ", manifest.extent_sha256().size(),
        " bytes; ", runs->size(), " extents need ", Digest::kBytes, " each"));
  }
  info.extents.reserve(runs->size());
  const std::string_view digests = manifest.extent_sha256();
  for (size_t i = 0; i < runs->size(); ++i) {
    const std::string_view digest =
        digests.substr(i * Digest::kBytes, Digest::kBytes);
    info.extents.push_back({(*runs)[i], *Digest::FromBytes(digest)});
    info.stored_pages += (*runs)[i].length.value();
  }
  info.page_checksums.assign(manifest.page_xxh3().begin(),
                             manifest.page_xxh3().end());
  if (!info.page_checksums.empty() &&
      info.page_checksums.size() != info.stored_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: page_xxh3 has ", info.page_checksums.size(),
                     " checksums; it must have one for each of the ",
                     info.stored_pages, " stored pages, or none"));
  }
  absl::StatusOr<std::vector<PageRun>> zeroed = Runs(
      manifest.zeroed_first_page(), manifest.zeroed_pages(), pages, "zeroed");
  if (!zeroed.ok()) return zeroed.status();
  if (absl::Status status = CheckDisjoint(*zeroed, *runs); !status.ok()) {
    return status;
  }
  info.zeroed = *std::move(zeroed);

  absl::StatusOr<std::optional<Digest>> parent =
      OptionalDigest(manifest.parent_content_sha256(), "parent_content_sha256");
  if (!parent.ok()) return parent.status();
  info.parent = *parent;
  if (!info.parent.has_value() && !info.zeroed.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: ", info.zeroed.size(),
                     " of zeroed_pages and no parent_content_sha256; only a "
                     "delta has zeroed pages"));
  }
  absl::StatusOr<std::optional<Digest>> content =
      OptionalDigest(manifest.content_sha256(), "content_sha256");
  if (!content.ok()) return content.status();
  if (!content->has_value()) {
    return absl::InvalidArgumentError("manifest: content_sha256 is missing");
  }
  info.content = **content;
  if (info.parent == info.content) {
    return absl::InvalidArgumentError(
        absl::StrCat("manifest: parent_content_sha256 and content_sha256 are "
                     "both ",
                     info.content.ToHex(), "; an image is not its own parent"));
  }
  if (!info.parent.has_value()) {
    const Digest computed = ContentDigest(info.size_bytes, info.extents);
    if (computed != info.content) {
      return absl::DataLossError(absl::StrCat(
          "manifest: content_sha256 ", info.content.ToHex(),
          " does not follow from size_bytes and the extents, which give ",
          computed.ToHex()));
    }
  }

  absl::StatusOr<WorkingSet::Words> written =
      Words(manifest.working_set_written(), "working_set_written");
  if (!written.ok()) return written.status();
  info.written = *std::move(written);
  absl::StatusOr<WorkingSet::Words> read =
      Words(manifest.working_set_read(), "working_set_read");
  if (!read.ok()) return read.status();
  info.read = *std::move(read);
  return info;
}

}  // namespace firsttouch
