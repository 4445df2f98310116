# Sourced by the scripts here: where the sources are, and which there are.

# Prints the files under a folder that the given arguments of find(1) select,
# each ended by a zero byte. Hidden folders but .ci, and what Bazel links into
# the workspace, do not count.
sources() {
  local root="$1"
  shift
  (
    cd "$root" &&
      find . -mindepth 1 \
        \( -type d \( -name '.?*' ! -name .ci -o -name node_modules \) -prune \) -o \
        -type f \( "$@" \) -print0 | sort -z
  )
}

CXX_FILES=(-name '*.h' -o -name '*.cc' -o -name '*.proto')
BAZEL_FILES=(-name BUILD -o -name BUILD.bazel -o -name '*.BUILD' -o -name WORKSPACE
  -o -name 'WORKSPACE.*' -o -name MODULE.bazel -o -name '*.bzl')
