#include "firsttouch/tools/pooldump/config.h"

#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/tools/cli/bytes.h"
#include "firsttouch/tools/cli/text_file.h"
#include "google/protobuf/descriptor.h"

namespace firsttouch::pooldump {

using cli::FieldPlaces;
using cli::ParseBytes;
using cli::ParseText;
using cli::ReadFile;

namespace {

absl::Status Misplaced(const FieldPlaces& places, const std::string& field,
                       const std::string& message) {
  const auto place = places.find(field);
  if (place == places.end()) return absl::InvalidArgumentError(message);
  return absl::InvalidArgumentError(absl::StrCat(place->second, ": ", message));
}

// PoolLayout::Compute's error begins with the option at fault, which is the
// field's name but for the fault-around size.
absl::Status WithPlace(const FieldPlaces& places, const absl::Status& status) {
  const std::string message(status.message());
  std::string field = message.substr(0, message.find(' '));
  if (field == "fault_around_bytes") field = "granule_bytes";
  return Misplaced(places, field, message);
}

}  // namespace

absl::StatusOr<PlacedConfig> ParsePoolConfig(const std::string& name,
                                             const std::string& text) {
  PlacedConfig placed;
  absl::Status status = ParseText(name, text, &placed.config, &placed.places);
  if (!status.ok()) return status;
  return placed;
}

absl::StatusOr<PlacedConfig> ReadPoolConfig(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMostConfigBytes);
  if (!text.ok()) return text.status();
  return ParsePoolConfig(path, *text);
}

void Overlay(const PlacedConfig& over, PlacedConfig& config) {
  config.config.MergeFrom(over.config);
  for (const auto& [field, place] : over.places) config.places[field] = place;
}

absl::StatusOr<uint64_t> SizeOf(const PlacedConfig& config,
                                const std::string& field) {
  const google::protobuf::FieldDescriptor* descriptor =
      PoolConfig::descriptor()->FindFieldByName(field);
  const std::string text =
      config.config.GetReflection()->GetString(config.config, descriptor);
  if (text.empty()) return 0;
  absl::StatusOr<uint64_t> bytes = ParseBytes(field, text);
  if (bytes.ok()) return bytes;
  return Misplaced(config.places, field,
                   absl::StrCat(bytes.status().message()));
}

absl::StatusOr<PoolLayout> LayoutOf(const PlacedConfig& config) {
  const PoolConfig& pool = config.config;
  if (config.places.contains("name")) {
    if (absl::Status status = CheckPoolName(pool.name()); !status.ok()) {
      return Misplaced(config.places, "name", absl::StrCat(status.message()));
    }
  }
  LayoutOptions options;
  const struct {
    const char* field;
    uint64_t* value;
  } sizes[] = {
      {"max_memory_bytes", &options.max_memory_bytes},
      {"guard_before_bytes", &options.guard_before_bytes},
      {"guard_after_bytes", &options.guard_after_bytes},
      {"granule_bytes", &options.fault_around_bytes},
  };
  for (const auto& [field, value] : sizes) {
    absl::StatusOr<uint64_t> bytes = SizeOf(config, field);
    if (!bytes.ok()) return bytes.status();
    const bool given = config.places.contains(field);
    if (given || *bytes != 0) *value = *bytes;
  }
  const struct {
    const char* field;
    uint32_t value;
    uint32_t* option;
  } counts[] = {
      {"instances", pool.instances(), &options.instances},
      {"memories_per_instance", pool.memories_per_instance(),
       &options.memories_per_instance},
  };
  for (const auto& [field, value, option] : counts) {
    const bool given = config.places.contains(field);
    if (given || value != 0) *option = value;
  }
  const struct {
    const char* field;
    const std::string& value;
    std::initializer_list<const char*> choices;
  } names[] = {
      {"supply",
       pool.supply(),
       {"userfaultfd", "mappings-scan", "mappings-drop"}},
      {"backing", pool.backing(), {"shared", "copied"}},
      {"resolve", pool.resolve(), {"in-thread", "handler-thread"}},
  };
  for (const auto& [field, value, choices] : names) {
    if (value.empty()) continue;
    bool known = false;
    std::string list;
    for (const char* choice : choices) {
      known |= value == choice;
      absl::StrAppend(&list, list.empty() ? "" : ", ", choice);
    }
    if (!known) {
      return Misplaced(
          config.places, field,
          absl::StrCat(field, " \"", value, "\" is none of ", list));
    }
  }
  if (pool.index_bits() > 64) {
    return Misplaced(
        config.places, "index_bits",
        absl::StrCat("index_bits ", pool.index_bits(), " is more than 64"));
  }
  if (absl::StatusOr<uint64_t> offset =
          SizeOf(config, "largest_static_offset_bytes");
      !offset.ok()) {
    return offset.status();
  }
  absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options);
  if (layout.ok()) return layout;
  return WithPlace(config.places, layout.status());
}

}  // namespace firsttouch::pooldump
