#!/usr/bin/env bash
# Compiles each public header alone, and compares which of our headers it brings
# along with a list. All that it brings along has to be in the list as well.
#
#   public_headers_test.sh <list>
#
# A line of the list is "header: header...", sorted, each without "firsttouch/".
set -euo pipefail
shopt -s extglob

list="$1"
# As Bazel lays them out for those that include them, each library by itself.
while IFS= read -r header; do
  link="$TEST_TMPDIR/${header##*/_virtual_includes/*([^/])/}"
  mkdir -p "$(dirname "$link")"
  ln -s "$PWD/$header" "$link"
done < <(find . -path '*/_virtual_includes/*' -name '*.h')

# Prints the line for a header.
line_of() {
  local seen
  seen="$(g++ -std=c++20 -fsyntax-only -Wall -Wextra -Werror \
    -Wno-missing-field-initializers -I "$TEST_TMPDIR" -x c++ -MD -MF /dev/stdout \
    - <<< "#include \"firsttouch/$1\"")" || return 1
  seen="$(grep -o "$TEST_TMPDIR/firsttouch/[^ ]*" <<< "$seen" |
    sed "s,^$TEST_TMPDIR/firsttouch/,," | grep -vxF "$1" | LC_ALL=C sort | tr '\n' ' ')"
  echo "$1: $seen" | sed 's/ *$//'
}
export -f line_of

headers="$(grep -v '^#' "$list" | cut -d: -f1)"
bad=0
xargs -P 2 -I {} bash -c 'line_of {}' <<< "$headers" > "$TEST_TMPDIR/found" || bad=1
# The order of the list; they end in any.
found="$(for header in $headers; do grep "^$header:" "$TEST_TMPDIR/found" || true; done)"
if ! diff -u --label list --label found <(grep -v '^#' "$list") - <<< "$found"; then
  echo "$list is not what a user's source file sees."
  bad=1
fi
for header in $(cut -d: -f2 <<< "$found"); do
  if ! grep -qxF "$header" <<< "$headers"; then
    echo "$header is brought along by a public header, and is not public itself."
    bad=1
  fi
done
exit "$bad"
