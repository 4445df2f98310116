#include "firsttouch/tools/pooldump/snapshot/live.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/control/block.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/live_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/pool_choice.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

int64_t Nanos(clockid_t clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

struct Pool {
  std::unique_ptr<LiveBytes> bytes;
  BlockReader reader;
};

}  // namespace

struct LiveProcess::Impl {
  pid_t pid = 0;
  UniqueFd proc;  // /proc/PID

  // What Locate() knows.
  struct Look {
    std::vector<Pool> pools;
    std::optional<std::string> maps;  // /proc/PID/maps, once it was needed.
  };
  std::optional<Look> look;

  // `what` is not to be had, of a process that is not ours.
  absl::Status Denied(int error, const char* what) const {
    std::string whose = "of another user";
    std::string how = "as its owner or as root";
    // Of a process that may not be looked at, root owns the folder; so the file
    // in it that everybody may read tells.
    const auto status = ReadProcFile(proc.get(), "status");
    std::optional<uint64_t> user;
    if (status.ok()) user = NumberAt(StatusValue(*status, "Uid"), 1);
    if (user.has_value()) {
      if (*user == geteuid() && geteuid() != 0) {
        // A process that is on its way out, without memory already, belongs to
        // root, too.
        if (StatusValue(*status, "VmSize").empty()) return Ended();
        whose =
            "of this user, but has privileges that this user lacks, or forbids "
            "it (PR_SET_DUMPABLE)";
        how = "as root";
      } else if (geteuid() == 0) {
        whose = absl::StrCat("of user id ", *user);
        how = "with CAP_SYS_PTRACE, which this root lacks";
      } else {
        whose = absl::StrCat("of user id ", *user, ", and this is user id ",
                             geteuid());
      }
    }
    return absl::PermissionDeniedError(
        absl::StrCat(what, " of process ", pid, ": ", std::strerror(error),
                     "; the process is ", whose, ": run pooldump ", how));
  }

  absl::Status Ended() const {
    return absl::UnavailableError(absl::StrCat("process ", pid, " has ended"));
  }

  // Errors as of live.h.
  absl::StatusOr<std::string> Status() const {
    absl::StatusOr<std::string> status = ReadProcFile(proc.get(), "status");
    if (!status.ok()) {
      return absl::IsUnavailable(status.status()) ? Ended() : status.status();
    }
    const std::string state = StatusValue(*status, "State");
    if (!state.empty() && (state[0] == 'Z' || state[0] == 'X')) return Ended();
    return status;
  }

  // All pools of the process, in order of their base. `warnings` tells of those
  // that are not to be read; their first error is the result where no pool is
  // left.
  absl::StatusOr<std::vector<Pool>> Find(
      std::vector<std::string>& warnings) const {
    const absl::StatusOr<std::string> status = Status();
    if (!status.ok()) return status.status();
    const std::optional<uint64_t> own_pid =
        NumberAt(StatusValue(*status, "NSpid"), -1);

    const int listing =
        openat(proc.get(), "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (listing < 0) {
      const int error = errno;
      if (error == EACCES || error == EPERM) {
        return Denied(error, "the descriptors");
      }
      if (error == ENOENT || error == ESRCH) return Ended();
      return absl::ErrnoToStatus(error, absl::StrCat("/proc/", pid, "/fd"));
    }
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(fdopendir(listing),
                                                        &closedir);
    if (directory == nullptr) {
      const int error = errno;
      close(listing);
      return absl::ErrnoToStatus(error, "opendir");
    }
    std::vector<Pool> pools;
    std::set<uint64_t> seen;
    absl::Status failure;
    while (const dirent* entry = readdir(directory.get())) {
      absl::Status found =
          LookAt(listing, entry->d_name, own_pid, seen, pools, warnings);
      if (found.ok()) continue;
      if (absl::IsPermissionDenied(found)) return found;
      failure.Update(found);
      warnings.push_back(absl::StrCat(found.message()));
    }
    std::sort(pools.begin(), pools.end(), [](const Pool& a, const Pool& b) {
      return a.reader.header().base < b.reader.header().base;
    });
    if (!pools.empty()) return pools;
    // It may have ended while we looked. The kernel takes memory away before it
    // closes descriptors; threads of its own, children of process 2, never had
    // any.
    const absl::StatusOr<std::string> still = Status();
    if (!still.ok()) return still.status();
    if (StatusValue(*still, "VmSize").empty() && pid != 2 &&
        NumberAt(StatusValue(*still, "PPid"), 0) != 2) {
      return Ended();
    }
    if (!failure.ok()) return failure;
    return NoPool(warnings);
  }

  // Adds the pool of a descriptor, if it is one.
  absl::Status LookAt(int listing, const char* name,
                      std::optional<uint64_t> own_pid, std::set<uint64_t>& seen,
                      std::vector<Pool>& pools,
                      std::vector<std::string>& warnings) const {
    char link[512];
    const ssize_t length = readlinkat(listing, name, link, sizeof(link));
    if (length < 0) {
      // Only of the directory itself, and of one that was closed meanwhile.
      return absl::OkStatus();
    }
    const std::string_view target(link, static_cast<size_t>(length));
    const std::string prefix = absl::StrCat("/memfd:", kControlMemfdPrefix);
    if (target.substr(0, prefix.size()) != prefix) return absl::OkStatus();
    // A memfd has no name in any folder, which the kernel calls deleted.
    std::string_view pool = target.substr(prefix.size());
    constexpr std::string_view kDeleted = " (deleted)";
    if (pool.ends_with(kDeleted)) pool.remove_suffix(kDeleted.size());
    const std::string shown = Printable(pool);

    UniqueFd fd(openat(listing, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd) {
      const int error = errno;
      if (error == ENOENT || error == ESRCH) return absl::OkStatus();
      if (error == EACCES || error == EPERM) {
        return Denied(error, "the control block");
      }
      return absl::ErrnoToStatus(
          error, absl::StrCat("opening the control block ", shown));
    }
    struct stat file = {};
    if (fstat(fd.get(), &file) != 0) {
      return absl::ErrnoToStatus(errno, "fstat of a control block");
    }
    if (!seen.insert(file.st_ino).second) return absl::OkStatus();
    // Nobody but memory has seals. Without this one it could become shorter
    // while it is mapped here, and reading it would be SIGBUS.
    const int seals = fcntl(fd.get(), F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
      return CorruptBlock(shown, "it is not sealed");
    }
    auto bytes = std::make_unique<LiveBytes>(
        std::move(fd), static_cast<uint64_t>(file.st_size));
    absl::StatusOr<BlockReader> reader = BlockReader::Open(*bytes);
    if (absl::IsNotFound(reader.status())) return absl::OkStatus();
    if (!reader.ok()) return reader.status();
    if (own_pid.has_value() && *own_pid != reader->header().pid) {
      warnings.push_back(
          absl::StrCat("pool \"", reader->name(), "\" is not of process ", pid,
                       ", which only has its descriptor: it is of process ",
                       reader->header().pid));
      return absl::OkStatus();
    }
    if (absl::Status mapped = bytes->MapRecords(reader->header());
        !mapped.ok()) {
      return mapped;
    }
    pools.push_back({std::move(bytes), *std::move(reader)});
    return absl::OkStatus();
  }

  // Why there is no pool, as far as /proc tells.
  absl::Status NoPool(const std::vector<std::string>& warnings) const {
    std::string why;
    if (!warnings.empty()) {
      why = absl::StrCat(": ", absl::StrJoin(warnings, "; "));
    } else if (const auto maps = ReadProcFile(proc.get(), "maps"); maps.ok()) {
      const std::string inherited = Inherited(*maps);
      if (!inherited.empty()) {
        why = inherited;
      } else if (maps->find(absl::StrCat("/memfd:", kControlMemfdPrefix)) !=
                 std::string::npos) {
        why =
            ": it has one, but has closed the descriptor by which it is "
            "found; exclude it where the process closes descriptors";
      } else if (maps->find("[anon:firsttouch:") != std::string::npos) {
        why =
            ": it has one that is not published; its Service::Describe() says "
            "why (ServiceOptions::publish, or an older firsttouch)";
      }
    }
    if (why.empty()) {
      why = ", or none yet: look for the process that calls Service::Create";
    }
    return absl::NotFoundError(
        absl::StrCat("process ", pid, " has no pool of firsttouch", why));
  }

  // What the mapping of a control block tells that the parent has as well: of
  // the pool that the parent had when it forked. Empty: there is no such one.
  std::string Inherited(const std::string& maps) const {
    const auto status = ReadProcFile(proc.get(), "status");
    if (!status.ok()) return "";
    const std::optional<uint64_t> parent =
        NumberAt(StatusValue(*status, "PPid"), 0);
    if (!parent.has_value() || *parent == 0) return "";
    const UniqueFd of_parent(open(absl::StrCat("/proc/", *parent).c_str(),
                                  O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    const auto others = of_parent ? ReadProcFile(of_parent.get(), "maps")
                                  : absl::StatusOr<std::string>("");
    if (!others.ok()) return "";
    const std::string name = absl::StrCat("/memfd:", kControlMemfdPrefix);
    for (const absl::string_view line : absl::StrSplit(maps, '\n')) {
      if (!absl::StrContains(line, name)) continue;
      // Addresses are as they were when it forked; permissions may not be.
      const absl::string_view range = line.substr(0, line.find(' ') + 1);
      const std::vector<absl::string_view> of_others =
          absl::StrSplit(*others, '\n');
      for (const absl::string_view other : of_others) {
        if (!absl::StartsWith(other, range) ||
            !absl::StrContains(other, name)) {
          continue;
        }
        return absl::StrCat(": it is a child by fork of process ", *parent,
                            ", whose pool it cannot use: look at that one");
      }
    }
    return "";
  }

  // Leaves the pools of this name; all for the empty one.
  absl::Status Choose(const std::string& name, std::vector<Pool>& pools) const {
    if (name.empty()) return absl::OkStatus();
    const std::string all = PoolNames(pools);
    std::erase_if(
        pools, [&](const Pool& pool) { return !IsCalled(pool.reader, name); });
    if (!pools.empty()) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("process ", pid, " has no pool \"",
                                            name, "\"; it has ", all));
  }

  absl::StatusOr<Pool> ChooseOne(const std::string& name) const {
    std::vector<std::string> warnings;
    absl::StatusOr<std::vector<Pool>> pools = Find(warnings);
    if (!pools.ok()) return pools.status();
    if (absl::Status status = Choose(name, *pools); !status.ok()) {
      return status;
    }
    if (pools->size() == 1) return std::move(pools->front());
    return absl::InvalidArgumentError(absl::StrCat(
        "process ", pid, " has several pools, ", PoolNames(*pools), kNameOne));
  }

  // Fills in what the kernel has of each slot. The first error ends it.
  absl::Status AddResidency(PoolSnapshot& pool) const {
    struct Sums {
      uint64_t own = 0;
      uint64_t shared = 0;
    };
    std::vector<Sums> slots(static_cast<size_t>(pool.slots_size()));
    uint64_t outside = 0;
    const PoolLayoutNumbers& layout = pool.layout();
    const uint64_t first = pool.base() + layout.guard_before_bytes();
    const uint64_t stride = layout.slot_stride_bytes();
    absl::Status scanned = ForEachResidentRun(
        proc.get(), pool.base(), pool.base() + layout.reservation_bytes(),
        [&](const ResidentRun& run) {
          uint64_t at = run.start;
          while (at < run.end) {
            if (at < first) {
              const uint64_t stop = std::min(run.end, first);
              outside += stop - at;
              at = stop;
              continue;
            }
            const uint64_t slot = (at - first) / stride;
            if (slot >= slots.size()) return;
            const uint64_t base = first + slot * stride;
            const uint64_t end = base + layout.max_memory_bytes();
            if (at >= end) {
              const uint64_t stop = std::min(run.end, base + stride);
              outside += stop - at;
              at = stop;
              continue;
            }
            const uint64_t stop = std::min(run.end, end);
            (run.is_private ? slots[slot].own : slots[slot].shared) +=
                stop - at;
            at = stop;
          }
        });
    if (!scanned.ok()) return scanned;
    Totals& totals = *pool.mutable_totals();
    Sums sums;
    uint64_t idle = 0;
    for (int i = 0; i < pool.slots_size(); ++i) {
      Slot& slot = *pool.mutable_slots(i);
      const Sums& one = slots[static_cast<size_t>(i)];
      slot.set_private_bytes(one.own);
      slot.set_shared_bytes(one.shared);
      slot.set_resident_bytes(one.own + one.shared);
      sums.own += one.own;
      sums.shared += one.shared;
      if (slot.state() == Slot::FREE || slot.state() == Slot::PARKED ||
          slot.state() == Slot::TRIMMING) {
        idle += one.own;
      }
    }
    totals.set_idle_private_bytes(idle);
    totals.set_private_bytes(sums.own);
    totals.set_shared_bytes(sums.shared);
    totals.set_resident_bytes(sums.own + sums.shared);
    pool.mutable_mappings()->set_outside_bytes(outside);
    return absl::OkStatus();
  }

  // The same of one page. Where the kernel does not tell, it stays unknown.
  void AddResidency(Location& where) const {
    if (where.place() != Location::MEMORY) return;
    const uint64_t page = RoundDownToPage(where.address());
    int kind = 0;
    const absl::Status scanned = ForEachResidentRun(
        proc.get(), page, page + kPageBytes,
        [&](const ResidentRun& run) { kind = run.is_private ? 2 : 1; });
    if (!scanned.ok()) return;
    where.set_resident(kind);
    // It is there, and the service has not heard of it.
    if (kind > 0 && where.page_state() == PAGE_MISSING) {
      where.clear_page_state();
    }
  }

  absl::Status AddSmapsOf(ProcessSnapshot& snapshot) const {
    absl::StatusOr<std::string> smaps = ReadProcFile(proc.get(), "smaps");
    if (!smaps.ok()) return smaps.status();
    std::vector<SmapsRange> ranges;
    for (const PoolSnapshot& pool : snapshot.pools()) {
      ranges.push_back({pool.base(),
                        pool.base() + pool.layout().reservation_bytes(),
                        pool.mappings()});
    }
    AddSmaps(*smaps, ranges);
    for (int i = 0; i < snapshot.pools_size(); ++i) {
      *snapshot.mutable_pools(i)->mutable_mappings() =
          ranges[static_cast<size_t>(i)].sums;
    }
    return absl::OkStatus();
  }
};

LiveProcess::LiveProcess(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LiveProcess::LiveProcess(LiveProcess&& other) noexcept = default;
LiveProcess& LiveProcess::operator=(LiveProcess&& other) noexcept = default;
LiveProcess::~LiveProcess() = default;

absl::StatusOr<LiveProcess> LiveProcess::Open(pid_t pid) {
  auto impl = std::make_unique<Impl>();
  impl->pid = pid;
  if (pid > 0) {
    impl->proc.reset(open(absl::StrCat("/proc/", pid).c_str(),
                          O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  if (!impl->proc) {
    if (access("/proc/self/fd", F_OK) != 0) {
      return absl::FailedPreconditionError(
          "/proc is not mounted here: run pooldump where it is");
    }
    return absl::NotFoundError(absl::StrCat(
        "there is no process ", pid,
        " here: it has ended, or is of another container (pid namespace)"));
  }
  std::vector<std::string> warnings;
  absl::StatusOr<std::vector<Pool>> pools = impl->Find(warnings);
  if (!pools.ok()) return pools.status();
  return LiveProcess(std::move(impl));
}

absl::StatusOr<ProcessSnapshot> LiveProcess::Snapshot(
    const SnapshotOptions& options) {
  ProcessSnapshot snapshot;
  snapshot.set_source(ProcessSnapshot::LIVE);
  snapshot.set_pid(impl_->pid);
  std::vector<std::string> warnings;
  absl::StatusOr<std::vector<Pool>> pools = impl_->Find(warnings);
  if (!pools.ok()) return pools.status();
  if (absl::Status status = impl_->Choose(options.pool, *pools); !status.ok()) {
    return status;
  }
  snapshot.set_realtime_ns(Nanos(CLOCK_REALTIME));
  snapshot.set_monotonic_ns(Nanos(CLOCK_MONOTONIC));
  if (const auto comm = ReadProcFile(impl_->proc.get(), "comm"); comm.ok()) {
    snapshot.set_command(Printable(comm->substr(0, comm->find('\n'))));
  }
  absl::Status failure;
  for (Pool& pool : *pools) {
    absl::StatusOr<PoolSnapshot> read = pool.reader.ReadPool(warnings);
    if (!read.ok()) {
      failure.Update(read.status());
      warnings.push_back(absl::StrCat(read.status().message()));
      continue;
    }
    if (options.residency) {
      const absl::Status resident = impl_->AddResidency(*read);
      if (absl::IsUnavailable(resident)) return impl_->Ended();
      if (!resident.ok()) warnings.push_back(absl::StrCat(resident.message()));
    }
    *snapshot.add_pools() = *std::move(read);
  }
  if (snapshot.pools_size() == 0) return failure;
  if (options.smaps) {
    const absl::Status mapped = impl_->AddSmapsOf(snapshot);
    if (absl::IsUnavailable(mapped)) return impl_->Ended();
    if (!mapped.ok()) warnings.push_back(absl::StrCat(mapped.message()));
  }
  // A process that is ending has no memory any more: what was read of it would
  // look as if nothing were resident.
  const absl::StatusOr<std::string> still = impl_->Status();
  if (!still.ok()) return still.status();
  if (const auto user = NumberAt(StatusValue(*still, "Uid"), 1)) {
    snapshot.set_user_id(static_cast<uint32_t>(*user));
  }
  const std::string state = StatusValue(*still, "State");
  if (!state.empty() && (state[0] == 'T' || state[0] == 't')) {
    snapshot.set_stopped(state[0] == 'T' ? "stopped by a signal"
                                         : "stopped by a debugger");
  }
  for (std::string& warning : warnings) {
    snapshot.add_warnings(std::move(warning));
  }
  return snapshot;
}

absl::StatusOr<PageMap> LiveProcess::Pages(const std::string& pool,
                                           uint32_t slot) {
  absl::StatusOr<Pool> chosen = impl_->ChooseOne(pool);
  if (!chosen.ok()) return chosen.status();
  absl::StatusOr<PageMap> map = chosen->reader.ReadPages(slot);
  if (!map.ok()) return map.status();
  // What is resident, by page: the runs are cut where it changes.
  PageMap cut = *map;
  cut.clear_runs();
  std::vector<ResidentRun> resident;
  const uint64_t base = map->slot().base();
  const absl::Status scanned = ForEachResidentRun(
      impl_->proc.get(), base, base + map->pool().layout().max_memory_bytes(),
      [&](const ResidentRun& run) { resident.push_back(run); });
  if (absl::IsUnavailable(scanned)) return impl_->Ended();
  if (!scanned.ok()) {
    map->add_warnings(absl::StrCat(scanned.message()));
    return map;
  }
  size_t next = 0;
  const auto add = [&](const PageRun& like, uint64_t from, uint64_t to,
                       int kind) {
    if (from >= to) return;
    PageRun& run = *cut.add_runs();
    run = like;
    // It is there, and the service has not heard of it.
    if (kind > 0 && run.state() == PAGE_MISSING) run.clear_state();
    run.set_first_page(from);
    run.set_pages(to - from);
    run.set_resident(kind);
  };
  for (const PageRun& run : map->runs()) {
    uint64_t page = run.first_page();
    const uint64_t end = page + run.pages();
    while (page < end) {
      while (next < resident.size() &&
             (resident[next].end - base) / kPageBytes <= page) {
        ++next;
      }
      if (next == resident.size()) {
        add(run, page, end, 0);
        break;
      }
      const uint64_t from = (resident[next].start - base) / kPageBytes;
      const uint64_t to = (resident[next].end - base) / kPageBytes;
      if (from > page) {
        add(run, page, std::min(from, end), 0);
        page = std::min(from, end);
      } else {
        add(run, page, std::min(to, end), resident[next].is_private ? 2 : 1);
        page = std::min(to, end);
      }
    }
  }
  return cut;
}

absl::StatusOr<Location> LiveProcess::Locate(uint64_t address) {
  std::optional<Impl::Look>& look = impl_->look;
  if (!look.has_value()) {
    std::vector<std::string> warnings;
    absl::StatusOr<std::vector<Pool>> pools = impl_->Find(warnings);
    if (!pools.ok()) return pools.status();
    look = Impl::Look{.pools = *std::move(pools), .maps = std::nullopt};
  }
  for (Pool& pool : look->pools) {
    if (!pool.reader.Contains(address)) continue;
    absl::StatusOr<Location> where = pool.reader.Locate(address);
    if (where.ok()) impl_->AddResidency(*where);
    return where;
  }
  Location where;
  where.set_address(address);
  where.set_place(Location::NO_POOL);
  if (!look->maps.has_value()) {
    look->maps = ReadProcFile(impl_->proc.get(), "maps").value_or("");
  }
  where.set_mapping(MappingNameAt(*look->maps, address).value_or(""));
  return where;
}

void LiveProcess::LookAnew() { impl_->look.reset(); }

}  // namespace firsttouch::pooldump
