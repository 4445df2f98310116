// What firsttouchd is to do: its configuration file and its command line, put
// together and checked.
//
// Threads: one.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_CONFIG_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_CONFIG_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/tools/firsttouchd/firsttouchd.pb.h"

namespace firsttouch::firsttouchd {

// How the guests of one socket are served.
struct SocketPlan {
  std::string path;          // Empty: one of systemd's,
  std::string systemd_name;  // with this name; empty: any other.
  size_t image = 0;          // In Plan::images.
  std::vector<uid_t> users;
  GuestOptions guest;
  bool kill_refused = false;
};

struct Plan {
  std::vector<Image> images;
  std::vector<SocketPlan> sockets;
  // Of systemd's sockets that none of `sockets` names.
  SocketPlan others;
  // All but its functions.
  ServerOptions server;
  std::string state;
  std::string metrics;
  std::string user;
  bool record = false;
  bool keep_descriptors = false;
};

// Reads a file in protobuf's text format into `config`. Errors name it, and
// what is wrong in it by line and column.
absl::Status ReadConfig(const std::string& path, Config* config);

// Puts `over` in place of what `config` has of the same; images and sockets in
// place of all of them.
void Overlay(const Config& over, Config* config);

// InvalidArgument names the field, its value and the rule.
absl::StatusOr<Plan> PlanOf(const Config& config);

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_CONFIG_H_
