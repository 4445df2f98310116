#include "firsttouch/tools/imagetool/commands.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/tools/imagetool/map_picture.h"
#include "firsttouch/tools/imagetool/page_map_report.h"
#include "firsttouch/tools/imagetool/text.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

// What cases of tests/imagetool cannot make: images with working sets, which
// services learn.

namespace firsttouch::imagetool {
namespace {

using ::testing::HasSubstr;

// "0+2 STORED, 2+1 ABSENT"
std::string RunsOf(const MapReport& report) {
  std::string text;
  for (const MapReport::Run& run : report.runs()) {
    if (!text.empty()) text += ", ";
    text += std::to_string(run.range().first_page()) + "+" +
            std::to_string(run.range().pages()) + " " +
            MapReport::State_Name(run.state());
  }
  return text;
}

// An image of 200 pages that stores pages 0 to 3, of which tenants write 1 and
// 300, and read 1, 2 and 199.
std::string FileWithWorkingSet() {
  const std::vector<std::byte> bytes(4 * kPageBytes, std::byte{7});
  const auto image = ImageFromBytes(
      {.name = "learned", .size_bytes = 200 * kPageBytes}, bytes);
  EXPECT_TRUE(image.ok()) << image.status();
  const std::vector<uint64_t> written = {2, 0, 0, 0, uint64_t{1} << 44};
  const std::vector<uint64_t> read = {6, 0, 0, uint64_t{1} << 7};
  (*image)->working_set().LearnWritten(written);
  (*image)->working_set().LearnRead(read);
  std::string path = ::testing::TempDir() + "/learned.ftimg";
  const auto file = WriteImageFile(**image, path);
  EXPECT_TRUE(file.ok()) << file.status();
  return path;
}

TEST(MapTest, WorkingSetIsPartOfThePicture) {
  const absl::StatusOr<MapReport> report = Map(FileWithWorkingSet(), {});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->pages(), 200u);
  // Also behind the end of the image: a heap lies there.
  EXPECT_EQ(RunsOf(*report),
            "0+1 STORED, 1+1 STORED_WRITTEN, 2+1 STORED_READ, 3+1 STORED, "
            "4+195 ABSENT, 199+1 ABSENT_READ, 200+100 ABSENT, "
            "300+1 ABSENT_WRITTEN");

  const absl::StatusOr<std::string> text =
      TerminalPictureOf(*report, {.columns = 80}, {});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("learned: 800 KiB\n"
                               "301 pages of 4 KiB, one a cell\n"));
  EXPECT_THAT(*text, HasSubstr("W stored and written: 1\n"));
  EXPECT_THAT(*text, HasSubstr("H written, zero: 1   "));
  EXPECT_THAT(*text, HasSubstr("\n     0x0  SWRS"));
}

TEST(InfoTest, WorkingSetIsCounted) {
  const absl::StatusOr<ImageReport> report = Info(FileWithWorkingSet());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->written_pages(), 2u);
  EXPECT_EQ(report->read_pages(), 3u);
  EXPECT_THAT(TextOf(*report, {}),
              HasSubstr("working set   2 pages written, 3 pages read or "
                        "written\n"));
}

}  // namespace
}  // namespace firsttouch::imagetool
