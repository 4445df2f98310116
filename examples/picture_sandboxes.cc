#include "firsttouch/examples/picture_sandboxes.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "firsttouch/service/options.h"

namespace firsttouch::examples {
namespace {

// `struct Decoded` of picture_guest.c, where addresses have 32 bits.
struct Decoded {
  uint32_t width;
  uint32_t height;
  uint32_t pixels;
  uint32_t reason;
  uint32_t reason_bytes;
};

constexpr uint32_t kMaxReasonBytes = 200;

}  // namespace

absl::StatusOr<std::unique_ptr<PictureSandboxes>> PictureSandboxes::Create(
    uint32_t sandboxes) {
  ServiceOptions options;
  options.name = "pictures";
  options.layout = wasm2c::LayoutForGuests(sandboxes, kMaxSandboxBytes);
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  if (!service.ok()) return service.status();
  absl::StatusOr<std::unique_ptr<wasm2c::PoolMemorySource>> source =
      wasm2c::PoolMemorySource::Create(service->get());
  if (!source.ok()) return source.status();
  absl::StatusOr<Guest> first = Guest::Create(source->get());
  if (!first.ok()) return first.status();
  const wasm2c::Outcome<wasm2c::Nothing> initialized =
      first->Call(&Z_picture_guestZ__initialize);
  if (!initialized.ok()) return initialized.status();
  absl::StatusOr<std::shared_ptr<const Template>> decoder =
      first->Snapshot("decoder");
  if (!decoder.ok()) return decoder.status();
  return absl::WrapUnique(new PictureSandboxes(
      *std::move(service), *std::move(source), *std::move(decoder)));
}

absl::Status PictureSandboxes::Decode(PictureFile file, UsePicture use) const {
  if (absl::Status fits = CheckFileSize(file); !fits.ok()) return fits;
  const auto file_bytes = static_cast<uint32_t>(file.size());
  absl::StatusOr<Guest> guest = decoder_->Instantiate(source_.get());
  if (!guest.ok()) return guest.status();
  const wasm2c::Outcome<u32> place =
      guest->Call(&Z_picture_guestZ_allocate, file_bytes);
  if (!place.ok()) return place.status();
  absl::StatusOr<std::span<std::byte>> input = guest->Bytes(*place, file_bytes);
  if (!input.ok()) return input.status();
  // An empty file has no first byte.
  if (!file.empty()) memcpy(input->data(), file.data(), file.size());

  const wasm2c::Outcome<u32> answer =
      guest->Call(&Z_picture_guestZ_decode, *place, file_bytes);
  if (!answer.ok()) return answer.status();
  // From here on each number is what untrusted code says.
  absl::StatusOr<std::span<std::byte>> told =
      guest->Bytes(*answer, sizeof(Decoded));
  if (!told.ok()) return told.status();
  Decoded decoded;
  memcpy(&decoded, told->data(), sizeof decoded);
  if (decoded.pixels == 0) {
    if (decoded.reason_bytes > kMaxReasonBytes) return Refused("");
    absl::StatusOr<std::span<std::byte>> reason =
        guest->Bytes(decoded.reason, decoded.reason_bytes);
    if (!reason.ok()) return reason.status();
    return Refused(std::string_view(
        reinterpret_cast<const char*>(reason->data()), reason->size()));
  }
  if (absl::Status fits = CheckPictureSize(decoded.width, decoded.height);
      !fits.ok()) {
    return fits;
  }
  absl::StatusOr<std::span<std::byte>> pixels = guest->Bytes(
      decoded.pixels, uint64_t{decoded.width} * decoded.height * 4);
  if (!pixels.ok()) return pixels.status();
  use({.width = decoded.width, .height = decoded.height, .rgba = *pixels});
  return absl::OkStatus();
}

}  // namespace firsttouch::examples
