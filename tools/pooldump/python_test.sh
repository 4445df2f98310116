#!/usr/bin/env bash
# python_test.sh NAME: runs NAME.py on the programs.
set -euo pipefail

exec python3 "tools/pooldump/$1.py" tools/pooldump/pooldump \
  tools/pooldump/testing/pool_maker
