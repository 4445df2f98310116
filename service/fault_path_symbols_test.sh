#!/bin/bash
# The fault path is a closed room: all that its object files need and do not
# have among themselves is in a list, and each entry of the list is needed.
#
#   fault_path_symbols_test.sh LIST ARCHIVE...
#
# LIST has a symbol a line; behind it "?" where only some compilers or options
# need it, and "#" and why it may be there. Whoever adds a call to libc, to a
# lock or an allocation, or to a function of ours in another file, fails here,
# with the name of what is called; so does thread-local storage.
set -u -o pipefail

list="$1"
shift
archives=()
for file in "$@"; do
  [[ "${file}" == *.a ]] && archives+=("${file}")
done
for archive in "${archives[@]}"; do
  if [[ ! -r "${archive}" ]]; then
    echo "${archive} is not there to be looked at" >&2
    exit 1
  fi
done
if [[ "${#archives[@]}" -lt 10 ]]; then
  echo "expected ten archives or more, found ${#archives[@]} in: $*" >&2
  exit 1
fi

names() { nm "$1" --format=posix "${archives[@]}" 2>/dev/null | grep -E "$2" |
  cut -d' ' -f1 | sort -u; }
needed="$(comm -23 <(names --undefined-only ' [Uw] ?') <(names --defined-only ' [A-Z] '))"
allowed="$(sed -e 's/#.*//' "${list}" | grep -v '^[[:space:]]*$')"

bad=0
while read -r symbol; do
  if ! grep -qxE "$(printf '%s' "${symbol}" | sed 's/[.[\*^$+(){}|]/\\&/g')[[:space:]]*[?]?[[:space:]]*" <<<"${allowed}"; then
    echo "the fault path calls ${symbol}, which is not in ${list}:" >&2
    for archive in "${archives[@]}"; do
      if nm --undefined-only --format=posix "${archive}" 2>/dev/null |
        grep -q "^${symbol} "; then
        echo "  ${archive}" >&2
      fi
    done
    bad=1
  fi
done <<<"${needed}"
while read -r symbol mark; do
  if [[ "${mark}" != "?" ]] && ! grep -qxF "${symbol}" <<<"${needed}"; then
    echo "${list} has ${symbol}, which nothing needs any more" >&2
    bad=1
  fi
done <<<"${allowed}"
for archive in "${archives[@]}"; do
  if objdump -h "${archive}" | grep -qE '[[:space:]]\.t(bss|data)'; then
    echo "${archive} has thread-local storage" >&2
    bad=1
  fi
done
exit "${bad}"
