#!/bin/sh
# What run_tool.sh says when something is missing, and that it runs its tool.
set -u
run_tool=$(dirname "$0")/run_tool.sh
failures=0

expect() { # <what> <wanted> <got>
  if [ "$2" != "$3" ]; then
    printf 'FAILED: %s\n  wanted: %s\n  got:    %s\n' "$1" "$2" "$3"
    failures=$((failures + 1))
  fi
}

output=$("$run_tool" /bin/echo /bin/sh:dash -- one 'two  words' 2>&1)
expect "status of a run" 0 $?
expect "output of a run" "one two  words" "$output"

output=$("$run_tool" /bin/echo /bin/sh:dash /no/such/*/tool:some-package \
  /no/other:other-package -- one 2>&1)
expect "status with files missing" 1 $?
expect "message with files missing" \
  "wasm2c_guest: /no/such/*/tool is missing
wasm2c_guest: /no/other is missing
wasm2c_guest: install what is missing:
    sudo apt-get install some-package other-package" "$output"

output=$("$run_tool" /bin/echo '/bin/s*:dash' -- pattern 2>&1)
expect "a pattern that matches" "pattern" "$output"

output=$("$run_tool" /bin/false /bin/false:coreutils -- 2>&1)
expect "the tool's own status" 1 $?

[ "$failures" = 0 ]
