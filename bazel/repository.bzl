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

def stand_in_programs(ctx, names, error):
    """Makes programs which say why they could not be fetched, and fail.

    So only the targets that run them fail.

    Args:
      ctx: Of a repository rule.
      names: The programs' paths in the repository.
      error: What went wrong.
    """

    # buildifier: disable=print
    print("@{}: {}".format(ctx.name, error))
    for name in names:
        ctx.file(name, "#!/bin/sh\ncat >&2 <<'END'\n{}: {}\nEND\nexit 1\n".format(name, error))
