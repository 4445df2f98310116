// Decoding pictures in a sandbox each, of a pool of a few.

#ifndef FIRSTTOUCH_EXAMPLES_PICTURE_SANDBOXES_H_
#define FIRSTTOUCH_EXAMPLES_PICTURE_SANDBOXES_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/picture_guest.firsttouch.h"
#include "firsttouch/examples/picture.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/service/service.h"

namespace firsttouch::examples {

// What a decoder can allocate, whatever a file says.
inline constexpr uint64_t kMaxSandboxBytes = uint64_t{128} << 20;

// Thread-safe.
class PictureSandboxes {
 public:
  // As many pictures can be decoded at a time.
  static absl::StatusOr<std::unique_ptr<PictureSandboxes>> Create(
      uint32_t sandboxes);

  // Decodes a file in a memory that is as it was before any file: nothing that
  // a file does is there for the next. `use` reads the picture in the sandbox.
  //
  // Aborted: the decoder has left its memory, or run into an assertion.
  // OutOfRange: it answers with an address that is none. ResourceExhausted: all
  // sandboxes are in use.
  absl::Status Decode(PictureFile file, UsePicture use) const;

  // Memories that were given to a decoder and taken back clean.
  uint64_t memories_recycled() const { return service_->Stats().handovers; }

 private:
  using Guest = wasm2c::Guest<Z_picture_guest_instance_t>;
  using Template = wasm2c::GuestTemplate<Z_picture_guest_instance_t>;

  PictureSandboxes(std::unique_ptr<Service> service,
                   std::unique_ptr<wasm2c::PoolMemorySource> source,
                   std::shared_ptr<const Template> decoder)
      : service_(std::move(service)),
        source_(std::move(source)),
        decoder_(std::move(decoder)) {}

  const std::unique_ptr<Service> service_;
  const std::unique_ptr<wasm2c::PoolMemorySource> source_;
  const std::shared_ptr<const Template> decoder_;
};

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_PICTURE_SANDBOXES_H_
