#!/usr/bin/env bash
# Passes if a program built with a sanitizer fails when it commits the fault that
# the sanitizer is for, with the sanitizer's report, and only then.
#
#   finds.sh <fault> <text of the report> <program>
set -euo pipefail

fault="$1"
report="$2"
program="$3"

"$program" || { echo "failed without a fault" >&2; exit 1; }
if output="$("$program" "$fault" 2>&1)"; then
  echo "the fault went unnoticed: $output" >&2
  exit 1
fi
[[ "$output" == *"$report"* ]] || { echo "no '$report' in: $output" >&2; exit 1; }
