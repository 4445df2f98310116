#!/usr/bin/env bash
# See watch_test.py.
set -euo pipefail

exec python3 tools/pooldump/watch_test.py tools/pooldump/pooldump \
  tools/pooldump/testing/pool_maker
