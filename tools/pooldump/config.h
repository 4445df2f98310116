// Pools on paper: reading the file of --config, and the way from a PoolConfig
// to LayoutOptions. Pure but for ReadPoolConfig.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_CONFIG_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// Far more than any description of a pool needs: a wrong path must not fill the
// memory.
inline constexpr size_t kMostConfigBytes = size_t{1} << 20;

struct PlacedConfig {
  PoolConfig config;
  // Where each field comes from: "pool.textproto:3:1" or "--memory-bytes".
  cli::FieldPlaces places;
};

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
