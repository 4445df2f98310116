"""Modules of npm as they are shipped, as guests."""

load("@rules_cc//cc:defs.bzl", "cc_test")
load("//bazel:copts.bzl", "FIRSTTOUCH_TEST_COPTS")
load("//integrations/wasm2c:wasm2c.bzl", "wasm2c_guest")

def npm_guest_test(name, wasm, tags):
    """Runs steps/<name>.txt with a module, here and in wabt's interpreter.

    Args:
      name: the test is <name>_test.
      wasm: the module.
      tags: of all that is built for it.
    """
    wasm2c_guest(
        name = name,
        testonly = True,
        tags = tags,
        wasm = wasm,
    )
    native.genrule(
        name = name + "_host",
        testonly = True,
        srcs = [
            "steps/%s.txt" % name,
            # <name>.firsttouch.h and <name>.h.
            name + ".headers",
        ],
        outs = [name + "_host.cc"],
        cmd = "headers=($(locations %s.headers)); " % name +
              "for header in $${headers[@]}; do case $$header in *.firsttouch.h) ;; *) generated=$$header ;; esac; done; " +
              "/usr/bin/python3 -B $(location host.py) $(location steps/%s.txt) $$generated %s/%s.firsttouch.h > $@" %
              (name, native.package_name(), name),
        tags = tags,
        tools = ["host.py"],
    )
    cc_test(
        name = name + "_test",
        size = "small",
        srcs = [name + "_host"],
        args = ["$(rootpath %s)" % wasm],
        copts = FIRSTTOUCH_TEST_COPTS,
        data = [wasm],
        tags = tags,
        deps = [
            name,
            ":npm_guest",
            "//integrations/wasm2c:any_guest",
            "//integrations/wasm2c:wasi",
            "@com_google_googletest//:gtest_main",
        ],
    )
