#!/usr/bin/env bash
# Compares what the compiler said of all files with what it should say.
#
#   compare.sh <file with the expected lines> <report>...
#
# A line is that of an error or a warning, without the number of the line and
# the folders that Bazel makes: "service/a.h: error: text".
set -uo pipefail

expected="$1"
shift
source bazel/skip.sh
[[ $# != 0 ]] ||
  skip cross_compile "there is no aarch64-linux-gnu-g++ (package g++-aarch64-linux-gnu)"

said="$(cat "$@" | grep -E '(error|warning): ' |
  sed -E 's,^[^ :]*firsttouch/([^ :]+):,\1:,; s,:[0-9]+(:[0-9]+)?: ,: ,; s, \[-W[a-z-]+\]$,,' | sort -u)"
if ! diff --label expected --label said -u "$expected" - <<< "$said"; then
  echo "The compiler for aarch64 says:"
  cat "$@"
  exit 1
fi
