"""Tests of a program's output, a file a case."""

load("@rules_shell//shell:sh_binary.bzl", "sh_binary")
load("@rules_shell//shell:sh_test.bzl", "sh_test")

def golden_test(name, program, cases = "cases", **kwargs):
    """Runs the program as the cases say (see run.py), and compares.

    "bazel run :<name>_update" makes the cases expect what is printed now.

    Args:
      name: of the test.
      program: label of what is tested; its file's name is its name in cases.
      cases: folder of this package that has the cases, files *.txt.
      **kwargs: of sh_test.
    """
    runner = "//tests/golden:run.py"
    data = [program, runner, "//tests/golden:case.py"]
    files = native.glob([cases + "/*.txt"])
    common = ["$(rootpath %s)" % runner, "$(rootpath %s)" % program]
    sh_test(
        name = name,
        srcs = ["//tests/golden:golden.sh"],
        args = ["test"] + common + ["$(rootpath %s)" % file for file in files],
        data = files + data,
        **kwargs
    )
    sh_binary(
        name = name + "_update",
        testonly = True,
        srcs = ["//tests/golden:golden.sh"],
        args = ["update"] + common + [native.package_name() + "/" + cases],
        data = data,
    )
