#!/usr/bin/env bash
# Formats every source of the tree: ./bazelw run //bazel:format
set -euo pipefail

buildifier="$(readlink --canonicalize "$1")"
# Bazel runs a link to this file, which has nothing beside it.
# shellcheck source=bazel/lint/sources.sh
source "$(dirname "$(readlink --canonicalize "$0")")/sources.sh"
cd "${BUILD_WORKSPACE_DIRECTORY:?is set by bazel run, which is how this is meant to be run}"

sources . "${CXX_FILES[@]}" | xargs -0 --no-run-if-empty clang-format --style=file -i
sources . "${BAZEL_FILES[@]}" | xargs -0 --no-run-if-empty "$buildifier" --mode=fix --lint=off
