"""The headers that targets and all that they use are compiled with."""

load("@rules_cc//cc:defs.bzl", "CcInfo")

def _headers_of_impl(ctx):
    headers = depset([
        header
        for target in ctx.attr.targets
        for header in target[CcInfo].compilation_context.headers.to_list()
        if not header.owner.workspace_root
    ])
    return [DefaultInfo(
        files = headers,
        runfiles = ctx.runfiles(transitive_files = headers),
    )]

headers_of = rule(
    implementation = _headers_of_impl,
    attrs = {
        "targets": attr.label_list(
            doc = "C++ libraries.",
            providers = [CcInfo],
        ),
    },
    doc = "A file group of this repository's headers that the targets need.",
)
