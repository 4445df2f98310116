// The format of a control block: what a pool publishes about itself, for
// programs of other versions to read. docs/control-block.md says how.
//
// A control block is a memfd named "firsttouch-pool:NAME" of the process that
// has the pool: a header, and sections that the header points to. Two of the
// sections are not made for readers: they are the records and page states that
// the service itself works with, so that publishing them costs the service
// nothing. Their layout may change with any change to the service; therefore
// the header names each field that a reader may want, and says where it is.
//
// Everything is little-endian, every number is aligned to its size, every text
// is UTF-8 padded with zeroes (not terminated where it fills its field).

#ifndef FIRSTTOUCH_CONTROL_BLOCK_H_
#define FIRSTTOUCH_CONTROL_BLOCK_H_

#include <cstddef>
#include <cstdint>

namespace firsttouch {

// The first bytes of a block.
inline constexpr char kControlMagic[8] = {'F', 'T', 'P',  'O',
                                          'O', 'L', '\r', '\n'};

// A reader refuses any other version. New fields at the end of the header or of
// a record, new names of fields and new states do not raise the version.
inline constexpr uint32_t kControlVersion = 1;

// The beginning of the block's name in /proc/PID/fd, behind "/memfd:".
inline constexpr char kControlMemfdPrefix[] = "firsttouch-pool:";

// `records` records of `record_bytes` each, `offset_bytes` from the start of
// the block. Lies within the block. Records are at least as large as their
// declarations here.
struct ControlSection {
  uint64_t offset_bytes;
  uint64_t record_bytes;
  uint64_t records;
};

// The place of a field in a slot's record. Fields are unsigned numbers of 1, 4
// or 8 bytes. The names of version 1 are those of `Slot` and `Counters` in
// tools/pooldump/snapshot/snapshot.proto; "state" and "tracking" are indices
// into the sections of these names.
struct ControlField {
  char name[24];
  uint32_t offset_bytes;
  uint32_t bytes;
};

// The meaning of a number: record i is the name of value i.
struct ControlName {
  char name[16];
};

// An image that a slot is bound to; record i is that of slot i. It is written
// word by word: `sequence` is odd meanwhile, and has another value afterwards.
struct ControlImage {
  uint64_t sequence;
  uint64_t id;  // 0: none, and then the rest means nothing
  uint64_t size_bytes;
  uint64_t stored_pages;
  uint64_t digest_known;  // 0 or 1
  uint8_t digest[32];     // SHA-256
  uint64_t name_bytes;    // of the whole name, may be more than are here
  char name[128];
};
static_assert(sizeof(ControlImage) == 26 * 8);

// States of pages. A slot's record is a summary, `group_offset_bytes` long, and
// then groups of 64 pages, `group_bytes` each. A group consists of 64-bit
// planes; bit i of each stands for page i. A group that has never been written
// to may be a hole of the file. The summary's bit g is set where group g may
// have a bit set.
struct ControlPlanes {
  uint64_t group_offset_bytes;
  uint64_t group_bytes;
  uint64_t groups;
  // Offsets of planes in a group; see service/page_states.h.
  uint32_t present;
  uint32_t untracked;
  uint32_t dirty;
  uint32_t retained;
  uint32_t recent;
  uint32_t previous;
};

inline constexpr uint64_t kControlNone = ~uint64_t{0};

struct ControlHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;  // of this structure, at least sizeof(ControlHeader)
  uint64_t block_bytes;   // of the memfd
  // 1 once everything else is written, and 0 again when the pool is gone: a
  // reader ignores a block in which it is 0.
  uint64_t ready;
  // The address of the block itself in the process, to find it in a core dump.
  uint64_t address;
  // The process's pid as the process itself sees it. If it differs from the pid
  // (in its pid namespace) of the process in which a reader found the block,
  // the descriptor was inherited by fork(2) or passed on, and the pool is not
  // that process's.
  uint32_t pid;
  uint32_t pool_id;
  uint64_t created_ns;  // CLOCK_REALTIME
  // Where the memories are: pool/layout.h.
  uint64_t base;
  uint64_t reservation_bytes;
  uint64_t first_memory_offset_bytes;
  uint64_t slot_stride_bytes;
  uint64_t max_memory_bytes;
  uint64_t guard_before_bytes;
  uint64_t guard_after_bytes;
  uint64_t fault_around_bytes;
  uint64_t page_bytes;
  uint32_t instances;
  uint32_t memories_per_instance;
  // Options; kControlNone: not set.
  uint32_t handler_threads;
  uint32_t retained_cycles;
  uint64_t retained_pages_limit;
  uint64_t resident_budget_bytes;
  char supply[16];
  char backing[16];
  char resolve[16];
  char strategy[16];
  char name[128];  // of the pool

  ControlSection fields;     // ControlField
  ControlSection states;     // ControlName
  ControlSection trackings;  // ControlName
  ControlSection slots;      // see `fields`
  ControlSection images;     // ControlImage
  ControlSection pages;      // see `planes`
  ControlPlanes planes;
  ControlSection description;  // one record: Service::Describe()
};
static_assert(sizeof(ControlHeader) % 8 == 0);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_CONTROL_BLOCK_H_
