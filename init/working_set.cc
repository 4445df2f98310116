#include "firsttouch/init/working_set.h"

#include <algorithm>
#include <cstddef>
#include <span>

#include "firsttouch/uffd/mutex.h"

namespace firsttouch {
namespace {

void TrimZeroes(WorkingSet::Words& words) {
  while (!words.empty() && words.back() == 0) words.pop_back();
}

// Cut to the largest memory, without zero words at the end.
WorkingSet::Words Normalized(std::span<const uint64_t> pages) {
  pages =
      pages.first(std::min<size_t>(pages.size(), WorkingSet::kMaxPages / 64));
  WorkingSet::Words words(pages.begin(), pages.end());
  TrimZeroes(words);
  return words;
}

// Whether that changed `to`.
bool Add(WorkingSet::Words& to, std::span<const uint64_t> pages) {
  const WorkingSet::Words more = Normalized(pages);
  if (to.size() < more.size()) to.resize(more.size());
  bool changed = false;
  for (size_t i = 0; i < more.size(); ++i) {
    changed |= (more[i] & ~to[i]) != 0;
    to[i] |= more[i];
  }
  return changed;
}

}  // namespace

void WorkingSet::Changed() { version_.fetch_add(1, std::memory_order_release); }

WorkingSet::Words WorkingSet::written() const {
  MutexLock lock(&mutex_);
  return written_;
}

WorkingSet::Words WorkingSet::read() const {
  MutexLock lock(&mutex_);
  return read_;
}

void WorkingSet::LearnWritten(std::span<const uint64_t> pages) {
  MutexLock lock(&mutex_);
  if (Add(written_, pages)) Changed();
  known_.store(true, std::memory_order_release);
}

void WorkingSet::LearnRead(std::span<const uint64_t> pages) {
  MutexLock lock(&mutex_);
  if (Add(read_, pages)) Changed();
}

void WorkingSet::ForgetWritten(std::span<const uint64_t> pages) {
  MutexLock lock(&mutex_);
  bool changed = false;
  for (size_t i = 0; i < std::min(pages.size(), written_.size()); ++i) {
    changed |= (written_[i] & pages[i]) != 0;
    written_[i] &= ~pages[i];
  }
  TrimZeroes(written_);
  if (changed) Changed();
}

void WorkingSet::Replace(std::span<const uint64_t> written,
                         std::span<const uint64_t> read) {
  MutexLock lock(&mutex_);
  written_ = Normalized(written);
  read_ = Normalized(read);
  known_.store(!written_.empty() || !read_.empty(), std::memory_order_release);
  Changed();
}

}  // namespace firsttouch
