// Images of the memories of a WebAssembly module: what each holds once the
// module is instantiated and before its start function runs.
//
//   absl::StatusOr<WasmImages> images =
//       ImagesFromWasm({.name = "guest.wasm"}, module_bytes);
//   if (!images.ok()) return images.status();
//   pool_memory = images->memories[0].image;
//   for (const WasmSegment& segment : images->unresolved) { ... }
//
// The module is read by wabt (1.0.32): what is well formed is up to its reader,
// all features that it knows are on. Function bodies are skipped, neither read
// nor validated, so instructions that wabt does not know do no harm there; it
// also means that a module that no engine would take may have an image.
//
// What goes in: the bytes of active data segments, in the order of their
// declaration, later ones over earlier ones. An offset may be any constant
// expression of the extended-const proposal (i32 and i64: const, add, sub, mul,
// and global.get of an immutable global), and is folded with the arithmetic of
// its type. What does not go in is named in the result: passive segments, which
// the program copies itself when it likes, and active segments whose offset
// depends on an imported global that WasmImageOptions::globals has no value
// for. If there are any of the latter, the images are not what an instance's
// memories hold: check `unresolved`.
//
// Errors:
//   InvalidArgument  What wabt's reader says, with the offset in the module
//                    ("wabt: 00001a3: invalid section size: extends past end");
//                    a constant expression that is none, or of another type
//                    than its memory's addresses; a memory above
//                    kMaxImageBytes; more than kMaxSegments for one memory; an
//                    option that does not fit the module.
//   OutOfRange       A segment that does not end within its memory's initial
//                    size, naming segment, offset, length and size.
//   Unimplemented    Memories with custom page sizes, which wabt 1.0.32 cannot
//                    read.
//   Others           Those of ImageFromSegments (image_builder.h).
//
// Time and memory: linear in the bytes of the module without its functions, as
// ImageFromSegments for the rest.
//
// Threads: any number of calls at a time. Not for signal handlers.

#ifndef FIRSTTOUCH_INIT_WASM_WASM_IMAGE_H_
#define FIRSTTOUCH_INIT_WASM_WASM_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"

namespace firsttouch {

// Bytes of a WebAssembly page, where a memory does not say otherwise.
inline constexpr uint64_t kWasmPageBytes = 65536;

struct WasmImageOptions {
  // For people: of the images, and in errors. The second memory's is
  // "<name>#1", and so on.
  std::string name;
  // Values of imported globals, by "<module>.<field>": what the host will give
  // it. Of an i32: below 2^32, or a negative number from -2^31 on as two's
  // complement of 64 bits. A value that does not fit is an error, and so is a
  // name that the module does not import.
  std::map<std::string, uint64_t> globals;
  // What imported memories have at first. Nothing: what the import asks for at
  // least. An error if it does not lie within the bounds of the import.
  std::optional<uint64_t> imported_memory_pages;
};

// What something is imported as.
struct WasmImportName {
  std::string module;
  std::string field;

  friend bool operator==(const WasmImportName&,
                         const WasmImportName&) = default;
};

// One memory, in the order of the module's index space: imported ones first.
struct WasmMemory {
  // Of an imported memory. Its contents are the host's, except for what the
  // module puts there: the image has zeroes in between.
  std::optional<WasmImportName> import;
  uint64_t initial_pages = 0;
  std::optional<uint64_t> max_pages;
  uint64_t page_bytes = kWasmPageBytes;
  bool is_64 = false;  // Addresses are i64.
  bool is_shared = false;
  uint64_t active_segments = 0;  // That went into the image.
  ImageRef image;                // initial_pages * page_bytes long.
};

// A data segment that is in no image.
struct WasmSegment {
  uint64_t index = 0;          // In the module.
  uint64_t bytes = 0;          // Its length.
  uint64_t module_offset = 0;  // Where its bytes are in the module.
  // Of an active one; a passive one has neither memory nor offset.
  std::optional<uint32_t> memory;
  // Its offset, one instruction after the other:
  // "global.get env.__memory_base; i32.const 16; i32.add". Cut after some 200
  // characters.
  std::string offset;
  // The imported global that it depends on: "env.__memory_base".
  std::string needs;
};

struct WasmImages {
  std::vector<WasmMemory> memories;
  std::vector<WasmSegment> passive;
  std::vector<WasmSegment> unresolved;
  // The function that runs once the memory is as the image has it, if any.
  std::optional<uint32_t> start_function;
};

// Builds an image of each memory. A module without memories is fine, and has
// none. `module` is borrowed during the call only.
absl::StatusOr<WasmImages> ImagesFromWasm(const WasmImageOptions& options,
                                          std::span<const std::byte> module);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_WASM_WASM_IMAGE_H_
