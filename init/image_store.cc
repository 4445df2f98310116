#include "firsttouch/init/image_store.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/store_directory.h"
#include "firsttouch/init/store_names.h"
#include "firsttouch/init/store_records.h"
#include "firsttouch/init/store_segments.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/page_words.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Of a file: missing counts, since a record named it.
bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsNotFound(status) ||
         absl::IsInvalidArgument(status);
}

}  // namespace

// What the calls do under the store's lock, with the parts that it is made of.
class ImageStore::State : public std::enable_shared_from_this<State> {
 public:
  explicit State(const ImageStoreOptions& options)
      : budget_bytes_(options.budget_bytes),
        page_hash_(options.page_hash == nullptr ? FirstOfSha256
                                                : options.page_hash),
        directory_(options.directory),
        records_(directory_),
        names_(directory_),
        segments_(directory_, page_hash_) {}

  absl::Status Open() { return directory_.Open(); }

  absl::StatusOr<ImageRef> Put(const std::string& name, const Image& image) {
    if (name.empty() || name.size() > kMaxStoreNameBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          directory_.prefix(), "name '", name, "' has ", name.size(),
          " bytes; it must have 1 to ", kMaxStoreNameBytes));
    }
    // Not what the image says of itself: a file may claim any digest.
    const std::vector<ImageExtent> extents = ImageExtents(image);
    const Digest content = ContentDigest(image.size_bytes(), extents);
    const std::vector<uint64_t> hashes = PageHashes(image, page_hash_);

    ImageRef result;  // Destroyed after the lock is released, if at all.
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<StoreRecord*> record = records_.Find(content);
    if (absl::IsNotFound(record.status()) ||
        absl::IsDataLoss(record.status())) {
      // A damaged record is written anew.
      record = Add(name, content, image, hashes);
    } else if (record.ok()) {
      pages_shared_ += image.stored_pages();
      if (image.working_set().known() && (*record)->written.empty() &&
          (*record)->read.empty()) {
        (*record)->KeepWorkingSet(image);
      }
    }
    if (!record.ok()) return record.status();
    absl::StatusOr<ImageRef> stored = Materialize(**record);
    if (IsDamage(stored.status())) {
      // So are damaged segments: their pages are in no index.
      record = Add(name, content, image, hashes);
      if (!record.ok()) return record.status();
      stored = Materialize(**record);
    }
    if (!stored.ok()) return stored.status();
    result = *std::move(stored);
    if (absl::Status status = names_.Set(name, content); !status.ok()) {
      return status;
    }
    absl::StatusOr<uint64_t> freed = EvictTo(budget_bytes_);
    if (!freed.ok()) return freed.status();
    return result;
  }

  absl::StatusOr<ImageRef> Get(const std::string& name) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<Digest> content = names_.Find(name);
    if (!content.ok()) return content.status();
    return GetLocked(*content);
  }

  absl::StatusOr<ImageRef> GetByDigest(const Digest& content) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    return GetLocked(content);
  }

  absl::Status Remove(const std::string& name) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<Digest> content = names_.Find(name);
    if (!content.ok()) return content.status();
    return names_.Drop(name);
  }

  absl::StatusOr<uint64_t> Trim(uint64_t budget_bytes) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    return EvictTo(budget_bytes);
  }

  absl::Status Flush() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    return records_.Flush();
  }

  absl::StatusOr<std::vector<ImageStoreEntry>> List() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    std::vector<ImageStoreEntry> entries;
    for (const auto& [content, record] : records_.all()) {
      ImageStoreEntry entry;
      entry.content = content;
      entry.names = names_.Of(content);
      entry.size_bytes = record.size_bytes;
      entry.stored_pages = record.stored_pages();
      entry.runs = record.parts.size();
      entry.in_use = records_.InUse(record);
      entries.push_back(std::move(entry));
    }
    return entries;
  }

  absl::StatusOr<ImageStoreStats> Stats() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = directory_.Lock();
    if (!file_lock.ok()) return file_lock.status();
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    ImageStoreStats stats;
    stats.names = names_.all().size();
    for (const auto& [content, record] : records_.all()) {
      ++stats.images;
      stats.images_in_use += static_cast<uint64_t>(records_.InUse(record));
      stats.image_pages += record.stored_pages();
    }
    stats.segments = segments_.Digests().size();
    stats.held_pages = segments_.held_pages();
    stats.held_bytes = PageCount(stats.held_pages).bytes();
    stats.pages_shared = pages_shared_;
    stats.hash_collisions = hash_collisions_;
    stats.images_evicted = images_evicted_;
    stats.damaged_files = damaged_.size();
    return stats;
  }

 private:
  // Everything that the directory has. A file that cannot be read concerns
  // those who ask for its image, and nobody else: it is counted.
  absl::Status LoadAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    damaged_.clear();
    absl::Status status = segments_.Load(damaged_);
    if (status.ok()) status = records_.Load(damaged_);
    if (status.ok()) status = names_.Load(damaged_);
    return status;
  }

  absl::StatusOr<ImageRef> GetLocked(const Digest& content)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::StatusOr<StoreRecord*> record = records_.Find(content);
    if (!record.ok()) return record.status();
    return Materialize(**record);
  }

  // Enters a new image.
  absl::StatusOr<StoreRecord*> Add(const std::string& name,
                                   const Digest& content, const Image& image,
                                   std::span<const uint64_t> hashes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = segments_.Load(damaged_); !status.ok()) {
      return status;
    }
    absl::StatusOr<StoreSegments::Placed> placed =
        segments_.Place(name, image, hashes);
    if (!placed.ok()) return placed.status();
    StoreRecord record;
    record.content = content;
    record.name = name;
    record.size_bytes = image.size_bytes();
    record.segments = std::move(placed->segments);
    record.parts = std::move(placed->parts);
    record.written = image.working_set().written();
    record.read = image.working_set().read();
    // The segment of an image that could not be entered goes with the next
    // eviction.
    absl::StatusOr<StoreRecord*> entered = records_.Enter(std::move(record));
    if (!entered.ok()) return entered.status();
    pages_shared_ += placed->shared;
    hash_collisions_ += placed->collisions;
    return entered;
  }

  // The image of a record's parts.
  absl::StatusOr<ImageRef> Assemble(const StoreRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<ImagePiece> pieces;
    std::vector<PageRun> stored;
    for (const StorePart& part : record.parts) {
      const Digest& digest = record.segments[part.segment];
      absl::StatusOr<ImageRef> segment = segments_.Find(digest);
      if (!segment.ok()) return segment.status();
      const PageCount pages = (*segment)->pages();
      if (part.source > PageIndex(0) + pages ||
          part.pages.length > PageIndex(0) + pages - part.source) {
        return absl::DataLossError(absl::StrCat(
            directory_.prefix(), "image ", record.content.ToHex(),
            " wants pages [", part.source.value(), ", ",
            (part.source + part.pages.length).value(), ") of segment ",
            digest.ToHex(), ", which has ", pages.value()));
      }
      AppendPieces(*segment, {part.source, part.pages.length}, part.pages.first,
                   pieces);
      stored.push_back(part.pages);
    }
    return ImageFromPieces(
        {.name = record.name, .size_bytes = record.size_bytes},
        std::move(pieces), stored);
  }

  // The image of a record, for handing out.
  absl::StatusOr<ImageRef> Materialize(StoreRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    records_.NoteUse(record);
    if (ImageRef live = record.live.lock(); live != nullptr) return live;
    absl::StatusOr<std::shared_ptr<const int>> in_use = records_.Hold(record);
    if (!in_use.ok()) return in_use.status();
    absl::StatusOr<ImageRef> image = Assemble(record);
    if (!image.ok()) return image.status();
    (*image)->NoteDigest(record.content);
    (*image)->working_set().Replace(record.written, record.read);
    const Image* const raw = image->get();
    ImageRef handed_out(
        raw, [inner = *std::move(image), in_use = *std::move(in_use),
              version = raw->working_set().version(), content = record.content,
              state = std::weak_ptr<State>(shared_from_this())](
                 const Image* dropped) mutable {
          const std::shared_ptr<State> alive = state.lock();
          if (alive != nullptr && dropped->working_set().version() != version) {
            alive->KeepWorkingSet(content, *dropped);
          }
          // Here, since what a deleter holds lives as long as a weak_ptr does.
          inner.reset();
          in_use.reset();
        });
    record.live = handed_out;
    return handed_out;
  }

  void KeepWorkingSet(const Digest& content, const Image& image) {
    MutexLock lock(&mutex_);
    StoreRecord* const record = records_.Known(content);
    if (record != nullptr) record->KeepWorkingSet(image);
  }

  absl::StatusOr<uint64_t> EvictTo(uint64_t budget_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    directory_.RemoveTemporaries();
    // What an image that cannot be read needs is not known.
    if (records_.has_unknown()) return 0;
    std::map<Digest, uint64_t> references;
    for (const auto& [content, record] : records_.all()) {
      for (const Digest& segment : record.segments) ++references[segment];
    }
    uint64_t held = PageCount(segments_.held_pages()).bytes();
    uint64_t freed = 0;
    const auto drop = [&](const Digest& digest) -> absl::Status {
      mutex_.AssertHeld();  // For the compiler, which does not look outside.
      const absl::StatusOr<uint64_t> bytes = segments_.Drop(digest);
      if (!bytes.ok()) return bytes.status();
      held -= *bytes;
      freed += *bytes;
      return absl::OkStatus();
    };
    // What a process left behind that died.
    for (const Digest& digest : segments_.Digests()) {
      if (references.contains(digest)) continue;
      if (absl::Status status = drop(digest); !status.ok()) return status;
    }
    if (held <= budget_bytes) return freed;

    std::set<Digest> named;
    for (const auto& [name, content] : names_.all()) named.insert(content);
    std::vector<std::tuple<bool, uint64_t, Digest>> idle;
    for (const auto& [content, record] : records_.all()) {
      if (!records_.InUse(record)) {
        idle.emplace_back(named.contains(content), records_.LastUse(record),
                          content);
      }
    }
    std::sort(idle.begin(), idle.end());
    for (const auto& [is_named, last_use, content] : idle) {
      if (held <= budget_bytes) break;
      absl::StatusOr<std::vector<Digest>> segments = records_.Remove(content);
      if (!segments.ok()) return segments.status();
      for (const std::string& name : names_.Of(content)) {
        if (absl::Status status = names_.Drop(name); !status.ok()) {
          return status;
        }
      }
      ++images_evicted_;
      for (const Digest& segment : *segments) {
        if (--references[segment] > 0) continue;
        if (absl::Status status = drop(segment); !status.ok()) return status;
      }
    }
    return freed;
  }

  const uint64_t budget_bytes_;
  const PageHash page_hash_;
  StoreDirectory directory_;  // Set up by Open, and not changed later.

  Mutex mutex_;
  StoreRecords records_ ABSL_GUARDED_BY(mutex_);
  StoreNames names_ ABSL_GUARDED_BY(mutex_);
  StoreSegments segments_ ABSL_GUARDED_BY(mutex_);
  uint64_t pages_shared_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t hash_collisions_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t images_evicted_ ABSL_GUARDED_BY(mutex_) = 0;
  // As they were found last: the paths of files that cannot be read.
  std::set<std::string> damaged_ ABSL_GUARDED_BY(mutex_);
};

ImageStore::ImageStore(std::shared_ptr<State> state)
    : state_(std::move(state)) {}
ImageStore::~ImageStore() = default;

absl::StatusOr<std::unique_ptr<ImageStore>> ImageStore::Open(
    const ImageStoreOptions& options) {
  auto state = std::make_shared<State>(options);
  if (absl::Status status = state->Open(); !status.ok()) return status;
  return std::unique_ptr<ImageStore>(new ImageStore(std::move(state)));
}

namespace {

// Those of the pages that have the same bytes in both images.
WorkingSet::Words StillApplies(WorkingSet::Words pages, const Image& before,
                               const Image& now) {
  for (uint64_t index = 0; index < pages.size(); ++index) {
    for (uint64_t left = pages[index]; left != 0; left &= left - 1) {
      const uint64_t bit = std::countr_zero(left);
      const PageIndex page(index * kPagesPerWord + bit);
      if (std::memcmp(before.PageBytes(page), now.PageBytes(page),
                      kPageBytes) != 0) {
        pages[index] &= ~(uint64_t{1} << bit);
      }
    }
  }
  return pages;
}

}  // namespace

absl::StatusOr<ImageRef> ImageStore::Put(const std::string& name,
                                         const Image& image) {
  if (image.has_source()) {
    absl::StatusOr<ImageRef> built = BuiltCopy(image);
    if (!built.ok()) return built.status();
    return Put(name, **built);
  }
  // Before the name is the new image's, and the old one may leave.
  WorkingSet::Words written;
  WorkingSet::Words read;
  if (!image.working_set().known()) {
    const absl::StatusOr<ImageRef> before = state_->Get(name);
    if (before.ok()) {
      const WorkingSet& set = (*before)->working_set();
      written = StillApplies(set.written(), **before, image);
      read = StillApplies(set.read(), **before, image);
    }
  }
  absl::StatusOr<ImageRef> put = state_->Put(name, image);
  if (put.ok() && !(*put)->working_set().known() &&
      !(written.empty() && read.empty())) {
    (*put)->working_set().Replace(written, read);
  }
  return put;
}
absl::StatusOr<ImageRef> ImageStore::Get(const std::string& name) {
  return state_->Get(name);
}
absl::StatusOr<ImageRef> ImageStore::GetByDigest(const Digest& content) {
  return state_->GetByDigest(content);
}
absl::Status ImageStore::Remove(const std::string& name) {
  return state_->Remove(name);
}
absl::StatusOr<uint64_t> ImageStore::Trim(uint64_t budget_bytes) {
  return state_->Trim(budget_bytes);
}
absl::Status ImageStore::Flush() { return state_->Flush(); }
absl::StatusOr<std::vector<ImageStoreEntry>> ImageStore::List() {
  return state_->List();
}
absl::StatusOr<ImageStoreStats> ImageStore::Stats() { return state_->Stats(); }

}  // namespace firsttouch
