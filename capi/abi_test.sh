#!/usr/bin/env bash
# Compares what programs are compiled against with the file that has it.
#
#   abi_test.sh <read_header.py> <header> <library> <golden file>
set -euo pipefail

exec python3 -B "$1" "$2" abi "$3" "$4"
