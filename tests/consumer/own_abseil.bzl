"""Stands for a codebase's own copy of abseil.

There is no second abseil on the machine to be had, so this is the system's once
more, with a mark: whatever is compiled against it has CONSUMER_OWNS_ABSEIL
defined. The test looks for the mark in the commands that compile firsttouch.
"""

# The names of abseil's targets.
load("@firsttouch//bazel/third_party:absl.bzl", "ABSL_PACKAGES")

_LIBRARY = """
cc_library(
    name = "{name}",
    defines = ["CONSUMER_OWNS_ABSEIL"],
    linkopts = ["-Wl,--start-group"] + {libraries} + ["-Wl,--end-group"],
    visibility = ["//visibility:public"],
)
"""

def _own_abseil_impl(ctx):
    result = ctx.execute(["sh", "-c", "ls /usr/lib/*/libabsl_*.a"])
    if result.return_code:
        fail("libabsl-dev is not installed: " + result.stderr)
    libraries = ["-l:" + path.split("/")[-1] for path in result.stdout.split("\n") if path]
    ctx.file("WORKSPACE", "")
    for package, names in ABSL_PACKAGES.items():
        ctx.file(package + "/BUILD.bazel", "".join([
            _LIBRARY.format(name = name, libraries = repr(libraries))
            for name in names
        ]))

own_abseil = repository_rule(implementation = _own_abseil_impl)
