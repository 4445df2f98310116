// The order in which a guest touched the pages of its image, as a file beside
// the image.
//
// The file has SHA-256 of itself and the digest of the image's content: touches
// of another image, or bytes that were damaged, are an error and never a set of
// other pages. (Wrong ones would cost time, not contents: what is placed early
// is what a fault there would place.)
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_TOUCH_FILE_H_
#define FIRSTTOUCH_SERVE_TOUCH_FILE_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// The file appears whole, in place of what was there (init/atomic_file.h).
// Times are kept in microseconds. Errors: what the system gives.
absl::Status WriteTouchFile(const std::string& path, const Digest& image,
                            std::span<const Touch> touches);

// Errors name the file and the rule: NotFound; FailedPrecondition (of another
// image); DataLoss (damaged, or no such file at all; a page behind `pages`);
// Unimplemented (a version that this build does not know).
absl::StatusOr<std::vector<Touch>> ReadTouchFile(const std::string& path,
                                                 const Digest& image,
                                                 PageCount pages);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_TOUCH_FILE_H_
