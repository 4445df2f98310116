"""Compiler options of every C++ target in this repository.

Use them as `copts` of a target, never in an exported attribute (`defines`,
`includes`, a toolchain feature): whoever depends on //:firsttouch must not
inherit our warnings or our language standard.

The C++ standard is not here but in .bazelrc (and in the .bazelrc of whoever
takes this repository as a dependency), because a standard has to be the same
in the whole program.
"""

# Warnings are errors in our own builds only: //bazel:werror is set by a
# --define in our .bazelrc, which nobody reads who takes this repository as an
# external one. `--define=firsttouch_werror=false` turns it off by hand, for a
# compiler that is newer than the ones that this was written for.
FIRSTTOUCH_COPTS = [
    "-Wall",
    "-Wextra",
    # Fields that a designated initializer leaves out have defaults.
    "-Wno-missing-field-initializers",
] + select({
    str(Label("//bazel:clang")): ["-Wthread-safety"],
    # gcc warns that its ThreadSanitizer does not model fences.
    "//conditions:default": ["-Wno-tsan"],
}) + select({
    str(Label("//bazel:werror")): ["-Werror"],
    "//conditions:default": [],
})

# A test may do on purpose what a compiler calls suspicious.
FIRSTTOUCH_TEST_COPTS = FIRSTTOUCH_COPTS + select({
    str(Label("//bazel:clang")): [
        "-Wno-self-assign-overloaded",
        "-Wno-self-move",
    ],
    "//conditions:default": [],
})
