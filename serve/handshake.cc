#include "firsttouch/serve/handshake.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/serve/unix_socket.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

namespace firsttouch {
namespace {

using google::protobuf::ListValue;
using google::protobuf::Struct;
using google::protobuf::Value;

// Every whole number up to this has a number in JSON. No address or size of a
// process is larger.
constexpr double kLargestNumber = 9007199254740992;  // 2^53

// A list of regions, with room for fields that are not known here.
constexpr ptrdiff_t kMostBrackets = 2 * kMaxGuestRegions;

// Of one connection's descriptors; one is right.
constexpr size_t kMostDescriptors = 8;

// Nothing, where the object has no such field.
absl::StatusOr<std::optional<uint64_t>> Number(size_t region,
                                               const Struct& object,
                                               const std::string& field) {
  const auto found = object.fields().find(field);
  if (found == object.fields().end()) return std::nullopt;
  const auto refuse = [&](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", region, ": ", field, " ", why));
  };
  if (found->second.kind_case() != Value::kNumberValue) {
    return refuse("is no number");
  }
  const double value = found->second.number_value();
  if (!(value >= 0 && value <= kLargestNumber) || value != std::floor(value)) {
    return refuse(absl::StrCat("is ", value,
                               "; it must be a whole number from 0 to 2^53"));
  }
  return static_cast<uint64_t>(value);
}

absl::StatusOr<uint64_t> Needed(size_t region, const Struct& object,
                                const std::string& field) {
  absl::StatusOr<std::optional<uint64_t>> number =
      Number(region, object, field);
  if (!number.ok()) return number.status();
  if (!number->has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", region, ": there is no ", field));
  }
  return **number;
}

absl::StatusOr<uint64_t> PageBytes(size_t region, const Struct& object) {
  absl::StatusOr<std::optional<uint64_t>> size =
      Number(region, object, "page_size");
  if (!size.ok()) return size.status();
  absl::StatusOr<std::optional<uint64_t>> older =
      Number(region, object, "page_size_kib");
  if (!older.ok()) return older.status();
  if (size->has_value() && older->has_value() && **size != **older) {
    return absl::InvalidArgumentError(absl::StrCat(
        "region ", region, ": page_size is ", **size, " and page_size_kib ",
        **older, "; both are in bytes, and must agree"));
  }
  const std::optional<uint64_t> given = size->has_value() ? *size : *older;
  if (!given.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "region ", region, ": there is neither page_size nor page_size_kib"));
  }
  if (*given == kPageBytes / 1024 || *given == kHugePageBytes / 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", region, ": pages of ", *given,
                     " bytes; page_size, and page_size_kib too, is in bytes: ",
                     *given * 1024, "?"));
  }
  return *given;
}

absl::StatusOr<GuestRegion> ParseRegion(size_t number, const Struct& object) {
  GuestRegion region;
  absl::StatusOr<uint64_t> value =
      Needed(number, object, "base_host_virt_addr");
  if (!value.ok()) return value.status();
  region.start = *value;
  value = Needed(number, object, "size");
  if (!value.ok()) return value.status();
  region.bytes = *value;
  value = Needed(number, object, "offset");
  if (!value.ok()) return value.status();
  region.image_offset_bytes = *value;
  value = PageBytes(number, object);
  if (!value.ok()) return value.status();
  region.page_bytes = *value;
  const auto tracks = object.fields().find("track_writes");
  if (tracks != object.fields().end()) {
    if (tracks->second.kind_case() != Value::kBoolValue) {
      return absl::InvalidArgumentError(absl::StrCat(
          "region ", number, ": track_writes is neither true nor false"));
    }
    region.track_writes = tracks->second.bool_value();
  }
  return region;
}

std::string Line(const google::protobuf::Message& message) {
  std::string line;
  if (!google::protobuf::util::MessageToJsonString(message, &line).ok()) {
    return "";
  }
  return line;
}

// The last line may end without its line feed.
absl::StatusOr<Struct> ParseObject(const std::string& line) {
  Struct object;
  if (!google::protobuf::util::JsonStringToMessage(line, &object).ok()) {
    return absl::InvalidArgumentError(
        "a line of the connection is no JSON object");
  }
  return object;
}

constexpr char kSpace[] = " \t\r\n";

}  // namespace

absl::StatusOr<std::vector<GuestRegion>> ParseRegions(const std::string& text) {
  // Protobuf takes time with the square of how deep JSON is nested.
  const auto brackets = std::count_if(
      text.begin(), text.end(), [](char c) { return c == '[' || c == '{'; });
  if (brackets > kMostBrackets) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the message has ", brackets,
        " brackets; a guest's regions have at most ", kMostBrackets));
  }
  ListValue list;
  const auto parsed = google::protobuf::util::JsonStringToMessage(text, &list);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the message is no JSON array: ", parsed.message().ToString()));
  }
  if (static_cast<size_t>(list.values_size()) > kMaxGuestRegions) {
    return absl::InvalidArgumentError(
        absl::StrCat(list.values_size(), " regions; a guest has at most ",
                     kMaxGuestRegions));
  }
  std::vector<GuestRegion> regions;
  for (const Value& value : list.values()) {
    if (value.kind_case() != Value::kStructValue) {
      return absl::InvalidArgumentError(
          absl::StrCat("region ", regions.size(), " is no JSON object"));
    }
    absl::StatusOr<GuestRegion> region =
        ParseRegion(regions.size(), value.struct_value());
    if (!region.ok()) return region.status();
    regions.push_back(*region);
  }
  return regions;
}

std::string RegionsText(std::span<const GuestRegion> regions) {
  ListValue list;
  for (const GuestRegion& region : regions) {
    auto& fields = *list.add_values()->mutable_struct_value()->mutable_fields();
    const auto set = [&fields](const char* name, uint64_t value) {
      fields[name].set_number_value(static_cast<double>(value));
    };
    set("base_host_virt_addr", region.start);
    set("size", region.bytes);
    set("offset", region.image_offset_bytes);
    set("page_size", region.page_bytes);
    set("page_size_kib", region.page_bytes);
    if (region.track_writes) fields["track_writes"].set_bool_value(true);
  }
  return Line(list);
}

absl::StatusOr<std::string> ParseRequest(const std::string& line) {
  absl::StatusOr<Struct> object = ParseObject(line);
  if (!object.ok()) return object.status();
  const auto request = object->fields().find("request");
  if (request == object->fields().end() ||
      (request->second.string_value() != "fill" &&
       request->second.string_value() != "leave")) {
    return absl::InvalidArgumentError(
        "a line asks for nothing that there is; \"request\" may be \"fill\" or "
        "\"leave\"");
  }
  return request->second.string_value();
}

std::string RequestLine(const std::string& request) {
  Struct object;
  (*object.mutable_fields())["request"].set_string_value(request);
  return Line(object) + "\n";
}

absl::Status ParseAnswer(const std::string& line) {
  absl::StatusOr<Struct> object = ParseObject(line);
  if (!object.ok()) return absl::InternalError(object.status().message());
  const auto error = object->fields().find("error");
  if (error != object->fields().end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server says: ", error->second.string_value()));
  }
  if (object->fields().find("ok") == object->fields().end()) {
    return absl::InternalError("the server's answer has neither ok nor error");
  }
  return absl::OkStatus();
}

std::string AnswerLine(const absl::Status& status) {
  Struct object;
  if (status.ok()) {
    (*object.mutable_fields())["ok"].set_bool_value(true);
  } else {
    (*object.mutable_fields())["error"].set_string_value(
        absl::StrCat(status.message()));
  }
  return Line(object) + "\n";
}

absl::StatusOr<std::optional<HandshakeReader::Message>> HandshakeReader::Read(
    int socket) {
  while (true) {
    std::array<char, 4096> bytes;
    int flags = 0;
    const ssize_t count = ReceiveWithDescriptors(
        socket, bytes, MSG_DONTWAIT, kMostDescriptors, descriptors_, flags);
    if (count < 0 && errno == EAGAIN) break;
    if (count < 0) return absl::ErrnoToStatus(errno, "recvmsg");
    if ((flags & MSG_CTRUNC) != 0) lost_descriptors_ = true;
    if (count == 0) {
      ended_ = true;
      break;
    }
    text_.append(bytes.data(), static_cast<size_t>(count));
    if (text_.size() > kMaxHandshakeBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the message has more than ", kMaxHandshakeBytes, " bytes"));
    }
    if (descriptors_.size() > 1 || lost_descriptors_) {
      return absl::InvalidArgumentError(
          descriptors_.size() > 1
              ? "the message has several descriptors; it must have one"
              : "descriptors of the message were lost: it has too many, or "
                "this process has as many as it may (RLIMIT_NOFILE)");
    }
  }
  const size_t first = text_.find_first_not_of(kSpace);
  if (first != std::string::npos && text_[first] != '[') {
    return absl::InvalidArgumentError(
        "the message is no JSON array: it does not begin with '['");
  }
  if (first == std::string::npos ||
      text_[text_.find_last_not_of(kSpace)] != ']') {
    if (!ended_) return std::nullopt;
    return absl::InvalidArgumentError(
        absl::StrCat("the connection ended after ", text_.size(),
                     " bytes of a message that is not complete"));
  }
  absl::StatusOr<std::vector<GuestRegion>> regions = ParseRegions(text_);
  if (!regions.ok()) return regions.status();
  if (descriptors_.empty()) {
    return absl::InvalidArgumentError(
        "the message has no descriptor; it must have one (SCM_RIGHTS), the "
        "userfaultfd");
  }
  return Message{*std::move(regions), std::move(descriptors_.front())};
}

}  // namespace firsttouch
