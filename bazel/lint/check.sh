#!/usr/bin/env bash
# Checks of the whole tree's sources that need no compiler.
#
#   check.sh <a file in the top folder> <buildifier> <check>
#
# The test that calls it sees the source tree itself through the first argument,
# a link to it: a list of inputs would be out of date with the next new file.
set -euo pipefail

root="$(dirname "$(readlink --canonicalize "$1")")"
buildifier="$(readlink --canonicalize "$2")"
scripts="$(dirname "$(readlink --canonicalize "$0")")"
# shellcheck source=bazel/lint/sources.sh
source "$scripts/sources.sh"
cd "$root"

fail() {
  echo "$*" >&2
  exit 1
}

# Every C++ and protobuf file is as clang-format would have it.
check_clang_format() {
  command -v clang-format > /dev/null ||
    fail "clang-format is not installed: apt-get install clang-format (./bazelw does)"
  sources . "${CXX_FILES[@]}" |
    xargs -0 --no-run-if-empty clang-format --style=file --dry-run -Werror ||
    fail "To mend this: ./bazelw run //bazel:format"
}

# Every BUILD, WORKSPACE and .bzl file is as buildifier would have it, and has
# none of the faults that it warns of.
check_buildifier() {
  # What it wants loaded from elsewhere instead of built in does not exist
  # elsewhere for Bazel 4.2.3.
  sources . "${BAZEL_FILES[@]}" |
    xargs -0 --no-run-if-empty "$buildifier" --mode=check --lint=warn \
      --warnings=-native-cc-info,-native-cc-library,-native-cc-proto,-native-proto,-native-proto-lang-toolchain,-native-sh-binary,-native-sh-library,-native-sh-test,-native-cc-proto-library ||
    fail "To mend the formatting: ./bazelw run //bazel:format"
}

# Prints where a pattern occurs in C++ code that is no comment.
in_code() {
  local pattern="$1"
  shift
  sources . "$@" | xargs -0 --no-run-if-empty grep --with-filename --line-number '' |
    sed -E 's,^([^:]+:[0-9]+:)(.*)$,\1\2,; s,//.*$,,' |
    grep --extended-regexp "^[^:]+:[0-9]+:.*$pattern" || true
}

# Rules of this repository.
check_rules() {
  local found bad=0
  report() {
    [[ -z "$2" ]] || { printf '%s:\n%s\n\n' "$1" "$2" >&2; bad=1; }
  }

  # A page that MADV_FREE gave up may come back with the last tenant's bytes. A
  # test may play the host that does it.
  report "MADV_FREE leaves a tenant's bytes in place; use MADV_DONTNEED" \
    "$(in_code '\<MADV_FREE\>' -name '*.h' -o -name '*.cc' ! -name '*_test.cc')"

  # Work left to do is an issue, or says why it may stand: TODO(reason).
  report "Notes to self; write TODO(why it may stay): or do it" "$(
    sources . "${CXX_FILES[@]}" -o "${BAZEL_FILES[@]}" -o -name '*.md' -o -name '*.sh' -o -name '*.py' |
      grep --null-data --invert-match --fixed-strings './bazel/lint/' |
      xargs -0 --no-run-if-empty grep --with-filename --line-number --extended-regexp \
        '\<(FIXME|XXX|HACK)\>|\<TODO\>($|[^(]|\([^)]{0,7}\))' || true
  )"

  # Include guards say where a header is, so that no two are the same.
  found=""
  while IFS= read -r -d '' header; do
    local guard="${header#./}"
    guard="FIRSTTOUCH_$(tr 'a-z/.-' 'A-Z___' <<< "${guard}")_"
    grep --quiet --line-regexp "#ifndef $guard" "$header" &&
      grep --quiet --line-regexp "#define $guard" "$header" ||
      found+="$header: no $guard"$'\n'
  done < <(sources . -name '*.h' ! -path './tests/consumer/*' ! -name 'wasm-rt*.h')
  report "Headers without the guard that their path asks for" "$found"

  # Every package with C++ targets runs clang-tidy on them.
  found=""
  while IFS= read -r -d '' build; do
    ! grep --quiet --extended-regexp '^ *cc_(library|test|binary)\(' "$build" ||
      grep --quiet '^lint_targets(' "$build" ||
      found+="$build"$'\n'
  done < <(sources . -name BUILD.bazel ! -path ./BUILD.bazel ! -path './tests/consumer/*')
  report "BUILD files with C++ targets, and without lint_targets() at the end" "$found"

  return "$bad"
}

# Files and classes are of a size that a reader can take in, or say why not.
check_size() {
  command -v ctags-universal > /dev/null ||
    fail "universal-ctags is not installed: apt-get install universal-ctags (./bazelw does)"
  sources . -name '*.cc' -o -name '*.c' -o -name '*.h' -o -name '*.py' |
    python3 "$scripts/size.py" || fail "The rule: bazel/lint/size.py"
}

"check_$3"
