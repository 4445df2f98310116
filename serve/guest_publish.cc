// What readers in other processes are told of a guest.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "firsttouch/control/guests.h"
#include "firsttouch/control/guests_block.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/page_placer.h"

namespace firsttouch {
namespace {

// Regions as a guest tells them: pieces that continue each other, whatever has
// been given back.
std::vector<GuestsBlock::Place> PlacesOf(const AddressMap& map) {
  std::vector<GuestsBlock::Place> places;
  for (std::optional<AddressMap::Piece> piece = map.Next(0); piece.has_value();
       piece = map.Next(piece->end)) {
    if (!places.empty()) {
      GuestsBlock::Place& last = places.back();
      if (last.start + last.bytes == piece->start &&
          last.image_offset_bytes + last.bytes == piece->image_offset_bytes &&
          last.page_bytes == piece->page_bytes) {
        last.bytes += piece->bytes();
        continue;
      }
    }
    places.push_back({piece->start, piece->bytes(), piece->image_offset_bytes,
                      piece->page_bytes});
  }
  return places;
}

}  // namespace

void Guest::PublishIn(GuestsBlock& block, uint64_t number) {
  MutexLock lock(&mutex_);
  const Image& image = image_->image();
  const std::optional<Digest> digest = image.known_digest();
  GuestsBlock::Facts facts;
  facts.number = number;
  facts.pid = static_cast<uint64_t>(std::max(pid_, 0));
  facts.name = options_.name;
  facts.image_name = image.name();
  facts.image_size_bytes = image.size_bytes();
  facts.image_stored_pages = image.stored_pages();
  if (digest.has_value()) facts.image_digest = digest->bytes;
  std::vector<GuestsBlock::Place> places = PlacesOf(map_);
  if (places.size() > kMaxGuestRegions) places.resize(kMaxGuestRegions);
  regions_.clear();
  for (const GuestsBlock::Place& place : places) {
    regions_.push_back({place.image_offset_bytes, place.bytes});
  }
  published_ = block.Publish(facts, places);
}

std::optional<size_t> Guest::RegionOf(uint64_t image_offset_bytes) const {
  for (size_t i = 0; i < regions_.size(); ++i) {
    if (image_offset_bytes - regions_[i].image_offset_bytes <
        regions_[i].bytes) {
      return i;
    }
  }
  return std::nullopt;
}

void Guest::Count(uint64_t image_offset_bytes, uint64_t RegionInBlock::*count,
                  uint64_t number) {
  if (published_ == nullptr || number == 0) return;
  const std::optional<size_t> region = RegionOf(image_offset_bytes);
  if (region.has_value()) published_->Add(*region, count, number);
}

void Guest::PublishPlaces() {
  if (published_ == nullptr) return;
  // The part that has the lowest place of the image, and what continues it.
  struct Now {
    uint64_t start = 0;
    uint64_t image_offset_bytes = UINT64_MAX;
    uint64_t bytes = 0;
  };
  std::vector<Now> now(regions_.size());
  for (std::optional<AddressMap::Piece> piece = map_.Next(0); piece.has_value();
       piece = map_.Next(piece->end)) {
    const std::optional<size_t> region = RegionOf(piece->image_offset_bytes);
    if (!region.has_value()) continue;
    Now& its = now[*region];
    if (piece->start == its.start + its.bytes &&
        piece->image_offset_bytes == its.image_offset_bytes + its.bytes) {
      its.bytes += piece->bytes();
    } else if (piece->image_offset_bytes < its.image_offset_bytes) {
      its = {piece->start, piece->image_offset_bytes, piece->bytes()};
    }
  }
  for (size_t i = 0; i < now.size(); ++i) {
    const bool gone = now[i].bytes == 0;
    published_->Move(
        i, now[i].start, now[i].bytes,
        gone ? regions_[i].image_offset_bytes : now[i].image_offset_bytes);
  }
}

void Guest::PublishWaiting() {
  if (published_ == nullptr) return;
  published_->SetWaiting(queue_.size() + later_.size() + waiting_.size());
}

}  // namespace firsttouch
