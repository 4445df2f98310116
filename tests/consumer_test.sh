#!/usr/bin/env bash
# Builds and runs tests/consumer, a workspace that takes this one as an external
# repository, in a copy of the source tree.
#
#   consumer_test.sh <a file in the top folder>
set -euo pipefail

root="$(dirname "$(readlink --canonicalize "$1")")"

# What Bazel keeps lies in the outer Bazel's output base, so that the next run
# only builds what has changed, and `bazel clean --expunge` removes it.
kept="${TEST_TMPDIR%/execroot/*}/firsttouch_consumer"
copy="$kept/source"
rm -rf "$copy"
mkdir -p "$copy"
tar --directory="$root" --create --exclude=./.git --exclude='./bazel-*' . |
  tar --directory="$copy" --extract

fail() {
  echo "consumer_test: $*" >&2
  exit 1
}

# No server is left behind, and no option of the user's comes in.
export HOME="$TEST_TMPDIR"
unset TEST_TMPDIR
consumer_bazel() {
  local command="$1"
  shift
  (cd "$copy/tests/consumer" &&
    bazel --nohome_rc --batch --output_base="$kept/output" \
      "$command" --color=no --noshow_progress --symlink_prefix=/ "$@")
}

# It builds, and the program works.
output="$(consumer_bazel run //:greeting)" || fail "the program failed"
printf '%s\n' "$output"
[[ "$output" == $'good morning\ngood morning' ]] ||
  fail "expected two good mornings, each tenant's first sight of its memory"

# So does one that takes the parts with libraries of their own.
output="$(consumer_bazel run //:module)" || fail "the other program failed"
printf '%s\n' "$output"
[[ "$output" == 'good morning' ]] || fail "expected the module's data segment"

# firsttouch itself was compiled against the consumer's own abseil, without our
# warnings as errors, and with no language standard but the consumer's.
commands="$(consumer_bazel aquery \
  'mnemonic("CppCompile", deps(@firsttouch//:firsttouch))')"
# Of Bazel's toolchain, whatever it is.
commands="$(grep --fixed-strings -e '-c ' <<< "${commands//\\$'\n'/ }" |
  grep --fixed-strings 'external/firsttouch/' || true)"
[[ -n "$commands" ]] || fail "found no command that compiles firsttouch"
echo "$(wc -l <<< "$commands") commands compile firsttouch"
! grep --fixed-strings -e '-Werror' <<< "$commands" ||
  fail "-Werror reaches whoever depends on us"
grep --quiet --fixed-strings -e '-DCONSUMER_OWNS_ABSEIL' <<< "$commands" ||
  fail "firsttouch was not compiled against the consumer's own abseil"
! grep --only-matching -e '-std=[^ '"'"']*' <<< "$commands" |
  grep --invert-match --line-regexp -e '-std=c++20' -e '-std=c++0x' ||
  fail "a language standard that the consumer did not ask for"

# Everything but the one target is private.
cat >> "$copy/tests/consumer/BUILD.bazel" << 'END'

cc_binary(
    name = "trespasser",
    srcs = ["greeting.cc"],
    deps = ["@firsttouch//pool:layout"],
)
END
if output="$(consumer_bazel build --nobuild //:trespasser 2>&1)"; then
  fail "@firsttouch//pool:layout can be depended on from outside"
fi
[[ "$output" == *"is not visible from target"* ]] ||
  fail "expected the target not to be visible, got: $output"
