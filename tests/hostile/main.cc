// hostile_programs NAME BACKING RESOLVE, hostile_programs NAME SUPPLY: runs one
// program (program.h). FIRSTTOUCH_HOSTILE_ENVIRONMENT names what the process is
// to be like (environment.h).

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "firsttouch/tests/hostile/environment.h"
#include "firsttouch/tests/hostile/program.h"

namespace firsttouch::hostile {
namespace {

constexpr Program kPrograms[] = {
    {"read_past_end", ReadPastEnd},
    {"write_past_end", WritePastEnd},
    {"read_into_guard", ReadIntoGuard},
    {"read_before_start", ReadBeforeStart},
    {"read_below_a_neighbour", ReadBelowANeighbour},
    {"jump_past_end", JumpPastEnd},
    {"read_after_release", ReadAfterRelease},
    {"read_size_zero", ReadSizeZero},
    {"last_tenant", LastTenant},
    {"forks", Forks},
    {"forked_child_touches", ForkedChildTouches},
    {"forked_child_makes_pool", ForkedChildMakesPool},
    {"forked_child_outlives_parent", ForkedChildOutlivesParent},
    {"overflows_stack", OverflowsStack},
    {"overflows_stack_under_host", OverflowsStackUnderHost},
    {"faults_at_stack_end", FaultsAtStackEnd},
    {"traps_in_trap", TrapsInTrap},
    {"traps_in_trap_for_ever", TrapsInTrapForEver},
    {"thousand_traps", ThousandTraps},
    {"host_handler_before", HostHandlerBefore},
    {"host_handler_after", HostHandlerAfter},
    {"host_owns_handlers", HostOwnsHandlers},
    {"foreign_fault_dies", ForeignFaultDies},
    {"userfaultfd_closed", UserfaultfdClosed},
    {"many_leases", ManyLeases},
    {"split_mappings", SplitMappings},
    {"rebinds_neighbours", RebindsNeighbours},
    {"mixed_cycles", MixedCycles},
    {"aborts_with_big_pool", AbortsWithBigPool},
    {"exits_while_threads_run", ExitsWhileThreadsRun},
    {"destroyed_while_busy", DestroyedWhileBusy},
};

Setting SettingOf(std::string_view backing, std::string_view resolve) {
  for (const Supply supply : {Supply::kMappingsDrop, Supply::kMappingsScan}) {
    if (backing == SupplyName(supply)) return {.supply = supply};
  }
  return {.backing = backing == "shared" ? Backing::kShared : Backing::kCopied,
          .resolve = resolve == "handler-thread" ? Resolve::kHandlerThread
                                                 : Resolve::kInThread};
}

int Main(int argc, char** argv) {
  // A program that hangs is ended by SIGALRM, which no judge expects.
  alarm(50);
  if (const char* const names = std::getenv(kEnvironmentVariable);
      names != nullptr && !EnterEnvironment(names)) {
    return 2;
  }
  const bool usable = argc == 3 || argc == 4;
  const std::string_view name = usable ? argv[1] : "";
  const std::string_view backing = usable ? argv[2] : "";
  const std::string_view resolve = argc == 4 ? argv[3] : "";
  for (const Program& program : kPrograms) {
    if (name != program.name) continue;
    program.run(SettingOf(backing, resolve));
    return 0;
  }
  std::fprintf(stderr,
               "usage: hostile_programs NAME shared|copied "
               "in-thread|handler-thread\n"
               "       hostile_programs NAME mappings-drop|mappings-scan\n"
               "programs:\n");
  for (const Program& program : kPrograms) {
    std::fprintf(stderr, "  %s\n", program.name);
  }
  return 2;
}

}  // namespace
}  // namespace firsttouch::hostile

int main(int argc, char** argv) {
  return firsttouch::hostile::Main(argc, argv);
}
