#!/usr/bin/env bash
# golden.sh test RUNNER PROGRAM CASE... | update RUNNER PROGRAM FOLDER: see run.py.
set -euo pipefail

mode="$1" runner="$2" program="$3"
shift 3
if [[ "$mode" == update ]]; then
  source="${BUILD_WORKSPACE_DIRECTORY:?is set by bazel run, which is how this is meant to be run}"
  exec python3 -B "$runner" --update "$program" "$source/$1"/*.txt
fi
exec python3 -B "$runner" "$program" "$@"
