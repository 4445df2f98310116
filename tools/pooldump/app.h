// The description of the command line that everything about it is made of.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_APP_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_APP_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// What CLI11 writes into while it parses. Must outlive the App.
struct Words {
  Options options;
  cli::CommonOptions common;
  // Field of PoolConfig -> its text, if the flag was given.
  std::map<std::string, std::string> pool;
  std::string pid;
  std::vector<std::string> targets;  // [PID] ADDRESS...
  std::string interval;
  std::string slot;
};

// Flags of PoolConfig's fields.
struct PoolFlag {
  enum Command { kBoth, kLayout, kLocate };
  Command command;  // That it belongs to.
  const char* field;
  const char* flags;  // As CLI11 takes them.
  const char* shown;  // The first of them.
  const char* type;
  const char* help;
};
const std::vector<PoolFlag>& PoolFlags();

std::unique_ptr<CLI::App> MakeApp(Words* words);
}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_APP_H_
