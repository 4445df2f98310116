#!/usr/bin/env bash
set -euo pipefail
exec python3 -B tests/completions/completions_test.py "$@"
