"""What no registry of modules has, for MODULE.bazel."""

load("//bazel:npm_packages.bzl", "npm_packages")

def _none_exists(_name):
    return False

def _npm_impl(_module_ctx):
    npm_packages(exists = _none_exists)

npm = module_extension(implementation = _npm_impl)
