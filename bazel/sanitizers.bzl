"""Tests that `bazelw test //...` also runs under sanitizers.

    sanitized_test_suite(
        name = "sanitized",
        tests = [":slot_allocator_test"],
    )

builds slot_allocator_test twice more, with sanitizers in it and in everything of
ours that it is linked from, and makes a test of each:
sanitized.slot_allocator_test.asan, which has AddressSanitizer and
UndefinedBehaviorSanitizer (they go together, and building is what takes time),
and .tsan, which has ThreadSanitizer. What the system has compiled (abseil,
GoogleTest) stays as it is.

The whole tree with one of them is `bazelw test --config=asan //...`.
"""

# .bazelrc has the same options for --config.
_COMMON_COPTS = ["-g1", "-O1", "-fno-omit-frame-pointer"]

_COPTS = {
    "asan": [
        "-fsanitize=address,undefined",
        # Asks more of the link than Bazel's way of calling clang gives.
        "-fno-sanitize=vptr",
        "-fno-sanitize-recover=all",
    ],
    "tsan": ["-fsanitize=thread"],
}

_LINKOPTS = {
    "asan": ["-fsanitize=address,undefined"],
    "tsan": ["-fsanitize=thread"],
}

SANITIZERS = ["asan", "tsan"]

_COPT = "//command_line_option:copt"
_LINKOPT = "//command_line_option:linkopt"
_STRIP = "//command_line_option:strip"

def _sanitizer_transition_impl(settings, attr):
    return {
        _COPT: settings[_COPT] + _COMMON_COPTS + _COPTS[attr.sanitizer],
        _LINKOPT: settings[_LINKOPT] + _LINKOPTS[attr.sanitizer],
        _STRIP: "never",
    }

_sanitizer_transition = transition(
    implementation = _sanitizer_transition_impl,
    inputs = [_COPT, _LINKOPT],
    outputs = [_COPT, _LINKOPT, _STRIP],
)

def _sanitized_test_impl(ctx):
    # An attribute with a transition is a list, even if the transition is 1:1.
    test = ctx.attr.test[0][DefaultInfo]
    run = ctx.attr._run[DefaultInfo]
    launcher = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(
        launcher,
        "#!/bin/sh\nexec ./{} ./{} \"$@\"\n".format(
            run.files_to_run.executable.short_path,
            test.files_to_run.executable.short_path,
        ),
        is_executable = True,
    )
    return [DefaultInfo(
        executable = launcher,
        runfiles = ctx.runfiles(
            files = [test.files_to_run.executable, run.files_to_run.executable],
        ).merge(test.default_runfiles).merge(run.default_runfiles),
    )]

sanitized_test = rule(
    implementation = _sanitized_test_impl,
    attrs = {
        "sanitizer": attr.string(
            doc = "Which one: asan or tsan.",
            mandatory = True,
            values = SANITIZERS,
        ),
        "test": attr.label(
            cfg = _sanitizer_transition,
            doc = "The cc_test to build with the sanitizer.",
            executable = True,
            mandatory = True,
        ),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
        "_run": attr.label(
            cfg = "target",
            default = "//bazel/sanitizers:run",
            executable = True,
        ),
    },
    doc = "Builds a cc_test with a sanitizer, and runs it.",
    test = True,
)

def sanitized_test_suite(name, tests, sanitizers = SANITIZERS, tags = [], **kwargs):
    """Makes a test of each of the given tests under each of the sanitizers.

    Args:
      name: The suite's name; the tests' is <name>.<test>.<sanitizer>.
      tests: Labels of cc_test targets. Their `args` are not known here.
      sanitizers: The sanitizers to use.
      tags: Tags for the tests, beside "sanitized".
      **kwargs: Other attributes of tests, such as `args` and `size`.
    """
    kwargs.setdefault("size", "medium")
    names = []
    for test in tests:
        for sanitizer in sanitizers:
            names.append("{}.{}.{}".format(name, test.split(":")[-1].split("/")[-1], sanitizer))
            sanitized_test(
                name = names[-1],
                sanitizer = sanitizer,
                # --config=asan leaves these out.
                tags = tags + ["sanitized"],
                test = test,
                **kwargs
            )
    native.test_suite(
        name = name,
        # So that filters by tag leave the suite out with its tests.
        tags = ["sanitized"],
        tests = [":" + test for test in names],
    )
