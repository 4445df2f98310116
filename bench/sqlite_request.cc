#include "firsttouch/bench/sqlite_request.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/examples/tenants.h"

namespace firsttouch::bench {

void RequestOrDie(examples::SqliteGuest& guest, uint64_t found,
                  uint64_t updated) {
  constexpr uint64_t kOwner = 4711;
  const auto got = guest.Run([=](Z_sqlite_guest_instance_t* instance) {
    if (Z_sqlite_guestZ_find(instance, found) != found) return 1;
    if (Z_sqlite_guestZ_insert(instance, kOwner, 1) != 0) return 2;
    if (Z_sqlite_guestZ_update(instance, updated, kOwner) != 0) return 3;
    return 0;
  });
  if (!got.ok()) Die(got.status().ToString());
  if (*got != 0) Die(absl::StrCat("SQLite's answer ", *got, " is wrong"));
}

}  // namespace firsttouch::bench
