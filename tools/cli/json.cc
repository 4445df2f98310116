#include "firsttouch/tools/cli/json.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch::cli {

namespace {

absl::StatusOr<std::string> Print(const google::protobuf::Message& message,
                                  bool whitespace) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = whitespace;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &json, options);
  if (status.ok()) return json;
  return absl::InternalError(
      absl::StrCat(message.GetTypeName(), " as JSON: ", status.ToString()));
}

}  // namespace

absl::StatusOr<std::string> AsJson(const google::protobuf::Message& message) {
  return Print(message, /*whitespace=*/true);
}

absl::StatusOr<std::string> AsJsonLine(
    const google::protobuf::Message& message) {
  absl::StatusOr<std::string> json = Print(message, /*whitespace=*/false);
  if (json.ok()) *json += '\n';
  return json;
}

}  // namespace firsttouch::cli
