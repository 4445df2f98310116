// The states of pages as a control block has them: planes of a bit for each
// page, in groups of 64 pages.
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PAGE_GROUPS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PAGE_GROUPS_H_

#include <cstdint>
#include <map>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/block.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// The words of 64 neighbouring pages, by plane.
struct PageGroup {
  uint64_t present = 0;
  uint64_t untracked = 0;
  uint64_t dirty = 0;
  uint64_t retained = 0;
  uint64_t lately = 0;  // Dirty in one of the last two sampling windows.

  // Whether the service knows of no page of the group.
  bool is_empty() const { return (present | dirty) == 0; }
  // Of a page of the group, 0 to 63.
  PageState StateOf(uint64_t page) const;
};

class PageGroups {
 public:
  // `header` has been checked. Both outlive this.
  PageGroups(BlockBytes& bytes, const ControlHeader& header)
      : bytes_(bytes), header_(header) {}

  absl::StatusOr<PageGroup> Read(uint32_t slot, uint64_t group) const;

  using Visit = absl::FunctionRef<void(uint32_t slot, uint64_t group,
                                       const PageGroup& pages)>;
  // Calls visit for each group that is not empty, of one slot or of all.
  absl::Status ForEachOf(uint32_t slot, Visit visit) const;
  absl::Status ForEach(Visit visit) const;

 private:
  PageGroup At(std::span<const uint64_t> words, uint64_t offset) const;
  // Of [offset, end) of the section of page states.
  absl::Status ForEachIn(uint64_t offset, uint64_t end, Visit visit) const;

  BlockBytes& bytes_;
  const ControlHeader& header_;
};

// Sets the runs of a map whose slot is set, from the groups of that slot by
// their numbers. `known`: the groups could be read, so that any other has no
// page there; `most_pages` is the end of the slot. `resident` of all runs is
// -1.
void SetRuns(const std::map<uint64_t, PageGroup>& groups, bool known,
             uint64_t most_pages, PageMap& map);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PAGE_GROUPS_H_
