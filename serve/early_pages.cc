#include "firsttouch/serve/early_pages.h"

#include <algorithm>
#include <utility>

#include "firsttouch/uffd/units.h"

namespace firsttouch {

void EarlyPages::Plan(std::shared_ptr<const std::vector<PageRun>> runs,
                      const AddressMap& map) {
  first_ = std::move(runs);
  for (std::optional<AddressMap::Piece> piece = map.Next(0); piece.has_value();
       piece = map.Next(piece->end)) {
    pieces_.push_back(*piece);
  }
}

bool EarlyPages::NextRange() {
  if (!again_.empty()) {
    range_ = again_.back();
    again_.pop_back();
    return true;
  }
  for (; first_ != nullptr && next_run_ < first_->size(); ++next_run_) {
    const PageRun& run = (*first_)[next_run_];
    const uint64_t first = run.first.offset_bytes();
    const uint64_t end = run.end().offset_bytes();
    while (next_piece_ < pieces_.size()) {
      const AddressMap::Piece& piece = pieces_[next_piece_++];
      const uint64_t from = std::max(first, piece.image_offset_bytes);
      const uint64_t to = std::min(end, piece.OffsetOf(piece.end));
      if (from >= to) continue;
      const uint64_t mask = piece.page_bytes - 1;
      const uintptr_t start =
          (piece.start + (from - piece.image_offset_bytes)) & ~mask;
      range_ = {start, start + ((to - from + mask) & ~mask)};
      return true;
    }
    next_piece_ = 0;
  }
  first_ = nullptr;
  pieces_ = {};
  return false;
}

std::optional<EarlyPages::Some> EarlyPages::Next(const AddressMap& map,
                                                 const PageMap& stored,
                                                 bool rest) {
  while (range_.start < range_.end || NextRange()) {
    const std::optional<AddressMap::Piece> piece = map.Next(range_.start);
    if (!piece.has_value() || piece->start >= range_.end) {
      range_ = {};
      continue;
    }
    const uintptr_t start = piece->start;
    const uintptr_t end =
        std::min<uint64_t>({piece->end, range_.end,
                            start + std::max(kMostBytes, piece->page_bytes)});
    range_.start = end;
    if (piece->freed) continue;
    return Some{*piece, start, end, false};
  }
  if (rest_ended_ || !rest) return std::nullopt;
  for (std::optional<AddressMap::Piece> piece = map.Next(rest_at_);
       piece.has_value(); piece = map.Next(rest_at_)) {
    rest_at_ = piece->end;
    if (piece->freed) continue;
    const PageIndex first = PageContaining(piece->image_offset_bytes);
    const std::optional<PageRun> run = stored.NextRun(
        first, first + PagesRoundedUp(piece->end - piece->start));
    if (!run.has_value()) continue;
    const uint64_t mask = piece->page_bytes - 1;
    const uint64_t offset =
        std::max(piece->image_offset_bytes, run->first.offset_bytes() & ~mask);
    const uintptr_t start = piece->start + (offset - piece->image_offset_bytes);
    const uint64_t run_bytes =
        (run->end().offset_bytes() - offset + mask) & ~mask;
    const uintptr_t end =
        std::min<uint64_t>({piece->end, start + run_bytes,
                            start + std::max(kMostBytes, piece->page_bytes)});
    rest_at_ = end;
    return Some{*piece, start, end, true};
  }
  rest_ended_ = true;
  return std::nullopt;
}

void EarlyPages::PutBack(const Some& some) {
  if (some.of_the_rest) {
    rest_at_ = std::min(rest_at_, some.start);
    rest_ended_ = false;
    return;
  }
  if (range_.start < range_.end) again_.push_back(range_);
  range_ = {some.start, some.end};
}

void EarlyPages::RestartRest() {
  rest_at_ = 0;
  rest_ended_ = false;
}

}  // namespace firsttouch
