// Takes one safety measure out, to show that the tests notice:
//
//   ./bazelw test --copt=-DFIRSTTOUCH_SABOTAGE=1 //service:model_test
//
// must fail, for each number below. 0, the default, leaves the product as it
// is. Never ship anything else: a released slot shows the last guest's bytes.

#ifndef FIRSTTOUCH_SERVICE_SABOTAGE_H_
#define FIRSTTOUCH_SERVICE_SABOTAGE_H_

#ifndef FIRSTTOUCH_SABOTAGE
#define FIRSTTOUCH_SABOTAGE 0
#endif

namespace firsttouch {

enum class Sabotage {
  kNone = 0,
  // Changed pages are not restored at release.
  kRestore = 1,
  // Pages that a guest grew into are not dropped.
  kGrownPages = 2,
  // Image pages are mapped, and asynchronously tracked ones left, without the
  // protection that makes their first write known.
  kProtection = 3,
};

inline constexpr bool Sabotaged(Sabotage what) {
  return static_cast<int>(what) == FIRSTTOUCH_SABOTAGE;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SABOTAGE_H_
