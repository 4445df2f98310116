#!/usr/bin/env bash
# golden.sh test CASE... | update: see run.py.
set -euo pipefail

tools=tools/pooldump
run=(python3 -B "$tools/golden/run.py")
programs=("$tools/pooldump" "$tools/testing/pool_maker")
if [[ "$1" == update ]]; then
  source="${BUILD_WORKSPACE_DIRECTORY:?is set by bazel run, which is how this is meant to be run}"
  exec "${run[@]}" --update "${programs[@]}" "$source/$tools"/golden/cases/*.txt
fi
exec "${run[@]}" "${programs[@]}" "${@:2}"
