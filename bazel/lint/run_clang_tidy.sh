#!/usr/bin/env bash
# Runs clang-tidy and keeps what it finds in a file, which is empty if that is
# nothing. It does not fail, so that one run of Bazel shows all findings: the
# test that reads the file does.
#
#   run_clang_tidy.sh <report> <clang-tidy> <argument of it>...
set -uo pipefail

report="$1"
shift

# Findings are on standard output; on standard error are their number, and what
# matters only if clang-tidy could not do its work.
errors="$("$@" 2>&1 > "$report.raw")" || printf '%s\n' "$errors" >> "$report.raw"

# Paths as they are in the source tree, not where Bazel has put the files.
sed -E "s,(\./)?$PWD/,,g; s,bazel-out/[^ :]*/_virtual_includes/[^/]*/firsttouch/,,g" \
  "$report.raw" > "$report"
rm -f "$report.raw"
