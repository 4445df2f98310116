// Sizes with units, as people write them.

#ifndef FIRSTTOUCH_TOOLS_CLI_BYTES_H_
#define FIRSTTOUCH_TOOLS_CLI_BYTES_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace firsttouch::cli {

// A number of bytes: "4096", "64KiB", "1.5 GiB"; units B, KiB to EiB, in any
// case, with or without "iB" (always powers of 1024). InvalidArgument says the
// rule, and begins with `what`.
absl::StatusOr<uint64_t> ParseBytes(const std::string& what,
                                    const std::string& text);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_BYTES_H_
