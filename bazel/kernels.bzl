"""Linux kernels out of Debian's packages, for tests in virtual machines.

The packages are taken apart, not installed: an installed kernel would become
one that the machine may boot.
"""

load("//bazel:repository.bzl", "name_repository")

# Prints the newest package of the series "$1", or nothing. Debian signs some
# packages and leaves others unsigned; a virtual machine takes both.
_NEWEST = """
apt-cache pkgnames linux-image- |
  grep -E "^linux-image-$(printf %s "$1" | sed 's/[.]/[.]/g')[.][0-9].*-cloud-amd64(-unsigned)?$" |
  sort --version-sort | tail -n 1
"""

def _debian_kernels_impl(ctx):
    build = []
    for series in ctx.attr.series:
        kernel = ctx.path(series + "/vmlinuz")
        why = "apt-cache knows no package of this series"
        package = ctx.execute(["sh", "-c", _NEWEST, "-", series]).stdout.strip()
        if package:
            result = ctx.execute(
                [
                    "sh",
                    "-ec",
                    "mkdir -p $2; cd $2; " +
                    "apt-get -q download \"$1\"; " +
                    "dpkg-deb --fsys-tarfile *.deb | tar -x --wildcards './boot/vmlinuz-*'; " +
                    "mv boot/vmlinuz-* vmlinuz; rm *.deb",
                    "-",
                    package,
                    series,
                ],
                timeout = 600,
            )
            why = result.stderr.strip()
        if not kernel.exists:
            # buildifier: disable=print
            print("@{}: no Linux {}, so its tests are skipped: {}".format(ctx.name, series, why))
        build.append("filegroup(\n    name = \"{0}\",\n    srcs = glob([\"{0}/vmlinuz\"], allow_empty = True),\n)\n".format(series))
    name_repository(ctx)
    ctx.file(
        "BUILD.bazel",
        "package(default_visibility = [\"//visibility:public\"])\n\n" + "\n".join(build),
        executable = False,
    )

debian_kernels = repository_rule(
    implementation = _debian_kernels_impl,
    attrs = {
        "series": attr.string_list(
            doc = "Such as \"6.1\": a file group of that name holds the newest " +
                  "kernel of the series, or nothing if there is none to be had.",
            mandatory = True,
        ),
    },
    doc = "A repository with a Linux kernel of each series.",
)
