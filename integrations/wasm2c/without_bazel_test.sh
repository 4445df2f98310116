#!/bin/bash
# without_bazel_test.sh <describe_module> <libfirsttouch_guests.so> <a file in
#     integrations/wasm2c of the checkout>
#
# Does what README.md says under "Without Bazel", to the end.
set -euo pipefail
describe=$(readlink -f "$1")
library=$(readlink -f "$2")
FT=$(readlink -f "$3")
FT=${FT%/integrations/wasm2c/*}
bin=$(dirname "$library")
data=$FT/integrations/wasm2c/testdata
cd "$TEST_TMPDIR"

mkdir -p raw include
ln -s "$FT" include/firsttouch
clang --target=wasm32-wasi -mexec-model=reactor -O2 -o app.wasm \
  "$data/by_hand_guest.c"
"$describe" --check app.wasm
wasm2c --module-name=app app.wasm -o raw/app.c
"$describe" app.wasm raw/app.h raw/app.c app.h app.firsttouch.h app.h app.c
gcc -O1 -fno-optimize-sibling-calls -frounding-math -fsignaling-nans \
  -I"$FT/integrations/wasm2c/include" -c app.c
# shellcheck disable=SC2046  # One word an option.
g++ -std=c++20 -O1 -I. -Iinclude -I"$FT/integrations/wasm2c/include" \
  -o host "$data/by_hand_host.cc" app.o -L"$bin" -Wl,-rpath,"$bin" \
  -lfirsttouch_guests \
  $(pkg-config --libs absl_status absl_statusor absl_strings)
./host > output
cat output
if grep -q "no service here" output; then exit 0; fi
diff output - << 'END'
firsttouch: 2
the guest exited with code 3
wasm: 0
the guest exited with code 3
END
