#include "firsttouch/tools/pooldump/snapshot/live.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/guests_reader.h"
#include "firsttouch/tools/pooldump/snapshot/live_blocks.h"
#include "firsttouch/tools/pooldump/snapshot/pool_choice.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"
#include "firsttouch/tools/pooldump/snapshot/processes.h"
#include "firsttouch/tools/pooldump/snapshot/served_processes.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

int64_t Nanos(clockid_t clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

struct LiveProcess::Impl {
  using Pool = LiveBlocks::Pool;
  using Served = LiveBlocks::Served;
  using Found = LiveBlocks::Found;

  explicit Impl(pid_t pid)
      : blocks(pid,
               UniqueFd(pid <= 0 ? -1
                                 : open(absl::StrCat("/proc/", pid).c_str(),
                                        O_RDONLY | O_DIRECTORY | O_CLOEXEC))) {}

  const LiveBlocks blocks;
  // Not 0: only the guest that is this process, which it serves.
  pid_t guest_pid = 0;

  // What Locate() knows.
  struct Look {
    std::vector<Pool> pools;
    std::vector<PoolSnapshot> guests;
    std::optional<std::string> maps;  // /proc/PID/maps, once it was needed.
  };
  std::optional<Look> look;

  // The guests of all servers of the process, or the one that is wanted. Those
  // of whom it is not to be believed that it serves their process are without
  // it; `warnings` tells of them.
  absl::StatusOr<std::vector<PoolSnapshot>> Guests(
      std::vector<Served>& served, std::vector<std::string>& warnings) const {
    std::vector<PoolSnapshot> guests;
    for (Served& one : served) {
      absl::StatusOr<std::vector<PoolSnapshot>> its = one.reader.ReadGuests();
      if (!its.ok()) return its.status();
      std::move(its->begin(), its->end(), std::back_inserter(guests));
    }
    ServedProcesses processes(blocks.proc());
    for (PoolSnapshot& guest : guests) {
      if (guest.guest().pid() == 0) continue;
      const absl::StatusOr<pid_t> pid =
          processes.Find(static_cast<uint64_t>(guest.guest().pid()));
      guest.mutable_guest()->set_pid(pid.value_or(0));
      if (pid.ok() || guest_pid != 0) continue;
      warnings.push_back(absl::StrCat("guest \"", guest.name(),
                                      "\": ", pid.status().message()));
    }
    if (guest_pid != 0) {
      std::erase_if(guests, [&](const PoolSnapshot& guest) {
        return guest.guest().pid() != guest_pid;
      });
    }
    return guests;
  }

  // Whoever serves the process `guest`; nothing where nobody does that may be
  // looked at.
  static std::unique_ptr<Impl> ServerOf(pid_t guest) {
    const absl::StatusOr<ProcessList> processes = FindProcesses();
    if (!processes.ok()) return nullptr;
    for (const pid_t pid : processes->pids) {
      if (pid == guest) continue;
      auto impl = std::make_unique<Impl>(pid);
      impl->guest_pid = guest;
      if (impl->blocks.proc() < 0) continue;
      std::vector<std::string> warnings;
      absl::StatusOr<Found> found = impl->blocks.Find(warnings);
      if (!found.ok()) continue;
      const auto guests = impl->Guests(found->served, warnings);
      if (guests.ok() && !guests->empty()) return impl;
    }
    return nullptr;
  }

  // Leaves the pools and guests of this name; all for the empty one.
  absl::Status Choose(const std::string& name, std::vector<Pool>& pools,
                      std::vector<PoolSnapshot>& guests) const {
    if (guest_pid != 0) pools.clear();
    if (name.empty()) return absl::OkStatus();
    std::vector<PoolName> names;
    for (const Pool& pool : pools) {
      names.push_back({pool.reader.name(), pool.reader.header().pool_id});
    }
    for (const PoolSnapshot& guest : guests) {
      names.push_back({guest.name(), guest.pool_id()});
    }
    std::erase_if(
        pools, [&](const Pool& pool) { return !IsCalled(pool.reader, name); });
    std::erase_if(guests, [&](const PoolSnapshot& guest) {
      return !IsCalled({guest.name(), guest.pool_id()}, name);
    });
    if (!pools.empty() || !guests.empty()) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("process ", blocks.pid(),
                                            " has no pool \"", name,
                                            "\"; it has ", PoolNames(names)));
  }

  absl::StatusOr<Pool> ChooseOne(const std::string& name) const {
    std::vector<std::string> warnings;
    absl::StatusOr<Found> found = blocks.Find(warnings);
    if (!found.ok()) return found.status();
    std::vector<Pool>* const pools = &found->pools;
    absl::StatusOr<std::vector<PoolSnapshot>> guests =
        Guests(found->served, warnings);
    if (!guests.ok()) return guests.status();
    if (absl::Status status = Choose(name, *pools, *guests); !status.ok()) {
      return status;
    }
    if (pools->empty() && !guests->empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "process ", blocks.pid(),
          " serves guests, whose pages have no states that could be drawn: "
          "look at them with live, and at single pages with locate"));
    }
    if (pools->size() == 1) return std::move(pools->front());
    return absl::InvalidArgumentError(
        absl::StrCat("process ", blocks.pid(), " has several pools, ",
                     PoolNames(*pools), kNameOne));
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
        blocks.proc(), pool.base(), pool.base() + layout.reservation_bytes(),
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
        blocks.proc(), page, page + kPageBytes,
        [&](const ResidentRun& run) { kind = run.is_private ? 2 : 1; });
    if (!scanned.ok()) return;
    where.set_resident(kind);
    // It is there, and the service has not heard of it.
    if (kind > 0 && where.page_state() == PAGE_MISSING) {
      where.clear_page_state();
    }
  }

  absl::Status AddSmapsOf(ProcessSnapshot& snapshot) const {
    absl::StatusOr<std::string> smaps = ReadProcFile(blocks.proc(), "smaps");
    if (!smaps.ok()) return smaps.status();
    std::vector<SmapsRange> ranges;
    std::vector<PoolSnapshot*> own;
    for (PoolSnapshot& pool : *snapshot.mutable_pools()) {
      if (pool.has_guest()) continue;
      own.push_back(&pool);
      ranges.push_back({pool.base(),
                        pool.base() + pool.layout().reservation_bytes(),
                        pool.mappings()});
    }
    AddSmaps(*smaps, ranges);
    for (size_t i = 0; i < own.size(); ++i) {
      *own[i]->mutable_mappings() = ranges[i].sums;
    }
    return absl::OkStatus();
  }
};

LiveProcess::LiveProcess(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LiveProcess::LiveProcess(LiveProcess&& other) noexcept = default;
LiveProcess& LiveProcess::operator=(LiveProcess&& other) noexcept = default;
LiveProcess::~LiveProcess() = default;

absl::StatusOr<LiveProcess> LiveProcess::Open(pid_t pid) {
  auto impl = std::make_unique<Impl>(pid);
  if (impl->blocks.proc() < 0) {
    if (access("/proc/self/fd", F_OK) != 0) {
      return absl::FailedPreconditionError(
          "/proc is not mounted here: run pooldump where it is");
    }
    return absl::NotFoundError(absl::StrCat(
        "there is no process ", pid,
        " here: it has ended, or is of another container (pid namespace)"));
  }
  std::vector<std::string> warnings;
  const absl::Status found = impl->blocks.Find(warnings).status();
  if (absl::IsNotFound(found)) {
    if (std::unique_ptr<Impl> server = Impl::ServerOf(pid)) {
      return LiveProcess(std::move(server));
    }
  }
  if (!found.ok()) return found;
  return LiveProcess(std::move(impl));
}

absl::StatusOr<ProcessSnapshot> LiveProcess::Snapshot(
    const SnapshotOptions& options) {
  ProcessSnapshot snapshot;
  snapshot.set_source(ProcessSnapshot::LIVE);
  snapshot.set_pid(impl_->blocks.pid());
  std::vector<std::string> warnings;
  absl::StatusOr<LiveBlocks::Found> found = impl_->blocks.Find(warnings);
  if (!found.ok()) return found.status();
  snapshot.set_serves(!found->served.empty());
  absl::StatusOr<std::vector<PoolSnapshot>> guests =
      impl_->Guests(found->served, warnings);
  if (!guests.ok()) return guests.status();
  if (absl::Status status = impl_->Choose(options.pool, found->pools, *guests);
      !status.ok()) {
    return status;
  }
  snapshot.set_realtime_ns(Nanos(CLOCK_REALTIME));
  snapshot.set_monotonic_ns(Nanos(CLOCK_MONOTONIC));
  if (const auto comm = ReadProcFile(impl_->blocks.proc(), "comm"); comm.ok()) {
    snapshot.set_command(Printable(comm->substr(0, comm->find('\n'))));
  }
  absl::Status failure;
  for (LiveBlocks::Pool& pool : found->pools) {
    absl::StatusOr<PoolSnapshot> read = pool.reader.ReadPool(warnings);
    if (!read.ok()) {
      failure.Update(read.status());
      warnings.push_back(absl::StrCat(read.status().message()));
      continue;
    }
    if (options.residency) {
      const absl::Status resident = impl_->AddResidency(*read);
      if (absl::IsUnavailable(resident)) return impl_->blocks.Ended();
      if (!resident.ok()) warnings.push_back(absl::StrCat(resident.message()));
    }
    *snapshot.add_pools() = *std::move(read);
  }
  for (PoolSnapshot& guest : *guests) {
    std::string why =
        options.residency ? AddGuestProcess(guest) : std::string();
    if (!why.empty()) warnings.push_back(std::move(why));
    *snapshot.add_pools() = std::move(guest);
  }
  if (snapshot.pools_size() == 0 && !failure.ok()) return failure;
  if (options.smaps) {
    const absl::Status mapped = impl_->AddSmapsOf(snapshot);
    if (absl::IsUnavailable(mapped)) return impl_->blocks.Ended();
    if (!mapped.ok()) warnings.push_back(absl::StrCat(mapped.message()));
  }
  // A process that is ending has no memory any more: what was read of it would
  // look as if nothing were resident.
  const absl::StatusOr<std::string> still = impl_->blocks.Status();
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
  absl::StatusOr<LiveBlocks::Pool> chosen = impl_->ChooseOne(pool);
  if (!chosen.ok()) return chosen.status();
  absl::StatusOr<PageMap> map = chosen->reader.ReadPages(slot);
  if (!map.ok()) return map.status();
  // What is resident, by page: the runs are cut where it changes.
  PageMap cut = *map;
  cut.clear_runs();
  std::vector<ResidentRun> resident;
  const uint64_t base = map->slot().base();
  const absl::Status scanned = ForEachResidentRun(
      impl_->blocks.proc(), base,
      base + map->pool().layout().max_memory_bytes(),
      [&](const ResidentRun& run) { resident.push_back(run); });
  if (absl::IsUnavailable(scanned)) return impl_->blocks.Ended();
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
    absl::StatusOr<LiveBlocks::Found> found = impl_->blocks.Find(warnings);
    if (!found.ok()) return found.status();
    absl::StatusOr<std::vector<PoolSnapshot>> guests =
        impl_->Guests(found->served, warnings);
    if (!guests.ok()) return guests.status();
    if (impl_->guest_pid != 0) found->pools.clear();
    look = Impl::Look{.pools = std::move(found->pools),
                      .guests = *std::move(guests),
                      .maps = std::nullopt};
  }
  for (LiveBlocks::Pool& pool : look->pools) {
    if (!pool.reader.Contains(address)) continue;
    absl::StatusOr<Location> where = pool.reader.Locate(address);
    if (where.ok()) impl_->AddResidency(*where);
    return where;
  }
  std::optional<Location> in_guest;
  for (const PoolSnapshot& guest : look->guests) {
    std::optional<Location> where = LocateInGuest(guest, address);
    if (!where.has_value()) continue;
    if (in_guest.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "0x", absl::Hex(address), " is memory of several guests of process ",
          impl_->blocks.pid(), ", such as process ", in_guest->guest_pid(),
          " and ", where->guest_pid(),
          ": give locate the number of the guest's process"));
    }
    in_guest = std::move(where);
  }
  if (in_guest.has_value()) return *std::move(in_guest);
  Location where;
  where.set_address(address);
  where.set_place(Location::NO_POOL);
  // The mappings are the server's.
  if (impl_->guest_pid != 0) return where;
  if (!look->maps.has_value()) {
    look->maps = ReadProcFile(impl_->blocks.proc(), "maps").value_or("");
  }
  where.set_mapping(MappingNameAt(*look->maps, address).value_or(""));
  return where;
}

void LiveProcess::LookAnew() { impl_->look.reset(); }

}  // namespace firsttouch::pooldump
