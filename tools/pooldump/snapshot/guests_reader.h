// Reads one guests block (control/guests.h) into the model: each guest of a
// page server as a pool, whose slots are the guest's regions and whose
// addresses are those of the guest's process.
//
// Believes nothing, as BlockReader. Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_GUESTS_READER_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_GUESTS_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

class GuestsReader {
 public:
  // Reads the header. `bytes` must outlive the reader. Errors: as
  // BlockReader::Open.
  static absl::StatusOr<GuestsReader> Open(BlockBytes& bytes);

  const GuestsHeader& header() const { return header_; }
  std::string name() const;

  // The guests that there are, in the order of their numbers; without what the
  // kernel knows.
  absl::StatusOr<std::vector<PoolSnapshot>> ReadGuests();

 private:
  explicit GuestsReader(BlockBytes& bytes) : bytes_(&bytes) {}

  // Nothing where there is none.
  absl::StatusOr<std::optional<PoolSnapshot>> ReadGuest(uint64_t index);

  BlockBytes* bytes_;
  GuestsHeader header_ = {};
  // Of all guests since ReadGuests() began.
  uint64_t regions_read_ = 0;
};

// Adds what the kernel says of a guest's process: its name, and what is
// resident of its regions. A line of why not; empty.
std::string AddGuestProcess(PoolSnapshot& guest);

// What an address of a guest's process is, where a region has it.
std::optional<Location> LocateInGuest(const PoolSnapshot& guest,
                                      uint64_t address);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_GUESTS_READER_H_
