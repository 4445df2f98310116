#include "firsttouch/serve/touches.h"

#include <algorithm>
#include <cstddef>

#include "firsttouch/uffd/page_words.h"

namespace firsttouch {
namespace {

// How close touches follow each other that are placed together. In order of
// their addresses pages cost less to place; but a page that is needed before
// its turn is asked for. So there are few at first, and more and more.
constexpr size_t kFewTouches = 256;
constexpr size_t kMostTouches = 4096;

void Append(PageRun run, std::vector<PageRun>& runs) {
  if (!runs.empty() && runs.back().end() == run.first) {
    runs.back().length += run.length;
  } else {
    runs.push_back(run);
  }
}

}  // namespace

std::vector<PageRun> RunsOf(std::span<const Touch> touches) {
  std::vector<PageRun> runs;
  for (size_t together = kFewTouches; !touches.empty();
       together = std::min(2 * together, kMostTouches)) {
    const size_t count = std::min(touches.size(), together);
    std::vector<PageIndex> pages;
    for (const Touch& touch : touches.first(count)) pages.push_back(touch.page);
    std::sort(pages.begin(), pages.end());
    for (const PageIndex page : pages) Append({page, PageCount(1)}, runs);
    touches = touches.subspan(count);
  }
  return runs;
}

std::vector<PageRun> RunsOf(const WorkingSet& working_set,
                            std::span<const PageRun> without) {
  WorkingSet::Words words = working_set.read();
  const WorkingSet::Words written = working_set.written();
  if (words.size() < written.size()) words.resize(written.size());
  for (size_t i = 0; i < written.size(); ++i) words[i] |= written[i];
  WorkingSet::Words left_out;
  for (const PageRun& run : without) {
    AddPages(left_out, run.first.value(), run.end().value());
  }
  for (size_t i = 0; i < std::min(words.size(), left_out.size()); ++i) {
    words[i] &= ~left_out[i];
  }
  return RunsIn(words);
}

void AddPages(WorkingSet::Words& words, uint64_t first, uint64_t end) {
  if (words.size() < WordsFor(end)) words.resize(WordsFor(end));
  ForEachWordOf(first, end,
                [&](uint64_t index, uint64_t bits) { words[index] |= bits; });
}

std::vector<PageRun> RunsIn(std::span<const uint64_t> words) {
  std::vector<PageRun> runs;
  for (uint64_t index = 0; index < words.size(); ++index) {
    ForEachRun(words[index], [&](uint64_t bit, uint64_t pages) {
      Append({PageIndex(index * kPagesPerWord + bit), PageCount(pages)}, runs);
    });
  }
  return runs;
}

void Teach(std::span<const Touch> touches, WorkingSet& working_set) {
  WorkingSet::Words read;
  WorkingSet::Words written;
  for (const Touch& touch : touches) {
    const uint64_t page = touch.page.value();
    AddPages(read, page, page + 1);
    if (touch.write) AddPages(written, page, page + 1);
  }
  working_set.LearnRead(read);
  working_set.LearnWritten(written);
}

}  // namespace firsttouch
