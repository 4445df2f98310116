#include "tests/fuzz/snapshot_target.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/core_file.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/test_block.h"
#include "firsttouch/tools/pooldump/snapshot/totals.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {
namespace {

using pooldump::BlockReader;
using pooldump::CoreFile;
using pooldump::Location;
using pooldump::MemoryBytes;
using pooldump::PageMap;
using pooldump::PageRun;
using pooldump::PoolSnapshot;
using pooldump::Slot;
using pooldump::Totals;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "the reader breaks its promise: %s\n", what);
  abort();
}

// Errors are one line that can be shown.
void CheckError(const absl::Status& status) {
  if (status.ok()) return;
  const std::string text(status.message());
  Check(!text.empty(), "an error without a text");
  Check(pooldump::Printable(text) == text, "an error that cannot be shown");
}

void CheckPool(const PoolSnapshot& pool) {
  // Also that all text is UTF-8: protobuf refuses to write what is not.
  std::string bytes;
  Check(pool.SerializeToString(&bytes), "a pool that cannot be written");
  Totals sums;
  for (const Slot& slot : pool.slots()) {
    pooldump::AddToTotals(slot, sums);
    Check(slot.size_bytes() <= pool.layout().max_memory_bytes(),
          "a size above the maximum");
  }
  Check(sums.SerializeAsString() == pool.totals().SerializeAsString(),
        "totals that are not the slots'");
  Check(static_cast<uint32_t>(pool.slots_size()) == pool.layout().slots(),
        "another number of slots");
}

void CheckPages(const absl::StatusOr<PageMap>& map) {
  CheckError(map.status());
  if (!map.ok()) return;
  uint64_t next = 0;
  for (const PageRun& run : map->runs()) {
    Check(run.first_page() == next, "runs with a gap");
    Check(run.pages() != 0, "a run of nothing");
    next += run.pages();
  }
  Check(next <= map->pool().layout().max_memory_bytes() / 4096,
        "pages behind the end");
}

void CheckLocation(const absl::StatusOr<Location>& where) {
  CheckError(where.status());
  if (where.ok()) Check(where->place() != 0, "an address without a place");
}

}  // namespace

void ReadAsControlBlock(std::span<const uint8_t> input) {
  MemoryBytes bytes(std::string_view(
      reinterpret_cast<const char*>(input.data()), input.size()));
  absl::StatusOr<BlockReader> reader = BlockReader::Open(bytes);
  CheckError(reader.status());
  if (!reader.ok()) return;
  std::vector<std::string> warnings;
  const absl::StatusOr<PoolSnapshot> pool = reader->ReadPool(warnings);
  CheckError(pool.status());
  if (pool.ok()) CheckPool(*pool);
  const uint32_t slots = reader->layout().slots();
  for (uint32_t slot : {0u, slots - 1, slots}) {
    CheckPages(reader->ReadPages(slot));
  }
  const auto& header = reader->header();
  for (uint64_t offset :
       {uint64_t{0}, header.first_memory_offset_bytes,
        header.first_memory_offset_bytes + header.max_memory_bytes - 1,
        header.reservation_bytes - 1}) {
    CheckLocation(reader->Locate(header.base + offset));
  }
}

void ReadAsCore(std::span<const uint8_t> input) {
  const UniqueFd fd(memfd_create("core", MFD_CLOEXEC));
  if (!fd || write(fd.get(), input.data(), input.size()) !=
                 static_cast<ssize_t>(input.size())) {
    abort();
  }
  absl::StatusOr<CoreFile> core =
      CoreFile::Open(absl::StrCat("/proc/self/fd/", fd.get()));
  CheckError(core.status());
  if (!core.ok()) return;
  const auto snapshot = core->Snapshot("");
  CheckError(snapshot.status());
  if (snapshot.ok()) {
    for (const PoolSnapshot& pool : snapshot->pools()) CheckPool(pool);
    std::string bytes;
    Check(snapshot->SerializeToString(&bytes), "a model that is no text");
  }
  CheckPages(core->Pages("", 0));
  CheckLocation(core->Locate(0));
  CheckLocation(core->Locate(pooldump::kTestFirstSlot + 4096));
}

std::vector<std::string> ControlBlockSeeds() { return {pooldump::TestBlock()}; }

std::vector<std::string> CoreSeeds() {
  const std::string block = pooldump::TestBlock();
  return {pooldump::TestCore(block, pooldump::kTestFirstSlot + 4096),
          pooldump::TestCore(block, 16)};
}

}  // namespace firsttouch
