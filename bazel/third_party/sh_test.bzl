"""The shell rule that this Bazel has built in, under its newer address."""

sh_test = native.sh_test
