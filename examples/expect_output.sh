#!/bin/sh
# expect_output.sh <program> <line>...
#
# Runs the program; it must succeed, write nothing to stderr, and write the
# lines to stdout.
set -u
program=$1
shift
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
output=$("$program" 2>"$errors")
status=$?
wanted=$(printf '%s\n' "$@")
if [ "$status" = 0 ] && [ "$output" = "$wanted" ] && [ ! -s "$errors" ]; then
  exit 0
fi
printf 'status %s, output:\n%s\nwanted:\n%s\nerrors:\n' "$status" "$output" \
  "$wanted"
cat "$errors"
exit 1
