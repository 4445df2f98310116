// The pools of this process, which are told of images that are no longer in
// use.

#ifndef FIRSTTOUCH_SERVICE_LIVE_POOLS_H_
#define FIRSTTOUCH_SERVICE_LIVE_POOLS_H_

namespace firsttouch {

struct ServicePool;

// Any thread; not in a signal handler.
class LivePools {
 public:
  // From here on `pool` is told of unused images (LetGoOfImage(), reclaim.h).
  static void Add(ServicePool* pool);
  // When this returns, no call to the pool is running, and none will begin.
  // Does nothing for a pool that was never added, or not in this process.
  static void Remove(ServicePool* pool);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_LIVE_POOLS_H_
