#!/usr/bin/env bash
# completions_test.sh IMAGETOOL: what bash completes once it has sourced the
# completions.
set -euo pipefail

imagetool="$(realpath "$1")"
cd "$TEST_TMPDIR"
touch hello.ftimg hello.wasm other.txt
# shellcheck source=/dev/null
source <("$imagetool" completions bash)
failed=0

# complete_to EXPECTED WORD...: what the last word becomes.
complete_to() {
  local expected="$1"
  shift
  COMP_WORDS=(imagetool "$@")
  COMP_CWORD=$#
  COMPREPLY=()
  _imagetool
  local got
  got="$(printf '%s\n' "${COMPREPLY[@]}" | sort | xargs)"
  if [[ "$got" != "$expected" ]]; then
    echo "imagetool $* completes to \"$got\" instead of \"$expected\"" >&2
    failed=1
  fi
}

complete_to "manual map merge" m
complete_to "--format" map --fo
# "=" is a word of its own where bash breaks words there.
complete_to "csv json text" map --format =
complete_to "json" map --format = j
complete_to "auto raw segments wasm" build --from =
complete_to "bash zsh" completions ""
complete_to "hello.ftimg hello.wasm" info hello
complete_to "hello.ftimg hello.wasm other.txt" map --svg = ""
# A number is nobody's to guess.
complete_to "" map --width = ""

exit "$failed"
