#include "firsttouch/bench/sqlite_strategies.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/kernel_counters.h"
#include "firsttouch/bench/scan_restore.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

using wasm2c::GuestMemory;
using wasm2c::MemoryRequest;

constexpr uint64_t kMaxMemoryBytes = 64 << 20;

ImageRef DenseCopy(const Image& image) {
  std::vector<std::byte> bytes(image.pages().bytes());
  for (uint64_t page = 0; page < image.pages().value(); ++page) {
    memcpy(bytes.data() + page * kPageBytes, image.PageBytes(PageIndex(page)),
           kPageBytes);
  }
  ImageRef copy = OrDie(
      ImageFromBytes({.name = "dense", .size_bytes = bytes.size()}, bytes));
  ReadEachPage(copy->data(), bytes.size());
  return copy;
}

// This library.
class PoolStrategy : public SqliteStrategy {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteStrategy>> Make(
      ServiceOptions options) {
    options.layout = wasm2c::LayoutForGuests(/*instances=*/1, kMaxMemoryBytes);
    absl::StatusOr<std::unique_ptr<Service>> pool =
        Service::Create(std::move(options));
    if (!pool.ok()) return pool.status();
    auto source = wasm2c::PoolMemorySource::Create(pool->get());
    if (!source.ok()) return source.status();
    return std::unique_ptr<SqliteStrategy>(
        new PoolStrategy(*std::move(pool), *std::move(source)));
  }

  wasm2c::MemorySource* source() override { return source_.get(); }
  std::optional<uint64_t> PrivateBytesOfAll() override {
    // NOLINTNEXTLINE: the pool's first address.
    return PrivateBytes(reinterpret_cast<const std::byte*>(pool_->base()),
                        pool_->layout().reservation_bytes());
  }

 private:
  PoolStrategy(std::unique_ptr<Service> pool,
               std::unique_ptr<wasm2c::PoolMemorySource> source)
      : pool_(std::move(pool)), source_(std::move(source)) {}

  const std::unique_ptr<Service> pool_;
  const std::unique_ptr<wasm2c::PoolMemorySource> source_;
};

// The others: one mapping, which stays with its image as long as the next
// tenant has the same.
class MappingStrategy : public SqliteStrategy, public wasm2c::MemorySource {
 public:
  wasm2c::MemorySource* source() override { return this; }
  std::optional<uint64_t> PrivateBytesOfAll() override {
    return PrivateBytes(base(), mapping_->bytes());
  }

  absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) override;

 protected:
  // Makes the memory, which is new, start as contents() says.
  virtual void Bind() = 0;
  // The lease has ended; it had `bytes`, in whole pages, at most.
  virtual void Clean(uint64_t bytes) = 0;

  Mapping& mapping() { return *mapping_; }
  std::byte* base() const { return mapping_->base(); }
  // Empty without an image.
  std::span<const std::byte> contents() const {
    if (contents_ == nullptr) return {};
    return {contents_->data(), contents_->pages().bytes()};
  }
  // The same in a file.
  const ImageRef& contents_image() const { return contents_; }

 private:
  class Held;

  std::optional<Mapping> mapping_{kMaxMemoryBytes};
  ImageRef image_;
  // A copy without holes: to map or to read the image's own would fill them,
  // for everybody.
  ImageRef contents_;
};

class MappingStrategy::Held : public GuestMemory {
 public:
  Held(MappingStrategy& strategy, uint64_t size_bytes)
      : strategy_(strategy),
        size_bytes_(size_bytes),
        initial_bytes_(size_bytes) {}
  ~Held() override { Clean(); }

  std::byte* base() const override { return strategy_.base(); }
  uint64_t size_bytes() const override { return size_bytes_; }
  absl::Status Grow(uint64_t new_size_bytes) override {
    if (new_size_bytes > kMaxMemoryBytes) {
      return absl::OutOfRangeError(absl::StrCat("new size ", new_size_bytes,
                                                " bytes exceeds ",
                                                kMaxMemoryBytes, " bytes"));
    }
    size_bytes_ = new_size_bytes;
    return absl::OkStatus();
  }
  // The kernel supplies any page in bounds to a system call, too.
  absl::Status MakeReady(uint64_t, uint64_t, Access) override {
    return absl::OkStatus();
  }
  absl::Status Reset() override {
    Clean();
    size_bytes_ = initial_bytes_;
    return absl::OkStatus();
  }
  absl::StatusOr<ImageRef> Snapshot(std::string_view name) override {
    return ImageFromBytes(
        {.name = std::string(name), .size_bytes = size_bytes_},
        {base(), size_bytes_});
  }

 private:
  void Clean() { strategy_.Clean(RoundUpToPage(size_bytes_)); }

  MappingStrategy& strategy_;
  uint64_t size_bytes_;
  const uint64_t initial_bytes_;
};

absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>>
MappingStrategy::Acquire(std::span<const MemoryRequest> requests) {
  if (requests.size() != 1 || requests[0].size_bytes > kMaxMemoryBytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "one memory of at most ", kMaxMemoryBytes, " bytes is possible"));
  }
  const MemoryRequest& request = requests[0];
  if (request.image != image_) {
    image_ = request.image;
    contents_ = nullptr;
    mapping_.emplace(kMaxMemoryBytes);
    if (image_ != nullptr) {
      contents_ = DenseCopy(*image_);
      Bind();
    }
  }
  std::vector<std::unique_ptr<GuestMemory>> memories;
  memories.push_back(std::make_unique<Held>(*this, request.size_bytes));
  return memories;
}

class CopyOnWriteStrategy : public MappingStrategy {
 protected:
  void Bind() override { mapping().Bind(contents_image()); }
};

class DontNeedStrategy : public CopyOnWriteStrategy {
 protected:
  void Clean(uint64_t bytes) override {
    if (madvise(base(), bytes, MADV_DONTNEED) != 0) {
      Die("MADV_DONTNEED failed");
    }
  }
};

class ScanStrategy : public CopyOnWriteStrategy {
 public:
  explicit ScanStrategy(ScanRestore restore) : restore_(std::move(restore)) {}

 protected:
  void Clean(uint64_t bytes) override {
    restore_.Restore(base(), bytes, contents());
  }

 private:
  ScanRestore restore_;
};

absl::StatusOr<std::unique_ptr<SqliteStrategy>> MakeScanStrategy() {
  absl::StatusOr<ScanRestore> restore = ScanRestore::Open();
  if (!restore.ok()) return restore.status();
  return std::make_unique<ScanStrategy>(*std::move(restore));
}

// The whole image into anonymous memory, for each lease.
class CopyImageStrategy : public MappingStrategy {
 protected:
  void Bind() override { CopyAll(); }
  void Clean(uint64_t bytes) override {
    CopyAll();
    const uint64_t copied = contents().size();
    if (bytes > copied &&
        madvise(base() + copied, bytes - copied, MADV_DONTNEED) != 0) {
      Die("MADV_DONTNEED failed");
    }
  }

 private:
  void CopyAll() {
    if (!contents().empty()) {
      memcpy(base(), contents().data(), contents().size());
    }
  }
};

template <typename Strategy>
absl::StatusOr<std::unique_ptr<SqliteStrategy>> Make() {
  return std::make_unique<Strategy>();
}

}  // namespace

const std::vector<SqliteStrategyFactory>& AllSqliteStrategies() {
  static const auto* const strategies = new std::vector<SqliteStrategyFactory>{
      {kDefaultName, [] { return PoolStrategy::Make({.name = "default"}); }},
      {"copied, in-thread",
       [] {
         return PoolStrategy::Make(
             {.name = "copied",
              .supply = UserfaultfdOptions{.backing = Backing::kCopied}});
       }},
      {kCopyOnWriteName, Make<DontNeedStrategy>},
      {kScanName, MakeScanStrategy},
      {kCopyImageName, Make<CopyImageStrategy>},
  };
  return *strategies;
}

}  // namespace firsttouch::bench
