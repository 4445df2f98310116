// Pools on paper: reading the file of --config, sizes with units, and the way
// from a PoolConfig to LayoutOptions. Pure but for ReadPoolConfig.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_CONFIG_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/text_file.h"

namespace firsttouch::pooldump {

struct PlacedConfig {
  PoolConfig config;
  // Where each field comes from: "pool.textproto:3:1" or "--memory-bytes".
  FieldPlaces places;
};

// A number of bytes: "4096", "64KiB", "1.5 GiB"; units B, KiB to EiB, in any
// case, with or without "iB" (always powers of 1024). InvalidArgument says the
// rule, and begins with `what`.
absl::StatusOr<uint64_t> ParseBytes(const std::string& what,
                                    const std::string& text);

// A PoolConfig in protobuf's text format. InvalidArgument is one line that
// begins with "`name`:LINE:COLUMN: ".
absl::StatusOr<PlacedConfig> ParsePoolConfig(const std::string& name,
                                             const std::string& text);

// The same of a file. NotFound, PermissionDenied and others name it.
absl::StatusOr<PlacedConfig> ReadPoolConfig(const std::string& path);

// What `over` sets replaces what `config` has. `places` names the flag of each
// field of `over`.
void Overlay(const PlacedConfig& over, PlacedConfig& config);

// InvalidArgument names the field, its value, the rule and where it stands. The
// rules are those of PoolLayout::Compute and of the fields themselves.
absl::StatusOr<PoolLayout> LayoutOf(const PlacedConfig& config);

// A field that holds a size; 0 where it is empty.
absl::StatusOr<uint64_t> SizeOf(const PlacedConfig& config,
                                const std::string& field);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_CONFIG_H_
