#!/usr/bin/env bash
# Builds the contenders that are not Bazel's, from crates.io.
#
#   bench/peers/build.sh DIRECTORY LIBFIRSTTOUCH SQLITE_GUEST
#
# Programs come into DIRECTORY/bin, modules into DIRECTORY/modules. Of a contender
# that cannot be built the reason is in DIRECTORY/left_out/NAME, and the others are
# built all the same. Nobody else's code is in this repository: what is mended is
# mended here, in a copy, and the name says so.
set -euo pipefail

here="$(dirname "$(readlink --canonicalize "$0")")"
mkdir -p "$1"/{bin,modules,left_out,lib,mended}
out="$(readlink --canonicalize "$1")"
# What an earlier run has built is no contender of this one.
rm -f "$out"/{left_out,bin}/*
export PATH="$PATH:$HOME/.cargo/bin" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$out/target}"

install -m 644 "$2" "$out/lib/libfirsttouch.so.1"
ln -sf libfirsttouch.so.1 "$out/lib/libfirsttouch.so"
export FIRSTTOUCH_LIB_DIR="$out/lib" LD_LIBRARY_PATH="$out/lib"
install -m 644 "$3" "$out/modules/sqlite_guest.wasm"
for module in guest rest; do
  wat2wasm "$here/$module.wat" -o "$out/modules/$module.wasm"
done

# build NAME CRATE-DIRECTORY [ARGUMENT...]: a program of a crate.
build() {
  local name="$1" crate="$2" log="$out/left_out/$1.log" package
  shift 2
  package="$(sed -n 's/^name = "\(.*\)"/\1/p' "$crate/Cargo.toml" | head -n 1)"
  echo "building $name" >&2
  if cargo build --release --locked --manifest-path="$crate/Cargo.toml" "$@" 2> "$log"; then
    install "$CARGO_TARGET_DIR/release/$package" "$out/bin/$name"
    rm "$log"
  else
    grep --max-count=1 '^error' "$log" > "$out/left_out/$name" ||
      tail -n 1 "$log" > "$out/left_out/$name"
    echo "left out: $name: $(cat "$out/left_out/$name")" >&2
  fi
}

# build_mended AS NAME CRATE VERSION FILE SED-SCRIPT [ARGUMENT...]: the program AS of our
# crate NAME, in a copy that builds with CRATE of that version, in which FILE is changed.
build_mended() {
  local as="$1"
  shift
  if mend "${@:1:5}" 2> "$out/left_out/$as.log"; then
    build "$as" "$out/mended/$1/peer" "${@:6}"
  else
    tail -n 1 "$out/left_out/$as.log" > "$out/left_out/$as"
    echo "left out: $as: $(cat "$out/left_out/$as")" >&2
  fi
}

mend() {
  local name="$1" crate="$2" version="$3" file="$4" script="$5" copy="$out/mended/$1"
  cargo fetch --quiet --locked --manifest-path="$here/$name/Cargo.toml" || return 1
  rm -rf "$copy" && mkdir -p "$copy" || return 1
  cp -r "$here/$name" "$copy/peer" || return 1
  cp "$here/peer.rs" "$copy/" || return 1
  cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$crate-$version" "$copy/$crate" ||
    return 1
  sed -i "$script" "$copy/$crate/$file" || return 1
  if cmp --quiet "$copy/$crate/$file" \
    "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$crate-$version/$file"; then
    echo "$0: nothing to mend in $crate $version: $file" >&2
    return 1
  fi
  printf '\n[patch.crates-io]\n%s = { path = "../%s" }\n' "$crate" "$crate" \
    >> "$copy/peer/Cargo.toml"
  # The same locked versions, of which one is the copy now.
  sed -i "/^name = \"$crate\"$/,/^$/{/^source = /d;/^checksum = /d}" "$copy/peer/Cargo.lock"
}

# The newest that Rust 1.95 builds; its own `rust-version` asks for more.
build wasmtime-50.0.1 "$here/wasmtime" --ignore-rust-version
# Its scan takes pages that nobody has touched for changed ones: they count as written.
build_mended wasmtime-50.0.1-scan-mended \
  wasmtime wasmtime 50.0.1 src/runtime/vm/sys/unix/pagemap.rs \
  's/\.category_mask(Categories::WRITTEN | Categories::PFNZERO | Categories::FILE)/&.category_anyof_mask(Categories::PRESENT | Categories::SWAPPED)/' \
  --ignore-rust-version
build wasmtime-firsttouch "$here/wasmtime-firsttouch"
# userfaultfd 0.4 refuses a kernel that offers an operation that it does not know,
# as each since 6.6 does.
build_mended wasmtime-0.33-ioctls-mended \
  wasmtime-0.33 userfaultfd 0.4.2 src/lib.rs \
  's/IoctlFlags::from_bits(register.ioctls).ok_or(Error::UnrecognizedIoctls(register.ioctls))/Ok(IoctlFlags::from_bits_truncate(register.ioctls))/'

# SQLite with a database in it, for all; and on wasm2c's own runtime.
for peer in "$out"/bin/wasmtime-[!0]*; do
  way=default
  [[ "$peer" == *firsttouch ]] && way=firsttouch
  [[ "$peer" == *scan-mended ]] && way=scan
  ! echo setup rows=20000 | "$peer" "$way" "$out/modules" > "$out/left_out/setup.log" || break
done
(
  mkdir -p "$out/wasm2c"
  cd "$out/wasm2c"
  wasm2c --module-name=sqlite "$out/modules/sqlite.wasm" -o sqlite.c
  {
    echo '#include "sqlite.h"'
    sed -n 's/^u32 \(Z_wasi.*\);$/u32 \1 { return 52; }/p; s/^void \(Z_wasi.*\);$/void \1 {}/p' sqlite.h
  } > wasi_stubs.c
  # The flags of integrations/wasm2c.
  gcc -std=gnu2x -O1 -w -fno-optimize-sibling-calls -frounding-math -fsignaling-nans \
    -I. -I/usr/share/wabt/wasm2c -I/usr/include -c \
    wasi_stubs.c sqlite.c /usr/share/wabt/wasm2c/wasm-rt-impl.c
  ln -sfn "$(dirname "$(dirname "$here")")" firsttouch
  g++ -std=c++20 -O2 -I. -I/usr/share/wabt/wasm2c -o "$out/bin/wasm2c-stock" \
    "$here/wasm2c_stock.cc" "$here/../readings.cc" wasi_stubs.o sqlite.o wasm-rt-impl.o -lm
) 2> "$out/left_out/wasm2c-stock.log" ||
  grep --max-count=1 error "$out/left_out/wasm2c-stock.log" > "$out/left_out/wasm2c-stock" ||
  tail -n 1 "$out/left_out/wasm2c-stock.log" > "$out/left_out/wasm2c-stock"
