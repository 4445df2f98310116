#include "firsttouch/service/memory_supply.h"

namespace firsttouch {

MemorySupply::GrowthLock::GrowthLock(MemorySupply& supply,
                                     const SlotState& slot)
    : mutex_(supply.GrowthMutex(slot)) {
  if (mutex_ != nullptr) mutex_->Lock();
}

MemorySupply::GrowthLock::~GrowthLock() {
  if (mutex_ != nullptr) mutex_->Unlock();
}

}  // namespace firsttouch
