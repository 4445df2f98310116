#!/bin/bash
# refused_modules_test.sh <describe_module> [<module> <reason>]...
#
# Modules that wasm2c does not translate are refused before it runs, with the
# reason.
set -uo pipefail
describe=$1
shift
failed=0
while (($# > 0)); do
  printed=$("$describe" --check "$1" 2>&1) && code=0 || code=$?
  expected="describe_module: $1: $2"
  if [[ "$code" != 1 || "$printed" != "$expected" ]]; then
    printf 'got exit code %s and\n  %s\ninstead of 1 and\n  %s\n' \
      "$code" "$printed" "$expected"
    failed=1
  fi
  shift 2
done
exit "$failed"
