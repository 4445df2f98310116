#include "firsttouch/control/control_block.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/published_memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Header, names and description.
constexpr uint64_t kHeadBytes = 16384;
constexpr uint64_t kMaxFields = 64;
constexpr uint64_t kMaxNames = 16;

std::atomic_ref<uint64_t> Word(uint64_t& word) {
  return std::atomic_ref<uint64_t>(word);
}

// The blocks of this process that are shared. The mutex is pthread's and not
// absl's: it is held across fork(2), and unlocked in the child.
pthread_mutex_t g_mutex = PTHREAD_MUTEX_INITIALIZER;
ControlBlock* g_first = nullptr;

}  // namespace

// Handles fork(2) for the blocks of this process.
class ForkRegistry {
 public:
  static void Add(ControlBlock* block) {
    static const int registered =
        pthread_atfork(&BeforeFork, &InParent, &InChild);
    static_cast<void>(registered);
    pthread_mutex_lock(&g_mutex);
    block->next_ = g_first;
    g_first = block;
    pthread_mutex_unlock(&g_mutex);
  }

  static void Remove(ControlBlock* block) {
    pthread_mutex_lock(&g_mutex);
    for (ControlBlock** at = &g_first; *at != nullptr; at = &(*at)->next_) {
      if (*at != block) continue;
      *at = block->next_;
      break;
    }
    pthread_mutex_unlock(&g_mutex);
  }

 private:
  static void BeforeFork() { pthread_mutex_lock(&g_mutex); }
  static void InParent() { pthread_mutex_unlock(&g_mutex); }

  // Async-signal-safe: it runs in the child of a process that had threads.
  static void InChild() {
    for (ControlBlock* block = g_first; block != nullptr;
         block = block->next_) {
      // Replaces the mapping in one step: at no moment is nothing mapped. What
      // the child writes from here on is its own.
      const bool owns = block->OwnsDescriptor();
      const int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
      if (mmap(block->address_, block->bytes_, PROT_READ | PROT_WRITE,
               owns ? flags : flags | MAP_ANONYMOUS,
               owns ? block->fd_.get() : -1, 0) == MAP_FAILED) {
        // No memory at all is better than the parent's.
        munmap(block->address_, block->bytes_);
      }
      if (owns) {
        block->fd_.reset();
      } else {
        static_cast<void>(block->fd_.release());
      }
    }
    g_first = nullptr;
    pthread_mutex_unlock(&g_mutex);
  }
};

absl::Status CheckPoolName(std::string_view name) {
  const auto is_control = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  };
  const char* rule = nullptr;
  if (name.empty()) {
    rule = "is empty";
  } else if (name.size() > kMaxPoolNameBytes) {
    rule = "is too long";
  } else if (std::any_of(name.begin(), name.end(), is_control)) {
    rule = "has control characters";
  }
  if (rule == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "name \"", absl::CEscape(absl::string_view(name.data(), name.size())),
      "\" of ", name.size(), " bytes ", rule, ": give the pool one of 1 to ",
      kMaxPoolNameBytes,
      " bytes that can be shown, by which people and pooldump find it"));
}

ControlBlock::ControlBlock(Kernel& kernel, const Shape& shape)
    : kernel_(kernel), shape_(shape) {
  slots_offset_ = kHeadBytes;
  images_offset_ =
      RoundUpToPage(slots_offset_ + shape.slots * shape.slot_bytes);
  pages_offset_ =
      RoundUpToPage(images_offset_ + shape.slots * sizeof(ControlImage));
  bytes_ = RoundUpToPage(pages_offset_ + shape.slots * shape.page_states_bytes);
}

void ControlBlock::OpenMemfd(MemfdCalls& calls, std::string_view pool_name) {
  UniqueFd fd = OpenPublished(
      calls, absl::StrCat(kControlMemfdPrefix, std::string(pool_name)), bytes_,
      "control block", why_);
  if (!fd) return;
  struct stat status = {};
  if (fstat(fd.get(), &status) != 0) {
    why_ = absl::StrCat("fstat of a memfd: ", std::strerror(errno));
    return;
  }
  device_ = status.st_dev;
  inode_ = status.st_ino;
  fd_ = std::move(fd);
}

bool ControlBlock::OwnsDescriptor() const {
  struct stat status = {};
  return fstat(fd_.get(), &status) == 0 && status.st_dev == device_ &&
         status.st_ino == inode_;
}

absl::StatusOr<std::unique_ptr<ControlBlock>> ControlBlock::Create(
    Kernel& kernel, MemfdCalls& calls, std::string_view pool_name,
    const Shape& shape, bool publish) {
  std::unique_ptr<ControlBlock> block(new ControlBlock(kernel, shape));
  if (publish) {
    block->OpenMemfd(calls, pool_name);
  } else {
    block->why_ = "ServiceOptions::publish is false";
  }
  CallResult mapped = {0, EBADF};
  if (block->fd_) {
    mapped = kernel.Mmap(0, block->bytes_, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_NORESERVE, block->fd_.get(), 0);
    if (!mapped.ok()) {
      block->why_ = absl::StrCat("mmap of a memfd of ", block->bytes_,
                                 " bytes: ", std::strerror(mapped.error));
      block->fd_.reset();
    }
  }
  if (!mapped.ok()) {
    mapped = kernel.Mmap(0, block->bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (!mapped.ok()) {
    return absl::ErrnoToStatus(
        mapped.error,
        absl::StrCat("mmap of ", block->bytes_, " bytes of book-keeping for ",
                     shape.slots,
                     " slots (mostly untouched; RLIMIT_AS and overcommit "
                     "count it)"));
  }
  block->address_ = reinterpret_cast<std::byte*>(mapped.value);
  const auto pages_at = static_cast<uintptr_t>(mapped.value) +
                        static_cast<uintptr_t>(block->pages_offset_);
  const uint64_t pages_bytes = block->bytes_ - block->pages_offset_;
  // A slot has at most a page of states: a huge page would hold the states of
  // 512 slots and more.
  kernel.Madvise(static_cast<uintptr_t>(mapped.value), block->bytes_,
                 MADV_NOHUGEPAGE);
  if (pages_bytes > kMaxDumpedPageStatesBytes) {
    kernel.Madvise(pages_at, pages_bytes, MADV_DONTDUMP);
  }
  if (block->fd_) {
    SealPublished(calls, block->fd_.get());
    ForkRegistry::Add(block.get());
  }
  return block;
}

ControlBlock::~ControlBlock() {
  if (fd_) {
    ForkRegistry::Remove(this);
    if (!OwnsDescriptor()) static_cast<void>(fd_.release());
  }
  if (address_ == nullptr) return;
  // Also tells readers that have a copy of the descriptor.
  Word(header().ready).store(0, std::memory_order_release);
  kernel_.Munmap(reinterpret_cast<uintptr_t>(address_), bytes_);
}

void ControlBlock::Publish(const ControlHeader& facts, const Text& text) {
  ControlHeader filled = facts;
  std::memcpy(filled.magic, kControlMagic, sizeof(kControlMagic));
  filled.version = kControlVersion;
  filled.header_bytes = sizeof(ControlHeader);
  filled.block_bytes = bytes_;
  filled.ready = 0;
  filled.address = reinterpret_cast<uintptr_t>(address_);
  filled.pid = static_cast<uint32_t>(getpid());
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  filled.created_ns = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
                      static_cast<uint64_t>(now.tv_nsec);

  uint64_t at = sizeof(ControlHeader);
  const auto put = [&](const void* from, uint64_t record_bytes,
                       uint64_t records) {
    const ControlSection section = {at, record_bytes, records};
    if (records != 0) std::memcpy(address_ + at, from, record_bytes * records);
    at += (record_bytes * records + 7) / 8 * 8;
    return section;
  };
  filled.fields = put(text.fields.data(), sizeof(ControlField),
                      std::min<uint64_t>(text.fields.size(), kMaxFields));
  filled.states = put(text.states.data(), sizeof(ControlName),
                      std::min<uint64_t>(text.states.size(), kMaxNames));
  filled.trackings = put(text.trackings.data(), sizeof(ControlName),
                         std::min<uint64_t>(text.trackings.size(), kMaxNames));
  filled.description =
      put(text.description.data(),
          std::min<uint64_t>(text.description.size(), kHeadBytes - at), 1);
  filled.slots = {slots_offset_, shape_.slot_bytes, shape_.slots};
  filled.images = {images_offset_, sizeof(ControlImage), shape_.slots};
  filled.pages = {pages_offset_, shape_.page_states_bytes, shape_.slots};
  // Leaves no holes: readers map the records.
  for (uint64_t at = images_offset_; at < pages_offset_; at += kPageBytes) {
    Word(*reinterpret_cast<uint64_t*>(address_ + at))
        .fetch_add(0, std::memory_order_relaxed);
  }
  std::memcpy(address_, &filled, sizeof(filled));
  Word(header().ready).store(1, std::memory_order_release);
}

uint64_t ControlBlock::image_id(uint32_t slot) const {
  auto& record = *reinterpret_cast<ControlImage*>(address_ + images_offset_ +
                                                  slot * sizeof(ControlImage));
  return Word(record.id).load(std::memory_order_relaxed);
}

void ControlBlock::NoteImage(uint32_t slot, const ImageFacts& image) {
  constexpr size_t kWords = sizeof(ControlImage) / sizeof(uint64_t);
  auto* const words = reinterpret_cast<uint64_t*>(address_ + images_offset_ +
                                                  slot * sizeof(ControlImage));
  auto& record = *reinterpret_cast<ControlImage*>(words);

  ControlImage filled = {};
  filled.id = image.id;
  filled.size_bytes = image.size_bytes;
  filled.stored_pages = image.stored_pages;
  if (image.digest.has_value()) {
    filled.digest_known = 1;
    std::memcpy(filled.digest, image.digest->data(), sizeof(filled.digest));
  }
  filled.name_bytes = image.name.size();
  std::copy_n(image.name.begin(),
              std::min(image.name.size(), sizeof(filled.name)), filled.name);
  uint64_t from[kWords];
  std::memcpy(from, &filled, sizeof(filled));

  const uint64_t sequence =
      Word(record.sequence).load(std::memory_order_relaxed);
  Word(record.sequence).store(sequence + 1, std::memory_order_relaxed);
  // No word may be seen before the odd number is.
  std::atomic_thread_fence(std::memory_order_release);
  for (size_t i = 1; i < kWords; ++i) {
    Word(words[i]).store(from[i], std::memory_order_relaxed);
  }
  Word(record.sequence).store(sequence + 2, std::memory_order_release);
}

}  // namespace firsttouch
