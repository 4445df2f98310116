#!/bin/bash
# The fault path's claim, held against the object file: lookup.cc refers to
# nothing outside itself. Sanitizers add calls of their own; this runs on what
# a plain build makes.
#
# Usage: lookup_symbols_test.sh FILE...   the output of `nm`
set -eu

# What nothing can be without.
allowed='^(_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|__cet_.*)$'
# A sanitizer's instrumentation.
sanitizers='^__(asan|ubsan|tsan|sanitizer)_'

for symbols in "$@"; do
  if ! grep -q ' T .*firsttouch.*Locate' "$symbols"; then
    echo "FAILED: $symbols does not define Locate"
    exit 1
  fi
  undefined=$(awk '$1 == "U" { print $2 }' "$symbols")
  if grep -Eq "$sanitizers" <<<"$undefined"; then
    echo "skipped: built with a sanitizer"
    exit 0
  fi
  if foreign=$(grep -Ev "$allowed" <<<"$undefined" | grep .); then
    echo "FAILED: the locator's fault path calls or reads outside itself:"
    echo "$foreign"
    exit 1
  fi
  # Thread-local storage of its own would show as a TLS symbol.
  if grep -Eq ' [bd] .*(_ZTH|_ZTW|tls)' "$symbols"; then
    echo "FAILED: the locator's fault path has thread-local storage"
    exit 1
  fi
done
echo "the locator's fault path refers to nothing outside itself"
