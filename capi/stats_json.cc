#include "firsttouch/capi/stats_json.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/control/counters.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/service/stats.h"

namespace firsttouch::capi {
namespace {

// An object that is written member by member. Names are C's, so that none needs
// an escape.
class JsonObject {
 public:
  JsonObject& Number(const char* name, uint64_t number) {
    return Member(name, absl::StrCat(number));
  }
  template <typename Numbers>
  JsonObject& Array(const char* name, const Numbers& numbers) {
    return Member(name, absl::StrCat("[", absl::StrJoin(numbers, ", "), "]"));
  }
  JsonObject& Counters(const SlotCounts& counts) {
#define FIRSTTOUCH_MEMBER(name) Number(#name, counts.name);
    FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_MEMBER)
#undef FIRSTTOUCH_MEMBER
    return *this;
  }
  std::string Text() const { return absl::StrCat("{", members_, "}"); }

 private:
  JsonObject& Member(const char* name, const std::string& value) {
    absl::StrAppend(&members_, members_.empty() ? "" : ", ", "\"", name,
                    "\": ", value);
    return *this;
  }

  std::string members_;
};

}  // namespace

std::string ToJson(const SlotCounts& counts) {
  return JsonObject().Counters(counts).Text();
}

std::string ToJson(const ServiceStats& stats) {
  return JsonObject()
      .Counters(stats)
      .Number("slots", stats.slots)
      .Number("slots_in_use", stats.slots_in_use)
      .Number("idle_private_bytes", stats.idle_private_bytes)
      .Number("slots_quarantined", stats.slots_quarantined)
      .Array("fault_latency", stats.fault_latency)
      .Text();
}

std::string ToJson(const ImageStoreStats& stats) {
  return JsonObject()
      .Number("images", stats.images)
      .Number("images_in_use", stats.images_in_use)
      .Number("names", stats.names)
      .Number("segments", stats.segments)
      .Number("image_pages", stats.image_pages)
      .Number("held_pages", stats.held_pages)
      .Number("held_bytes", stats.held_bytes)
      .Number("pages_shared", stats.pages_shared)
      .Number("hash_collisions", stats.hash_collisions)
      .Number("images_evicted", stats.images_evicted)
      .Number("damaged_files", stats.damaged_files)
      .Text();
}

}  // namespace firsttouch::capi
