"""One archive of a library and all of ours that it uses, for linkers without Bazel.

Bazel 4.2 has no rule that makes one.
"""

load("@rules_cc//cc:defs.bzl", "CcInfo")

def _merged_archive_impl(ctx):
    archives = []
    flags = []
    for linker_input in ctx.attr.dep[CcInfo].linking_context.linker_inputs.to_list():
        flags += linker_input.user_link_flags
        if linker_input.owner.workspace_root:
            continue
        for library in linker_input.libraries:
            # Code that fits both programs and shared libraries.
            archives.append(library.pic_static_library or library.static_library)

    # In GNU ar's language members of the same name do not replace each other.
    script = ctx.actions.declare_file(ctx.label.name + ".mri")
    ctx.actions.write(script, "".join(
        ["CREATE %s\n" % ctx.outputs.out.path] +
        ["ADDLIB %s\n" % archive.path for archive in archives] +
        ["SAVE\n", "END\n"],
    ))
    ctx.actions.run_shell(
        command = "ar -M < %s" % script.path,
        inputs = [script] + archives,
        mnemonic = "MergeArchives",
        outputs = [ctx.outputs.out],
    )

    # What has to be linked besides: each flag once, in the order of the last use.
    seen = {}
    besides = []
    for flag in reversed(flags):
        if flag not in seen:
            seen[flag] = True
            besides.insert(0, flag)
    ctx.actions.write(ctx.outputs.flags, " ".join(besides) + "\n")

merged_archive = rule(
    implementation = _merged_archive_impl,
    attrs = {
        "dep": attr.label(
            doc = "The library.",
            mandatory = True,
            providers = [CcInfo],
        ),
        "flags": attr.output(
            doc = "A file that gets the linker's flags for what others have made.",
            mandatory = True,
        ),
        "out": attr.output(
            doc = "The archive.",
            mandatory = True,
        ),
    },
    doc = "An archive with the objects of a library and of all of ours that it uses.",
)
