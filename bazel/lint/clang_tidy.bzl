"""clang-tidy on the sources of a target, as an aspect and as a test.

The aspect makes a report for each source file, so that Bazel runs clang-tidy
again only on what changed. Headers are looked at together with the source of
the same name, which includes them first (clang-format sees to that) and so
shows that they compile alone; a header without such a source is looked at by
itself, as if it were one.
"""

load("@rules_cc//cc:defs.bzl", "CcInfo")
load("//bazel:compile_flags.bzl", "compile_flags")

ClangTidyReportsInfo = provider(
    "What clang-tidy says of a target.",
    fields = {"files": "A depset of files, empty ones if there is nothing to say."},
)

_SOURCES = ["cc", "cpp"]
_HEADERS = ["h"]

def _files_of(rule, attribute, extensions):
    return [
        file
        for target in getattr(rule.attr, attribute, [])
        for file in target[DefaultInfo].files.to_list()
        if file.is_source and file.extension in extensions
    ]

def _without_extension(file):
    return file.short_path[:-len(file.extension) - 1]

def _clang_tidy_aspect_impl(target, ctx):
    if CcInfo not in target:
        return [ClangTidyReportsInfo(files = depset())]
    sources = _files_of(ctx.rule, "srcs", _SOURCES)
    headers = _files_of(ctx.rule, "hdrs", _HEADERS) + _files_of(ctx.rule, "srcs", _HEADERS)
    stems = {_without_extension(source): True for source in sources}
    alone = [header for header in headers if _without_extension(header) not in stems]

    flags = ["-x", "c++", "-Wall", "-Wextra", "-Wthread-safety", "-Wno-unknown-warning-option", "-Wno-missing-designated-field-initializers", "-Wno-deprecated-declarations"]
    flags += compile_flags(target, ctx, ("-W", "-D", "-m", "-f"))

    # Findings in headers count if the header is the target's own. With
    # include_prefix they are read from elsewhere, by a path of the same ending.
    header_filter = "({})$".format("|".join([
        header.short_path.replace(".", "\\.")
        for header in headers
    ])) if headers else "^$"

    arguments = ["--quiet", "--header-filter=" + header_filter]
    if ctx.rule.kind == "cc_test" or ctx.rule.attr.testonly:
        # See /.clang-tidy. Tests look at moved-from objects, whose state ours
        # promise.
        arguments.append("--checks=" + ",".join([
            "-bugprone-use-after-move",
            "-google-*",
            "-misc-*",
            "-performance-*",
            "-readability-*",
        ]))

    reports = []
    for file in sources + alone:
        report = ctx.actions.declare_file("{}.{}.clang_tidy".format(ctx.label.name, file.basename))
        reports.append(report)
        ctx.actions.run(
            executable = ctx.executable._run,
            arguments = [
                report.path,
                ctx.executable._clang_tidy.path,
                "--config-file=" + ctx.file._config.path,
            ] + arguments + [file.path, "--"] + flags,
            inputs = depset([file, ctx.file._config], transitive = [target[CcInfo].compilation_context.headers]),
            mnemonic = "ClangTidy",
            outputs = [report],
            progress_message = "Running clang-tidy on " + file.short_path,
            tools = [ctx.attr._clang_tidy[DefaultInfo].files_to_run],
            use_default_shell_env = True,
        )
    return [ClangTidyReportsInfo(files = depset(reports))]

clang_tidy_aspect = aspect(
    implementation = _clang_tidy_aspect_impl,
    attrs = {
        "_clang_tidy": attr.label(
            allow_single_file = True,
            cfg = "exec",
            default = "@clang_tidy//:clang-tidy",
            executable = True,
        ),
        "_config": attr.label(
            allow_single_file = True,
            default = "//:.clang-tidy",
        ),
        "_run": attr.label(
            cfg = "exec",
            default = "//bazel/lint:run_clang_tidy",
            executable = True,
        ),
    },
    fragments = ["cpp"],
)

def _clang_tidy_test_impl(ctx):
    reports = depset(transitive = [target[ClangTidyReportsInfo].files for target in ctx.attr.targets])
    script = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(
        script,
        "#!/bin/sh\nfound=0\n" + "".join([
            "[ ! -s {0} ] || {{ cat {0}; found=1; }}\n".format(report.short_path)
            for report in reports.to_list()
        ]) + "exit $found\n",
        is_executable = True,
    )
    return [DefaultInfo(
        executable = script,
        runfiles = ctx.runfiles(transitive_files = reports),
    )]

clang_tidy_test = rule(
    implementation = _clang_tidy_test_impl,
    attrs = {
        "targets": attr.label_list(
            aspects = [clang_tidy_aspect],
            doc = "The C++ targets whose sources to look at.",
        ),
    },
    doc = "Fails with what clang-tidy finds in the sources of the targets.",
    test = True,
)

def lint_targets(name = "clang_tidy_test", without = []):
    """Makes a test that runs clang-tidy on each C++ target above in the package.

    It stands at the end of a BUILD file. //bazel/lint:sources_test looks for it
    in each that has C++ targets.

    Args:
      name: The test's name.
      without: Names of targets to leave out.
    """
    clang_tidy_test(
        name = name,
        size = "small",
        tags = ["lint"],
        targets = [
            ":" + rule["name"]
            for rule in native.existing_rules().values()
            if rule["kind"] in ["cc_library", "cc_test", "cc_binary"] and
               rule["name"] not in without
        ],
    )
