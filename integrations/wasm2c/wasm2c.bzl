"""Guests: C or WebAssembly, by way of wasm2c, as libraries of the host.

    load("//integrations/wasm2c:wasm2c.bzl", "wasm2c_guest")

    wasm2c_guest(
        name = "adder",
        srcs = ["adder.c"],          # or wasm = "adder.wasm" (or .wat)
    )

    cc_binary(
        name = "host",
        srcs = ["host.cc"],          # #include "<package>/adder.firsttouch.h"
        deps = [":adder"],
    )

What is made, in the guest's package:
  <name>.wasm          from srcs, by clang
  <name>.h, <name>.c   by wasm2c; symbols are Z_<module_name>Z_<export>
  <name>.firsttouch.h  includes <name>.h and describes the module to guest.h
  <name>               a cc_library with all of it and the runtime

Everything runs in offline actions with Debian's own tools (clang, lld,
wasi-libc, libclang-rt-14-dev-wasm32, wabt). A missing one fails the action with
the package's name.
"""

load("@rules_cc//cc:defs.bzl", "cc_library")

_CLANG_NEEDS = [
    "/usr/bin/clang:clang",
    "/usr/bin/wasm-ld:lld",
    "/usr/lib/wasm32-wasi/libc.a:wasi-libc",
    "/usr/lib/llvm-*/lib/clang/*/lib/wasi/libclang_rt.builtins-wasm32.a:libclang-rt-14-dev-wasm32",
]

def _run_tool(ctx, tool, needs, arguments, inputs, outputs, mnemonic, message):
    ctx.actions.run(
        executable = ctx.executable._run_tool,
        arguments = [tool] + needs + ["--"] + arguments,
        inputs = inputs,
        outputs = outputs,
        mnemonic = mnemonic,
        progress_message = message,
        # clang finds its linker beside itself or here.
        env = {"PATH": "/usr/bin:/bin"},
    )

def _wasm_binary_impl(ctx):
    output = ctx.actions.declare_file(ctx.attr.output)
    headers = depset(ctx.files.hdrs)

    # Quoted includes are found by path in the workspace, and beside any header.
    include_dirs = {".": None, ctx.bin_dir.path: None}
    for header in ctx.files.hdrs:
        include_dirs[header.dirname] = None
    if ctx.label.workspace_root:
        include_dirs[ctx.label.workspace_root] = None

    arguments = [
        "--target=wasm32-wasi",
        # A library with _initialize instead of a program with main.
        "-mexec-model=reactor",
        "-O2",
        # Nothing of the build's machine in the output.
        "-ffile-prefix-map=.=",
        "-Wl,--strip-debug",
    ]
    for directory in include_dirs:
        arguments.append("-I" + directory)
    arguments += ctx.attr.copts
    arguments += ["-Wl,--export=" + name for name in ctx.attr.exports]
    arguments += [source.path for source in ctx.files.srcs]
    arguments += ctx.attr.linkopts + ["-o", output.path]
    _run_tool(
        ctx,
        "/usr/bin/clang",
        _CLANG_NEEDS,
        arguments,
        depset(ctx.files.srcs, transitive = [headers]),
        [output],
        "WasmCompile",
        "Compiling %s to WebAssembly" % ctx.label,
    )
    return [DefaultInfo(files = depset([output]))]

_wasm_binary = rule(
    implementation = _wasm_binary_impl,
    attrs = {
        "copts": attr.string_list(),
        "exports": attr.string_list(),
        "hdrs": attr.label_list(allow_files = [".h", ".inc"]),
        "linkopts": attr.string_list(),
        "output": attr.string(mandatory = True),
        "srcs": attr.label_list(allow_files = [".c"], mandatory = True),
        "_run_tool": attr.label(
            default = Label("//integrations/wasm2c:run_tool"),
            executable = True,
            cfg = "exec",
        ),
    },
)

def _wasm2c_impl(ctx):
    name = ctx.attr.output
    wasm = ctx.file.wasm
    if wasm.extension == "wat":
        binary = ctx.actions.declare_file(name + ".wasm")
        _run_tool(
            ctx,
            "/usr/bin/wat2wasm",
            ["/usr/bin/wat2wasm:wabt"],
            ctx.attr.wasm_features + [wasm.path, "-o", binary.path],
            [wasm],
            [binary],
            "Wat2Wasm",
            "Assembling %s" % wasm.short_path,
        )
        wasm = binary

    # wasm2c names the header after the C file.
    raw_c = ctx.actions.declare_file("%s.wasm2c/%s.c" % (name, name))
    raw_h = ctx.actions.declare_file("%s.wasm2c/%s.h" % (name, name))
    _run_tool(
        ctx,
        "/usr/bin/wasm2c",
        ["/usr/bin/wasm2c:wabt"],
        # A name of our own: by default it would be the file's, with its path.
        ctx.attr.wasm_features + [
            "--module-name=" + ctx.attr.module_name,
            wasm.path,
            "-o",
            raw_c.path,
        ],
        [wasm],
        [raw_c, raw_h],
        "Wasm2C",
        "Translating %s to C" % ctx.label,
    )

    header = ctx.actions.declare_file(name + ".h")
    ctx.actions.symlink(output = header, target_file = raw_h)
    description = ctx.actions.declare_file(name + ".firsttouch.h")
    code = ctx.actions.declare_file(name + ".c")
    ctx.actions.run(
        executable = ctx.executable._describe_module,
        arguments = [
            raw_h.path,
            raw_c.path,
            ctx.label.package + "/" + name + ".h" if ctx.label.package else name + ".h",
            description.path,
            code.path,
        ],
        inputs = [raw_c, raw_h],
        outputs = [description, code],
        mnemonic = "DescribeModule",
        progress_message = "Describing %s" % ctx.label,
    )
    return [
        DefaultInfo(files = depset([code, header, description])),
        OutputGroupInfo(
            code = depset([code]),
            headers = depset([header, description]),
        ),
    ]

_wasm2c = rule(
    implementation = _wasm2c_impl,
    attrs = {
        "wasm_features": attr.string_list(),
        "module_name": attr.string(mandatory = True),
        "output": attr.string(mandatory = True),
        "wasm": attr.label(allow_single_file = [".wasm", ".wat"], mandatory = True),
        "_describe_module": attr.label(
            default = Label("//integrations/wasm2c:describe_module"),
            executable = True,
            cfg = "exec",
        ),
        "_run_tool": attr.label(
            default = Label("//integrations/wasm2c:run_tool"),
            executable = True,
            cfg = "exec",
        ),
    },
)

def wasm2c_guest(
        name,
        srcs = None,
        wasm = None,
        hdrs = [],
        module_name = None,
        exports = [],
        copts = [],
        linkopts = [],
        wasm_features = [],
        c_copts = ["-O1"],
        **kwargs):
    """A guest as a cc_library.

    Args:
      name: of the library, and of the files that are made.
      srcs: C files of the guest. Either these or `wasm`.
      wasm: a .wasm or .wat file instead.
      hdrs: headers that srcs include.
      module_name: what generated symbols are named after; `name` by default.
      exports: functions to export beside those that say so in the source
        (__attribute__((export_name("...")))).
      copts: for clang, when it compiles srcs.
      linkopts: for clang, when it links them.
      wasm_features: options of wat2wasm and wasm2c, e.g. "--enable-exceptions".
      c_copts: for the host's compiler, when it compiles wasm2c's C. More than
        -O1 takes long and gains little: the code was optimized by clang.
      **kwargs: tags, testonly, visibility.
    """
    if (srcs == None) == (wasm == None):
        fail("wasm2c_guest %s: give either srcs or wasm" % name)
    module_name = module_name or name.replace("-", "_").replace(".", "_")
    if srcs != None:
        wasm = name + ".binary"
        _wasm_binary(
            name = wasm,
            srcs = srcs,
            hdrs = hdrs,
            copts = copts,
            exports = exports,
            linkopts = linkopts,
            output = name + ".wasm",
            **kwargs
        )
    elif hdrs or exports or copts or linkopts:
        fail("wasm2c_guest %s: hdrs, exports, copts and linkopts are for srcs" % name)
    _wasm2c(
        name = name + ".generated",
        wasm = wasm,
        wasm_features = wasm_features,
        module_name = module_name,
        output = name,
        **kwargs
    )
    native.filegroup(
        name = name + ".code",
        srcs = [name + ".generated"],
        output_group = "code",
        **kwargs
    )
    native.filegroup(
        name = name + ".headers",
        srcs = [name + ".generated"],
        output_group = "headers",
        **kwargs
    )
    cc_library(
        name = name,
        srcs = [name + ".code"],
        hdrs = [name + ".headers"],
        # Generated code is nobody's to mend: no warnings. Sanitizers would take
        # a touch out of bounds for an error of the host's.
        copts = c_copts + ["-w", "-fno-sanitize=all"],
        deps = [
            Label("//integrations/wasm2c:guest"),
            Label("//integrations/wasm2c:wasi"),
            Label("//integrations/wasm2c:wasm_rt"),
        ],
        **kwargs
    )
