#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_measure.h"
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

constexpr uint32_t kAny = UINT32_MAX;

struct Rule {
  const char* name;
  // The rows that it is for. No pages: any.
  CycleRow::Table table;
  const char* pages;
  Of of;
  // A field of the row; of a ratio "_median_ns" and "_mean_ns" come behind.
  const char* field;
  // Empty: none.
  const char* other;
  // At most this, and so much more for each changed page; or, of an inverse
  // and with `at_least`, at least.
  double bound;
  uint32_t least_k = 0;
  uint32_t most_k = kAny;
  double bound_per_page = 0;
  bool at_least = false;
};

constexpr CycleRow::Table kSteady = CycleRow::STEADY;
constexpr CycleRow::Table kThreads = CycleRow::THREADS;
constexpr CycleRow::Table kSqlite = CycleRow::SQLITE;

// Of the table THREADS what is asked of two is asked of no more: others have no
// core here. An idle slot may keep two pages more than it changes, and 4 KiB of
// book-keeping. Shootdowns of the rest of the machine are in the limit's, too.
constexpr Rule kRules[] = {
    {"same pages: system calls", kSteady, "same", Of::kNumber, "system_calls",
     "", 0},
    {"same pages: signals", kSteady, "same", Of::kNumber, "signals", "", 0},
    {"same pages: page faults", kSteady, "same", Of::kNumber, "page_faults", "",
     0},
    {"same pages: time / limit", kSteady, "same", Of::kRatio, "", kLimitName,
     1.15, 4},
    {"same pages: PAGEMAP_SCAN / ours", kSteady, "same", Of::kInverse, "",
     kScanName, 10, 1, 4},
    {"same pages: PAGEMAP_SCAN / ours", kSteady, "same", Of::kInverse, "",
     kScanName, 2, 16, 16},
    {"same pages: PAGEMAP_SCAN / ours", kSteady, "same", Of::kInverse, "",
     kScanName, 1.2, 64, 64},
    {"churning pages: time / best other", kSteady, "churning", Of::kRatio, "",
     kBestOther, 1.1, 0, 15},
    {"churning pages: time / best other", kSteady, "churning", Of::kRatio, "",
     kBestOther, 0.75, 16},
    {"mixed pages: time / best other", kSteady, "mixed", Of::kRatio, "",
     kBestOther, 0.6},
    {"first cycle, known image: time / CoW", CycleRow::FIRST_KNOWN_IMAGE, "",
     Of::kRatio, "", kCopyOnWriteName, 0.9},
    {"first cycle, new image: time / CoW", CycleRow::FIRST_NEW_IMAGE, "",
     Of::kRatio, "", kCopyOnWriteName, 1.1},
    {"same pages, 2 threads: scaling / the limit's", kThreads, "same",
     Of::kNumber, "scaling_of_limit", "", 0.95, 0, kAny, 0, /*at_least=*/true},
    {"same pages, 2 threads: shootdowns, above the limit's", kThreads, "same",
     Of::kAbove, "tlb_shootdowns", kLimitName, 0.01},
    {"churning pages, 2 threads: time / best other", kThreads, "churning",
     Of::kRatio, "", kBestOther, 1.1, 0, 15},
    {"churning pages, 2 threads: time / best other", kThreads, "churning",
     Of::kRatio, "", kBestOther, 0.75, 16},
    {"mixed pages, 2 threads: time / best other", kThreads, "mixed", Of::kRatio,
     "", kBestOther, 0.6},
    {"private KiB of an idle slot", CycleRow::IDLE, "same", Of::kNumber,
     "private_kib_per_idle_slot", "", 12, 0, kAny, 4},
    {"SQLite: recycle / PAGEMAP_SCAN", kSqlite, "", Of::kRatio, "handover_",
     kScanName, 0.5},
    {"SQLite: request / PAGEMAP_SCAN", kSqlite, "", Of::kRatio, "", kScanName,
     0.9},
    {"SQLite: request / MADV_DONTNEED", kSqlite, "", Of::kRatio, "",
     kCopyOnWriteName, 0.2},
};

bool IsFor(const Rule& rule, const CycleRow& row) {
  return row.way() == kDefaultName && rule.table == row.table() &&
         (*rule.pages == '\0' || rule.pages == row.pages()) &&
         row.changed_pages() >= rule.least_k &&
         row.changed_pages() <= rule.most_k &&
         (row.table() != CycleRow::THREADS || row.threads() == 2);
}

const CycleRow* OtherOf(const Rule& rule, const CycleReport& report,
                        const CycleRow& row) {
  if (rule.other != std::string(kBestOther)) {
    return RowBeside(report.rows(), row, rule.other);
  }
  const CycleRow* best = nullptr;
  for (const char* way : {kCopyOnWriteName, kScanName, kCopyImageName}) {
    const CycleRow* const other = RowBeside(report.rows(), row, way);
    if (other == nullptr) continue;
    if (best == nullptr || other->mean_ns() < best->mean_ns()) best = other;
  }
  return best;
}

// "k=4 of 1 MiB", with the name of the pages in between.
std::string Changed(const CycleRow& row, const std::string& pages) {
  return absl::StrCat("k=", row.changed_pages(), pages, " of ",
                      Size(row.touched_bytes()));
}

std::string Where(const CycleRow& row) {
  switch (row.table()) {
    case CycleRow::STEADY:
    case CycleRow::THREADS:
      return Changed(row, "");
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
  const bool is_ratio = rule.of == Of::kRatio || rule.of == Of::kInverse;
  const auto ratio = [&](const char* time) {
    const std::string field = absl::StrCat(rule.field, time);
    return rule.of == Of::kInverse ? RatioOfRounds(other, &row, field)
                                   : RatioOfRounds(&row, other, field);
  };
  std::optional<double> measured;
  std::optional<double> by_mean;
  if (is_ratio) {
    measured = ratio("median_ns");
    by_mean = ratio("mean_ns");
  } else {
    measured = NumberOf(row, rule.field);
    if (rule.of == Of::kAbove) {
      const std::optional<double> others = NumberOf(*other, rule.field);
      if (!others.has_value()) measured.reset();
      if (measured.has_value()) measured = std::max(*measured - *others, 0.0);
    }
  }
  AddGoal(rule.name, Where(row), is_ratio ? other->way() : "",
          rule.bound + rule.bound_per_page * row.changed_pages(),
          rule.at_least || rule.of == Of::kInverse, measured, by_mean,
          report.mutable_goals());
}

}  // namespace

std::string Situation(const CycleRow& row) {
  std::string what = "steady";
  switch (row.table()) {
    case CycleRow::FIRST_KNOWN_IMAGE:
      what = "first cycle of a slot, image known";
      break;
    case CycleRow::FIRST_NEW_IMAGE:
      what = "first cycle of a slot, image new";
      break;
    case CycleRow::THREADS:
      what = absl::StrCat(row.threads(),
                          row.threads() == 1 ? " thread" : " threads");
      break;
    case CycleRow::IDLE:
      what = "idle slots, book-keeping included";
      break;
    case CycleRow::SQLITE:
      return absl::StrCat("SQLite, ", Where(row),
                          row.pages() == "same" ? " each time" : "");
    default:
      break;
  }
  return absl::StrCat(what, ", ", Changed(row, " " + row.pages()));
}

void AddGoals(CycleReport& report) {
  for (const CycleRow& row : report.rows()) {
    for (const Rule& rule : kRules) {
      if (IsFor(rule, row)) AddGoal(rule, row, report);
    }
  }
  // Those of one name stand together, in the order in which the tables were
  // made; and those of one table in the order of the rules.
  std::map<std::string, size_t> order;
  for (const Goal& goal : report.goals()) {
    order.emplace(goal.name(), order.size());
  }
  std::stable_sort(report.mutable_goals()->begin(),
                   report.mutable_goals()->end(),
                   [&](const Goal& a, const Goal& b) {
                     return order.at(a.name()) < order.at(b.name());
                   });
}

}  // namespace firsttouch::bench
