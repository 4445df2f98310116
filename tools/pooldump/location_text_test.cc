#include "firsttouch/tools/pooldump/location_text.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using testing::HasSubstr;

TEST(LocationText, SaysWhereAndWhetherInBounds) {
  Location location;
  location.set_place(Location::MEMORY);
  location.set_pool("tenants");
  location.set_slot(7);
  location.set_instance(3);
  location.set_memory(1);
  location.set_offset_bytes(69636);
  location.set_page(17);
  EXPECT_EQ(LocationText(location),
            "pool tenants, slot 7 (instance 3, memory 1), offset 69636 "
            "(0x11004), page 17: inside the memory's maximum");
  location.set_has_slot(true);
  location.set_slot_state(Slot::HELD);
  location.set_page_state(PAGE_HOT);
  location.set_size_bytes(70000);
  location.set_in_bounds(true);
  location.set_page_in_bounds(true);
  location.set_image_page(17);
  location.set_image_name("guest\n");
  EXPECT_THAT(LocationText(location),
              HasSubstr("page 17 (hot): in bounds; page 17 of image guest?"));
  location.set_in_bounds(false);
  EXPECT_THAT(LocationText(location),
              HasSubstr("above the size of 70000 bytes, in its last page (not "
                        "guarded)"));
  location.set_place(Location::GUARD_BEFORE);
  location.set_offset_bytes(-8);
  EXPECT_THAT(LocationText(location),
              HasSubstr("offset -8 (-0x8): guard, in front"));
  location.set_place(Location::GUARD_UNOWNED);
  location.set_offset_bytes(131064);
  EXPECT_EQ(LocationText(location),
            "pool tenants, slot 7 (instance 3, memory 1), offset 131064 "
            "(0x1fff8): guard, of nobody: slot 8 reaches there, too");
  location.set_place(Location::NO_POOL);
  location.set_mapping("/usr/lib/libc.so.6");
  EXPECT_EQ(LocationText(location), "in no pool: /usr/lib/libc.so.6");
}

}  // namespace
}  // namespace firsttouch::pooldump
