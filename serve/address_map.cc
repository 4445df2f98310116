#include "firsttouch/serve/address_map.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace firsttouch {
namespace {

std::string Hex(uint64_t value) { return absl::StrCat("0x", absl::Hex(value)); }

absl::Status CheckRegion(size_t number, const GuestRegion& region) {
  const auto refuse = [number](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", number, ": ", what));
  };
  if (region.page_bytes != kPageBytes && region.page_bytes != kHugePageBytes) {
    return refuse(absl::StrCat("pages of ", region.page_bytes,
                               " bytes; they may have ", kPageBytes, " or ",
                               kHugePageBytes));
  }
  if (region.bytes == 0) return refuse("it has no bytes");
  for (const auto& [name, value] :
       {std::pair<const char*, uint64_t>{"start", region.start},
        {"size", region.bytes},
        {"offset", region.image_offset_bytes}}) {
    if (value % region.page_bytes != 0) {
      return refuse(absl::StrCat("its ", name, " ", Hex(value),
                                 " is no multiple of its pages' ",
                                 region.page_bytes, " bytes"));
    }
  }
  if (region.start == 0 || region.start >= kAddressEnd ||
      region.bytes > kAddressEnd - region.start) {
    return refuse(
        absl::StrCat(Hex(region.start), " + ", Hex(region.bytes),
                     " bytes does not lie in a process' memory, which ends at ",
                     Hex(kAddressEnd)));
  }
  if (region.image_offset_bytes >
      std::numeric_limits<uint64_t>::max() - region.bytes) {
    return refuse(absl::StrCat("offset ", Hex(region.image_offset_bytes), " + ",
                               Hex(region.bytes), " bytes exceeds 64 bits"));
  }
  return absl::OkStatus();
}

// Whether `right` goes on where `left` ends, in the process and in the image.
bool Continues(const AddressMap::Piece& left, const AddressMap::Piece& right) {
  return left.end == right.start && left.page_bytes == right.page_bytes &&
         left.track_writes == right.track_writes && left.freed == right.freed &&
         left.OffsetOf(left.end) == right.image_offset_bytes;
}

}  // namespace

absl::StatusOr<AddressMap> AddressMap::Create(
    std::span<const GuestRegion> regions) {
  if (regions.empty() || regions.size() > kMaxGuestRegions) {
    return absl::InvalidArgumentError(absl::StrCat(
        regions.size(), " regions; a guest has 1 to ", kMaxGuestRegions));
  }
  for (size_t i = 0; i < regions.size(); ++i) {
    if (absl::Status checked = CheckRegion(i, regions[i]); !checked.ok()) {
      return checked;
    }
    for (size_t j = 0; j < i; ++j) {
      if (regions[j].start < regions[i].start + regions[i].bytes &&
          regions[i].start < regions[j].start + regions[j].bytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            "regions ", j, " and ", i, " overlap: ", Hex(regions[j].start),
            " + ", Hex(regions[j].bytes), " and ", Hex(regions[i].start), " + ",
            Hex(regions[i].bytes)));
      }
    }
  }
  AddressMap map;
  for (const GuestRegion& region : regions) {
    map.pieces_[region.start] = {
        .start = region.start,
        .end = region.start + region.bytes,
        .image_offset_bytes = region.image_offset_bytes,
        .page_bytes = region.page_bytes,
        .track_writes = region.track_writes,
    };
  }
  return map;
}

absl::StatusOr<AddressMap> AddressMap::FromPieces(
    std::span<const Piece> pieces) {
  AddressMap map;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const GuestRegion region = {.start = piece.start,
                                .bytes = piece.bytes(),
                                .image_offset_bytes = piece.image_offset_bytes,
                                .page_bytes = piece.page_bytes};
    if (absl::Status checked = CheckRegion(i, region); !checked.ok()) {
      return checked;
    }
    const std::optional<Piece> other = map.Next(piece.start);
    if (other.has_value() && other->start < piece.end) {
      return absl::InvalidArgumentError(
          absl::StrCat("region ", i, " overlaps another: ", Hex(piece.start),
                       " + ", Hex(piece.bytes()), " and ", Hex(other->start)));
    }
    map.pieces_[piece.start] = piece;
  }
  return map;
}

std::optional<AddressMap::Piece> AddressMap::Find(uintptr_t address) const {
  auto after = pieces_.upper_bound(address);
  if (after == pieces_.begin()) return std::nullopt;
  const Piece& piece = std::prev(after)->second;
  if (address >= piece.end) return std::nullopt;
  return piece;
}

std::optional<AddressMap::Piece> AddressMap::Next(uintptr_t from) const {
  if (std::optional<Piece> piece = Find(from)) {
    piece->image_offset_bytes = piece->OffsetOf(from);
    piece->start = from;
    return piece;
  }
  const auto after = pieces_.upper_bound(from);
  if (after == pieces_.end()) return std::nullopt;
  return after->second;
}

void AddressMap::Cut(uintptr_t address) {
  const std::optional<Piece> whole = Find(address);
  if (!whole.has_value() || whole->start == address) return;
  Piece right = *whole;
  right.image_offset_bytes = whole->OffsetOf(address);
  right.start = address;
  pieces_[whole->start].end = address;
  pieces_[address] = right;
}

void AddressMap::Join(uintptr_t address) {
  const auto right = pieces_.find(address);
  if (right == pieces_.end() || right == pieces_.begin()) return;
  const auto left = std::prev(right);
  if (!Continues(left->second, right->second)) return;
  left->second.end = right->second.end;
  pieces_.erase(right);
}

void AddressMap::Free(uintptr_t start, uintptr_t end) {
  for (uintptr_t at = start; at < end;) {
    const std::optional<Piece> piece = Next(at);
    if (!piece.has_value() || piece->start >= end) return;
    const uint64_t mask = piece->page_bytes - 1;
    const uintptr_t first = (piece->start + mask) & ~mask;
    const uintptr_t last = std::min(piece->end, end) & ~mask;
    at = piece->end;
    if (piece->freed || first >= last) continue;
    Cut(first);
    Cut(last);
    pieces_[first].freed = true;
    Join(first);
    Join(last);
  }
}

void AddressMap::Unmap(uintptr_t start, uintptr_t end) {
  if (start >= end) return;
  Cut(start);
  Cut(end);
  pieces_.erase(pieces_.lower_bound(start), pieces_.lower_bound(end));
}

void AddressMap::Move(uintptr_t from, uintptr_t to, uint64_t bytes) {
  if (bytes == 0 || from == to) return;
  Cut(from);
  Cut(from + bytes);
  std::vector<Piece> moved;
  for (auto it = pieces_.lower_bound(from);
       it != pieces_.end() && it->first < from + bytes; ++it) {
    moved.push_back(it->second);
  }
  Unmap(from, from + bytes);
  Unmap(to, to + bytes);
  for (Piece& piece : moved) {
    piece.start = piece.start - from + to;
    piece.end = piece.end - from + to;
    pieces_[piece.start] = piece;
  }
  for (const Piece& piece : moved) Join(piece.start);
  Join(to + bytes);
}

uint64_t AddressMap::bytes() const {
  uint64_t bytes = 0;
  for (const auto& [start, piece] : pieces_) bytes += piece.bytes();
  return bytes;
}

}  // namespace firsttouch
