#!/usr/bin/env bash
# Makes the packages again, at another time and as somebody with other settings, and
# compares them to the byte.
#
#   package_test.sh <package.sh> <archive.tar.gz> <package.deb> <files>...
set -euo pipefail

package="$1"
tarball="$2"
deb="$3"
shift 3

umask 077
TZ=Pacific/Chatham LC_ALL=C.UTF-8 "$package" "$TEST_TMPDIR/again.tar.gz" "$TEST_TMPDIR/again.deb" "$@"
cmp "$tarball" "$TEST_TMPDIR/again.tar.gz"
cmp "$deb" "$TEST_TMPDIR/again.deb"
