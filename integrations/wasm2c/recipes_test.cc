// Guests whose sources need more than a C compiler: C++ with its library, and
// setjmp.
#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/source_test.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "gtest/gtest.h"
#include "integrations/wasm2c/cxx_guest.firsttouch.h"
#include "integrations/wasm2c/setjmp_guest.firsttouch.h"

namespace firsttouch::wasm2c {
namespace {

class RecipesTest : public SourceTest {
 protected:
  void SetUp() override { MakeSource(4, 16 * kWasmPageBytes); }
};

INSTANTIATE_TEST_SUITE_P(Sources, RecipesTest,
                         testing::ValuesIn(AllSourceKinds()), SourceKindName);

TEST_P(RecipesTest, CxxHasItsLibraryAndItsConstructors) {
  auto guest = Guest<Z_cxx_guest_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  ASSERT_TRUE(guest->Call(&Z_cxx_guestZ__initialize).ok());
  EXPECT_EQ(*guest->Call(&Z_cxx_guestZ_sum), 12u + 200u);
  EXPECT_EQ(*guest->Call(&Z_cxx_guestZ_count, 7u), 1u);
  auto prepared = guest->Snapshot("counted");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(source());
  ASSERT_TRUE(copy.ok()) << copy.status();
  for (int lease = 0; lease < 3; ++lease) {
    EXPECT_EQ(*copy->Call(&Z_cxx_guestZ_count, 7u), 2u);
    EXPECT_EQ(*copy->Call(&Z_cxx_guestZ_count, 8u), 1u);
    ASSERT_TRUE(copy->Reset().ok());
  }
}

TEST_P(RecipesTest, LongjmpComesBackToItsSetjmp) {
  auto guest = Guest<Z_setjmp_guest_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  for (const u32 depth : {0u, 1u, 100u}) {
    EXPECT_EQ(*guest->Call(&Z_setjmp_guestZ_run, depth, 7u), 1007u) << depth;
  }
  auto prepared = guest->Snapshot("jumped");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  auto copy = (*prepared)->Instantiate(source());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*copy->Call(&Z_setjmp_guestZ_run, 10u, 1u), 1001u);
}

TEST_P(RecipesTest, LongjmpToAFunctionThatIsGoneTraps) {
  auto guest = Guest<Z_setjmp_guest_instance_t>::Create(source());
  ASSERT_TRUE(guest.ok()) << guest.status();
  EXPECT_EQ(*guest->Call(&Z_setjmp_guestZ_run, 1u, 1u), 1001u);
  const auto escaped = guest->Call(&Z_setjmp_guestZ_escape);
  ASSERT_TRUE(escaped.trapped()) << escaped.status();
  EXPECT_EQ(escaped.trap().code, WASM_RT_TRAP_UNCAUGHT_EXCEPTION);
  // And the runtime goes on.
  EXPECT_EQ(*guest->Call(&Z_setjmp_guestZ_run, 1u, 2u), 1002u);
}

}  // namespace
}  // namespace firsttouch::wasm2c
