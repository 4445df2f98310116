#!/usr/bin/env bash
# Compiles a source file for aarch64, and writes what the compiler says of it,
# nothing if it says nothing.
#
#   compile.sh <report> <compiler's arguments>...
set -uo pipefail

report="$1"
shift

# Headers of libraries are those of the machine that compiles: they come last,
# behind libc's for aarch64.
aarch64-linux-gnu-g++ "$@" -c -o /dev/null -Wfatal-errors \
  -idirafter /usr/include -idirafter "/usr/include/$(uname -m)-linux-gnu" \
  > "$report" 2>&1
status=$?
if [[ "$status" != 0 && ! -s "$report" ]]; then
  echo "error: aarch64-linux-gnu-g++ ended with $status and said nothing" > "$report"
fi
exit 0
