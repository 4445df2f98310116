"""Compiles a library for aarch64, file by file, as an aspect and as a test.

The aspect makes a report for each source file of ours that the given targets
are made of, so that Bazel compiles again only what changed. Without the
compiler there are no reports, and the test skips itself.
"""

load("@rules_cc//cc:defs.bzl", "CcInfo")
load("//bazel:compile_flags.bzl", "compile_flags")

CrossCompileReportsInfo = provider(
    "What the compiler for aarch64 says of a target and all that it uses.",
    fields = {"files": "A depset of files, empty ones if it says nothing."},
)

def _cross_compile_aspect_impl(target, ctx):
    below = [
        dep[CrossCompileReportsInfo].files
        for dep in getattr(ctx.rule.attr, "deps", [])
        if CrossCompileReportsInfo in dep
    ]
    compiler = ctx.files._compiler
    if CcInfo not in target or target.label.workspace_root or not compiler:
        return [CrossCompileReportsInfo(files = depset(transitive = below))]

    flags = compile_flags(target, ctx, ("-W", "-D", "-f"))
    reports = []
    for source in getattr(ctx.rule.files, "srcs", []):
        if source.extension != "cc" or not source.is_source:
            continue
        report = ctx.actions.declare_file("{}.{}.aarch64".format(ctx.label.name, source.basename))
        reports.append(report)
        ctx.actions.run(
            executable = ctx.executable._compile,
            arguments = [report.path] + flags + [source.path],
            inputs = depset([source] + compiler, transitive = [target[CcInfo].compilation_context.headers]),
            mnemonic = "CrossCompile",
            outputs = [report],
            progress_message = "Compiling for aarch64 " + source.short_path,
            use_default_shell_env = True,
        )
    return [CrossCompileReportsInfo(files = depset(reports, transitive = below))]

cross_compile_aspect = aspect(
    implementation = _cross_compile_aspect_impl,
    attr_aspects = ["deps"],
    attrs = {
        "_compile": attr.label(
            cfg = "exec",
            default = "//bazel/aarch64:compile",
            executable = True,
        ),
        "_compiler": attr.label(default = "@aarch64_compiler//:program"),
    },
    fragments = ["cpp"],
)

def _cross_compile_test_impl(ctx):
    reports = depset(transitive = [target[CrossCompileReportsInfo].files for target in ctx.attr.targets])
    script = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(
        script,
        "#!/bin/sh\nexec {} {} {}\n".format(
            ctx.file._compare.short_path,
            ctx.file.expected.short_path,
            " ".join([report.short_path for report in reports.to_list()]),
        ),
        is_executable = True,
    )
    return [DefaultInfo(
        executable = script,
        runfiles = ctx.runfiles(
            files = [ctx.file._compare, ctx.file._skip, ctx.file.expected],
            transitive_files = reports,
        ),
    )]

cross_compile_test = rule(
    implementation = _cross_compile_test_impl,
    attrs = {
        "expected": attr.label(
            allow_single_file = True,
            doc = "The errors and warnings that there must be.",
            mandatory = True,
        ),
        "targets": attr.label_list(
            aspects = [cross_compile_aspect],
            doc = "The C++ targets to compile, with all of ours that they use.",
        ),
        "_compare": attr.label(
            allow_single_file = True,
            default = "//bazel/aarch64:compare.sh",
        ),
        "_skip": attr.label(
            allow_single_file = True,
            default = "//bazel:skip.sh",
        ),
    },
    doc = "Fails unless the compiler for aarch64 says of the targets what is expected.",
    test = True,
)
