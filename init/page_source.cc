#include "firsttouch/init/page_source.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder_with_kernel.h"
#include "firsttouch/init/image_memfd.h"
#include "firsttouch/init/image_on_demand.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/page_source_with_kernel.h"
#include "firsttouch/init/source_requests.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/descriptor_pin.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/signal_masked_thread.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

constexpr uint32_t kMaxThreads = 64;
constexpr uint64_t kMaxChunkPages = 1u << 18;  // 1 GiB
constexpr uint64_t kPagesAtOnce = 256;

// What a thread that faults is told.
int ErrnoOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return EACCES;
    case absl::StatusCode::kDeadlineExceeded:
      return ETIMEDOUT;
    case absl::StatusCode::kResourceExhausted:
      return ENOMEM;
    case absl::StatusCode::kUnavailable:
      // One of those that absl makes Unavailable of, and no call on memory
      // gives.
      return EHOSTDOWN;
    case absl::StatusCode::kCancelled:
      return ECANCELED;
    default:
      return EIO;
  }
}

struct FreeDeleter {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};

// Asks the source, and zeroes what is behind the image's end.
absl::Status Ask(PageSource& source, const std::string& name,
                 uint64_t size_bytes, PageIndex first,
                 std::span<std::byte> bytes) {
  std::memset(bytes.data(), 0, bytes.size());
  absl::Status status = source.Fetch(first, bytes);
  if (!status.ok()) {
    return absl::Status(
        status.code(),
        absl::StrCat("image '", name, "': its source, for ",
                     bytes.size() / kPageBytes, " pages from page ",
                     first.value(), " on: ", status.message()));
  }
  const uint64_t used =
      std::min<uint64_t>(bytes.size(), size_bytes - first.offset_bytes());
  std::memset(bytes.data() + used, 0, bytes.size() - used);
  return absl::OkStatus();
}

}  // namespace

// The threads that answer requests.
class SourceThreads : public EarlyFetch {
 public:
  SourceThreads(const Image& image, std::shared_ptr<PageSource> source,
                uint64_t chunk_pages)
      : image_(image), source_(std::move(source)) {
    requests_.chunk_pages = chunk_pages;
    requests_.chunks = (image.pages().value() + chunk_pages - 1) / chunk_pages;
  }

  ~SourceThreads() override {
    if (made_by_.IsHere()) {
      stop_.store(true, std::memory_order_seq_cst);
      requests_.bell.fetch_add(1, std::memory_order_seq_cst);
      FutexWakeAll(requests_.bell);
      for (std::thread& thread : threads_) thread.join();
    } else {
      // A child of fork(2): they are not here, and what they were known by may
      // by now be the record of a thread of the child's. It must neither be
      // joined nor detached, so the objects are left alone.
      static_cast<void>(
          new std::vector<std::thread>(std::exchange(threads_, {})));
    }
    if (words_ != nullptr) munmap(words_, WordsBytes());
  }

  absl::Status Start(uint32_t count) {
    void* const words =
        mmap(nullptr, WordsBytes(), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED) {
      return ImageCallFailed(image_.name(),
                             absl::StrCat("mmap of ", WordsBytes(), " bytes"),
                             errno);
    }
    words_ = words;
    auto* const first = static_cast<std::atomic<uint32_t>*>(words);
    requests_.states = first;
    requests_.links = first + requests_.chunks;
    requests_.errors =
        reinterpret_cast<std::atomic<int32_t>*>(first + 2 * requests_.chunks);
    for (uint32_t i = 0; i < count; ++i) {
      absl::StatusOr<std::thread> thread =
          StartSignalMaskedThread("ft-source", [this] { Run(); });
      if (!thread.ok()) {
        return absl::ResourceExhaustedError(
            absl::StrCat("image '", image_.name(), "': thread ", i + 1,
                         " for its source could not be started: ",
                         thread.status().message()));
      }
      threads_.push_back(*std::move(thread));
    }
    return absl::OkStatus();
  }

  SourceRequests& requests() { return requests_; }

  void FetchEarly(uint64_t first, uint64_t end) override {
    if (!made_by_.IsHere()) return;
    MutexLock lock(&mutex_);
    bool any = false;
    for (uint64_t chunk = first / requests_.chunk_pages;
         chunk < requests_.chunks && chunk * requests_.chunk_pages < end;
         ++chunk) {
      std::atomic<uint32_t>& word = requests_.states[chunk];
      uint32_t state = word.load(std::memory_order_relaxed);
      if (SourceRequests::KindOf(state) != SourceRequests::kAbsent ||
          !word.compare_exchange_strong(
              state, SourceRequests::With(state, SourceRequests::kEarly),
              std::memory_order_acq_rel)) {
        continue;
      }
      early_.push_back(chunk);
      any = true;
    }
    if (!any) return;
    requests_.bell.fetch_add(1, std::memory_order_seq_cst);
    FutexWakeAll(requests_.bell);
  }

 private:
  size_t WordsBytes() const {
    return std::max<size_t>(1, requests_.chunks) * 3 * sizeof(uint32_t);
  }

  // The next chunk to fetch: what a thread waits for first, in the order in
  // which it was asked for. Nothing: there is none.
  std::optional<uint64_t> Take() {
    MutexLock lock(&mutex_);
    while (true) {
      uint32_t at = requests_.wanted.exchange(0, std::memory_order_acquire);
      const auto end = static_cast<std::ptrdiff_t>(wanted_.size());
      for (; at != 0;
           at = requests_.links[at - 1].load(std::memory_order_relaxed)) {
        // The list has the last one first.
        wanted_.insert(wanted_.begin() + end, at - 1);
      }
      std::deque<uint64_t>& queue = wanted_.empty() ? early_ : wanted_;
      if (queue.empty()) return std::nullopt;
      const uint64_t chunk = queue.front();
      queue.pop_front();
      std::atomic<uint32_t>& word = requests_.states[chunk];
      uint32_t state = word.load(std::memory_order_acquire);
      while (SourceRequests::KindOf(state) == SourceRequests::kWanted ||
             SourceRequests::KindOf(state) == SourceRequests::kEarly) {
        if (word.compare_exchange_weak(
                state, SourceRequests::With(state, SourceRequests::kFetching),
                std::memory_order_acq_rel)) {
          return chunk;
        }
      }
      // Asked for early, and later by a thread that waits: it is under way, or
      // over.
    }
  }

  void Run() {
    const size_t bytes = requests_.chunk_pages * kPageBytes;
    const std::unique_ptr<std::byte, FreeDeleter> buffer(
        static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
    while (true) {
      const uint32_t bell = requests_.bell.load(std::memory_order_seq_cst);
      if (stop_.load(std::memory_order_seq_cst)) return;
      const std::optional<uint64_t> chunk = Take();
      if (!chunk.has_value()) {
        FutexWait(requests_.bell, bell);
        continue;
      }
      const int error =
          buffer == nullptr ? ENOMEM : Fetch(*chunk, buffer.get());
      std::atomic<uint32_t>& word = requests_.states[*chunk];
      const uint32_t state = word.load(std::memory_order_relaxed);
      uint32_t next = SourceRequests::With(state, SourceRequests::kPresent);
      if (error != 0) {
        requests_.errors[*chunk].store(error, std::memory_order_relaxed);
        next = SourceRequests::With(state + SourceRequests::kOneAttempt,
                                    SourceRequests::kAbsent);
      }
      word.store(next, std::memory_order_release);
      FutexWakeAll(word);
    }
  }

  // Gives 0 or an errno.
  int Fetch(uint64_t chunk, std::byte* buffer) {
    const PageIndex first(chunk * requests_.chunk_pages);
    const PageIndex end = std::min(first + PageCount(requests_.chunk_pages),
                                   PageIndex(0) + image_.pages());
    const std::span<std::byte> bytes(buffer, (end - first).bytes());
    const absl::Status status =
        Ask(*source_, image_.name(), image_.size_bytes(), first, bytes);
    if (!status.ok()) return ErrnoOf(status);
    const ImageFetch& fetch = *image_.fetch();
    const PageMap& stored = image_.stored();
    for (auto run = stored.NextRun(first, end); run.has_value();
         run = stored.NextRun(run->end(), end)) {
      const FillResult fill = CopyRange(
          *fetch.kernel, fetch.uffd, fetch.view + run->first.offset_bytes(),
          reinterpret_cast<uintptr_t>(buffer) + (run->first - first).bytes(),
          run->length.bytes(), 0, {});
      if (!fill.ok()) return fill.error;
    }
    return 0;
  }

  const ProcessMark made_by_ = ProcessMark::Here();
  const Image& image_;
  const std::shared_ptr<PageSource> source_;
  SourceRequests requests_;
  void* words_ = nullptr;
  std::atomic<bool> stop_{false};
  Mutex mutex_;
  std::deque<uint64_t> wanted_ ABSL_GUARDED_BY(mutex_);
  std::deque<uint64_t> early_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

class ImageSourcer {
 public:
  // An image that begins with all pages missing. Null where this kernel or user
  // cannot have such.
  static absl::StatusOr<ImageRef> Make(const ImageOptions& options,
                                       std::shared_ptr<PageSource> source,
                                       const PageSourceOptions& source_options,
                                       MemfdCalls& calls, Kernel& kernel) {
    absl::StatusOr<Uffd> uffd = Uffd::Open(
        kernel,
        {.required_features = kUffdFeatureMissingShmem | kUffdFeatureSigbus});
    if (!uffd.ok()) {
      if (absl::IsResourceExhausted(uffd.status())) return uffd.status();
      return ImageRef();
    }
    const PageCount pages = PagesRoundedUp(options.size_bytes);
    const uint64_t bytes = pages.bytes();
    std::unique_ptr<Image> image(new Image(calls));
    image->name_ = options.name;
    image->size_bytes_ = options.size_bytes;
    absl::StatusOr<PageMap> map = PageMap::Create(pages);
    if (!map.ok()) return map.status();
    image->stored_ = *std::move(map);
    if (source_options.stored.empty()) {
      image->stored_.InsertRun({PageIndex(0), pages});
    }
    for (const PageRun& run : source_options.stored) {
      image->stored_.InsertRun(run);
    }
    image->on_demand_ = std::make_unique<Image::OnDemand>(kernel);
    Image::OnDemand& demand = *image->on_demand_;
    demand.fetch.stored = image->stored_words();
    demand.fetch.pages = pages.value();
    image->fetch_ = &demand.fetch;

    absl::StatusOr<int> memfd =
        CreateImageMemfd(calls, options.name, options.size_bytes, bytes);
    if (!memfd.ok()) return memfd.status();
    demand.memfd.store(*memfd, std::memory_order_release);
    // One view for filling and for reading: a page that is not there is a
    // SIGBUS for a thread that reads it, and EFAULT for the kernel.
    // Inaccessible at first, so that nothing populates it
    // (mapping_properties.h).
    const CallResult mapped =
        kernel.Mmap(0, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, *memfd, 0);
    if (!mapped.ok()) {
      return ImageCallFailed(options.name,
                             absl::StrCat("mmap of ", bytes, " bytes"),
                             mapped.error);
    }
    const auto view = static_cast<uintptr_t>(mapped.value);
    demand.fetch.view = view;
    demand.fetch.view_made_by = ProcessMark::Here();
    if (absl::Status status =
            uffd->Register(view, bytes, kUffdRegisterMissing, kUffdIoctlCopy);
        !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("image '", options.name,
                                                      "': ", status.message()));
    }
    const MappingResult set = SetMappingProperties(kernel, view, bytes, {});
    if (!set.ok()) return ImageCallFailed(options.name, set.call, set.error);
    const CallResult opened = kernel.Mprotect(view, bytes, PROT_READ);
    if (!opened.ok()) {
      return ImageCallFailed(options.name, "mprotect", opened.error);
    }
    const MemfdResult sealed =
        calls.AddSeals(*memfd, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW |
                                   F_SEAL_FUTURE_WRITE);
    if (!sealed.ok()) {
      return ImageCallFailed(options.name, "fcntl(F_ADD_SEALS)", sealed.error);
    }
    absl::StatusOr<DescriptorPin> pin = DescriptorPin::Make(uffd->fd());
    if (!pin.ok()) {
      return absl::Status(
          pin.status().code(),
          absl::StrCat("image '", options.name, "': ", pin.status().message()));
    }
    demand.fetch.uffd = uffd->fd();
    {
      MutexLock lock(&demand.mutex);
      demand.uffd = *std::move(uffd);
      demand.pin = *std::move(pin);
    }
    auto threads = std::make_shared<SourceThreads>(*image, std::move(source),
                                                   source_options.chunk_pages);
    demand.fetch.requests = &threads->requests();
    demand.fetch.chunk_pages = source_options.chunk_pages;
    demand.source = threads;
    if (absl::Status status = threads->Start(source_options.threads);
        !status.ok()) {
      return status;
    }
    demand.fetch.ready.store(true, std::memory_order_release);
    image->data_ = reinterpret_cast<const std::byte*>(view);
    return std::shared_ptr<Image>(std::move(image))->Handle();
  }
};

namespace {

absl::StatusOr<ImageRef> FetchAll(const ImageOptions& options,
                                  PageSource& source,
                                  std::span<const PageRun> stored,
                                  MemfdCalls& calls) {
  const PageRun all = {PageIndex(0), PagesRoundedUp(options.size_bytes)};
  if (stored.empty()) stored = std::span(&all, 1);
  return ImageFromWriter(
      options,
      [&](ImagePut put) -> absl::Status {
        const std::unique_ptr<std::byte, FreeDeleter> buffer(
            static_cast<std::byte*>(
                std::aligned_alloc(kPageBytes, kPagesAtOnce * kPageBytes)));
        if (buffer == nullptr) {
          return absl::ResourceExhaustedError("no memory for a buffer");
        }
        for (const PageRun& run : stored) {
          for (PageIndex page = run.first; page < run.end();) {
            const PageIndex end =
                std::min(run.end(), page + PageCount(kPagesAtOnce));
            const std::span<std::byte> bytes(buffer.get(),
                                             (end - page).bytes());
            absl::Status status =
                Ask(source, options.name, options.size_bytes, page, bytes);
            if (!status.ok()) return status;
            const uint64_t used = std::min<uint64_t>(
                bytes.size(), options.size_bytes - page.offset_bytes());
            status = put(page.offset_bytes(), bytes.first(used));
            if (!status.ok()) return status;
            page = end;
          }
        }
        return absl::OkStatus();
      },
      calls);
}

}  // namespace

absl::StatusOr<ImageRef> ImageFromSource(
    const ImageOptions& options, std::shared_ptr<PageSource> source,
    const PageSourceOptions& source_options, MemfdCalls& calls,
    Kernel& kernel) {
  const auto bad = [&](auto... parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("image '", options.name, "': ", parts...));
  };
  if (source == nullptr) return bad("the source is null");
  if (options.size_bytes > kMaxImageBytes) {
    return bad("size_bytes ", options.size_bytes, " exceeds the limit of ",
               kMaxImageBytes, " (1 TiB); lower size_bytes");
  }
  if (source_options.chunk_pages == 0 ||
      source_options.chunk_pages > kMaxChunkPages) {
    return bad("chunk_pages ", source_options.chunk_pages, " is not in 1 to ",
               kMaxChunkPages);
  }
  if (source_options.threads == 0 || source_options.threads > kMaxThreads) {
    return bad("threads ", source_options.threads, " is not in 1 to ",
               kMaxThreads);
  }
  const PageCount pages = PagesRoundedUp(options.size_bytes);
  for (const PageRun& run : source_options.stored) {
    if (run.first.value() > pages.value() ||
        run.length.value() > pages.value() - run.first.value()) {
      return bad("stored pages ", run.first.value(), " + ", run.length.value(),
                 " exceed the image's ", pages.value(), " pages");
    }
  }
  if (source_options.when == PageSourceOptions::When::kOnDemand &&
      pages > PageCount(0)) {
    absl::StatusOr<ImageRef> image =
        ImageSourcer::Make(options, source, source_options, calls, kernel);
    if (!image.ok() || *image != nullptr) return image;
  }
  return FetchAll(options, *source, source_options.stored, calls);
}

absl::StatusOr<ImageRef> ImageFromSource(
    const ImageOptions& options, std::shared_ptr<PageSource> source,
    const PageSourceOptions& source_options) {
  return ImageFromSource(options, std::move(source), source_options,
                         RealMemfdCalls(), RealKernel());
}

}  // namespace firsttouch
