"""The packages of the npm registry that we use files of."""

load("//bazel:npm.bzl", "npm_package")

def npm_packages(exists):
    """Defines a repository for each; it is fetched when a target needs it.

    Args:
      exists: Tells of a name whether there is a repository of that name already,
        which then is left alone.
    """
    if not exists("sqlite_amalgamation"):
        npm_package(
            name = "sqlite_amalgamation",
            build_file = Label("//bazel/third_party:sqlite_amalgamation.BUILD"),
            package = "better-sqlite3",
            sha256 = "ebf0ed75a7a59dbcb3b24bbd014ef49d9f15bc328e4adcbf516f2a8fadfa2835",
            strip_prefix = "package/deps/sqlite3",
            version = "12.11.1",
        )
    if not exists("buildifier"):
        npm_package(
            name = "buildifier",
            build_file = Label("//bazel/third_party:buildifier.BUILD"),
            fallback_executables = [
                "buildifier-linux_amd64",
                "buildifier-linux_arm64",
            ],
            package = "@bazel/buildifier",
            sha256 = "b96ea9b13003036c801f52bee6f9b0314738f8432e5cb9d814c89f59292604ee",
            version = "8.2.1",
        )
