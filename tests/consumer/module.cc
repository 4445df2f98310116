// The image of a WebAssembly module's memory, by way of a file. Prints the data
// segment that it holds.

#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/wasm/wasm_image.h"

namespace {

// (module (memory 1) (data (i32.const 8) "good morning"))
constexpr std::string_view kModule(
    "\0asm\1\0\0\0\x05\x03\x01\0\x01\x0b\x12\x01\0\x41\x08\x0b\x0c"
    "good morning",
    33);

absl::Status Run(const std::string& path) {
  absl::StatusOr<firsttouch::WasmImages> images = firsttouch::ImagesFromWasm(
      {.name = "greeting.wasm"}, std::as_bytes(std::span(kModule)));
  if (!images.ok()) return images.status();
  absl::StatusOr<firsttouch::ImageFileInfo> written =
      firsttouch::WriteImageFile(*images->memories[0].image, path);
  if (!written.ok()) return written.status();
  absl::StatusOr<firsttouch::ImageRef> image = firsttouch::OpenImageFile(path);
  if (!image.ok()) return image.status();
  std::byte text[12];
  if (absl::Status status = (*image)->Read(8, text); !status.ok()) {
    return status;
  }
  std::cout << std::string_view(reinterpret_cast<const char*>(text),
                                sizeof(text))
            << "\n";
  return absl::OkStatus();
}

}  // namespace

int main() {
  std::string directory = "/tmp/firsttouch_consumer.XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return 1;
  const std::string path = directory + "/greeting.ftimg";
  const absl::Status status = Run(path);
  unlink(path.c_str());
  rmdir(directory.c_str());
  if (!status.ok()) std::cerr << "module: " << status << "\n";
  return status.ok() ? 0 : 1;
}
