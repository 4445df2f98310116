#include "firsttouch/service/live_pools.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {
namespace {

struct List {
  const ProcessMark made_by = ProcessMark::Here();
  Mutex mutex;
  std::vector<ServicePool*> pools ABSL_GUARDED_BY(mutex);
};

std::atomic<List*> g_list{nullptr};

// The list of this process. A forked child makes a new one: another thread may
// have held the lock at the fork, and no pool of the parent is the child's.
List* OwnList(bool make) {
  List* list = g_list.load(std::memory_order_acquire);
  if (list != nullptr && list->made_by.IsHere()) return list;
  if (!make) return nullptr;
  auto* const fresh = new List;
  if (g_list.compare_exchange_strong(list, fresh, std::memory_order_acq_rel)) {
    return fresh;
  }
  delete fresh;
  return list;
}

void TellAll(const Image& image) {
  List* const list = OwnList(/*make=*/false);
  if (list == nullptr) return;
  // Destroyed after the lock is released: destroying a delta may destroy its
  // parent, and that runs this function again.
  std::vector<std::shared_ptr<const Image>> dropped;
  MutexLock lock(&list->mutex);
  for (ServicePool* const pool : list->pools)
    LetGoOfImage(*pool, image, dropped);
}

}  // namespace

void LivePools::Add(ServicePool* pool) {
  Image::SetUnusedHook(&TellAll);
  List* const list = OwnList(/*make=*/true);
  MutexLock lock(&list->mutex);
  list->pools.push_back(pool);
}

void LivePools::Remove(ServicePool* pool) {
  List* const list = OwnList(/*make=*/false);
  if (list == nullptr) return;
  MutexLock lock(&list->mutex);
  std::erase(list->pools, pool);
}

}  // namespace firsttouch
