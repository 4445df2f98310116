// Decoding pictures in a process each, as is done where there is no sandbox.

#ifndef FIRSTTOUCH_EXAMPLES_PICTURE_FORKS_H_
#define FIRSTTOUCH_EXAMPLES_PICTURE_FORKS_H_

#include "absl/status/status.h"
#include "firsttouch/examples/picture.h"

namespace firsttouch::examples {

// Decodes a file by DecodeHere() in a child of fork(2), which leaves the
// picture in memory that it shares with this process. The child keeps all
// rights that this process has: it is the least that a process for each picture
// costs. Thread-safe.
//
// Aborted: the child was ended by a signal. Otherwise the errors of
// DecodeHere(), and those of fork(2) and mmap(2).
absl::Status DecodeInFork(PictureFile file, UsePicture use);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_PICTURE_FORKS_H_
