#!/usr/bin/env bash
# Builds this library and its peers, measures them in turns, and writes report.json,
# report.html and report.md.
#
#   bench/report.sh [--quick] [--rows=PART-OF-A-NAME,...] [--rounds=N] [--list]
#
# They come into FIRSTTOUCH_REPORT_DIR, or ~/.cache/firsttouch-report, with all that is
# built. A row of the same commit that is in its folder `rows` is not measured again, so a
# run that was interrupted goes on where it was. Without cargo,
# `./bazelw run -c opt //bench:report` measures the contenders in C++ and prints tables;
# it runs this script with the folder of the programs as its first argument.
# bench/peers/README.md has the rest.
set -euo pipefail

[[ "${1:-}" != --programs=* ]] || exec python3 -B bench/report.py "$@"
root="$(dirname "$(dirname "$(readlink --canonicalize "$0")")")"
out="${FIRSTTOUCH_REPORT_DIR:-$HOME/.cache/firsttouch-report}"
mkdir -p "$out"
cd "$root"

./bazelw build -c opt //bench:peers/native //capi:libfirsttouch.so \
  //examples:sqlite_guest >&2
bin="$(./bazelw info -c opt bazel-bin 2> /dev/null)"
bench/peers/build.sh "$out/build" "$bin/capi/libfirsttouch.so" \
  "$bin/examples/sqlite_guest.wasm"

if [[ ! -x "$out/venv/bin/python" ]]; then
  python3 -m venv "$out/venv"
  "$out/venv/bin/pip" install --quiet --requirement bench/report_requirements.txt
fi
exec "$out/venv/bin/python" -B bench/report.py --build="$out/build" \
  --programs="$bin/bench/peers" --out="$out" \
  --commit="$(git describe --always --dirty 2> /dev/null || echo unknown)" "$@"
