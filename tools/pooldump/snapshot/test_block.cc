#include "firsttouch/tools/pooldump/snapshot/test_block.h"

#include <elf.h>
#include <signal.h>
#include <sys/procfs.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "firsttouch/control/block.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {
namespace {

struct Planes {
  uint64_t retained;
  uint64_t present;
  uint64_t dirty;
  uint64_t untracked;
  uint64_t recent;
  uint64_t previous;
  uint64_t unknown_to_readers;
};
constexpr uint64_t kSummaryBytes = 16;
constexpr uint64_t kGroups = (kTestMemoryPages + 63) / 64;

template <size_t kBytes>
void PutText(std::string_view text, char (&into)[kBytes]) {
  std::memcpy(into, text.data(), std::min(text.size(), kBytes));
}

ControlField Field(std::string_view name, size_t offset, size_t bytes) {
  ControlField field = {};
  PutText(name, field.name);
  field.offset_bytes = static_cast<uint32_t>(offset);
  field.bytes = static_cast<uint32_t>(bytes);
  return field;
}

ControlName Name(std::string_view text) {
  ControlName name = {};
  PutText(text, name.name);
  return name;
}

template <typename Value>
void Append(std::string& out, const Value& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendNote(std::string& out, uint32_t type, std::string_view text) {
  Append(out, Elf64_Nhdr{.n_namesz = 5,
                         .n_descsz = static_cast<Elf64_Word>(text.size()),
                         .n_type = type});
  out.append("CORE\0\0\0\0", 8);
  out.append(text);
  out.append((4 - text.size() % 4) % 4, '\0');
}

template <typename Value>
std::string_view BytesOf(const Value& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

}  // namespace

std::unique_ptr<ControlBlock> MakeTestBlock() {
  const auto layout =
      PoolLayout::Compute({.instances = 3,
                           .max_memory_bytes = kTestMemoryPages * 4096,
                           .guard_before_bytes = 2 * 4096,
                           .guard_after_bytes = 4 * 4096});
  auto block = ControlBlock::Create(
      RealKernel(), RealMemfdCalls(), "test",
      {.slots = 3, .slot_bytes = sizeof(TestRecord), .page_states_bytes = 4096},
      /*publish=*/false);
  if (!layout.ok() || !block.ok()) abort();
  const TestRecord records[3] = {{.tracking = 1,
                                  .state = kTestHeld,
                                  .traps = 3,
                                  .size_bytes = 100 * 4096,
                                  .handovers = 5,
                                  .initial_bytes = 90 * 4096},
                                 {},
                                 {.state = kTestQuarantined}};
  for (uint32_t i = 0; i < 3; ++i) {
    std::memcpy((*block)->slot_record(i), &records[i], sizeof(TestRecord));
  }
  auto* const groups =
      reinterpret_cast<Planes*>((*block)->page_states(0) + kSummaryBytes);
  groups[0] = {.retained = 0b1000,
               .present = 0b1111,
               .dirty = 0b1100,
               .untracked = 0b0010,
               .recent = 0b1000};
  groups[299 / 64] = {.retained = uint64_t{1} << (299 % 64),
                      .present = uint64_t{1} << (299 % 64),
                      .dirty = uint64_t{1} << (299 % 64)};
  const uint8_t digest[32] = {0xab, 0xcd};
  (*block)->NoteImage(0, {.id = 7,
                          .size_bytes = 70 * 4096,
                          .stored_pages = 60,
                          .digest = std::span<const uint8_t, 32>(digest),
                          .name = "greeting"});

  ControlHeader header = {};
  header.pool_id = 4;
  header.base = kTestBase;
  header.reservation_bytes = layout->reservation_bytes();
  header.first_memory_offset_bytes = layout->first_memory_offset_bytes();
  header.slot_stride_bytes = layout->slot_stride_bytes();
  header.max_memory_bytes = layout->memory_bytes();
  header.guard_before_bytes = 2 * 4096;
  header.guard_after_bytes = 4 * 4096;
  header.fault_around_bytes = layout->options().fault_around_bytes;
  header.page_bytes = 4096;
  header.instances = 3;
  header.memories_per_instance = 1;
  header.retained_cycles = 60;
  header.retained_pages_limit = kControlNone;
  header.resident_budget_bytes = 1 << 20;
  PutText("userfaultfd", header.supply);
  PutText("test", header.name);
  header.planes = {.group_offset_bytes = kSummaryBytes,
                   .group_bytes = sizeof(Planes),
                   .groups = kGroups,
                   .present = offsetof(Planes, present),
                   .untracked = offsetof(Planes, untracked),
                   .dirty = offsetof(Planes, dirty),
                   .retained = offsetof(Planes, retained),
                   .recent = offsetof(Planes, recent),
                   .previous = offsetof(Planes, previous)};
  const ControlField fields[] = {
      Field("state", offsetof(TestRecord, state), 4),
      Field("tracking", offsetof(TestRecord, tracking), 1),
      Field("size_bytes", offsetof(TestRecord, size_bytes), 8),
      Field("initial_bytes", offsetof(TestRecord, initial_bytes), 8),
      Field("handovers", offsetof(TestRecord, handovers), 8),
      Field("traps", offsetof(TestRecord, traps), 8),
      Field("of_a_later_version", 0, 64),
  };
  const ControlName states[] = {Name("free"), Name("leased"),
                                Name("quarantined"), Name("returning")};
  const ControlName trackings[] = {Name("signal"), Name("async")};
  (*block)->Publish(header, {.fields = fields,
                             .states = states,
                             .trackings = trackings,
                             .description = "a pool\nof a test\n"});
  return *std::move(block);
}

std::string TestBlock() {
  const std::unique_ptr<ControlBlock> block = MakeTestBlock();
  return {reinterpret_cast<const char*>(block->address()), block->bytes()};
}

std::string TestCore(const std::string& block, uint64_t fault) {
  std::string notes;
  elf_prstatus status = {};
  status.pr_pid = 4321;
  status.pr_cursig = SIGBUS;
  AppendNote(notes, NT_PRSTATUS, BytesOf(status));
  elf_prpsinfo info = {};
  info.pr_pid = 4321;
  std::memcpy(info.pr_fname, "crasher", 7);
  AppendNote(notes, NT_PRPSINFO, BytesOf(info));
  siginfo_t signal = {};
  signal.si_signo = SIGBUS;
  signal.si_code = BUS_ADRERR;
  signal.si_addr = reinterpret_cast<void*>(fault);
  AppendNote(notes, 0x53494749, BytesOf(signal));
  const uint64_t numbers[] = {1, 4096, 0x1000, 0x2000, 0};
  std::string files(BytesOf(numbers));
  files.append("/bin/crasher\0", 13);
  AppendNote(notes, 0x46494c45, files);

  // Header, notes, the program, the block.
  constexpr uint64_t kHeaders = sizeof(Elf64_Ehdr) + 3 * sizeof(Elf64_Phdr);
  const uint64_t block_at = (kHeaders + notes.size() + 4095) / 4096 * 4096;
  ControlHeader header;
  std::memcpy(&header, block.data(), std::min(sizeof(header), block.size()));
  Elf64_Ehdr elf = {};
  std::memcpy(elf.e_ident, ELFMAG, SELFMAG);
  elf.e_ident[EI_CLASS] = ELFCLASS64;
  elf.e_ident[EI_DATA] = ELFDATA2LSB;
  elf.e_ident[EI_VERSION] = EV_CURRENT;
  elf.e_type = ET_CORE;
  elf.e_machine = EM_X86_64;
  elf.e_version = EV_CURRENT;
  elf.e_phoff = sizeof(Elf64_Ehdr);
  elf.e_ehsize = sizeof(Elf64_Ehdr);
  elf.e_phentsize = sizeof(Elf64_Phdr);
  elf.e_phnum = 3;
  std::string core;
  Append(core, elf);
  Append(core, Elf64_Phdr{.p_type = PT_NOTE,
                          .p_offset = kHeaders,
                          .p_filesz = notes.size()});
  Append(core,
         Elf64_Phdr{.p_type = PT_LOAD, .p_vaddr = 0x1000, .p_memsz = 0x1000});
  Append(core, Elf64_Phdr{.p_type = PT_LOAD,
                          .p_offset = block_at,
                          .p_vaddr = header.address,
                          .p_filesz = block.size(),
                          .p_memsz = block.size()});
  core += notes;
  core.resize(block_at, '\0');
  return core + block;
}

MemoryBytes::MemoryBytes(std::string_view bytes)
    : words_((bytes.size() + 7) / 8), bytes_(bytes.size()) {
  if (!bytes.empty()) std::memcpy(words_.data(), bytes.data(), bytes.size());
}

absl::Status MemoryBytes::Read(uint64_t offset, std::span<uint64_t> into) {
  // A reader that keeps its promise asks for nothing else.
  if (offset % 8 != 0 || offset / 8 > words_.size() ||
      into.size() > words_.size() - offset / 8) {
    abort();
  }
  std::copy_n(words_.begin() + static_cast<std::ptrdiff_t>(offset / 8),
              into.size(), into.begin());
  return absl::OkStatus();
}

absl::StatusOr<BlockBytes::Part> MemoryBytes::NextData(uint64_t offset,
                                                       uint64_t end) {
  return Part{offset, end};
}

}  // namespace firsttouch::pooldump
