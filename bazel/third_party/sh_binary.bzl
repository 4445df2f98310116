"""The shell rule that this Bazel has built in, under its newer address."""

sh_binary = native.sh_binary
