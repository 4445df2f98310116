#include "firsttouch/tools/pooldump/answer.h"

#include <string>

#include "absl/status/status.h"

namespace firsttouch::pooldump {

std::string OneLine(const absl::Status& status) {
  std::string text(status.message());
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

Answer CannotRead(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitCannotRead;
  answer.error = OneLine(status);
  return answer;
}

Answer WrongUsage(const absl::Status& status) {
  Answer answer;
  answer.exit_code = kExitUsage;
  answer.error = OneLine(status);
  return answer;
}

}  // namespace firsttouch::pooldump
