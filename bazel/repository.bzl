"""What every repository of ours is made with."""

def name_repository(ctx):
    """Writes the file that makes the folder a repository.

    Args:
      ctx: Of a repository rule.
    """
    ctx.file("WORKSPACE", "workspace(name = \"{}\")\n".format(ctx.name), executable = False)

def finish_package(ctx, build_file):
    """Makes the files of a package that was fetched a repository.

    Args:
      ctx: Of a repository rule.
      build_file: Becomes its BUILD.bazel, in place of one that it may have.
    """
    name_repository(ctx)
    ctx.delete("BUILD.bazel")
    ctx.symlink(build_file, "BUILD.bazel")
