#!/bin/sh
# run_tool.sh <tool> [<file it needs>:<Debian package>]... -- <arguments>
#
# Runs a tool of the system, or says which package has what is missing.
set -eu
tool=$1
shift
missing=
while [ "$1" != -- ]; do
  # A pattern: the package's own version may be part of the path.
  found=
  for file in ${1%:*}; do
    if [ -e "$file" ]; then found=yes; fi
  done
  if [ -z "$found" ]; then
    missing="$missing ${1##*:}"
    echo "wasm2c_guest: ${1%:*} is missing" >&2
  fi
  shift
done
shift
if [ -n "$missing" ]; then
  echo "wasm2c_guest: install what is missing:" >&2
  echo "    sudo apt-get install$missing" >&2
  exit 1
fi
exec "$tool" "$@"
