#include "firsttouch/integrations/wasm2c/plain_memory.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::wasm2c {
namespace {

absl::Status CallFailed(const char* call) {
  const int error = errno;
  return absl::ResourceExhaustedError(
      absl::StrCat(call, " failed: ", strerror(error), " (errno ", error, ")"));
}

// The sources that exist, for the signal handler.
std::array<std::atomic<PlainMemorySource*>, PlainMemorySource::kMaxSources>
    g_sources;

// Guards the handler's installation.
Mutex& InstallMutex() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}
int g_installed = 0;
struct sigaction g_previous;

}  // namespace

// One slot, as a GuestMemory.
class PlainMemory : public GuestMemory {
 public:
  PlainMemory(PlainMemorySource* source, uint32_t slot, MemoryRequest request)
      : source_(source), slot_(slot), request_(std::move(request)) {}
  ~PlainMemory() override {
    // A slot that cannot be cleaned is lost: nobody gets it any more.
    if (source_->Clean(slot_, request_).ok()) source_->GiveBack(slot_);
  }

  std::byte* base() const override { return source_->SlotBase(slot_); }
  uint64_t size_bytes() const override {
    return source_->slots_[slot_].size_bytes.load(std::memory_order_relaxed);
  }

  absl::Status Grow(uint64_t new_size_bytes) override {
    if (new_size_bytes > source_->options_.max_memory_bytes) {
      return absl::OutOfRangeError(absl::StrCat(
          "new size ", new_size_bytes, " bytes exceeds max_memory_bytes ",
          source_->options_.max_memory_bytes));
    }
    return source_->SetSize(slot_, new_size_bytes);
  }

  absl::Status Reset() override {
    if (absl::Status cleaned = source_->Clean(slot_, request_); !cleaned.ok()) {
      return cleaned;
    }
    return source_->Prepare(slot_, request_);
  }

  // The kernel supplies these pages itself.
  absl::Status MakeReady(uint64_t offset_bytes, uint64_t bytes,
                         Access access) override {
    (void)access;
    if (offset_bytes > size_bytes() || bytes > size_bytes() - offset_bytes) {
      return absl::OutOfRangeError(absl::StrCat(
          "the range of ", bytes, " bytes at offset ", offset_bytes,
          " does not end within the memory's size of ", size_bytes(),
          " bytes"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ImageRef> Snapshot(std::string_view name) override {
    return ImageFromBytes(
        {.name = std::string(name), .size_bytes = size_bytes()},
        {base(), size_bytes()});
  }

 private:
  PlainMemorySource* source_;
  uint32_t slot_;
  MemoryRequest request_;
};

PlainMemorySource::PlainMemorySource(const PlainOptions& options)
    : options_(options), slots_(options.slots) {
  free_.reserve(options.slots);
  for (uint32_t slot = options.slots; slot > 0; --slot) {
    free_.push_back(slot - 1);
  }
}

absl::StatusOr<std::unique_ptr<PlainMemorySource>> PlainMemorySource::Create(
    const PlainOptions& options) {
  if (options.slots == 0) {
    return absl::InvalidArgumentError("slots is 0: at least 1 is needed");
  }
  if (options.max_memory_bytes == 0 ||
      options.max_memory_bytes > kMaxGuestMemoryBytes ||
      options.max_memory_bytes % kPageBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_memory_bytes ", options.max_memory_bytes,
                     " is not a multiple of the page size ", kPageBytes,
                     " from ", kPageBytes, " to ", kMaxGuestMemoryBytes));
  }
  std::unique_ptr<PlainMemorySource> source(new PlainMemorySource(options));
  if (absl::Status reserved = source->Reserve(); !reserved.ok()) {
    return reserved;
  }
  return source;
}

absl::Status PlainMemorySource::Reserve() {
  void* base = mmap(nullptr, bytes(), PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return CallFailed(absl::StrCat("mmap of ", bytes(), " bytes for ",
                                   options_.slots, " slots")
                          .c_str());
  }
  base_ = reinterpret_cast<uintptr_t>(base);
  madvise(base, bytes(), MADV_NOHUGEPAGE);

  MutexLock lock(&InstallMutex());
  if (g_installed == 0) {
    struct sigaction action = {};
    action.sa_sigaction = &PlainMemorySource::OnSignal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSEGV, &action, &g_previous) != 0) {
      return CallFailed("sigaction");
    }
  }
  for (std::atomic<PlainMemorySource*>& entry : g_sources) {
    if (entry.load(std::memory_order_relaxed) != nullptr) continue;
    entry.store(this, std::memory_order_release);
    ++g_installed;
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("there are ", kMaxSources, " plain memory sources already"));
}

PlainMemorySource::~PlainMemorySource() {
  {
    MutexLock lock(&InstallMutex());
    for (std::atomic<PlainMemorySource*>& entry : g_sources) {
      if (entry.load(std::memory_order_relaxed) != this) continue;
      entry.store(nullptr, std::memory_order_release);
      if (--g_installed == 0) sigaction(SIGSEGV, &g_previous, nullptr);
    }
  }
  if (base_ != 0) munmap(reinterpret_cast<void*>(base_), bytes());
}

void PlainMemorySource::OnSignal(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const std::atomic<PlainMemorySource*>& entry : g_sources) {
    const PlainMemorySource* source = entry.load(std::memory_order_acquire);
    if (source == nullptr || address - source->base_ >= source->bytes()) {
      continue;
    }
    const uint64_t slot = (address - source->base_) / kStrideBytes;
    const auto* interrupted = static_cast<const ucontext_t*>(context);
    // The trap leaves by siglongjmp, which restores no mask.
    sigprocmask(SIG_SETMASK, &interrupted->uc_sigmask, nullptr);
    constexpr uint64_t kWriteBit = 2;  // of the page fault's error code
    TrapOutOfBounds(
        {.offset_bytes =
             static_cast<int64_t>((address - source->base_) % kStrideBytes),
         .size_bytes =
             source->slots_[slot].size_bytes.load(std::memory_order_relaxed),
         .write =
             (static_cast<uint64_t>(interrupted->uc_mcontext.gregs[REG_ERR]) &
              kWriteBit) != 0,
         .instance = static_cast<uint32_t>(slot),
         .memory = 0,
         .program_counter =
             static_cast<uintptr_t>(interrupted->uc_mcontext.gregs[REG_RIP])});
    break;  // no guest runs on this thread
  }
  // Not ours: as if we were not there.
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal, info, context);
  } else if (g_previous.sa_handler == SIG_DFL ||
             g_previous.sa_handler == SIG_IGN) {
    // The instruction runs again and is fatal then.
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
  } else {
    g_previous.sa_handler(signal);
  }
}

absl::StatusOr<int> PlainMemorySource::FileOf(const ImageRef& image) {
  MutexLock lock(&mutex_);
  UniqueFd& file = files_[image->id()];
  if (file) return file.get();
  // A copy: to map the image's own file would fill its holes.
  UniqueFd made(memfd_create("firsttouch-plain", MFD_CLOEXEC));
  if (!made) return CallFailed("memfd_create");
  for (uint64_t page = 0; page < image->pages().value(); ++page) {
    if (pwrite(made.get(), image->PageBytes(PageIndex(page)), kPageBytes,
               static_cast<off_t>(page * kPageBytes)) !=
        static_cast<ssize_t>(kPageBytes)) {
      return CallFailed("pwrite to a memfd");
    }
  }
  file = std::move(made);
  return file.get();
}

absl::Status PlainMemorySource::SetSize(uint32_t slot,
                                        uint64_t new_size_bytes) {
  std::atomic<uint64_t>& size = slots_[slot].size_bytes;
  const uint64_t old_size = size.load(std::memory_order_relaxed);
  const uint64_t old_end = RoundUpToPage(old_size);
  const uint64_t new_end = RoundUpToPage(new_size_bytes);
  if (new_end > old_end) {
    CountCall();
    if (mprotect(SlotBase(slot) + old_end, new_end - old_end,
                 PROT_READ | PROT_WRITE) != 0) {
      return CallFailed("mprotect");
    }
  } else if (new_end < old_end) {
    CountCall();
    CountCall();
    if (madvise(SlotBase(slot) + new_end, old_end - new_end, MADV_DONTNEED) !=
            0 ||
        mprotect(SlotBase(slot) + new_end, old_end - new_end, PROT_NONE) != 0) {
      return CallFailed("madvise or mprotect");
    }
  }
  size.store(new_size_bytes, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status PlainMemorySource::Prepare(uint32_t index,
                                        const MemoryRequest& request) {
  Slot& slot = slots_[index];
  std::byte* const base = SlotBase(index);
  const uint64_t image_bytes =
      request.image == nullptr ? 0 : request.image->pages().bytes();
  if (options_.method == PlainMethod::kPrivateMapping &&
      slot.image != request.image) {
    // Whatever was mapped goes; without rights until SetSize opens it.
    const uint64_t end =
        RoundUpToPage(slot.size_bytes.load(std::memory_order_relaxed));
    const uint64_t replaced = std::max(end, slot.mapped_bytes);
    if (replaced > 0) {
      CountCall();
      if (mmap(base, replaced, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
               0) == MAP_FAILED) {
        return CallFailed("mmap");
      }
    }
    slot.image = nullptr;
    slot.mapped_bytes = 0;
    slot.size_bytes.store(0, std::memory_order_relaxed);
    if (image_bytes > 0) {
      absl::StatusOr<int> file = FileOf(request.image);
      if (!file.ok()) return file.status();
      CountCall();
      if (mmap(base, image_bytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, *file,
               0) == MAP_FAILED) {
        return CallFailed("mmap");
      }
      slot.size_bytes.store(image_bytes, std::memory_order_relaxed);
    }
    slot.image = request.image;
    slot.mapped_bytes = image_bytes;
  }
  if (absl::Status sized = SetSize(index, request.size_bytes); !sized.ok()) {
    return sized;
  }
  if (options_.method == PlainMethod::kEagerCopy) {
    // What the last lease's image covered and this one's does not.
    if (slot.mapped_bytes > image_bytes) {
      CountCall();
      if (madvise(base + image_bytes, slot.mapped_bytes - image_bytes,
                  MADV_DONTNEED) != 0) {
        return CallFailed("madvise");
      }
    }
    const uint64_t pages = image_bytes / kPageBytes;
    for (uint64_t page = 0; page < pages; ++page) {
      memcpy(base + page * kPageBytes,
             request.image->PageBytes(PageIndex(page)), kPageBytes);
    }
    slot.image = request.image;
    slot.mapped_bytes = image_bytes;
  }
  return absl::OkStatus();
}

absl::Status PlainMemorySource::Clean(uint32_t index,
                                      const MemoryRequest& request) {
  // What was grown goes with its rights.
  if (absl::Status sized = SetSize(index, request.size_bytes); !sized.ok()) {
    return sized;
  }
  const uint64_t end = RoundUpToPage(request.size_bytes);
  const uint64_t overwritten = options_.method == PlainMethod::kEagerCopy
                                   ? slots_[index].mapped_bytes
                                   : 0;
  if (end > overwritten) {
    CountCall();
    if (madvise(SlotBase(index) + overwritten, end - overwritten,
                MADV_DONTNEED) != 0) {
      return CallFailed("madvise");
    }
  }
  return absl::OkStatus();
}

void PlainMemorySource::GiveBack(uint32_t slot) {
  MutexLock lock(&mutex_);
  free_.push_back(slot);
}

absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>>
PlainMemorySource::Acquire(std::span<const MemoryRequest> requests) {
  std::vector<std::unique_ptr<GuestMemory>> result;
  for (const MemoryRequest& request : requests) {
    if (request.size_bytes > options_.max_memory_bytes) {
      return absl::OutOfRangeError(absl::StrCat(
          "size_bytes ", request.size_bytes, " exceeds max_memory_bytes ",
          options_.max_memory_bytes));
    }
    uint32_t slot;
    {
      MutexLock lock(&mutex_);
      if (free_.empty()) {
        return absl::ResourceExhaustedError(
            absl::StrCat("all ", options_.slots, " slots are in use"));
      }
      slot = free_.back();
      free_.pop_back();
    }
    if (absl::Status prepared = Prepare(slot, request); !prepared.ok()) {
      return prepared;
    }
    result.push_back(std::make_unique<PlainMemory>(this, slot, request));
  }
  return result;
}

}  // namespace firsttouch::wasm2c
