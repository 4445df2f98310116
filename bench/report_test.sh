#!/usr/bin/env bash
# Runs report_test.py, where userfaultfd is allowed.
set -euo pipefail
source bazel/skip.sh

echo check | bench/peers/native firsttouch | grep --quiet '"supply":"userfaultfd' ||
  skip report "userfaultfd is refused here"
exec python3 -B bench/report_test.py
