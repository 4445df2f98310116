// The pools of this process, to be told of images that nobody uses any more.

#ifndef FIRSTTOUCH_SERVICE_LIVE_CORES_H_
#define FIRSTTOUCH_SERVICE_LIVE_CORES_H_

namespace firsttouch {

class Core;

// Any thread; not in a signal handler.
class LiveCores {
 public:
  // From here on `core` is told (Core::LetGoOfImage).
  static void Add(Core* core);
  // When this returns, nobody is telling it anything, nor will. Nothing for a
  // core that was never added, or not in this process.
  static void Remove(Core* core);
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_LIVE_CORES_H_
