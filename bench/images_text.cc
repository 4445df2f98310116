#include "firsttouch/bench/images_text.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/bench/image_starts.h"
#include "firsttouch/bench/machine.h"
#include "firsttouch/bench/quantiles.h"

namespace firsttouch::bench {
namespace {

void AddGoal(ImagesReport& report, const std::string& name,
             const std::string& where, const std::string& other, double bound,
             std::optional<double> measured) {
  CycleGoal& goal = *report.add_goals();
  goal.set_name(name);
  goal.set_where(where);
  goal.set_other(other);
  goal.set_bound(bound);
  if (!measured.has_value()) return;
  goal.set_measured(*measured);
  goal.set_reached(*measured <= bound);
}

const StartRow* Find(const ImagesReport& report, const StartRow& like,
                     const char* strategy) {
  for (const StartRow& row : report.starts()) {
    if (row.page_cache() == like.page_cache() && row.query() == like.query() &&
        row.way() == strategy) {
      return &row;
    }
  }
  return nullptr;
}

std::string Size(uint64_t bytes) {
  return bytes >= uint64_t{1} << 30 ? absl::StrCat(bytes >> 30, " GiB")
         : bytes >= 1 << 20         ? absl::StrCat(bytes >> 20, " MiB")
                                    : absl::StrCat(bytes >> 10, " KiB");
}

std::string Us(double ns) { return Short(ns / 1000); }

}  // namespace

void AddGoals(ImagesReport& report) {
  for (const StartRow& row : report.starts()) {
    if (row.way() != kWithSetName || row.page_cache() != "warm") continue;
    const StartRow* const plain = Find(report, row, kPrivateFileName);
    if (plain == nullptr) continue;
    const std::string where = absl::StrCat(row.query(), " rows");
    // Only of the same rows is it asked: nobody can know of others.
    if (row.query() == "same") {
      AddGoal(report, "first query / the other's", where, kPrivateFileName, 0.7,
              MedianRatio(row.round_query_ns(), plain->round_query_ns()));
    }
  }
  if (report.sizes_size() >= 2) {
    const SizeRow& least = report.sizes(0);
    for (int i = 1; i < report.sizes_size(); ++i) {
      const SizeRow& row = report.sizes(i);
      AddGoal(report, "open + bind / that of a small file", Size(row.bytes()),
              Size(least.bytes()), 1.5,
              MedianRatio(row.round_open_and_bind_ns(),
                          least.round_open_and_bind_ns()));
    }
  }
  if (report.has_stored() && report.stored().one_file_bytes() > 0) {
    const StoredImages& stored = report.stored();
    AddGoal(report, "bytes stored / those of one image",
            absl::StrCat(stored.images(), " images"), "one file", 8,
            static_cast<double>(stored.store_bytes()) /
                static_cast<double>(stored.one_file_bytes()));
  }
}

std::string ToText(const ImagesReport& report) {
  std::string text = MachineText(report.machine());
  absl::StrAppend(&text, report.rounds(),
                  " rounds; a new process for each sample; times in us, "
                  "medians\n");
  std::string last;
  for (const StartRow& row : report.starts()) {
    const std::string title = absl::StrCat(
        "SQLite from a file, page cache ", row.page_cache(), ", ",
        row.query() == "same" ? "the rows that taught the working set"
                              : "other rows than those that taught");
    if (title != last) {
      absl::StrAppendFormat(&text, "\n%s\n%-23s%7s%7s%7s%7s%7s%7s%7s%6s\n",
                            title, "", "open", "bind", "query", "all", "pool",
                            "faults", "kernel", "x");
    }
    last = title;
    const StartRow* const plain = Find(report, row, kPrivateFileName);
    absl::StrAppendFormat(
        &text, "%-23s%7s%7s%7s%7s%7s%7s%7s%6s\n", row.way(), Us(row.open_ns()),
        Us(row.bind_ns()), Us(row.query_ns()), Us(row.all_ns()),
        row.has_pool_ns() ? Us(row.pool_ns()) : "-", Short(row.faults()),
        Short(row.kernel_faults()),
        plain == nullptr
            ? "-"
            : Short(MedianRatio(row.round_query_ns(), plain->round_query_ns())
                        .value_or(0)));
  }
  if (report.starts_size() > 0) {
    absl::StrAppend(
        &text,
        "faults, kernel: of the first query, resolved by the pool, by the "
        "kernel\nx: the first query as a multiple of ",
        kPrivateFileName, "'s\n");
  }
  if (report.sizes_size() > 0) {
    absl::StrAppendFormat(&text,
                          "\nopen + bind by size, all pages stored\n"
                          "%-12s%9s%9s%9s\n",
                          "", "open", "bind", "touch");
    for (const SizeRow& row : report.sizes()) {
      absl::StrAppendFormat(&text, "%-12s%9s%9s%9s\n", Size(row.bytes()),
                            Us(row.open_ns()), Us(row.bind_ns()),
                            Us(row.touch_ns()));
    }
  }
  if (report.has_stored()) {
    const StoredImages& stored = report.stored();
    absl::StrAppend(&text, "\n", stored.images(), " images of ",
                    Size(stored.image_bytes()), " that share ",
                    Short(stored.shared_part() * 100), " % of their pages\n",
                    "one file ", stored.one_file_bytes(), " bytes, ",
                    stored.images(), " files ", stored.all_files_bytes(),
                    ", the store ", stored.store_bytes(), "\n");
  }
  if (report.builds_size() > 0) {
    absl::StrAppendFormat(&text, "\n%-46s%9s\n", "making images", "ms a MiB");
    for (const BuildRow& row : report.builds()) {
      absl::StrAppendFormat(&text, "%-46s%9s\n",
                            absl::StrCat(row.what(), ", ", Size(row.bytes())),
                            Short(row.ms_per_mib()));
    }
  }
  if (report.goals_size() > 0) {
    absl::StrAppend(&text, "\ngoals: medians of the ratios within a round\n");
    last.clear();
    for (const CycleGoal& goal : report.goals()) {
      if (goal.name() != last) absl::StrAppend(&text, "\n", goal.name(), "\n");
      last = goal.name();
      absl::StrAppendFormat(&text, "  %-21s%-22s%7s%13s  %s\n", goal.where(),
                            goal.other(),
                            absl::StrCat("<=", Short(goal.bound())),
                            goal.has_measured() ? Short(goal.measured()) : "-",
                            !goal.has_reached() ? "not measured"
                            : goal.reached()    ? "ok"
                                                : "NOT REACHED");
    }
  }
  return text;
}

}  // namespace firsttouch::bench
