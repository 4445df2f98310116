// Reads one control block (control/block.h) into the model, wherever its bytes
// are: in a running process, in a core dump, in a test.
//
// Believes nothing: every number is checked before it is used, text is made fit
// for a terminal. A block that is corrupted, or made to do harm, gives DataLoss
// with what is wrong; one of another version FailedPrecondition.
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_READER_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_READER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/block.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

class BlockReader {
 public:
  // Reads the header. `bytes` must outlive the reader. Errors beside those
  // above: NotFound for a pool that is being made, or gone.
  static absl::StatusOr<BlockReader> Open(BlockBytes& bytes);

  const ControlHeader& header() const { return header_; }
  const PoolLayout& layout() const { return layout_; }
  std::string name() const;
  // Whether the service keeps states of pages: not where the kernel resolves
  // all faults by itself, in a pool of mappings.
  bool has_page_states() const;
  bool Contains(uint64_t address) const {
    return address - header_.base < header_.reservation_bytes;
  }

  // Everything but what the kernel knows. Page counts are left out, with a
  // warning, where page states cannot be read.
  absl::StatusOr<PoolSnapshot> ReadPool(std::vector<std::string>& warnings);

  // The pool without slots, images and sums.
  PoolSnapshot Facts() const;

  // `number` is below layout().slots(). Without `pages`.
  absl::StatusOr<Slot> ReadSlot(uint32_t number);

  // The pages of a slot; `resident` of all runs is -1. NotFound where there is
  // no such slot.
  absl::StatusOr<PageMap> ReadPages(uint32_t number);

  // What the address, which the reservation contains, is.
  absl::StatusOr<Location> Locate(uint64_t address);

 private:
  // A field of a slot's record; `bytes` 0: there is none.
  struct Field {
    uint32_t offset = 0;
    uint32_t bytes = 0;
  };
  // A field and where in a message it goes.
  struct CounterField {
    Field field;
    void (Counters::*set)(uint64_t);
  };

  BlockReader(BlockBytes& bytes, const PoolLayout& layout)
      : bytes_(&bytes), layout_(layout) {}

  absl::Status CheckSections() const;
  absl::Status ReadNames(const ControlSection& section,
                         std::vector<std::string>& names);
  absl::Status ReadFields();
  absl::Status ReadDescription();
  absl::Status CountPages(PoolSnapshot& pool);
  uint64_t ValueOf(std::span<const uint64_t> record, Field field) const;
  BlockBytes* bytes_;
  ControlHeader header_ = {};
  PoolLayout layout_;
  std::vector<std::string> states_;
  std::vector<std::string> trackings_;
  std::string description_;
  Field state_;
  Field tracking_;
  Field base_;
  Field size_bytes_;
  Field initial_bytes_;
  Field kernel_pages_;
  Field handovers_;
  std::vector<CounterField> counters_;
};

// One line for each error that can end in a message: what is wrong with a
// block.
absl::Status CorruptBlock(std::string_view pool, std::string_view what);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_READER_H_
