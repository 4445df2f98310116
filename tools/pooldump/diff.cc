#include "firsttouch/tools/pooldump/diff.h"

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/snapshot/totals.h"
#include "firsttouch/tools/pooldump/text_lines.h"

namespace firsttouch::pooldump {
namespace {

using Change = DiffReport::Change;

int64_t Minus(uint64_t after, uint64_t before) {
  return static_cast<int64_t>(after - before);
}

// Whether any counter, page count or size differs.
bool AnyNumber(const Change& change) {
  return change.size_bytes() != 0 || change.resident_bytes() != 0 ||
         change.private_bytes() != 0 || change.shared_bytes() != 0 ||
         change.dirty_pages() != 0 || change.hot_pages() != 0 ||
         change.faults() != 0 || change.traps() != 0 ||
         change.handovers() != 0 || change.binds() != 0 ||
         change.kernel_calls() != 0;
}

Change ChangeOf(const Slot& before, const Slot& after) {
  Change change;
  change.set_slot(after.slot());
  change.set_state_before(before.state_name());
  change.set_state(after.state_name());
  change.set_image_before(before.image_name());
  change.set_image(after.image_name());
  change.set_size_bytes(Minus(after.size_bytes(), before.size_bytes()));
  if (before.has_resident_bytes() && after.has_resident_bytes()) {
    change.set_resident_bytes(
        Minus(after.resident_bytes(), before.resident_bytes()));
  }
  if (before.has_private_bytes() && after.has_private_bytes()) {
    change.set_private_bytes(
        Minus(after.private_bytes(), before.private_bytes()));
  }
  if (before.has_shared_bytes() && after.has_shared_bytes()) {
    change.set_shared_bytes(Minus(after.shared_bytes(), before.shared_bytes()));
  }
  if (before.has_pages() && after.has_pages()) {
    change.set_dirty_pages(
        Minus(after.pages().dirty(), before.pages().dirty()));
    change.set_hot_pages(Minus(after.pages().hot(), before.pages().hot()));
  }
  const Counters& was = before.counters();
  const Counters& now = after.counters();
  if (!was.faults_unknown() && !now.faults_unknown()) {
    change.set_faults(Minus(Faults(now), Faults(was)));
  }
  change.set_traps(Minus(now.traps(), was.traps()));
  change.set_handovers(Minus(now.handovers(), was.handovers()));
  change.set_binds(Minus(now.binds(), was.binds()));
  change.set_kernel_calls(Minus(now.kernel_calls(), was.kernel_calls()));
  change.set_changed(before.state_name() != after.state_name() ||
                     before.image_name() != after.image_name() ||
                     AnyNumber(change));
  return change;
}

void Add(const Change& change, Change* sum) {
  sum->set_size_bytes(sum->size_bytes() + change.size_bytes());
  if (change.has_resident_bytes()) {
    sum->set_resident_bytes(sum->resident_bytes() + change.resident_bytes());
  }
  if (change.has_private_bytes()) {
    sum->set_private_bytes(sum->private_bytes() + change.private_bytes());
  }
  if (change.has_shared_bytes()) {
    sum->set_shared_bytes(sum->shared_bytes() + change.shared_bytes());
  }
  if (change.has_dirty_pages()) {
    sum->set_dirty_pages(sum->dirty_pages() + change.dirty_pages());
  }
  if (change.has_hot_pages()) {
    sum->set_hot_pages(sum->hot_pages() + change.hot_pages());
  }
  if (change.has_faults()) sum->set_faults(sum->faults() + change.faults());
  sum->set_traps(sum->traps() + change.traps());
  sum->set_handovers(sum->handovers() + change.handovers());
  sum->set_binds(sum->binds() + change.binds());
  sum->set_kernel_calls(sum->kernel_calls() + change.kernel_calls());
  sum->set_changed(sum->changed() || change.changed());
}

std::string Called(const PoolSnapshot& pool) {
  return absl::StrCat("pool ", cli::Printable(pool.name()), " (number ",
                      pool.pool_id(), ")");
}

// Compares two looks at a pool.
class PoolDiff {
 public:
  PoolDiff(const PoolSnapshot& before, const PoolSnapshot& after,
           DiffReport* report)
      : after_(after), report_(*report), pool_(*report->add_pools()) {
    for (const Slot& slot : before.slots()) before_[slot.slot()] = &slot;
  }

  void Compare() {
    pool_.set_name(after_.name());
    pool_.set_pool_id(after_.pool_id());
    bool fell = false;
    for (const Slot& slot : after_.slots()) {
      const auto found = before_.find(slot.slot());
      if (found == before_.end()) {
        ++alone_;
        continue;
      }
      Change change = ChangeOf(*found->second, slot);
      before_.erase(found);
      change.set_pool(after_.name());
      change.set_pool_id(after_.pool_id());
      fell |= change.traps() < 0 || change.handovers() < 0 ||
              change.binds() < 0 || change.kernel_calls() < 0;
      pool_.set_slots(pool_.slots() + 1);
      if (change.changed()) pool_.set_changed_slots(pool_.changed_slots() + 1);
      if (change.state() != change.state_before()) {
        pool_.set_changed_states(pool_.changed_states() + 1);
      }
      Add(change, pool_.mutable_sum());
      *pool_.add_changes() = std::move(change);
    }
    alone_ += before_.size();
    if (fell) {
      report_.add_warnings(
          absl::StrCat(Called(after_),
                       ": a counter fell: the files are in the wrong order, "
                       "or of two processes"));
    }
    if (alone_ > 0) {
      report_.add_warnings(absl::StrCat(
          Called(after_), ": ", Plural(alone_, "slot is", "slots are"),
          " in one file only, and not compared: save them without --filter "
          "and --limit"));
    }
  }

 private:
  const PoolSnapshot& after_;
  DiffReport& report_;
  DiffReport::Pool& pool_;
  std::map<uint32_t, const Slot*> before_;  // Those that were not met yet.
  uint64_t alone_ = 0;
};

}  // namespace

DiffReport Diff(const ProcessSnapshot& before, const ProcessSnapshot& after) {
  DiffReport report;
  report.set_pid(after.pid());
  report.set_command(after.command());
  if (before.pid() != after.pid()) {
    report.add_warnings(absl::StrCat("the files are of two processes, ",
                                     before.pid(), " and ", after.pid()));
  }
  if (before.monotonic_ns() != 0 && after.monotonic_ns() != 0) {
    report.set_seconds(
        static_cast<double>(after.monotonic_ns() - before.monotonic_ns()) /
        1e9);
  }
  // Pools and guests have numbers of their own.
  const auto key = [](const PoolSnapshot& pool) {
    return std::pair(pool.has_guest(), pool.pool_id());
  };
  std::map<std::pair<bool, uint32_t>, const PoolSnapshot*> known;
  for (const PoolSnapshot& pool : before.pools()) known[key(pool)] = &pool;
  for (const PoolSnapshot& pool : after.pools()) {
    const auto found = known.find(key(pool));
    if (found == known.end()) {
      report.add_warnings(absl::StrCat(Called(pool), " is new"));
      continue;
    }
    PoolDiff(*found->second, pool, &report).Compare();
    known.erase(found);
  }
  for (const auto& [id, pool] : known) {
    report.add_warnings(absl::StrCat(Called(*pool), " is gone"));
  }
  return report;
}

}  // namespace firsttouch::pooldump
