#include "firsttouch/bench/cycle_goals.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/report.h"

namespace firsttouch::bench {
namespace {

// What a goal is about.
enum class Of : uint8_t {
  // The number itself.
  kNumber,
  // By how much it is above the other's, at least 0.
  kAbove,
  // A time as a multiple of the other's, by the medians of the cycles and by
  // their means; and the other's as a multiple of it.
  kRatio,
  kInverse,
};

// The fastest of what is neither ours nor the limit.
constexpr char kBestOther[] = "the best other";

struct Rule {
  const char* name;
  // The rows that it is for. No pages: any.
  CycleRow::Table table;
  const char* pages;
  uint32_t least_k;
  uint32_t most_k;
  // A field of the row; of a ratio "_median_ns" and "_mean_ns" come behind.
  Of of;
  const char* field;
  // Empty: none.
  const char* other;
  // At most this, and so much more for each changed page; or, of an inverse
  // and with `at_least`, at least.
  double bound;
  double bound_per_page = 0;
  bool at_least = false;
};

constexpr uint32_t kAny = UINT32_MAX;

// Of the table THREADS what is asked of two is asked of no more: others have no
// core here. An idle slot may keep two pages more than it changes, and 4 KiB of
// book-keeping. Shootdowns of the rest of the machine are in the limit's, too.
constexpr Rule kRules[] = {
    {"same pages: system calls", CycleRow::STEADY, "same", 0, kAny, Of::kNumber,
     "system_calls", "", 0},
    {"same pages: signals", CycleRow::STEADY, "same", 0, kAny, Of::kNumber,
     "signals", "", 0},
    {"same pages: page faults", CycleRow::STEADY, "same", 0, kAny, Of::kNumber,
     "page_faults", "", 0},
    {"same pages: time / limit", CycleRow::STEADY, "same", 4, kAny, Of::kRatio,
     "", kLimitName, 1.15},
    {"same pages: PAGEMAP_SCAN / ours", CycleRow::STEADY, "same", 1, 4,
     Of::kInverse, "", kScanName, 10},
    {"same pages: PAGEMAP_SCAN / ours", CycleRow::STEADY, "same", 16, 16,
     Of::kInverse, "", kScanName, 2},
    {"same pages: PAGEMAP_SCAN / ours", CycleRow::STEADY, "same", 64, 64,
     Of::kInverse, "", kScanName, 1.2},
    {"churning pages: time / best other", CycleRow::STEADY, "churning", 0, 15,
     Of::kRatio, "", kBestOther, 1.1},
    {"churning pages: time / best other", CycleRow::STEADY, "churning", 16,
     kAny, Of::kRatio, "", kBestOther, 0.75},
    {"mixed pages: time / best other", CycleRow::STEADY, "mixed", 0, kAny,
     Of::kRatio, "", kBestOther, 0.6},
    {"first cycle, known image: time / CoW", CycleRow::FIRST_KNOWN_IMAGE, "", 0,
     kAny, Of::kRatio, "", kCopyOnWriteName, 0.9},
    {"first cycle, new image: time / CoW", CycleRow::FIRST_NEW_IMAGE, "", 0,
     kAny, Of::kRatio, "", kCopyOnWriteName, 1.1},
    {"same pages, 2 threads: scaling / the limit's", CycleRow::THREADS, "same",
     0, kAny, Of::kNumber, "scaling_of_limit", "", 0.95, 0, /*at_least=*/true},
    {"same pages, 2 threads: shootdowns, above the limit's", CycleRow::THREADS,
     "same", 0, kAny, Of::kAbove, "tlb_shootdowns", kLimitName, 0.01},
    {"churning pages, 2 threads: time / best other", CycleRow::THREADS,
     "churning", 0, 15, Of::kRatio, "", kBestOther, 1.1},
    {"churning pages, 2 threads: time / best other", CycleRow::THREADS,
     "churning", 16, kAny, Of::kRatio, "", kBestOther, 0.75},
    {"mixed pages, 2 threads: time / best other", CycleRow::THREADS, "mixed", 0,
     kAny, Of::kRatio, "", kBestOther, 0.6},
    {"private KiB of an idle slot", CycleRow::IDLE, "same", 0, kAny,
     Of::kNumber, "private_kib_per_idle_slot", "", 12, 4},
    {"SQLite: recycle / PAGEMAP_SCAN", CycleRow::SQLITE, "", 0, kAny,
     Of::kRatio, "handover_", kScanName, 0.5},
    {"SQLite: request / PAGEMAP_SCAN", CycleRow::SQLITE, "", 0, kAny,
     Of::kRatio, "", kScanName, 0.9},
    {"SQLite: request / MADV_DONTNEED", CycleRow::SQLITE, "", 0, kAny,
     Of::kRatio, "", kCopyOnWriteName, 0.2},
};

bool IsFor(const Rule& rule, const CycleRow& row) {
  return row.way() == kDefaultName && rule.table == row.table() &&
         (*rule.pages == '\0' || rule.pages == row.pages()) &&
         row.changed_pages() >= rule.least_k &&
         row.changed_pages() <= rule.most_k &&
         (row.table() != CycleRow::THREADS || row.threads() == 2);
}

// The row of that strategy in the same situation; null where it was not
// measured.
const CycleRow* Find(const CycleReport& report, const CycleRow& like,
                     const std::string& strategy) {
  for (const CycleRow& row : report.rows()) {
    if (row.way() == strategy && row.table() == like.table() &&
        row.pages() == like.pages() &&
        row.touched_bytes() == like.touched_bytes() &&
        row.changed_pages() == like.changed_pages() &&
        row.threads() == like.threads()) {
      return &row;
    }
  }
  return nullptr;
}

const CycleRow* OtherOf(const Rule& rule, const CycleReport& report,
                        const CycleRow& row) {
  if (rule.other != std::string(kBestOther)) {
    return Find(report, row, rule.other);
  }
  const CycleRow* best = nullptr;
  for (const char* strategy : {kCopyOnWriteName, kScanName, kCopyImageName}) {
    const CycleRow* const other = Find(report, row, strategy);
    if (other == nullptr) continue;
    if (best == nullptr || other->mean_ns() < best->mean_ns()) best = other;
  }
  return best;
}

std::string Where(const CycleRow& row) {
  switch (row.table()) {
    case CycleRow::STEADY:
    case CycleRow::THREADS:
      return absl::StrCat("k=", row.changed_pages(), " of ",
                          row.touched_bytes() >> 20, " MiB");
    case CycleRow::SQLITE:
      return row.pages() == "same" ? "the same rows" : "other rows each time";
    default:
      return absl::StrCat("k=", row.changed_pages());
  }
}

void AddGoal(const Rule& rule, const CycleRow& row, CycleReport& report) {
  const CycleRow* const other = OtherOf(rule, report, row);
  // Nothing is asked beside what is not there.
  if (*rule.other != '\0' && other == nullptr) return;
  Goal goal;
  goal.set_name(rule.name);
  goal.set_where(Where(row));
  goal.set_bound(rule.bound + rule.bound_per_page * row.changed_pages());
  goal.set_at_least(rule.at_least || rule.of == Of::kInverse);
  const auto ratio = [&](const char* time) {
    const std::string field = absl::StrCat(rule.field, time);
    return rule.of == Of::kInverse ? RatioOfRounds(other, &row, field)
                                   : RatioOfRounds(&row, other, field);
  };
  switch (rule.of) {
    case Of::kNumber:
      Judge(goal, NumberOf(row, rule.field));
      break;
    case Of::kAbove: {
      std::optional<double> above = NumberOf(row, rule.field);
      const std::optional<double> others = NumberOf(*other, rule.field);
      if (above.has_value() && others.has_value()) {
        Judge(goal, std::max(*above - *others, 0.0));
      }
      break;
    }
    case Of::kRatio:
    case Of::kInverse:
      goal.set_other(other->way());
      if (const auto means = ratio("mean_ns"); means.has_value()) {
        Judge(goal, ratio("median_ns"), means);
      }
      break;
  }
  *report.add_goals() = goal;
}

}  // namespace

void AddGoals(CycleReport& report) {
  // Those of one name stand together, in the order in which the tables were
  // made; and those of one table in the order of the rules.
  std::vector<std::string> names;
  for (const CycleRow& row : report.rows()) {
    for (const Rule& rule : kRules) {
      if (IsFor(rule, row) &&
          std::find(names.begin(), names.end(), rule.name) == names.end()) {
        names.emplace_back(rule.name);
      }
    }
  }
  for (const std::string& name : names) {
    for (int i = 0; i < report.rows_size(); ++i) {
      for (const Rule& rule : kRules) {
        if (rule.name == name && IsFor(rule, report.rows(i))) {
          AddGoal(rule, report.rows(i), report);
        }
      }
    }
  }
}

}  // namespace firsttouch::bench
