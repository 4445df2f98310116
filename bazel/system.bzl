"""Repositories over what Debian has installed.

`local_repository` and `new_local_repository` would do, were it not for what
they say when the package is missing; these rules say what to install.
"""

load("//bazel:repository.bzl", "name_repository")
load("//bazel/third_party:absl.bzl", "ABSL_PACKAGES")

def _check_packages(ctx, packages):
    """Fails with the command to type if a package's witness does not exist."""
    missing = sorted([
        package
        for package, witness in packages.items()
        if not ctx.path(witness).exists
    ])
    if missing:
        fail((
            "@{name} is taken from the system, which lacks: {witnesses}. " +
            "Install the Debian packages by `sudo apt-get install {packages}` " +
            "(./bazelw does so), or define your own repository '{name}' " +
            "before calling firsttouch_dependencies()."
        ).format(
            name = ctx.name,
            packages = " ".join(missing),
            witnesses = ", ".join([packages[package] for package in missing]),
        ))

def _debian_repository_impl(ctx):
    _check_packages(ctx, {ctx.attr.package: ctx.attr.path})
    root = ctx.path(ctx.attr.path)
    if not ctx.attr.substitute_in:
        for entry in root.readdir():
            ctx.symlink(entry, entry.basename)
        return

    # Copied, because a changed file may not lie beside symlinks to the rest.
    result = ctx.execute(["cp", "--recursive", "--dereference", str(root) + "/.", "."])
    if result.return_code:
        fail("copying {} failed: {}".format(root, result.stderr))
    for path in ctx.attr.substitute_in:
        text = ctx.read(path)
        for old, new in ctx.attr.substitutions.items():
            text = text.replace(old, new)
        ctx.file(path, text, executable = False)

debian_repository = repository_rule(
    implementation = _debian_repository_impl,
    attrs = {
        "package": attr.string(
            doc = "The Debian package to name if `path` is missing.",
            mandatory = True,
        ),
        "path": attr.string(
            doc = "The folder that the package installs.",
            mandatory = True,
        ),
        "substitute_in": attr.string_list(
            doc = "Files to apply `substitutions` to.",
        ),
        "substitutions": attr.string_dict(
            doc = "Text to replace, and by what.",
        ),
    },
    doc = "A Bazel repository that a Debian package installs as a folder.",
    local = True,
)

def _system_repository_impl(ctx):
    _check_packages(ctx, ctx.attr.packages)
    name_repository(ctx)
    ctx.symlink(ctx.attr.build_file, "BUILD.bazel")
    for label, path in ctx.attr.files.items():
        ctx.symlink(label, path)
    for path, target in ctx.attr.symlinks.items():
        ctx.symlink(target, path)

_system_repository = repository_rule(
    implementation = _system_repository_impl,
    attrs = {
        "build_file": attr.label(
            doc = "Becomes the repository's BUILD.bazel.",
            mandatory = True,
        ),
        "files": attr.label_keyed_string_dict(
            doc = "Further files of ours, and where they go.",
        ),
        "packages": attr.string_dict(
            doc = "The Debian packages it needs, each with a file of theirs.",
        ),
        "symlinks": attr.string_dict(
            doc = "Paths in the repository, and where on the system they lead.",
        ),
    },
    doc = "A repository of our own BUILD file over headers and libraries in /usr.",
    local = True,
)

def system_repository(name, build_file, files = {}, **kwargs):
    """A repository of our own BUILD file over headers and libraries in /usr.

    Args:
      name: The repository's name.
      build_file: Label of the file that becomes its BUILD.bazel.
      files: Paths in the repository, each with the label of what goes there.
      **kwargs: `packages`, the Debian packages it needs, each with a file of
        theirs to look for; `symlinks`, paths and where in /usr they lead.
    """
    _system_repository(
        name = name,
        build_file = build_file,
        files = {label: path for path, label in files.items()},
        **kwargs
    )

def _system_abseil_impl(ctx):
    _check_packages(ctx, {"libabsl-dev": "/usr/include/absl/base/config.h"})
    name_repository(ctx)

    # One library that is all of abseil: its archives refer to one another, the
    # linker takes from them what is used, and their set changes by release.
    archives = sorted([
        entry.basename[len("lib"):-len(".a")]
        for directory in ctx.attr.library_directories
        if ctx.path(directory).exists
        for entry in ctx.path(directory).readdir()
        if entry.basename.startswith("libabsl_") and entry.basename.endswith(".a")
    ])
    if not archives:
        fail("@{}: libabsl-dev has no libabsl_*.a in {}".format(
            ctx.name,
            " or ".join(ctx.attr.library_directories),
        ))
    ctx.template(
        "BUILD.bazel",
        ctx.attr.build_file,
        substitutions = {
            "%{archives}": "\",\n        \"".join([
                "-l" + archive
                for archive in archives
            ]),
        },
        executable = False,
    )
    for package, targets in ABSL_PACKAGES.items():
        lines = ["package(default_visibility = [\"//visibility:public\"])\n"]
        for target in targets:
            lines.append(
                "\ncc_library(\n    name = \"%s\",\n    deps = [\"//:system\"],\n)\n" % target,
            )
        ctx.file(package + "/BUILD.bazel", "".join(lines), executable = False)

system_abseil = repository_rule(
    implementation = _system_abseil_impl,
    attrs = {
        "build_file": attr.label(
            doc = "Template of the top-level BUILD.bazel.",
            default = Label("//bazel/third_party:absl.BUILD"),
        ),
        "library_directories": attr.string_list(
            doc = "Where the archives may be.",
            default = [
                "/usr/lib/x86_64-linux-gnu",
                "/usr/lib/aarch64-linux-gnu",
            ],
        ),
    },
    doc = "The system's abseil under the labels of abseil's own BUILD files.",
    local = True,
)

def _system_program_impl(ctx):
    program = ctx.which(ctx.attr.program)
    name_repository(ctx)
    if program:
        ctx.symlink(program, "bin/" + ctx.attr.program)
    ctx.file(
        "BUILD.bazel",
        "filegroup(\n    name = \"program\",\n    srcs = glob([\"bin/*\"], allow_empty = True),\n" +
        "    visibility = [\"//visibility:public\"],\n)\n",
        executable = False,
    )

system_program = repository_rule(
    implementation = _system_program_impl,
    attrs = {
        "program": attr.string(
            doc = "Its name on the PATH.",
            mandatory = True,
        ),
    },
    doc = "A repository whose file group `program` is a link to a program of the " +
          "system, so that what it makes is made again after an update; or is " +
          "empty where there is none.",
    local = True,
)
