"""Scripts of WebAssembly's test suite as a test."""

load("@rules_cc//cc:defs.bzl", "cc_library", "cc_test")
load("//bazel:copts.bzl", "FIRSTTOUCH_TEST_COPTS")
load("//integrations/wasm2c:wasm2c.bzl", "GENERATED_COPTS")

# Generated files quote names of exports, which the suite chooses to be strange.
# (clang does not know the warning.)
_ANY_NAMES = [
    "-Wno-bidi-chars",
    "-Wno-unknown-warning-option",
]

# Bazel 4.2.3 hands objects of a folder to the linker as ones that nobody may
# need, and none is linked. So they are put into archives.
_FOLDERS = ["-supports_start_end_lib"]

def _spec_scripts_impl(ctx):
    name = ctx.label.name
    code = ctx.actions.declare_directory(name + ".c")
    programs = ctx.actions.declare_directory(name + ".cc")
    ctx.actions.run(
        executable = "/usr/bin/python3",
        arguments = [
            "-B",
            ctx.file._translate.path,
            "--describe=" + ctx.executable._describe_module.path,
            "--spectest=" + ctx.file._spectest.path,
            "--code=" + code.path,
            "--programs=" + programs.path,
        ] + [script.path for script in ctx.files.scripts],
        inputs = ctx.files.scripts + [ctx.file._translate, ctx.file._spectest],
        tools = [ctx.executable._describe_module],
        outputs = [code, programs],
        mnemonic = "SpecScripts",
        progress_message = "Translating the scripts of %s" % ctx.label,
        # For wabt's programs.
        env = {"PATH": "/usr/bin:/bin"},
    )
    return [
        DefaultInfo(files = depset([code, programs])),
        OutputGroupInfo(
            code = depset([code]),
            programs = depset([programs]),
        ),
    ]

_spec_scripts = rule(
    implementation = _spec_scripts_impl,
    attrs = {
        "scripts": attr.label_list(allow_files = [".wast"], mandatory = True),
        "_describe_module": attr.label(
            default = "//integrations/wasm2c:describe_module",
            executable = True,
            cfg = "exec",
        ),
        "_spectest": attr.label(
            default = ":spectest.h",
            allow_single_file = True,
        ),
        "_translate": attr.label(
            default = ":translate.py",
            allow_single_file = True,
        ),
    },
)

def spec_suite_test(name, scripts, tags, **kwargs):
    """Runs scripts on each way to supply memory.

    Args:
      name: of the test.
      scripts: .wast files.
      tags: of all that is built for it.
      **kwargs: of cc_test.
    """
    generated = name + ".scripts"
    _spec_scripts(
        name = generated,
        testonly = True,
        scripts = scripts,
        tags = tags,
    )
    for group in ["code", "programs"]:
        native.filegroup(
            name = name + "." + group,
            testonly = True,
            srcs = [generated],
            output_group = group,
            tags = tags,
        )
    cc_library(
        name = name + ".modules",
        testonly = True,
        srcs = [name + ".code"],
        features = _FOLDERS,
        linkstatic = True,
        copts = GENERATED_COPTS + _ANY_NAMES,
        tags = tags,
        deps = ["//integrations/wasm2c:wasm_rt"],
    )
    cc_library(
        name = name + ".compiled",
        testonly = True,
        srcs = [name + ".programs"],
        features = _FOLDERS,
        linkstatic = True,
        copts = FIRSTTOUCH_TEST_COPTS + _ANY_NAMES,
        tags = tags,
        deps = [
            name + ".modules",
            ":spec_suite",
        ],
        alwayslink = True,
    )
    cc_test(
        name = name,
        features = _FOLDERS,
        tags = tags,
        deps = [
            name + ".compiled",
            "@com_google_googletest//:gtest_main",
        ],
        **kwargs
    )
