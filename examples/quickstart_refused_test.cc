// The quickstart also works where userfaultfd is refused, and the environment
// can choose what supplies its memory.

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr char kOutput[] =
    "tenant 1 reads \"hello\"\n"
    "tenant 2 reads \"hello\"\n"
    "tenant 3 reads \"hello\"\n";

// Becomes the quickstart, or returns what prevented it.
std::string BecomeQuickstart(const std::string& program) {
  execl(program.c_str(), program.c_str(), nullptr);
  return "cannot run " + program;
}

std::string Quickstart() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
          "quickstart")
      .string();
}

TEST(QuickstartTest, WorksInAProcessThatIsRefusedUserfaultfd) {
  for (const int error : {EPERM, ENOSYS}) {
    const std::string program = Quickstart();
    const ChildResult child = RunInChild([&]() -> std::string {
      if (!RefuseSystemCalls({SYS_userfaultfd}, error, true)) return "skip";
      return BecomeQuickstart(program);
    });
    if (child.output == "skip") GTEST_SKIP() << "seccomp filters";
    EXPECT_EQ(child.exit_code, 0);
    EXPECT_EQ(child.output, kOutput);
  }
}

TEST(QuickstartTest, TheEnvironmentSaysWhatItRunsOn) {
  const std::string program = Quickstart();
  const auto run = [&](const char* supply) {
    return RunInChild([&] {
      setenv("FIRSTTOUCH_SUPPLY", supply, /*overwrite=*/1);
      return BecomeQuickstart(program);
    });
  };
  EXPECT_EQ(run("mappings-drop").output, kOutput);
  const ChildResult unknown = run("magic");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_EQ(unknown.output, "");
}

}  // namespace
}  // namespace firsttouch
