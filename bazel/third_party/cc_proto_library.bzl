"""The rule that this Bazel has built in, under its newer address."""

cc_proto_library = native.cc_proto_library
