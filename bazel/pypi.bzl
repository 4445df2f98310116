"""Programs out of packages of PyPI.

The newest clang-tidy is published there for every Linux. Since its version 21 it
looks no longer into the standard library's headers, abseil's and GoogleTest's,
which took most of its time: checking this tree takes a third. No Python is run.
"""

load("//bazel:repository.bzl", "finish_package", "stand_in_programs")

def _fetch(ctx, url, sha256, archive):
    """Fetches the package; returns None, or why that failed."""
    if ctx.download(url, output = archive, sha256 = sha256, allow_fail = True).success:
        return None

    # pip knows of a mirror, a proxy or a certificate that Bazel does not.
    wheel = url.split("/")[-1]
    name, version = wheel.split("-")[:2]
    package = "{}=={}".format(name, version)
    result = ctx.execute([
        "sh",
        "-c",
        "python3 -m pip download --quiet --no-deps --only-binary=:all: --dest=. \"$1\" &&" +
        " echo \"$2  $3\" | sha256sum --check --status && mv -- \"$3\" \"$4\"",
        "-",
        package,
        sha256,
        wheel,
        archive,
    ])
    if result.return_code:
        return "could not download {}, and `pip download {}` failed: {}".format(
            url,
            package,
            result.stderr.strip(),
        )
    return None

def _wheel_program_impl(ctx):
    machine = ctx.execute(["uname", "-m"]).stdout.strip()
    url, _, sha256 = ctx.attr.wheels.get(machine, "").partition("#sha256=")

    # A wheel is a .zip, and Bazel goes by the name.
    archive = "wheel.zip"
    error = _fetch(ctx, url, sha256, archive) if url else "there is no package for " + machine
    if error:
        stand_in_programs(ctx, [ctx.attr.program], error)
    else:
        ctx.extract(archive)
        ctx.delete(archive)
        ctx.execute(["chmod", "+x", ctx.attr.program])
    finish_package(ctx, ctx.attr.build_file)

_wheel_program = repository_rule(
    implementation = _wheel_program_impl,
    attrs = {
        "build_file": attr.label(
            doc = "Becomes the repository's BUILD.bazel.",
            mandatory = True,
        ),
        "program": attr.string(
            doc = "The program's path in the package. Where the package cannot be " +
                  "fetched, a program that says why and fails takes its place.",
            mandatory = True,
        ),
        "wheels": attr.string_dict(
            doc = "For each machine, as uname -m names it, the package's address " +
                  "and its digest, as PyPI's index links to it.",
            mandatory = True,
        ),
    },
    doc = "A repository with the files of a package of PyPI that has a program.",
)

_FILES = "https://files.pythonhosted.org/packages/"

def clang_tidy(name):
    """clang-tidy, for //bazel/lint."""
    _wheel_program(
        name = name,
        build_file = Label("//bazel/third_party:clang_tidy.BUILD"),
        program = "clang_tidy/data/bin/clang-tidy",
        wheels = {
            "aarch64": _FILES + "7d/95/ba9463f94319dddd0c3a9d3f65d432ddf71fe9b203dcd7ea63bcff8999e2/clang_tidy-23.1.4-py2.py3-none-manylinux_2_26_aarch64.manylinux_2_28_aarch64.whl#sha256=87596cd77dedfdea23ced1d13e57e869dcaee99745bfe942796196da3c197671",
            "x86_64": _FILES + "80/85/9b483f300124a9245ec6da8975612f1841e26da13b27ad8d17f2006e13bd/clang_tidy-23.1.4-py2.py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl#sha256=6bb31e4f319ecbe14acb75f23c3050d0f1d4b1d92ea1c66091bc76e4eac2c1ac",
        },
    )
