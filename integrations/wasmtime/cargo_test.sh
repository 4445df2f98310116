#!/usr/bin/env bash
# Builds this crate and its tests by cargo, and runs them.
#
#   cargo_test.sh <Cargo.toml> <libfirsttouch.so> <firsttouch.h>
set -euo pipefail

source="$(dirname "$(readlink --canonicalize "$1")")"
library="$(readlink --canonicalize "$2")"
header="$(readlink --canonicalize "$3")"

source bazel/skip.sh

# rustup keeps compilers, and cargo the crates' archives, in the home.
home="$(getent passwd "$(id -u)" | cut -d: -f6)"
export HOME="$home" PATH="$PATH:$home/.cargo/bin"
command -v cargo > /dev/null ||
  skip wasmtime "there is no cargo on the PATH or in $home/.cargo/bin"
wanted="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$source/Cargo.toml")"
has="$(rustc --version | cut -d' ' -f2)"
[[ "$(printf '%s\n' "$wanted" "$has" | sort --version-sort | head -n 1)" == "$wanted" ]] ||
  skip wasmtime "rustc is $has, and $wanted is needed"

# What cargo builds lies in Bazel's output base, so that the next run only builds
# what has changed, and `bazel clean --expunge` removes it. The library is always at
# the same place there: a new one is no reason to build anything.
kept="${TEST_TMPDIR%/execroot/*}/firsttouch_cargo"
mkdir -p "$kept/lib"
install -m 644 "$library" "$kept/lib/libfirsttouch.so.1"
ln -sf libfirsttouch.so.1 "$kept/lib/libfirsttouch.so"
export CARGO_TARGET_DIR="$kept/target"
export FIRSTTOUCH_LIB_DIR="$kept/lib" FIRSTTOUCH_INCLUDE_DIR="${header%/*}"
# What it has cost is in the log.
time cargo test --locked --manifest-path="$source/Cargo.toml"
