// Handles of objects that are not looked up between two leases: a table under a
// lock, which keeps an object alive as long as a call has it.
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_OBJECTS_H_
#define FIRSTTOUCH_CAPI_OBJECTS_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::capi {

// Handle is a struct of two numbers, as registry.h has them; `tag` tells its
// table from others. Never destroyed, as is the registry.
template <typename Object, typename Handle, uint64_t tag>
class Objects {
 public:
  static Objects& The() {
    static auto* const objects = new Objects;
    return *objects;
  }

  Handle Add(std::shared_ptr<Object> object) {
    const MutexLock lock(&mutex_);
    uint64_t index = places_.size();
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else {
      places_.emplace_back();
      // So that Remove() need not allocate.
      free_.reserve(places_.size());
    }
    Place& place = places_[index];
    place.object = std::move(object);
    return {tag | index, ++place.serial};
  }

  // Null for a handle that is not valid.
  std::shared_ptr<Object> Find(Handle handle) {
    const MutexLock lock(&mutex_);
    Place* const place = PlaceOf(handle);
    return place == nullptr ? nullptr : place->object;
  }

  // The caller drops what is removed.
  std::shared_ptr<Object> Remove(Handle handle) {
    const MutexLock lock(&mutex_);
    Place* const place = PlaceOf(handle);
    if (place == nullptr) return nullptr;
    ++place->serial;
    free_.push_back(handle.entry ^ tag);
    return std::move(place->object);
  }

 private:
  struct Place {
    uint64_t serial = 0;  // odd while there is an object
    std::shared_ptr<Object> object;
  };

  Place* PlaceOf(Handle handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const uint64_t index = handle.entry ^ tag;
    if (index >= places_.size()) return nullptr;
    Place& place = places_[index];
    return place.object != nullptr && place.serial == handle.serial ? &place
                                                                    : nullptr;
  }

  Mutex mutex_;
  std::vector<Place> places_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_OBJECTS_H_
