#!/usr/bin/env bash
# Holds the documents to the sources.
#
#   check.sh <a file in the top folder> <check>
#
# The test that calls it sees the source tree itself through the first argument,
# a link to it.
set -euo pipefail

root="$(dirname "$(readlink --canonicalize "$1")")"
exec python3 "$(dirname "$0")/check.py" "$root" "$2"
