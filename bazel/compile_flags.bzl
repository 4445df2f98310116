"""How a target is compiled, for other programs that read its sources."""

load("@rules_cc//cc:defs.bzl", "CcInfo")

def compile_flags(target, ctx, prefixes):
    """The flags by which a C++ compiler can read a target's sources.

    Args:
      target: Has CcInfo.
      ctx: Of an aspect on the target, with the fragment "cpp".
      prefixes: Which of the rule's copts to keep: those that begin so.
    Returns:
      A list; warnings are no errors.
    """
    context = target[CcInfo].compilation_context
    flags = list(ctx.fragments.cpp.cxxopts)
    flags += [
        flag
        for flag in getattr(ctx.rule.attr, "copts", [])
        if flag.startswith(prefixes)
    ]
    flags.append("-Wno-error")
    flags += ["-D" + define for define in context.defines.to_list()]
    flags += ["-D" + define for define in context.local_defines.to_list()]
    flags += ["-I" + path for path in context.includes.to_list()]
    flags += ["-iquote" + path for path in context.quote_includes.to_list()]
    flags += ["-isystem" + path for path in context.system_includes.to_list()]
    return flags
