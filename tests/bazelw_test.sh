#!/usr/bin/env bash
# Tests bazelw on machines of all kinds: dpkg-query, apt-get, sudo, id and bazel
# are stand-ins here that note how they were called.
#
#   bazelw_test.sh <bazelw>
set -euo pipefail

bazelw="$(readlink --canonicalize "$1")"
root="$(dirname "$bazelw")"

failures=0
fail() {
  echo "$current: $*" >&2
  sed 's/^/  stdout: /' "$machine/stdout" >&2
  sed 's/^/  stderr: /' "$machine/stderr" >&2
  sed 's/^/  call: /' "$machine/calls" >&2
  failures=$((failures + 1))
}

# A fresh machine on which the packages in $1 are not installed, for user id $2.
new_machine() {
  current="$1"
  machine="$TEST_TMPDIR/$1"
  mkdir -p "$machine/bin" "$machine/missing"
  : > "$machine/calls"
  local package
  for package in $2; do : > "$machine/missing/$package"; done

  # The system's own tools, but none of those that bazelw asks for what to do.
  local tool
  for tool in bash cut dirname env getent true; do ln -s "$(type -P "$tool")" "$machine/bin/$tool"; done
  program bazel 'printf "bazel in %s:" "$PWD"; printf " <%s>" "$@"; echo'
  program id "echo $3"
  program dpkg-query '
    echo "dpkg-query" >> "$MACHINE/calls"
    status=0
    for argument in "$@"; do
      case "$argument" in
        --*) ;;
        *) if [[ -e "$MACHINE/missing/$argument" ]]; then status=1; else printf "%s:installed " "$argument"; fi ;;
      esac
    done
    exit "$status"'
  program apt-get '
    echo "apt-get $*, $DEBIAN_FRONTEND" >> "$MACHINE/calls"
    echo "noise of apt"
    [[ ! -e "$MACHINE/apt_fails" ]] || exit 100
    case " $* " in
      *" update "*) : > "$MACHINE/updated" ;;
      *) [[ ! -e "$MACHINE/no_lists" || -e "$MACHINE/updated" ]] || exit 100
         for argument in "$@"; do rm="$MACHINE/missing/$argument"; [[ ! -e "$rm" ]] || '"$(command -v rm)"' "$rm"; done ;;
    esac'
}

program() {
  printf '#!%s\nset -u\n%s\n' "$(command -v bash)" "$2" > "$machine/bin/$1"
  chmod +x "$machine/bin/$1"
}

# Runs bazelw there with the arguments; its exit code goes to $status.
run() {
  status=0
  (cd "${directory:-$root}" && exec env -i HOME=/nowhere MACHINE="$machine" PATH="$machine/bin" \
    "${environment[@]}" "$bazelw" "$@") \
    > "$machine/stdout" 2> "$machine/stderr" < /dev/null || status=$?
}
environment=()
directory=""

# Compares, and says so if they differ.
expect() {
  [[ "$2" == "$3" ]] || fail "$1 is '$2', not '$3'"
}
expect_in() {
  [[ "$(cat "$machine/$1")" == *"$2"* ]] || fail "no '$2' in $1"
}
out() { cat "$machine/stdout"; }
err() { cat "$machine/stderr"; }

new_machine everything_is_there "" 1000
run test "//a:b" "two words" --x="*"
expect status "$status" 0
expect stdout "$(out)" "bazel in $root: <test> <//a:b> <two words> <--x=*>"
expect stderr "$(err)" ""
expect calls "$(cat "$machine/calls")" "dpkg-query"

new_machine bazel_s_exit_code_is_ours "" 1000
program bazel 'exit 37'
run build
expect status "$status" 37

new_machine called_from_elsewhere "" 1000
directory="$TEST_TMPDIR"
run info
directory=""
expect stdout "$(out)" "bazel in $root: <info>"

new_machine root_installs "libabsl-dev wabt" 0
run run //x -- --format=json
expect status "$status" 0
expect stdout "$(out)" "bazel in $root: <run> <//x> <--> <--format=json>"
expect_in stderr "bazelw: installing libabsl-dev wabt"
expect_in stderr "noise of apt"
expect_in calls "install --no-install-recommends libabsl-dev wabt, noninteractive"

new_machine a_user_with_sudo_installs "clang" 1000
program sudo 'echo "sudo $*" >> "$MACHINE/calls"; [[ "$1" != -n ]] || shift; exec "$@"'
run build
expect status "$status" 0
expect_in calls "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get"
expect_in calls "install --no-install-recommends clang, noninteractive"

new_machine a_user_without_sudo_is_told "libre2-dev lld" 1000
run build
expect status "$status" 1
expect stdout "$(out)" ""
expect_in stderr "you are not root and there is no sudo"
expect_in stderr "These Debian packages are missing: libre2-dev lld"
expect_in stderr "  apt-get update && apt-get install -y --no-install-recommends libre2-dev lld"

new_machine a_user_with_a_sudo_that_refuses_is_told "lld" 1000
program sudo 'exit 1'
run build
expect status "$status" 1
expect stdout "$(out)" ""
expect_in stderr "you are not root and sudo refused"
expect_in stderr "missing: lld"

new_machine lists_that_are_not_there_are_fetched "wabt" 0
: > "$machine/no_lists"
run build
expect status "$status" 0
expect stdout "$(out)" "bazel in $root: <build>"
expect_in calls " update, noninteractive"

new_machine an_apt_that_fails_is_named "wabt" 0
: > "$machine/apt_fails"
run build
expect status "$status" 1
expect stdout "$(out)" ""
expect_in stderr "apt-get failed; what it said is above"
expect_in stderr "missing: wabt"

new_machine an_apt_that_lies_is_found_out "wabt" 0
program apt-get 'exit 0'
run build
expect status "$status" 1
expect_in stderr "apt-get succeeded, and yet packages are missing"

new_machine bazel_itself_is_installed "bazel-bootstrap" 0
mv "$machine/bin/bazel" "$machine/bazel"
program apt-get 'echo "$*" >> "$MACHINE/calls"; '"$(command -v rm)"' "$MACHINE/missing/bazel-bootstrap"
  '"$(command -v mv)"' "$MACHINE/bazel" "$MACHINE/bin/bazel"'
run version
expect status "$status" 0
expect stdout "$(out)" "bazel in $root: <version>"
expect_in calls "bazel-bootstrap"

new_machine a_bazel_of_one_s_own "bazel-bootstrap" 1000
mv "$machine/bin/bazel" "$machine/bin/bazel-9"
environment=(BAZEL=bazel-9)
run version
expect status "$status" 0
expect stdout "$(out)" "bazel in $root: <version>"
environment=(BAZEL=bazel-10)
run version
expect status "$status" 1
expect_in stderr "BAZEL=bazel-10: no such program"

new_machine told_not_to_install "wabt" 0
environment=(FIRSTTOUCH_NO_INSTALL=1)
run build
environment=()
expect status "$status" 0
expect calls "$(cat "$machine/calls")" ""

new_machine not_debian "" 0
rm "$machine/bin/dpkg-query" "$machine/bin/apt-get"
run build
expect stdout "$(out)" "bazel in $root: <build>"
rm "$machine/bin/bazel"
run build
expect status "$status" 1
expect_in stderr "there is no Bazel on the PATH"
expect_in stderr "Bazel 4.2.3 or newer"

[[ "$failures" == 0 ]] || { echo "$failures failures" >&2; exit 1; }
