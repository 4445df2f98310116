"""The shell rule that this Bazel has built in, under its newer address."""

sh_library = native.sh_library
