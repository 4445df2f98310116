#!/usr/bin/env bash
# size.py finds what is too large, takes a reason for one, and leaves tests apart.
set -euo pipefail

size="$(readlink --canonicalize "$1")"
cd "$(mktemp --directory)"
mkdir tests

# A file with so many lines behind those of standard input.
file_of() {
  { cat; seq --format='// Line %g.' "$1"; } > "$2"
}
# A class with so many methods, one of them overloaded, below the given comment.
class_of() {
  echo '#include <memory>'
  printf '%s\n' "$2" 'class Large {' ' public:' '  Large();' '  ~Large();' \
    '  bool operator==(const Large&) const = default;' \
    '  void Method1(int);' ' private:'
  local i
  for (( i = 1; i <= $1; ++i )); do
    echo "  void Method$i() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);"
  done
  echo '};'
}
expect() {
  local wanted="$1" said
  shift
  said="$(printf '%s\0' "$@" | python3 "$size" 2>&1)" || true
  [[ "$said" == *"$wanted"* && ( -n "$wanted" || -z "$said" ) ]] ||
    { echo "of $*: wanted '$wanted', got '$said'" >&2; exit 1; }
}

file_of 600 enough.cc < /dev/null
file_of 601 long.cc < /dev/null
file_of 601 reason.cc <<< $'// A reader.\n// One file\n// because it reads in order.\n#include <memory>'
file_of 601 late.cc <<< $'#include <memory>\n// One file because it is said too late.'
file_of 601 long.py < /dev/null
cp long.cc long_test.cc
cp long.cc tests/long.cc
cp long.cc self_test.cc
echo > self_test.h
expect "" enough.cc reason.cc long_test.cc tests/long.cc
expect "long.cc: 601 lines, and a file has at most 600" long.cc
expect "late.cc: 603 lines" late.cc
expect "long.py: 601 lines" long.py
expect "self_test.cc: 601 lines" self_test.cc

class_of 25 "// Just so." > enough.h
class_of 26 "// Too much." > large.h
class_of 26 "// Much. One class because it is one." > reason.h
expect "" enough.h reason.h
expect "large.h:3: class Large has 26 methods, and a class has at most 25" large.h
