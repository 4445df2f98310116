#!/usr/bin/env bash
# Runs an example from an installed library, as somebody does who has not built it:
# C by the system's compiler and pkg-config, Python as it is.
#
#   installed.sh <firsttouch-VERSION.tar.gz> <example> <line>...
#
# It must succeed, write nothing to standard error, and write the lines.
set -euo pipefail

tarball="$1"
example="$2"
shift 2

root="$TEST_TMPDIR/root"
mkdir "$root"
tar --extract --file="$tarball" --directory="$root"
lib="$root/usr/lib/$(gcc -print-multiarch)"
export PKG_CONFIG_PATH="$lib/pkgconfig" LD_LIBRARY_PATH="$lib"

case "$example" in
  *.c)
    # shellcheck disable=SC2046  # Options.
    gcc -std=c99 -pedantic -Wall -Wextra -Werror "$example" -o "$TEST_TMPDIR/example" \
      $(pkg-config --cflags --libs firsttouch)
    "$TEST_TMPDIR/example" > "$TEST_TMPDIR/output" 2> "$TEST_TMPDIR/errors" || status=$?
    ;;
  *.py)
    python3 -B "$example" > "$TEST_TMPDIR/output" 2> "$TEST_TMPDIR/errors" || status=$?
    ;;
esac
cat "$TEST_TMPDIR/errors"
[[ "${status:-0}" == 0 && ! -s "$TEST_TMPDIR/errors" ]]
diff --label printed --label wanted "$TEST_TMPDIR/output" <(printf '%s\n' "$@")
