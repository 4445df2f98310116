#!/usr/bin/env bash
# Installs the package into an empty root, and builds and runs the quickstart from
# there, as somebody does who has neither Bazel nor the sources.
#
#   install_test.sh <archive.tar.gz> <package.deb> <CMakeLists.txt> <what>
#
# What: files, c, static, cmake, python, rust.
set -euo pipefail

tarball="$1"
deb="$2"
cmake_lists="$3"
what="$4"

fail() {
  echo "install_test: $*" >&2
  exit 1
}

source bazel/skip.sh

root="$TEST_TMPDIR/root"
other="$TEST_TMPDIR/other"
mkdir "$root" "$other"
tar --extract --file="$tarball" --directory="$root"
lib="$root/usr/lib/$(gcc -print-multiarch)"
examples="$root/usr/share/doc/firsttouch/examples"
export PKG_CONFIG_PATH="$lib/pkgconfig" LD_LIBRARY_PATH="$lib"

# Holds the output of a program to what the quickstart prints.
expect_quickstart() {
  local output
  output="$("$@")" || fail "$* failed: $output"
  diff - <(echo "$output") << 'END' || fail "$* printed something else"
tenant 1 reads "hello"
tenant 2 reads "hello"
tenant 3 reads "hello"
tenant 3 trapped at offset 1048576
END
}

# The same files by either way; what they must be; a page for each function.
test_files() {
  dpkg-deb --extract "$deb" "$other"
  diff --recursive "$root" "$other" || fail "the archive and the package differ"
  local depends
  depends="$(dpkg-deb --field "$deb" Depends)"
  for package in libabsl libc6 libprotobuf libssl libstdc++6; do
    [[ "$depends" == *"$package"* ]] || fail "the package does not depend on $package: $depends"
  done
  [[ "$(readlink "$lib/libfirsttouch.so")" == libfirsttouch.so.1 ]] ||
    fail "libfirsttouch.so leads to $(readlink "$lib/libfirsttouch.so")"
  [[ -s "$root/usr/share/doc/firsttouch/copyright" ]] || fail "no licence"
  for function in $(nm --dynamic --defined-only "$lib/libfirsttouch.so" |
    sed -n 's/.* T \(ft_[a-z0-9_]*\)@.*/\1/p'); do
    zgrep --quiet . "$root/usr/share/man/man3/$function.3.gz" ||
      fail "$function has no man page"
    grep --quiet "^### .*\<$function\>" "$root/usr/share/doc/firsttouch/c-api.md" ||
      fail "$function is not in c-api.md"
  done
  if command -v groff > /dev/null; then
    local page
    for page in "$root"/usr/share/man/man?/*.gz; do
      [[ -z "$(zcat "$page" | sed '/^\.so /d' | groff -man -Tascii -ww 2>&1 > /dev/null)" ]] ||
        fail "groff warns of $page"
    done
  fi
}

test_c() {
  # shellcheck disable=SC2046  # Options.
  gcc -std=c99 -pedantic -Wall -Wextra -Werror "$examples/quickstart.c" \
    -o "$TEST_TMPDIR/quickstart" $(pkg-config --cflags --libs firsttouch)
  expect_quickstart "$TEST_TMPDIR/quickstart"
}

# The archive: beside the system's shared libraries, and all of it in one program.
test_static() {
  # shellcheck disable=SC2046
  gcc "$examples/quickstart.c" -o "$TEST_TMPDIR/beside" $(pkg-config --cflags firsttouch) \
    "$lib/libfirsttouch.a" $(pkg-config --static --libs firsttouch | sed 's/-lfirsttouch//')
  ! readelf --dynamic "$TEST_TMPDIR/beside" | grep libfirsttouch || fail "not static"
  expect_quickstart "$TEST_TMPDIR/beside"
  # shellcheck disable=SC2046
  gcc -static "$examples/quickstart.c" -o "$TEST_TMPDIR/all" \
    $(pkg-config --static --cflags --libs firsttouch)
  expect_quickstart "$TEST_TMPDIR/all"
}

test_cmake() {
  command -v cmake > /dev/null || skip "$what" "there is no cmake (package cmake)"
  mkdir "$TEST_TMPDIR/project"
  cp "$cmake_lists" "$examples/quickstart.c" "$TEST_TMPDIR/project"
  cmake -S "$TEST_TMPDIR/project" -B "$TEST_TMPDIR/build" -DCMAKE_PREFIX_PATH="$root/usr"
  cmake --build "$TEST_TMPDIR/build"
  expect_quickstart "$TEST_TMPDIR/build/with_firsttouch"
  expect_quickstart "$TEST_TMPDIR/build/with_static"
}

test_python() {
  expect_quickstart python3 -B "$examples/quickstart.py" "$lib/libfirsttouch.so.1"
}

test_rust() {
  local home rustc
  home="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
  export HOME="$home"  # where rustup keeps its compilers
  rustc="$(PATH="$PATH:$home/.cargo/bin" command -v rustc)" ||
    skip "$what" "there is no rustc on the PATH or in $home/.cargo/bin"
  "$rustc" "$examples/quickstart.rs" -D warnings -L "$lib" -l firsttouch \
    -o "$TEST_TMPDIR/quickstart"
  expect_quickstart "$TEST_TMPDIR/quickstart"
}

"test_$what"
