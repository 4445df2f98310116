#include "firsttouch/tools/pooldump/snapshot/core_file.h"

#include <errno.h>
#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>
#include <signal.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/reg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/control/block.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/pool_choice.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {
namespace {

// <linux/elf.h> has them, and clashes with <elf.h>.
constexpr uint32_t kNoteSiginfo = 0x53494749;
constexpr uint32_t kNoteFile = 0x46494c45;
// More than any file has.
constexpr uint64_t kMostFileBytes = uint64_t{1} << 62;
// More than a process with vm.max_map_count mappings has.
constexpr uint64_t kMaxNoteBytes = uint64_t{64} << 20;

// A mapping of the process, and what of it is in the file.
struct Segment {
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t file_offset = 0;
  uint64_t file_bytes = 0;
};

// A mapping of a file, as the kernel noted it.
struct FileRange {
  uint64_t start = 0;
  uint64_t end = 0;
  std::string path;
};

// The memory of a dumped process.
class CoreMemory {
 public:
  UniqueFd fd;
  uint64_t file_bytes = 0;
  // In ascending order, not overlapping.
  std::vector<Segment> segments;

  // The segment that has the address; null where there is none.
  const Segment* At(uint64_t address) const {
    const auto after = std::upper_bound(
        segments.begin(), segments.end(), address,
        [](uint64_t at, const Segment& one) { return at < one.start; });
    if (after == segments.begin()) return nullptr;
    const Segment& before = *(after - 1);
    return address < before.end ? &before : nullptr;
  }

  // The file ends before the `bytes` at `offset` do.
  absl::Status CutShort(uint64_t offset, uint64_t bytes) const {
    if (offset > kMostFileBytes || bytes > kMostFileBytes - offset) {
      return absl::DataLossError(
          absl::StrCat("the core is damaged: it says that ", bytes,
                       " bytes of it lie at offset ", offset,
                       ", which no file has; write it anew"));
    }
    return CutShort(offset + bytes);
  }

  absl::Status CutShort(uint64_t needed) const {
    return absl::DataLossError(absl::StrCat(
        "the core is cut short: it has ", file_bytes, " bytes and ", needed,
        " are needed; raise RLIMIT_CORE (ulimit -c) of the process, or make "
        "room on the disk it is written to"));
  }

  absl::Status ReadFile(uint64_t offset, std::span<char> into) const {
    if (offset > file_bytes || into.size() > file_bytes - offset) {
      return CutShort(offset, into.size());
    }
    while (!into.empty()) {
      const ssize_t got =
          pread(fd.get(), into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, "reading the core");
      if (got == 0) return CutShort(offset + into.size());
      into = into.subspan(static_cast<size_t>(got));
      offset += static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
  }

  // FailedPrecondition: the process did not dump all of it.
  absl::Status Read(uint64_t address, std::span<char> into) const {
    while (!into.empty()) {
      const Segment* const segment = At(address);
      const uint64_t at = segment == nullptr ? 0 : address - segment->start;
      if (segment == nullptr || at >= segment->file_bytes) {
        return absl::FailedPreconditionError(
            absl::StrCat("the memory at 0x", absl::Hex(address),
                         " is not in the core: the process did not dump it"));
      }
      const size_t part = static_cast<size_t>(
          std::min<uint64_t>(into.size(), segment->file_bytes - at));
      if (absl::Status status =
              ReadFile(segment->file_offset + at, into.first(part));
          !status.ok()) {
        return status;
      }
      into = into.subspan(part);
      address += part;
    }
    return absl::OkStatus();
  }
};

class CoreBytes : public BlockBytes {
 public:
  CoreBytes(const CoreMemory& memory, uint64_t address, uint64_t bytes)
      : memory_(memory), address_(address), bytes_(bytes) {}

  uint64_t bytes() const override { return bytes_; }

  absl::Status Read(uint64_t offset, std::span<uint64_t> into) override {
    return memory_.Read(
        address_ + offset,
        {reinterpret_cast<char*>(into.data()), into.size_bytes()});
  }

  absl::StatusOr<Part> NextData(uint64_t offset, uint64_t end) override {
    const Segment* const segment = memory_.At(address_ + offset);
    const uint64_t at =
        segment == nullptr ? 0 : address_ + offset - segment->start;
    if (segment == nullptr || at >= segment->file_bytes) {
      return absl::FailedPreconditionError(
          "page states are not in the core (they are dumped for pools where "
          "they take up to 64 MiB)");
    }
    return Part{offset, std::min(end, offset + segment->file_bytes - at)};
  }

 private:
  const CoreMemory& memory_;
  const uint64_t address_;
  const uint64_t bytes_;
};

// Others are what gcore found the process with: it stops it to write the core.
bool EndsAProcess(int signal) {
  switch (signal) {
    case 0:
    case SIGCONT:
    case SIGSTOP:
    case SIGTSTP:
    case SIGTTIN:
    case SIGTTOU:
      return false;
    default:
      return true;
  }
}

struct Pool {
  std::unique_ptr<CoreBytes> bytes;
  BlockReader reader;
};

std::string SignalName(int signal) {
  const char* const name = sigabbrev_np(signal);
  return name == nullptr ? absl::StrCat("signal ", signal)
                         : absl::StrCat("SIG", name);
}

// Takes the numbers and paths of a note of file mappings; as many as are whole.
std::vector<FileRange> ParseFileNote(std::span<const char> note) {
  std::vector<FileRange> files;
  const auto word = [&](uint64_t index) {
    uint64_t value = 0;
    std::memcpy(&value, note.data() + index * 8, 8);
    return value;
  };
  const uint64_t words = note.size() / 8;
  if (words < 2) return files;
  const uint64_t count = word(0);
  if (count > (words - 2) / 3) return files;
  std::string_view names(note.data() + (2 + count * 3) * 8,
                         note.size() - (2 + count * 3) * 8);
  for (uint64_t i = 0; i < count; ++i) {
    const size_t length = names.find('\0');
    if (length == std::string_view::npos) break;
    files.push_back({word(2 + i * 3), word(3 + i * 3),
                     std::string(names.substr(0, length))});
    names.remove_prefix(length + 1);
  }
  return files;
}

}  // namespace

struct CoreFile::Impl {
  std::string path;
  CoreMemory memory;
  std::vector<FileRange> files;
  int64_t pid = 0;
  std::string command;
  bool has_crash = false;
  Crash crash;
  std::vector<Pool> pools;
  std::vector<std::string> warnings;

  absl::Status Load() {
    memory.fd.reset(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat file = {};
    if (!memory.fd || fstat(memory.fd.get(), &file) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("core ", path));
    }
    if (!S_ISREG(file.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is not a file: give the core dump"));
    }
    memory.file_bytes = static_cast<uint64_t>(file.st_size);
    elf_version(EV_CURRENT);
    const std::unique_ptr<Elf, int (*)(Elf*)> elf(
        elf_begin(memory.fd.get(), ELF_C_READ, nullptr), &elf_end);
    GElf_Ehdr header = {};
    if (elf == nullptr || elf_kind(elf.get()) != ELF_K_ELF ||
        gelf_getehdr(elf.get(), &header) == nullptr) {
      return NotACore(
          memory.file_bytes < sizeof(Elf64_Ehdr)
              ? absl::StrCat("it has ", memory.file_bytes, " bytes only")
              : "it is no ELF file");
    }
    if (header.e_type != ET_CORE) {
      return NotACore("it is a program or a library, not a core");
    }
    if (header.e_machine != EM_X86_64 ||
        gelf_getclass(elf.get()) != ELFCLASS64) {
      return NotACore("it is of another processor");
    }
    return LoadSegments(elf.get(), header);
  }

  absl::Status NotACore(const std::string& why) const {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " is not a core dump of an x86-64 Linux process: ", why,
        "; give the file that the kernel or gcore wrote"));
  }

  absl::Status LoadSegments(Elf* elf, const GElf_Ehdr& header) {
    size_t count = 0;
    if (elf_getphdrnum(elf, &count) != 0) {
      return memory.CutShort(header.e_phoff, header.e_phentsize);
    }
    // Where the file ends too early, the library counts fewer.
    if (header.e_phnum != PN_XNUM) count = header.e_phnum;
    if (header.e_phentsize != sizeof(Elf64_Phdr)) {
      return NotACore("its program headers have a strange size");
    }
    if (header.e_phoff > memory.file_bytes ||
        count > (memory.file_bytes - header.e_phoff) / sizeof(Elf64_Phdr)) {
      return memory.CutShort(header.e_phoff, count * sizeof(Elf64_Phdr));
    }
    for (size_t i = 0; i < count; ++i) {
      GElf_Phdr one = {};
      if (gelf_getphdr(elf, static_cast<int>(i), &one) == nullptr) {
        return memory.CutShort(header.e_phoff, (i + 1) * sizeof(Elf64_Phdr));
      }
      if (one.p_type == PT_NOTE) {
        if (absl::Status status = LoadNotes(elf, one); !status.ok()) {
          return status;
        }
      } else if (one.p_type == PT_LOAD && one.p_memsz > 0 &&
                 one.p_vaddr <= UINT64_MAX - one.p_memsz &&
                 one.p_offset <= UINT64_MAX - one.p_filesz) {
        memory.segments.push_back({one.p_vaddr, one.p_vaddr + one.p_memsz,
                                   one.p_offset,
                                   std::min(one.p_filesz, one.p_memsz)});
      }
    }
    std::sort(
        memory.segments.begin(), memory.segments.end(),
        [](const Segment& a, const Segment& b) { return a.start < b.start; });
    // Of those that overlap, which the kernel never writes, the first counts.
    uint64_t end = 0;
    std::erase_if(memory.segments, [&](const Segment& segment) {
      if (segment.start < end) return true;
      end = segment.end;
      return false;
    });
    uint64_t needed = 0;
    for (const Segment& segment : memory.segments) {
      needed = std::max(needed, segment.file_offset + segment.file_bytes);
    }
    if (needed > memory.file_bytes) {
      warnings.push_back(absl::StrCat(memory.CutShort(needed).message()));
    }
    return FindPools();
  }

  absl::Status LoadNotes(Elf* elf, const GElf_Phdr& segment) {
    if (segment.p_offset > memory.file_bytes ||
        segment.p_filesz > memory.file_bytes - segment.p_offset) {
      return memory.CutShort(segment.p_offset, segment.p_filesz);
    }
    if (segment.p_filesz == 0 || segment.p_filesz > kMaxNoteBytes) {
      return absl::OkStatus();
    }
    Elf_Data* const data =
        elf_getdata_rawchunk(elf, static_cast<int64_t>(segment.p_offset),
                             segment.p_filesz, ELF_T_NHDR);
    if (data == nullptr) return absl::OkStatus();
    const std::span<const char> bytes(static_cast<const char*>(data->d_buf),
                                      data->d_size);
    size_t at = 0;
    GElf_Nhdr note = {};
    size_t name_at = 0;
    size_t text_at = 0;
    while (at < bytes.size()) {
      at = gelf_getnote(data, at, &note, &name_at, &text_at);
      if (at == 0) break;
      if (text_at > bytes.size() || note.n_descsz > bytes.size() - text_at) {
        break;
      }
      LoadNote(note.n_type, bytes.subspan(text_at, note.n_descsz));
    }
    return absl::OkStatus();
  }

  void LoadNote(uint32_t type, std::span<const char> text) {
    if (type == NT_PRSTATUS && crash.thread_id() == 0 &&
        text.size() >= sizeof(elf_prstatus)) {
      // The first one is of the thread that took the signal.
      elf_prstatus status;
      std::memcpy(&status, text.data(), sizeof(status));
      crash.set_thread_id(status.pr_pid);
      crash.set_program_counter(status.pr_reg[RIP]);
      if (!has_crash) crash.set_signal(status.pr_cursig);
    } else if (type == NT_PRPSINFO && text.size() >= sizeof(elf_prpsinfo)) {
      elf_prpsinfo info;
      std::memcpy(&info, text.data(), sizeof(info));
      pid = info.pr_pid;
      command = Printable(
          {info.pr_fname, strnlen(info.pr_fname, sizeof(info.pr_fname))});
    } else if (type == kNoteSiginfo && text.size() >= sizeof(siginfo_t)) {
      siginfo_t info;
      std::memcpy(&info, text.data(), sizeof(info));
      has_crash = true;
      crash.set_signal(info.si_signo);
      crash.set_code(info.si_code);
      // Others were sent by somebody, or tell no address (SI_KERNEL).
      if ((info.si_signo == SIGSEGV || info.si_signo == SIGBUS) &&
          info.si_code > 0 && info.si_code != SI_KERNEL) {
        crash.set_has_address(true);
        crash.set_address(reinterpret_cast<uintptr_t>(info.si_addr));
      }
    } else if (type == kNoteFile) {
      files = ParseFileNote(text);
    }
  }

  absl::Status FindPools() {
    absl::Status failure;
    for (const Segment& segment : memory.segments) {
      if (segment.file_bytes < sizeof(ControlHeader)) continue;
      ControlHeader header = {};
      const absl::Status read =
          memory.Read(segment.start,
                      {reinterpret_cast<char*>(&header), sizeof(header.magic)});
      if (!read.ok()) {
        failure.Update(read);
        continue;
      }
      if (std::memcmp(header.magic, kControlMagic, sizeof(header.magic)) != 0) {
        continue;
      }
      const absl::Status whole = memory.Read(
          segment.start, {reinterpret_cast<char*>(&header), sizeof(header)});
      if (!whole.ok()) {
        failure.Update(whole);
        continue;
      }
      // A copy of a block is none.
      if (header.address != segment.start || header.ready == 0) continue;
      // Page states of large pools are not dumped, and gcore leaves out their
      // mapping altogether: what is not there is told of where it is asked for.
      auto bytes = std::make_unique<CoreBytes>(memory, segment.start,
                                               header.block_bytes);
      absl::StatusOr<BlockReader> reader = BlockReader::Open(*bytes);
      if (!reader.ok()) {
        failure.Update(reader.status());
        continue;
      }
      pools.push_back({std::move(bytes), *std::move(reader)});
    }
    std::sort(pools.begin(), pools.end(), [](const Pool& a, const Pool& b) {
      return a.reader.header().base < b.reader.header().base;
    });
    if (!pools.empty()) {
      if (!failure.ok()) warnings.push_back(absl::StrCat(failure.message()));
      return absl::OkStatus();
    }
    if (!failure.ok()) return failure;
    const std::string prefix = absl::StrCat("/memfd:", kControlMemfdPrefix);
    for (const FileRange& file : files) {
      if (file.path.compare(0, prefix.size(), prefix) != 0) continue;
      return absl::NotFoundError(
          absl::StrCat("the core of \"", command,
                       "\" has a pool, but not its control "
                       "block: shared memory was not dumped; set bit 1 of "
                       "/proc/PID/coredump_filter (it is set by default)"));
    }
    return absl::NotFoundError(
        absl::StrCat("the core of \"", command,
                     "\" has no pool of firsttouch: it is of another process, "
                     "or was made before Service::Create or by an older "
                     "firsttouch"));
  }

  absl::StatusOr<Pool*> ChooseOne(const std::string& name) {
    std::vector<Pool*> chosen;
    for (Pool& pool : pools) {
      if (IsCalled(pool.reader, name)) chosen.push_back(&pool);
    }
    if (chosen.size() == 1) return chosen.front();
    if (chosen.empty()) return NoSuchPool(name);
    return absl::InvalidArgumentError(absl::StrCat(
        "the core has several pools, ", PoolNames(pools), kNameOne));
  }

  absl::Status NoSuchPool(const std::string& name) const {
    return absl::NotFoundError(absl::StrCat("the core has no pool \"", name,
                                            "\"; it has ", PoolNames(pools)));
  }

  absl::StatusOr<Location> Locate(uint64_t address) {
    for (Pool& pool : pools) {
      if (pool.reader.Contains(address)) return pool.reader.Locate(address);
    }
    Location where;
    where.set_address(address);
    where.set_place(Location::NO_POOL);
    if (memory.At(address) != nullptr) where.set_mapping("anonymous memory");
    for (const FileRange& file : files) {
      if (address >= file.start && address < file.end) {
        where.set_mapping(Printable(file.path));
      }
    }
    return where;
  }
};

CoreFile::CoreFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoreFile::CoreFile(CoreFile&& other) noexcept = default;
CoreFile& CoreFile::operator=(CoreFile&& other) noexcept = default;
CoreFile::~CoreFile() = default;

absl::StatusOr<CoreFile> CoreFile::Open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  if (absl::Status status = impl->Load(); !status.ok()) return status;
  return CoreFile(std::move(impl));
}

absl::StatusOr<ProcessSnapshot> CoreFile::Snapshot(const std::string& pool) {
  ProcessSnapshot snapshot;
  snapshot.set_source(ProcessSnapshot::CORE);
  snapshot.set_pid(impl_->pid);
  snapshot.set_command(impl_->command);
  std::vector<std::string> warnings = impl_->warnings;
  bool found = false;
  absl::Status failure;
  for (Pool& one : impl_->pools) {
    if (!IsCalled(one.reader, pool)) continue;
    found = true;
    absl::StatusOr<PoolSnapshot> read = one.reader.ReadPool(warnings);
    if (read.ok()) {
      *snapshot.add_pools() = *std::move(read);
    } else {
      failure.Update(read.status());
      warnings.push_back(absl::StrCat(read.status().message()));
    }
  }
  if (!found) return impl_->NoSuchPool(pool);
  if (snapshot.pools_size() == 0) return failure;
  if (EndsAProcess(impl_->crash.signal())) {
    Crash& crash = *snapshot.mutable_crash();
    crash = impl_->crash;
    crash.set_signal_name(SignalName(crash.signal()));
    if (crash.has_address()) {
      absl::StatusOr<Location> where = impl_->Locate(crash.address());
      if (where.ok()) *crash.mutable_location() = *std::move(where);
    }
  }
  for (std::string& warning : warnings) {
    snapshot.add_warnings(std::move(warning));
  }
  return snapshot;
}

absl::StatusOr<PageMap> CoreFile::Pages(const std::string& pool,
                                        uint32_t slot) {
  absl::StatusOr<Pool*> chosen = impl_->ChooseOne(pool);
  if (!chosen.ok()) return chosen.status();
  return (*chosen)->reader.ReadPages(slot);
}

absl::StatusOr<Location> CoreFile::Locate(uint64_t address) {
  return impl_->Locate(address);
}

}  // namespace firsttouch::pooldump
