#!/bin/bash
# generated_code_test.sh <describe_module> <wasm-rt.h> <frames.awk>
#
# What the compiler and the linker refuse of generated code, and what
# describe_module says of modules that wasm2c does not translate.
set -euo pipefail
describe=$PWD/$1
include=$PWD/$(dirname "$2")
awk=$PWD/$3
cd "$TEST_TMPDIR"

fail() {
  echo "FAILED: $1" >&2
  exit 1
}

# expect <text> <command>...: the command fails, and says so.
expect() {
  local text=$1
  shift
  if "$@" > output 2>&1; then fail "$* succeeded"; fi
  grep -qF -- "$text" output || {
    cat output >&2
    fail "$* does not say '$text'"
  }
}

# translate <name>: from <name>.wat to raw/<name>.c and <name>.c.
translate() {
  mkdir -p raw
  wat2wasm "$1.wat" -o "$1.wasm"
  wasm2c --module-name="$1" "$1.wasm" -o "raw/$1.c"
  "$describe" "$1.wasm" "raw/$1.h" "raw/$1.c" "$1.h" "$1.firsttouch.h" \
    "$1.h" "$1.c"
}

# A frame that the runtime's reserve does not cover.
awk -v locals=2600 -f "$awk" > huge.wat
translate huge
expect "is larger than 16384 bytes" gcc -O1 -I"$include" -c huge.c
if [ -x /usr/bin/clang ]; then
  expect "exceeds limit" clang -O1 -Wframe-larger-than=16384 \
    -Werror=frame-larger-than -I"$include" -c huge.c
fi

# The header of wabt's own runtime, taken for ours.
echo '(module (memory 1) (func (export "f") (unreachable)))' > small.wat
translate small
gcc -O1 -I"$include" -c small.c
mkdir -p stock
cat > stock/wasm-rt.h << 'END'
#include "/usr/src/wasm2c/wasm-rt.h"
END
expect "this is not firsttouch's wasm-rt.h" gcc -O1 -Istock -c small.c
# Nor does code that was not mended link: the names differ.
nm small.o > names
grep -q ' U firsttouch_wasm_rt_trap' names || fail "names are not our own"
if grep ' U wasm_rt_' names | grep -qv 'wasm_rt_stack_limit$'; then
  fail "names of wabt's runtime are used"
fi
expect "compile without -ffast-math" gcc -O1 -ffast-math -I"$include" -c small.c

# What wasm2c does not translate: it aborts, or says nothing of use.
check() {
  wat2wasm --enable-all "$1.wat" -o "$1.wasm"
  expect "$2" "$describe" --check "$1.wasm"
}
echo '(module (func (param i32) (result i32)
  (i32x4.extract_lane 0 (i32x4.splat (local.get 0)))))' > simd.wat
check simd "function 0 uses i32x4.splat: wasm2c 1.0.32 does not translate SIMD"
echo '(module (import "env" "memory" (memory 1 2 shared)))' > threads.wat
check threads "imported memory env.memory is shared: wasm2c 1.0.32 does not \
translate threads"
echo '(module (memory i64 1))' > wide.wat
check wide "memory 0 has 64-bit addresses: wasm2c 1.0.32 does not translate \
memory64"
echo '(module (func $f (return_call $f)))' > tail.wat
check tail "function 0 uses return_call: wasm2c 1.0.32 does not translate tail \
calls"
{
  printf '(module (type (func'
  for _ in $(seq 1001); do printf ' (param i32)'; done
  echo ')))'
} > wide_type.wat
check wide_type "type 0 has 1001 parameters: a guest's function may have 1000"
echo "no module" > none.wasm
expect "describe_module: none.wasm: wabt: " "$describe" --check none.wasm
