// Which pages of a guest are placed before they are asked for, and in which
// order: what was told to come first, then the rest of the image.

#ifndef FIRSTTOUCH_SERVE_EARLY_PAGES_H_
#define FIRSTTOUCH_SERVE_EARLY_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/address_map.h"

namespace firsttouch {

// Thread-compatible. The map and the set of stored pages are the guest's, as
// they are at each call.
class EarlyPages {
 public:
  // What is given at a time, at most, unless a page is larger.
  static constexpr uint64_t kMostBytes = uint64_t{64} << 10;

  // Pages to place next, within one piece.
  struct Some {
    AddressMap::Piece piece;
    uintptr_t start = 0;
    uintptr_t end = 0;
    bool of_the_rest = false;
  };

  // Pages of the image, where the map has them now, that come first. Once, in
  // the beginning. Guests may share the runs; they are let go of when all have
  // been given.
  void Plan(std::shared_ptr<const std::vector<PageRun>> runs,
            const AddressMap& map);

  // The next pages. nullopt: none; with `rest`, all that the image stores has
  // been given.
  std::optional<Some> Next(const AddressMap& map, const PageMap& stored,
                           bool rest);
  // What Next() has given could not be placed, and comes again: before the
  // others, whatever the map has there by then.
  void PutBack(const Some& some);

  // Whether only the rest is left.
  bool first_ones_are_done() const {
    return first_ == nullptr && range_.start >= range_.end && again_.empty();
  }
  bool rest_is_done() const { return rest_ended_; }
  // No rest is given any more, or from the start of the image again.
  void EndRest() { rest_ended_ = true; }
  void RestartRest();

 private:
  struct Range {
    uintptr_t start = 0;
    uintptr_t end = 0;
  };

  // Goes on to the next range of the first pages. False: there are no more.
  bool NextRange();

  // Null: all of them have been given.
  std::shared_ptr<const std::vector<PageRun>> first_;
  // Where they were when they were planned.
  std::vector<AddressMap::Piece> pieces_;
  // What comes next: a run, and a piece that may have a part of it.
  size_t next_run_ = 0;
  size_t next_piece_ = 0;
  // What is left of the range that is being given, and what was put back.
  Range range_;
  std::vector<Range> again_;
  // Where the rest goes on.
  uintptr_t rest_at_ = 0;
  bool rest_ended_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_EARLY_PAGES_H_
