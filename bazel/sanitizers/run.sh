#!/usr/bin/env bash
# Runs a test that was built with a sanitizer, with the options that it needs.
#
#   run.sh <test> [argument...]
set -euo pipefail

# What the three have in common.
# - handle_*=0: our own tests are about signals. A fault of the guest's must meet
#   the handler that the test installed and not the sanitizer's, and a child
#   that is meant to die by a signal must die by it.
# - use_sigaltstack=0: threads have the alternate stack that we give them. At a
#   thread's end AddressSanitizer unmaps whatever stack it finds there.
common="handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:handle_sigfpe=0"
common+=":use_sigaltstack=0:symbolize=1:print_stacktrace=1"

export ASAN_OPTIONS="$common:detect_stack_use_after_return=1:strict_init_order=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export TSAN_OPTIONS="$common:halt_on_error=1:second_deadlock_stack=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}"
export UBSAN_OPTIONS="$common:halt_on_error=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"

# gcc 12's ThreadSanitizer ("unexpected memory mapping") cannot place its shadow
# where addresses are random in more than 28 bits, as newer kernels have it.
if [[ "$(cat /proc/sys/vm/mmap_rnd_bits 2> /dev/null || echo 28)" -gt 28 ]] &&
  setarch --addr-no-randomize true 2> /dev/null; then
  exec setarch --addr-no-randomize "$@"
fi
exec "$@"
