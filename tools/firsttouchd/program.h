// firsttouchd as a process, as systemd and VMMs see it: for tests.
//
// A test's main is firsttouch::RunProgramTests(argc, argv), whose argument is
// the program.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_PROGRAM_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_PROGRAM_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/init/image.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gtest/gtest.h"

namespace firsttouch {

// A socket with a name in the file system.
UniqueFd BoundSocket(const std::string& path, int type);
// Connects, sends a text, and gives all that comes back.
std::string Ask(const std::string& path, const std::string& text);

int RunProgramTests(int argc, char** argv);

class ProgramTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kPages = 256;
  using Seen = StandIn::Seen;

  ProgramTest();
  ~ProgramTest() override;

  std::string File() const { return folder_ + "/guest.ftimg"; }
  std::string Socket() const { return folder_ + "/pages.sock"; }
  std::string State() const { return folder_ + "/state"; }

  // False, with skip_: this machine lacks what it needs.
  bool MakeGuest();
  // A second one.
  std::unique_ptr<StandIn> AnotherGuest();

  // Starts the program, with a descriptor (if any) as systemd gives one.
  void Start(std::vector<std::string> words, int descriptor = -1,
             const std::string& descriptor_name = "");
  // The same beside one that runs, which becomes `before_`.
  void StartBeside(std::vector<std::string> words);

  // The next thing that systemd is told, and the descriptor that came with it.
  std::string Told();
  // The exit code, or 1000 + the signal. `signal` 0: ends by itself.
  int End(int signal) { return EndOf(pid_, signal); }
  static int EndOf(pid_t& pid, int signal);
  std::string Log() const;

  std::string folder_;  // On a tmpfs.
  std::string skip_;
  ImageRef image_;
  UniqueFd notify_;
  UniqueFd told_;
  std::vector<std::pair<std::string, std::string>> environment_;
  std::unique_ptr<StandIn> guest_;
  pid_t pid_ = -1;
  pid_t before_ = -1;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_PROGRAM_H_
