"""The rule that this Bazel has built in, under its newer address."""

proto_library = native.proto_library
