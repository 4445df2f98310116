#include "firsttouch/serve/page_placer.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fill.h"

namespace firsttouch {
namespace {

constexpr FillPolicy kFill = {.max_stalls = 0, .wake_present = true};
constexpr FillPolicy kFillAsleep = {.max_stalls = 0, .wake_present = false};

const FillPolicy& PolicyOf(PagePlacer::Waking waking) {
  return waking == PagePlacer::Waking::kLater ? kFillAsleep : kFill;
}

}  // namespace

Placed PagePlacer::After(int error, const std::string& what) const {
  switch (error) {
    case 0:
      return {};
    case EAGAIN:
    // The guest's own limit of memory (its cgroup): it may be raised, or others
    // may free some.
    case ENOMEM:
      return {.outcome = Placed::Outcome::kStopped};
    case ENOENT:
      return {.outcome = Placed::Outcome::kUnregistered};
    case ESRCH:
      return {.outcome = Placed::Outcome::kGone};
    case EFAULT:
      return {.outcome = Placed::Outcome::kLost,
              .status = absl::DataLossError(absl::StrCat(
                  what, ": the bytes of image '", image_.image().name(),
                  "' cannot be read: was its file cut short?"))};
    default:
      return {.outcome = Placed::Outcome::kLost,
              .status = absl::ErrnoToStatus(error, what)};
  }
}

Placed PagePlacer::CopyPages(uintptr_t start, const std::byte* from,
                             uint64_t bytes, bool protect, Waking waking,
                             uint64_t& count) {
  const uint64_t mode =
      (protect ? kUffdCopyWp : 0) |
      (waking == Waking::kLater ? kUffdCopyDontWake : uint64_t{0});
  const FillResult filled =
      CopyRange(kernel_, uffd_, start, reinterpret_cast<uintptr_t>(from), bytes,
                mode, PolicyOf(waking));
  count += filled.pages_filled();
  return After(filled.error, "UFFDIO_COPY");
}

Placed PagePlacer::ZeroPages(uintptr_t start, uint64_t bytes, bool protect,
                             bool write, Waking waking) {
  // The kernel's zero page cannot be write-protected in the same call, and a
  // write to it would be a second fault.
  if (!protect && !(write && bytes == kPageBytes)) {
    const FillResult filled = ZeroRange(
        kernel_, uffd_, start, bytes,
        waking == Waking::kLater ? kUffdZeroPageDontWake : 0, PolicyOf(waking));
    zeroed_ += filled.pages_filled();
    return After(filled.error, "UFFDIO_ZEROPAGE");
  }
  for (uint64_t done = 0; done < bytes; done += kHugePageBytes) {
    Placed placed = CopyPages(start + done, ZeroBytes(),
                              std::min(bytes - done, kHugePageBytes), protect,
                              waking, zeroed_);
    if (placed.outcome != Placed::Outcome::kDone) return placed;
  }
  return {};
}

Placed PagePlacer::PlaceHuge(const AddressMap::Piece& piece, uintptr_t page,
                             bool write) {
  constexpr PageCount kPages = PagesRoundedUp(kHugePageBytes);
  const Image& image = image_.image();
  const PageIndex first = PageContaining(piece.OffsetOf(page));
  const uint64_t stored =
      piece.freed ? 0 : image.stored().CountIn(first, kPages);
  const std::byte* from = ZeroBytes();
  // Where the image stores a part. Not kept: of each guest it would be 2 MiB.
  std::unique_ptr<std::byte[]> whole;
  if (stored > 0) {
    if (!image_.IsReady(first, kPages)) {
      return {.outcome = Placed::Outcome::kNotReady,
              .first = first,
              .pages = kPages};
    }
    from = image.data() + first.offset_bytes();
  }
  if (stored > 0 && stored < kPages.value()) {
    // Holes of an image may not be read.
    whole = std::make_unique<std::byte[]>(kHugePageBytes);
    const PageIndex end = first + kPages;
    for (std::optional<PageRun> run = image.stored().NextRun(first, end);
         run.has_value(); run = image.stored().NextRun(run->end(), end)) {
      if (const int error =
              ReadMapped(image.data() + run->first.offset_bytes(),
                         {whole.get() + (run->first - first).bytes(),
                          run->length.bytes()})) {
        return After(error, "reading the image");
      }
    }
    from = whole.get();
  }
  const uint64_t mode = piece.track_writes && !write ? kUffdCopyWp : 0;
  const int error = kernel_
                        .Copy(uffd_, page, reinterpret_cast<uintptr_t>(from),
                              kHugePageBytes, mode)
                        .error;
  if (error == EEXIST) {
    Wake(page, kHugePageBytes);
    return {};
  }
  if (error == 0) {
    (stored > 0 ? copied_ : zeroed_) += kPages.value();
  }
  return After(error, "UFFDIO_COPY of a huge page");
}

Placed PagePlacer::Place(const AddressMap::Piece& piece, uintptr_t start,
                         uintptr_t end, bool write, Waking waking) {
  const Image& image = image_.image();
  for (uintptr_t at = start; at < end;) {
    const bool written = write && at == start;
    if (piece.page_bytes != kPageBytes) {
      Placed placed = PlaceHuge(piece, at, written);
      if (placed.outcome != Placed::Outcome::kDone) return placed;
      at += piece.page_bytes;
      continue;
    }
    // The page that is written to is not protected, the ones behind it are.
    const bool protect = piece.track_writes && !written;
    uint64_t bytes = piece.track_writes && written ? kPageBytes : end - at;
    const PageIndex page = PageContaining(piece.OffsetOf(at));
    const std::optional<PageRun> stored =
        image.stored().NextRun(page, page + PagesRoundedUp(bytes));
    Placed placed;
    if (piece.freed || !stored.has_value()) {
      placed = ZeroPages(at, bytes, protect, written, waking);
    } else if (stored->first > page) {
      bytes = std::min(bytes, (stored->first - page).bytes());
      placed = ZeroPages(at, bytes, protect, written, waking);
    } else {
      bytes = std::min(bytes, stored->length.bytes());
      const PageCount pages = PagesRoundedUp(bytes);
      if (!image_.IsReady(page, pages)) {
        placed = {.outcome = Placed::Outcome::kNotReady,
                  .first = page,
                  .pages = pages};
      } else {
        placed = CopyPages(at, image.data() + page.offset_bytes(), bytes,
                           protect, waking, copied_);
      }
    }
    if (placed.outcome != Placed::Outcome::kDone) return placed;
    at += bytes;
  }
  return {};
}

Placed PagePlacer::Unprotect(uintptr_t page, uint64_t page_bytes) {
  return After(kernel_.WriteProtect(uffd_, page, page_bytes, 0).error,
               "UFFDIO_WRITEPROTECT");
}

Placed PagePlacer::Poison(uintptr_t start, uint64_t bytes,
                          uint64_t page_bytes) {
  if (page_bytes == kPageBytes) {
    return After(PoisonRange(kernel_, uffd_, start, bytes, 0, kFill).error,
                 "UFFDIO_POISON");
  }
  for (uint64_t done = 0; done < bytes; done += page_bytes) {
    const int error = kernel_.Poison(uffd_, start + done, page_bytes, 0).error;
    if (error == EEXIST || error == 0) continue;
    return After(error, "UFFDIO_POISON");
  }
  return {};
}

void PagePlacer::Wake(uintptr_t start, uint64_t bytes) {
  kernel_.Wake(uffd_, start, bytes);
}

}  // namespace firsttouch
