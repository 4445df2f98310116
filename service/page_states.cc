#include "firsttouch/service/page_states.h"

#include <algorithm>

namespace firsttouch {

const char* PageStateName(PageState state) {
  switch (state) {
    case PageState::kMissing:
      return "missing";
    case PageState::kClean:
      return "clean";
    case PageState::kUntracked:
      return "untracked";
    case PageState::kDirty:
      return "dirty";
    case PageState::kRetained:
      return "retained";
  }
  return "unknown";
}

void PageStates::Forget(uint64_t first_page, uint64_t end_page) const {
  ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t gone = WordMask(index, first_page, end_page);
    if (gone == 0) return;
    group.present.fetch_and(~gone, std::memory_order_relaxed);
    group.untracked.fetch_and(~gone, std::memory_order_relaxed);
    group.dirty.fetch_and(~gone, std::memory_order_relaxed);
    group.retained.fetch_and(~gone, std::memory_order_relaxed);
    LeaveOutIfEmpty(index);
  });
}

void PageStates::ForgetHistory() const {
  ForEachGroup([&](uint64_t index, PageGroup& group) {
    group.recent.store(0, std::memory_order_relaxed);
    group.previous.store(0, std::memory_order_relaxed);
    group.last.store(0, std::memory_order_relaxed);
    LeaveOutIfEmpty(index);
  });
}

void PageStates::NextSamplingWindow() const {
  ForEachGroup([&](uint64_t index, PageGroup& group) {
    group.previous.store(group.recent.load(std::memory_order_relaxed),
                         std::memory_order_relaxed);
    group.recent.store(0, std::memory_order_relaxed);
    LeaveOutIfEmpty(index);
  });
}

void PageStates::LeaveOutIfEmpty(uint64_t index) const {
  const PageGroup& group = groups_[index];
  const uint64_t left = group.present.load(std::memory_order_relaxed) |
                        group.untracked.load(std::memory_order_relaxed) |
                        group.dirty.load(std::memory_order_relaxed) |
                        group.recent.load(std::memory_order_relaxed) |
                        group.previous.load(std::memory_order_relaxed) |
                        group.last.load(std::memory_order_relaxed);
  if (left == 0) {
    summary_[index / 64].fetch_and(~(uint64_t{1} << (index % 64)),
                                   std::memory_order_relaxed);
  }
}

}  // namespace firsttouch
