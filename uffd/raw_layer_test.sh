#!/bin/bash
# The raw layer is async-signal-safe: its object files call nothing but each
# other. Whoever adds a libc call, an allocation or thread-local storage to it
# fails here, with the name of what was called.
set -u -o pipefail

# What may be undefined: type information and the destruction of a static
# object (never on the fault path), the stack protector, our own names.
allowed='^(_ZTVN10__cxxabiv1.*|_ZdlPvm?|__cxa_atexit|__dso_handle|__cxa_pure_virtual|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|_ZT[VIS]N10firsttouch.*|_ZN10firsttouch.*|_ZNK10firsttouch.*|__gxx_personality_v0|memset|memcpy)$'

checked=0
bad=0
for file in "$@"; do
  case "${file}" in
    # What this package's files may call beside that, as a regular expression.
    --allow=*) allowed="${allowed}|${file#--allow=}" ;;
  esac
  case "${file}" in
    *.a) ;;
    *) continue ;;
  esac
  if [[ ! -r "${file}" ]]; then
    echo "${file} is not there to be looked at" >&2
    exit 1
  fi
  checked=$((checked + 1))
  while read -r symbol; do
    if [[ ! "${symbol}" =~ ${allowed} ]]; then
      echo "${file} calls ${symbol}, which the fault path may not" >&2
      bad=1
    fi
  done < <(nm --undefined-only --format=posix "${file}" | grep ' U ' |
    cut -d' ' -f1)
done

if [[ "${checked}" -lt 3 ]]; then
  echo "expected three archives, found ${checked} in: $*" >&2
  exit 1
fi
exit "${bad}"
