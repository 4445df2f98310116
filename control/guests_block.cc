#include "firsttouch/control/guests_block.h"

#include <errno.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/published_memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Most guests have one or two.
constexpr size_t kRegionsPerGuest = 4;

std::atomic_ref<uint64_t> Word(uint64_t& word) {
  return std::atomic_ref<uint64_t>(word);
}

void Store(uint64_t& word, uint64_t value) {
  Word(word).store(value, std::memory_order_relaxed);
}

// The first place with so many that are free; takes them, or gives the end.
size_t Take(std::vector<bool>& taken, size_t count, size_t most) {
  size_t first = 0;
  for (size_t i = 0; i < most && i - first < count; ++i) {
    if (i < taken.size() && taken[i]) first = i + 1;
  }
  if (first + count > most) return most;
  if (taken.size() < first + count) taken.resize(first + count);
  for (size_t i = first; i < first + count; ++i) taken[i] = true;
  return first;
}

// A record but for its first word, word by word.
template <typename Record>
void StoreBehindFirst(const Record& from, Record& to) {
  constexpr size_t kWords = sizeof(Record) / sizeof(uint64_t);
  uint64_t words[kWords];
  std::memcpy(words, &from, sizeof(from));
  auto* const into = reinterpret_cast<uint64_t*>(&to);
  for (size_t i = 1; i < kWords; ++i) Store(into[i], words[i]);
}

template <size_t kBytes>
void CopyText(std::string_view from, char (&to)[kBytes]) {
  std::copy_n(from.begin(), std::min(from.size(), kBytes), to);
}

}  // namespace

std::shared_ptr<GuestsBlock> GuestsBlock::Create(MemfdCalls& calls,
                                                 std::string_view server_name,
                                                 size_t guests) {
  std::shared_ptr<GuestsBlock> block(
      new GuestsBlock(std::min(guests, kMaxGuestsInBlock)));
  block->Open(calls, server_name);
  return block;
}

void GuestsBlock::Open(MemfdCalls& calls, std::string_view server_name) {
  const uint64_t guests_end =
      sizeof(GuestsHeader) + most_guests_ * sizeof(GuestInBlock);
  // Next to the records of guests: few of both lie in one page.
  regions_offset_ = guests_end;
  bytes_ = RoundUpToPage(regions_offset_ + most_guests_ * kRegionsPerGuest *
                                               sizeof(RegionInBlock));
  UniqueFd fd = OpenPublished(
      calls, absl::StrCat(kGuestsMemfdPrefix, std::string(server_name)), bytes_,
      "guests block", why_);
  if (!fd) return;
  void* const mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (mapped == MAP_FAILED) {
    why_ = absl::StrCat("mmap of a memfd of ", bytes_,
                        " bytes: ", std::strerror(errno));
    return;
  }
  madvise(mapped, bytes_, MADV_DONTFORK);
  madvise(mapped, bytes_, MADV_NOHUGEPAGE);
  SealPublished(calls, fd.get());
  fd_ = std::move(fd);
  address_ = static_cast<std::byte*>(mapped);

  GuestsHeader filled = {};
  std::memcpy(filled.magic, kGuestsMagic, sizeof(kGuestsMagic));
  filled.version = kGuestsVersion;
  filled.header_bytes = sizeof(GuestsHeader);
  filled.block_bytes = bytes_;
  filled.pid = static_cast<uint64_t>(getpid());
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  filled.created_ns = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
                      static_cast<uint64_t>(now.tv_nsec);
  CopyText(server_name, filled.name);
  filled.guests = {sizeof(GuestsHeader), sizeof(GuestInBlock), most_guests_};
  filled.regions = {regions_offset_, sizeof(RegionInBlock),
                    most_guests_ * kRegionsPerGuest};
  std::memcpy(address_, &filled, sizeof(filled));
  Word(header().ready).store(1, std::memory_order_release);
}

GuestsBlock::~GuestsBlock() {
  if (address_ == nullptr) return;
  Word(header().ready).store(0, std::memory_order_release);
  munmap(address_, bytes_);
}

GuestInBlock& GuestsBlock::guest(size_t index) const {
  return reinterpret_cast<GuestInBlock*>(address_ +
                                         sizeof(GuestsHeader))[index];
}

RegionInBlock& GuestsBlock::region(size_t index) const {
  return reinterpret_cast<RegionInBlock*>(address_ + regions_offset_)[index];
}

std::unique_ptr<GuestsBlock::Entry> GuestsBlock::Publish(
    const Facts& facts, std::span<const Place> regions) {
  if (address_ == nullptr || regions.empty()) return nullptr;
  size_t index = 0;
  size_t first = 0;
  {
    MutexLock lock(&mutex_);
    const size_t most_regions = most_guests_ * kRegionsPerGuest;
    first = Take(regions_, regions.size(), most_regions);
    if (first == most_regions) return nullptr;
    index = Take(guests_, 1, most_guests_);
    if (index == most_guests_) {
      std::fill_n(regions_.begin() + static_cast<ptrdiff_t>(first),
                  regions.size(), false);
      return nullptr;
    }
  }
  std::unique_ptr<Entry> entry(
      new Entry(shared_from_this(), index, first, regions.size()));
  entry->Changing([&] {
    for (size_t i = 0; i < regions.size(); ++i) {
      RegionInBlock& record = region(first + i);
      RegionInBlock filled = {};
      filled.image_offset_bytes = regions[i].image_offset_bytes;
      filled.page_bytes = regions[i].page_bytes;
      filled.bytes = regions[i].bytes;
      StoreBehindFirst(filled, record);
      Store(record.start, regions[i].start);
    }
    GuestInBlock filled = {};
    filled.number = facts.number;
    filled.pid = facts.pid;
    filled.first_region = first;
    filled.regions = regions.size();
    filled.image_size_bytes = facts.image_size_bytes;
    filled.image_stored_pages = facts.image_stored_pages;
    if (facts.image_digest.has_value()) {
      filled.image_digest_known = 1;
      std::memcpy(filled.image_digest, facts.image_digest->data(),
                  sizeof(filled.image_digest));
    }
    CopyText(facts.image_name, filled.image_name);
    CopyText(facts.name, filled.name);
    StoreBehindFirst(filled, guest(index));
  });
  return entry;
}

template <typename Change>
void GuestsBlock::Entry::Changing(Change change) {
  uint64_t& word = block_->guest(guest_).sequence;
  const uint64_t sequence = Word(word).load(std::memory_order_relaxed);
  Word(word).store(sequence + 1, std::memory_order_relaxed);
  // Nothing may be seen before the odd number is.
  std::atomic_thread_fence(std::memory_order_release);
  change();
  Word(word).store(sequence + 2, std::memory_order_release);
}

GuestsBlock::Entry::~Entry() {
  Changing([&] { Store(block_->guest(guest_).number, 0); });
  MutexLock lock(&block_->mutex_);
  block_->guests_[guest_] = false;
  std::fill_n(block_->regions_.begin() + static_cast<ptrdiff_t>(first_region_),
              regions_, false);
}

void GuestsBlock::Entry::Move(size_t region, uint64_t start, uint64_t bytes,
                              uint64_t image_offset_bytes) {
  Changing([&] {
    RegionInBlock& record = block_->region(first_region_ + region);
    Store(record.start, start);
    Store(record.bytes, bytes);
    Store(record.image_offset_bytes, image_offset_bytes);
  });
}

void GuestsBlock::Entry::Add(size_t region, uint64_t RegionInBlock::*count,
                             uint64_t number) {
  uint64_t& word = block_->region(first_region_ + region).*count;
  // Nobody else writes it.
  Store(word, Word(word).load(std::memory_order_relaxed) + number);
}

void GuestsBlock::Entry::SetWaiting(uint64_t faults) {
  uint64_t& word = block_->guest(guest_).waiting;
  if (Word(word).load(std::memory_order_relaxed) != faults) {
    Store(word, faults);
  }
}

}  // namespace firsttouch
