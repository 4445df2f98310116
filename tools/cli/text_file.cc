#include "firsttouch/tools/cli/text_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/cli/nearest.h"
#include "firsttouch/uffd/unique_fd.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace firsttouch::cli {
namespace {

// Keeps the first error.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (text_.has_value()) return;
    line_ = line + 1;
    column_ = column + 1;
    text_ = message;
  }
  void AddWarning(int, int, const std::string&) override {}

  int line() const { return line_; }
  int column() const { return column_; }
  const std::optional<std::string>& text() const { return text_; }

 private:
  int line_ = 0;
  int column_ = 0;
  std::optional<std::string> text_;
};

}  // namespace

absl::Status ParseText(const std::string& name, const std::string& text,
                       google::protobuf::Message* message,
                       FieldPlaces* places) {
  FirstError error;
  google::protobuf::TextFormat::ParseInfoTree tree;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&tree);
  const bool parsed = parser.ParseFromString(text, message);
  const google::protobuf::Descriptor* descriptor = message->GetDescriptor();
  if (!parsed || error.text().has_value()) {
    std::string why =
        error.text().value_or(absl::StrCat("is no ", descriptor->name()));
    if (absl::StartsWith(why, "Expected string, got")) {
      absl::StrAppend(&why, " (sizes are in quotes: \"4GiB\")");
    } else if (absl::StrContains(why, "has no field named")) {
      const std::vector<std::string> quoted = absl::StrSplit(why, '"');
      std::vector<std::string> names;
      for (int i = 0; i < descriptor->field_count(); ++i) {
        names.push_back(descriptor->field(i)->name());
      }
      // Of the message itself; one that it contains has fields of its own.
      const std::string nearest =
          quoted.size() > 3 && quoted[1] == descriptor->full_name()
              ? Nearest(quoted[3], names)
              : "";
      if (!nearest.empty()) {
        absl::StrAppend(&why, " Did you mean \"", nearest, "\"?");
      } else {
        absl::StrAppend(&why, " Fields are: ", absl::StrJoin(names, ", "));
      }
    }
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", error.line(), ":", error.column(), ": ", why));
  }
  for (int i = 0; places != nullptr && i < descriptor->field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = descriptor->field(i);
    const auto location =
        tree.GetLocation(field, field->is_repeated() ? 0 : -1);
    if (location.line < 0) continue;
    (*places)[field->name()] =
        absl::StrCat(name, ":", location.line + 1, ":", location.column + 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t most_bytes) {
  UniqueFd opened;
  int fd = STDIN_FILENO;
  if (path != "-") {
    opened.reset(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!opened) return absl::ErrnoToStatus(errno, path);
    fd = opened.get();
  }
  std::string text;
  char buffer[65536];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, path);
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > most_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " has more than ", most_bytes, " bytes"));
    }
  }
}

absl::Status ForEachLineOfInput(
    const std::function<absl::Status(const std::string&, bool)>& take) {
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  for (;;) {
    const ssize_t got = read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, "standard input");
    if (got == 0) break;
    // Looked through already: none of it ends a line.
    const size_t old = text.size();
    text.append(buffer.data(), static_cast<size_t>(got));
    size_t begin = 0;
    for (size_t end = text.find('\n', old); end != std::string::npos;) {
      const size_t next = text.find('\n', end + 1);
      absl::Status taken = take(text.substr(begin, end - begin),
                                /*more_is_read=*/next != std::string::npos);
      if (!taken.ok()) return taken;
      begin = end + 1;
      end = next;
    }
    text.erase(0, begin);
  }
  // A last line that does not end.
  return text.empty() ? absl::OkStatus() : take(text, false);
}

}  // namespace firsttouch::cli
