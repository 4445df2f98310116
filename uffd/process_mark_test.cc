#include "firsttouch/uffd/process_mark.h"

#include <sys/syscall.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(ProcessMarkTest, IsOfTheProcessThatMadeIt) {
  const ProcessMark mark = ProcessMark::Here();
  EXPECT_TRUE(mark.IsHere());
  EXPECT_TRUE(ProcessMark::Here().IsHere());
  EXPECT_FALSE(ProcessMark().IsHere());
}

TEST(ProcessMarkTest, AChildAndItsChildrenHaveMarksOfTheirOwn) {
  const ProcessMark parents = ProcessMark::Here();
  const ChildResult child = RunInChild([&]() -> std::string {
    if (parents.IsHere()) return "the parent's is the child's";
    if (ProcessMark().IsHere()) return "that of no process is the child's";
    const ProcessMark own = ProcessMark::Here();
    if (!own.IsHere()) return "the child's is not";
    if (parents.IsHere()) return "the parent's became the child's";
    const ChildResult grandchild = RunInChild([&]() -> std::string {
      const ProcessMark third = ProcessMark::Here();
      return std::to_string(parents.IsHere()) + std::to_string(own.IsHere()) +
             std::to_string(third.IsHere());
    });
    return grandchild.output;
  });
  EXPECT_EQ(child.output, "001");
  EXPECT_EQ(child.exit_code, 0);
  EXPECT_TRUE(parents.IsHere());
}

// If earlier tests of this binary have run in the same process, the word exists
// already: so the refusal is set up in a child that makes its first mark.
TEST(ProcessMarkTest, WorksWhereTheKernelWipesNoPage) {
  const ChildResult child = RunInChild([]() -> std::string {
    if (!RefuseSystemCalls({SYS_madvise}, EINVAL, false)) return "no seccomp";
    const ProcessMark own = ProcessMark::Here();
    const bool here = own.IsHere();
    const ChildResult grandchild = RunInChild([&]() -> std::string {
      return std::to_string(own.IsHere()) +
             std::to_string(ProcessMark::Here().IsHere());
    });
    return std::to_string(here) + grandchild.output +
           std::to_string(own.IsHere());
  });
  if (child.output == "no seccomp") GTEST_SKIP() << child.output;
  EXPECT_EQ(child.output, "1011");
}

}  // namespace
}  // namespace firsttouch
