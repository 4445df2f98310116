#include "firsttouch/bench/cycle_goals.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/quantiles.h"

namespace firsttouch::bench {
namespace {

// All strategies in one situation.
class Situation {
 public:
  explicit Situation(const CycleRow* first) : rows_({first}) {}

  bool Has(const CycleRow& row) const {
    const CycleRow& mine = *rows_[0];
    return row.table() == mine.table() && row.pages() == mine.pages() &&
           row.touched_bytes() == mine.touched_bytes() &&
           row.changed_pages() == mine.changed_pages() &&
           row.threads() == mine.threads();
  }
  void Add(const CycleRow* row) { rows_.push_back(row); }

  // Null where that strategy was not measured.
  const CycleRow* Find(const char* strategy) const {
    for (const CycleRow* row : rows_) {
      if (row->way() == strategy) return row;
    }
    return nullptr;
  }
  const CycleRow* ours() const { return Find(kDefaultName); }

  // The fastest of what is neither ours nor the limit.
  const CycleRow* BestOther() const {
    const CycleRow* best = nullptr;
    for (const char* strategy : {kCopyOnWriteName, kScanName, kCopyImageName}) {
      const CycleRow* row = Find(strategy);
      if (row == nullptr) continue;
      if (best == nullptr || row->mean_ns() < best->mean_ns()) best = row;
    }
    return best;
  }

  CycleRow::Table table() const { return rows_[0]->table(); }
  const std::string& pages() const { return rows_[0]->pages(); }
  uint32_t k() const { return rows_[0]->changed_pages(); }
  uint32_t threads() const { return rows_[0]->threads(); }

  // "same pages", "same pages, 2 threads".
  std::string Pages() const {
    return absl::StrCat(
        pages(), " pages",
        threads() == 1 ? "" : absl::StrCat(", ", threads(), " threads"));
  }

  std::string Where() const {
    const std::string mib =
        absl::StrCat(rows_[0]->touched_bytes() >> 20, " MiB");
    switch (table()) {
      case CycleRow::FIRST_KNOWN_IMAGE:
      case CycleRow::FIRST_NEW_IMAGE:
      case CycleRow::IDLE:
        return absl::StrCat("k=", k());
      case CycleRow::SQLITE:
        return pages() == "same" ? "the same rows" : "other rows each time";
      default:
        return absl::StrCat("k=", k(), " of ", mib);
    }
  }

 private:
  std::vector<const CycleRow*> rows_;
};

class Goals {
 public:
  void AtMost(std::string name, const Situation& situation, double bound,
              std::optional<double> measured) {
    CycleGoal& goal = Add(std::move(name), situation, bound);
    if (!measured.has_value()) return;
    goal.set_measured(*measured);
    goal.set_reached(*measured <= bound);
  }
  void AtLeast(std::string name, const Situation& situation, double bound,
               std::optional<double> measured) {
    CycleGoal& goal = Add(std::move(name), situation, bound);
    goal.set_at_least(true);
    if (!measured.has_value()) return;
    goal.set_measured(*measured);
    goal.set_reached(*measured >= bound);
  }

  void MoveTo(CycleReport& report) {
    for (std::vector<CycleGoal>& named : goals_) {
      for (CycleGoal& goal : named) *report.add_goals() = std::move(goal);
    }
  }

  // Our time / theirs; nothing where either was not measured.
  void TimeAtMost(std::string name, const Situation& situation,
                  const CycleRow* other, double bound) {
    const CycleRow* const ours = situation.ours();
    if (ours == nullptr || other == nullptr) return;
    Compare(std::move(name), situation, *other, bound,
            MedianRatio(ours->round_median_ns(), other->round_median_ns()),
            MedianRatio(ours->round_mean_ns(), other->round_mean_ns()));
  }
  void RecycleAtMost(std::string name, const Situation& situation,
                     const CycleRow* other, double bound) {
    const CycleRow* const ours = situation.ours();
    if (ours == nullptr || other == nullptr) return;
    Compare(std::move(name), situation, *other, bound,
            MedianRatio(ours->round_handover_median_ns(),
                        other->round_handover_median_ns()),
            MedianRatio(ours->round_handover_mean_ns(),
                        other->round_handover_mean_ns()));
  }
  // Their time / ours.
  void FasterAtLeast(std::string name, const Situation& situation,
                     const CycleRow* other, double bound) {
    const CycleRow* const ours = situation.ours();
    if (ours == nullptr || other == nullptr) return;
    CycleGoal& goal = Add(std::move(name), situation, bound);
    goal.set_at_least(true);
    goal.set_other(other->way());
    const auto medians =
        MedianRatio(other->round_median_ns(), ours->round_median_ns());
    const auto means =
        MedianRatio(other->round_mean_ns(), ours->round_mean_ns());
    if (!medians.has_value() || !means.has_value()) return;
    goal.set_measured(*medians);
    goal.set_measured_by_mean(*means);
    goal.set_reached(std::min(*medians, *means) >= bound);
  }

 private:
  CycleGoal& Add(std::string name, const Situation& situation, double bound) {
    auto named = std::find_if(
        goals_.begin(), goals_.end(),
        [&](const auto& goals) { return goals[0].name() == name; });
    if (named == goals_.end()) named = goals_.emplace(named);
    CycleGoal& goal = named->emplace_back();
    goal.set_name(std::move(name));
    goal.set_where(situation.Where());
    goal.set_bound(bound);
    return goal;
  }
  void Compare(std::string name, const Situation& situation,
               const CycleRow& other, double bound,
               std::optional<double> medians, std::optional<double> means) {
    CycleGoal& goal = Add(std::move(name), situation, bound);
    goal.set_other(other.way());
    if (!medians.has_value() || !means.has_value()) return;
    goal.set_measured(*medians);
    goal.set_measured_by_mean(*means);
    goal.set_reached(std::max(*medians, *means) <= bound);
  }

  // Those of one name together, in the order in which the names came.
  std::vector<std::vector<CycleGoal>> goals_;
};

std::optional<double> If(bool has, double value) {
  return has ? std::optional<double>(value) : std::nullopt;
}

void AddSame(const Situation& situation, Goals& goals) {
  const CycleRow& ours = *situation.ours();
  goals.AtMost("same pages: system calls", situation, 0,
               If(ours.has_system_calls(), ours.system_calls()));
  goals.AtMost("same pages: signals", situation, 0,
               If(ours.has_signals(), ours.signals()));
  goals.AtMost("same pages: page faults", situation, 0,
               If(ours.has_page_faults(), ours.page_faults()));
  if (situation.k() >= 4) {
    goals.TimeAtMost("same pages: time / limit", situation,
                     situation.Find(kLimitName), 1.15);
  }
  const CycleRow* const scan = situation.Find(kScanName);
  constexpr char kFaster[] = "same pages: PAGEMAP_SCAN / ours";
  if (situation.k() == 1 || situation.k() == 4) {
    goals.FasterAtLeast(kFaster, situation, scan, 10);
  } else if (situation.k() == 16) {
    goals.FasterAtLeast(kFaster, situation, scan, 2);
  } else if (situation.k() == 64) {
    goals.FasterAtLeast(kFaster, situation, scan, 1.2);
  }
}

void AddChurningOrMixed(const Situation& situation, Goals& goals) {
  const double bound = situation.pages() == "mixed" ? 0.6
                       : situation.k() >= 16        ? 0.75
                                                    : 1.1;
  goals.TimeAtMost(absl::StrCat(situation.Pages(), ": time / best other"),
                   situation, situation.BestOther(), bound);
}

void AddThreads(const Situation& situation, Goals& goals) {
  if (situation.pages() != "same") {
    AddChurningOrMixed(situation, goals);
    return;
  }
  const CycleRow& ours = *situation.ours();
  const CycleRow* const limit = situation.Find(kLimitName);
  goals.AtLeast(absl::StrCat(situation.Pages(), ": scaling / the limit's"),
                situation, 0.95,
                If(ours.has_scaling_of_limit(), ours.scaling_of_limit()));
  if (limit != nullptr) {
    // Those of the rest of the machine are in both.
    goals.AtMost(
        absl::StrCat(situation.Pages(), ": shootdowns, above the limit's"),
        situation, 0.01,
        If(ours.has_tlb_shootdowns() && limit->has_tlb_shootdowns(),
           std::max(ours.tlb_shootdowns() - limit->tlb_shootdowns(), 0.0)));
  }
}

void AddIdle(const Situation& situation, Goals& goals) {
  if (situation.pages() != "same") return;
  const CycleRow& ours = *situation.ours();
  constexpr double kPageKib = 4;
  constexpr double kBookKeepingKib = 4;
  goals.AtMost("private KiB of an idle slot", situation,
               (situation.k() + 2) * kPageKib + kBookKeepingKib,
               If(ours.has_private_kib_per_idle_slot(),
                  ours.private_kib_per_idle_slot()));
}

void AddSqlite(const Situation& situation, Goals& goals) {
  const CycleRow* const scan = situation.Find(kScanName);
  goals.RecycleAtMost("SQLite: recycle / PAGEMAP_SCAN", situation, scan, 0.5);
  goals.TimeAtMost("SQLite: request / PAGEMAP_SCAN", situation, scan, 0.9);
  goals.TimeAtMost("SQLite: request / MADV_DONTNEED", situation,
                   situation.Find(kCopyOnWriteName), 0.2);
}

}  // namespace

void AddGoals(CycleReport& report) {
  std::vector<Situation> situations;
  for (const CycleRow& row : report.rows()) {
    const auto situation =
        std::find_if(situations.begin(), situations.end(),
                     [&](Situation& s) { return s.Has(row); });
    if (situation == situations.end()) {
      situations.emplace_back(&row);
    } else {
      situation->Add(&row);
    }
  }
  Goals goals;
  for (const Situation& situation : situations) {
    if (situation.ours() == nullptr) continue;
    switch (situation.table()) {
      case CycleRow::STEADY:
        if (situation.pages() == "same") {
          AddSame(situation, goals);
        } else {
          AddChurningOrMixed(situation, goals);
        }
        break;
      case CycleRow::FIRST_KNOWN_IMAGE:
        goals.TimeAtMost("first cycle, known image: time / CoW", situation,
                         situation.Find(kCopyOnWriteName), 0.9);
        break;
      case CycleRow::FIRST_NEW_IMAGE:
        goals.TimeAtMost("first cycle, new image: time / CoW", situation,
                         situation.Find(kCopyOnWriteName), 1.1);
        break;
      case CycleRow::THREADS:
        // What is asked of two is asked of no more: others have no core here.
        if (situation.threads() == 2) AddThreads(situation, goals);
        break;
      case CycleRow::IDLE:
        AddIdle(situation, goals);
        break;
      case CycleRow::SQLITE:
        AddSqlite(situation, goals);
        break;
      default:
        break;
    }
  }
  goals.MoveTo(report);
}

}  // namespace firsttouch::bench
