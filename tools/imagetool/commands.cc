#include "firsttouch/tools/imagetool/commands.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/opening.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::imagetool {
namespace {

using cli::Printable;

void SetRange(const PageRun& run, PageRange* range) {
  range->set_first_page(run.first.value());
  range->set_pages(run.length.value());
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

}  // namespace

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

}  // namespace firsttouch::imagetool
