#include "firsttouch/init/image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_fetch.h"
#include "firsttouch/init/image_memfd.h"
#include "firsttouch/init/image_on_demand.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/source_requests.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

alignas(kPageBytes) constexpr std::byte kZeroPage[kPageBytes] = {};

std::atomic<void (*)(const Image&)> g_unused_hook{nullptr};

uint64_t NextId() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace

Image::Image(MemfdCalls& calls) : calls_(calls), id_(NextId()) {}

Image::~Image() {
  // First the threads that may still fill it.
  if (on_demand_ != nullptr) on_demand_->source.reset();
  const bool view_is_data =
      on_demand_ != nullptr &&
      reinterpret_cast<uintptr_t>(data_) == on_demand_->fetch.view;
  if (data_ != nullptr && !view_is_data) {
    calls_.Unmap(reinterpret_cast<uintptr_t>(data_), pages().bytes());
  }
  if (memfd_ >= 0) calls_.Close(memfd_);
  if (on_demand_ == nullptr) return;
  // In a child of fork(2) the parent's view is not mapped, and the child may
  // have something else there.
  if (on_demand_->fetch.view != 0 && on_demand_->fetch.view_made_by.IsHere()) {
    on_demand_->kernel.Munmap(on_demand_->fetch.view, pages().bytes());
  }
  const int memfd = on_demand_->memfd.load(std::memory_order_relaxed);
  if (memfd >= 0) calls_.Close(memfd);
}

int Image::FetchPages(PageIndex first, PageCount pages) const noexcept {
  if (fetch() == nullptr) return 0;
  return FetchImagePages(*fetch(), first.value(), pages.value());
}

const std::byte* Image::PageBytes(PageIndex page) const {
  if (!IsStored(page)) return kZeroPage;
  if (has_source()) FetchPages(page, PageCount(1));
  return data_ + page.offset_bytes();
}

absl::Status Image::Read(uint64_t offset_bytes,
                         std::span<std::byte> into) const {
  if (offset_bytes > size_bytes_ || into.size() > size_bytes_ - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "image '", name_, "': read of offset ", offset_bytes, " + ",
        into.size(), " bytes exceeds size_bytes ", size_bytes_));
  }
  if (has_source() && !into.empty()) {
    const PageIndex first = PageContaining(offset_bytes);
    const PageIndex end =
        PageIndex(0) + PagesRoundedUp(offset_bytes + into.size());
    if (const int error = FetchPages(first, end - first)) {
      return absl::ErrnoToStatus(
          error, absl::StrCat("image '", name_, "': its source, for pages ",
                              first.value(), " to ", end.value() - 1));
    }
  }
  for (size_t done = 0; done < into.size();) {
    const uint64_t position = offset_bytes + done;
    const size_t in_page = position % kPageBytes;
    const size_t chunk =
        std::min<size_t>(kPageBytes - in_page, into.size() - done);
    std::memcpy(into.data() + done,
                PageBytes(PageContaining(position)) + in_page, chunk);
    done += chunk;
  }
  return absl::OkStatus();
}

bool Image::has_source() const {
  return fetch_ != nullptr && fetch_->requests != nullptr;
}

std::shared_ptr<const Image> Image::Handle() const {
  handles_.fetch_add(1, std::memory_order_seq_cst);
  // The deleter has the image, and the handle's count is its own.
  return {this, [held = Hold()](const Image*) mutable {
            if (held->handles_.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
                held.use_count() > 1) {
              const auto hook = g_unused_hook.load(std::memory_order_acquire);
              if (hook != nullptr) hook(*held);
            }
            held.reset();
          }};
}

void Image::SetUnusedHook(void (*hook)(const Image& image)) {
  g_unused_hook.store(hook, std::memory_order_release);
}

bool Image::IsFetched(PageIndex page) const noexcept {
  if (!has_source() || !IsStored(page)) return true;
  if (!fetch_->view_made_by.IsHere()) return false;
  const SourceRequests& requests = *fetch_->requests;
  const uint32_t state =
      requests.states[page.value() / requests.chunk_pages].load(
          std::memory_order_acquire);
  return SourceRequests::KindOf(state) == SourceRequests::kPresent;
}

absl::Status Image::CheckProcess() const {
  if (!has_source() || on_demand_->made_by.IsHere()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "image '", name_,
      "' has a PageSource, whose threads are in the process that made the "
      "image; this is a child of fork(2): make an image of its own in the "
      "child"));
}

void Image::FetchEarly(PageIndex first, PageCount pages) const {
  if (!has_source()) return;
  on_demand_->source->FetchEarly(first.value(), (first + pages).value());
}

absl::Status Image::FetchAll() const {
  if (!has_source()) return absl::OkStatus();
  const int error = FetchPages(PageIndex(0), pages());
  if (error == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(
      error,
      absl::StrCat("image '", name_, "': its source, for one of its pages"));
}

int Image::memfd() const {
  if (on_demand_ == nullptr) return memfd_;
  const absl::StatusOr<int> memfd = OnDemandMemfd();
  if (!memfd.ok()) return -1;
  MutexLock lock(&on_demand_->mutex);
  if (on_demand_->complete) return *memfd;
  if (FetchPages(PageIndex(0), pages()) != 0) return -1;
  on_demand_->complete = true;
  return *memfd;
}

absl::StatusOr<int> Image::OnDemandMemfd() const {
  if (on_demand_ == nullptr) return memfd_;
  OnDemand& demand = *on_demand_;
  const int ready = demand.memfd.load(std::memory_order_acquire);
  if (ready >= 0 && demand.made_by.IsHere()) return ready;
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  MutexLock lock(&demand.mutex);
  const int raced = demand.memfd.load(std::memory_order_acquire);
  if (raced >= 0) {
    // One without a view is complete.
    if (demand.fetch.view == 0 || demand.fetch.view_made_by.IsHere()) {
      return raced;
    }
    demand.fetch.ready.store(false, std::memory_order_release);
    demand.memfd.store(-1, std::memory_order_release);
    demand.fetch.view = 0;
    demand.fetch.uffd = -1;
    demand.uffd.reset();
    demand.complete = false;
    calls_.Close(raced);
  }

  const uint64_t bytes = pages().bytes();
  absl::StatusOr<int> memfd =
      CreateImageMemfd(calls_, name_, size_bytes_, bytes);
  if (!memfd.ok()) return memfd.status();
  absl::Cleanup close_memfd = [&] { calls_.Close(*memfd); };
  // userfaultfd may be refused here (seccomp); then no pool resolves faults
  // with one either, and the copy that is made below is wanted anyway.
  absl::StatusOr<Uffd> uffd = Uffd::Open(
      demand.kernel, {.required_features = kUffdFeatureMissingShmem});
  // A shortage that may be over soon is no reason to copy all of the image.
  if (absl::IsResourceExhausted(uffd.status())) {
    return absl::Status(
        uffd.status().code(),
        absl::StrCat("image '", name_, "': ", uffd.status().message()));
  }
  if (!uffd.ok() || bytes == 0) {
    for (auto run = stored_.NextRun(PageIndex(0)); run.has_value();
         run = stored_.NextRun(run->end())) {
      const uint64_t first = run->first.offset_bytes();
      for (uint64_t done = 0; done < run->length.bytes();) {
        const MemfdResult written =
            calls_.Write(*memfd, data_ + first + done,
                         run->length.bytes() - done, first + done);
        const int error =
            written.ok() && written.value == 0 ? ENOSPC : written.error;
        if (error != 0) {
          return ImageCallFailed(
              name_, absl::StrCat("pwrite at offset ", first + done), error);
        }
        done += written.value;
      }
    }
    if (absl::Status status = SealImageMemfd(calls_, name_, *memfd);
        !status.ok()) {
      return status;
    }
    std::move(close_memfd).Cancel();
    demand.complete = true;
    demand.fetch.ready.store(true, std::memory_order_release);
    demand.memfd.store(*memfd, std::memory_order_release);
    return *memfd;
  }

  // Shared and before the seal, or it could not be registered; read-only all
  // the same: UFFDIO_COPY does not ask.
  // Inaccessible at first, so that nothing populates it: mapping_properties.h.
  const CallResult mapped = demand.kernel.Mmap(
      0, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, *memfd, 0);
  if (!mapped.ok()) {
    return ImageCallFailed(name_, absl::StrCat("mmap of ", bytes, " bytes"),
                           mapped.error);
  }
  const auto view = static_cast<uintptr_t>(mapped.value);
  absl::Cleanup unmap = [&] { demand.kernel.Munmap(view, bytes); };
  if (absl::Status status =
          uffd->Register(view, bytes, kUffdRegisterMissing, kUffdIoctlCopy);
      !status.ok()) {
    return absl::Status(
        status.code(), absl::StrCat("image '", name_, "': ", status.message()));
  }
  // A child has no use for it: it is in no registration there.
  const MappingResult set =
      SetMappingProperties(demand.kernel, view, bytes, {});
  if (!set.ok()) return ImageCallFailed(name_, set.call, set.error);
  const CallResult opened = demand.kernel.Mprotect(view, bytes, PROT_READ);
  if (!opened.ok()) return ImageCallFailed(name_, "mprotect", opened.error);
  const MemfdResult sealed = calls_.AddSeals(
      *memfd, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  if (!sealed.ok()) {
    return ImageCallFailed(name_, "fcntl(F_ADD_SEALS)", sealed.error);
  }
  std::move(unmap).Cancel();
  std::move(close_memfd).Cancel();
  demand.fetch.view = view;
  demand.fetch.view_made_by = ProcessMark::Here();
  demand.fetch.uffd = uffd->fd();
  demand.fetch.ready.store(true, std::memory_order_release);
  demand.uffd = *std::move(uffd);
  demand.memfd.store(*memfd, std::memory_order_release);
  return *memfd;
}

absl::StatusOr<Image::Mapping> Image::PrivateMapping() const {
  if (on_demand_ == nullptr) return Mapping{memfd_, 0};
  const std::vector<ImagePiece>& pieces = on_demand_->pieces;
  if (pieces.size() == 1 && pieces[0].pages.first == PageIndex(0) &&
      pieces[0].pages.length == pages()) {
    return Mapping{pieces[0].fd, pieces[0].offset_bytes};
  }
  const absl::StatusOr<int> on_demand = OnDemandMemfd();
  if (!on_demand.ok()) return on_demand.status();
  if (absl::Status status = FetchAll(); !status.ok()) return status;
  const int complete = memfd();
  if (complete >= 0) return Mapping{complete, 0};
  return absl::UnavailableError(
      absl::StrCat("image '", name_,
                   "': its pages cannot all be copied into a memfd: there "
                   "is no memory, or a file that it is made of was cut short"));
}

bool Image::has_memfd() const {
  return on_demand_ == nullptr ||
         on_demand_->memfd.load(std::memory_order_relaxed) >= 0;
}

uint64_t Image::MemfdBytes() const {
  const int memfd = on_demand_ == nullptr
                        ? memfd_
                        : on_demand_->memfd.load(std::memory_order_acquire);
  if (memfd < 0) return 0;
  const MemfdResult allocated = calls_.AllocatedBytes(memfd);
  return allocated.ok() ? allocated.value : 0;
}

std::optional<Digest> Image::known_digest() const {
  MutexLock lock(&digest_mutex_);
  return digest_;
}

void Image::NoteDigest(const Digest& digest) const {
  MutexLock lock(&digest_mutex_);
  digest_ = digest;
}

}  // namespace firsttouch
