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

# For the C that wasm2c writes, here and in //tests/spec_suite.
GENERATED_COPTS = [
    "-O1",
    # Endless recursion has to end at the stack's bound, not be a loop.
    "-fno-optimize-sibling-calls",
    # NaNs and roundings are the program's to see.
    "-frounding-math",
    "-fsignaling-nans",
    # Generated code is nobody's to mend: no warnings. (Not -w, which would
    # silence the error below too.)
    "-Wno-all",
    "-Wno-extra",
    "-Wno-unused-but-set-parameter",
    # Sanitizers would take a touch out of bounds for an error of the host's.
    "-fno-sanitize=all",
] + select({
    # kMaxFrameBytes in module_header.h. For gcc, it is in the code.
    str(Label("//bazel:clang")): [
        "-Wno-everything",
        "-Wframe-larger-than=16384",
        "-Werror=frame-larger-than",
    ],
    "//conditions:default": [],
})

# Options, by how they begin, that make a guest do something else than
# WebAssembly says, or what the runtime relies on.
_REFUSED_COPTS = {
    "-Ofast": "it means -ffast-math",
    "-ffast-math": "WebAssembly's arithmetic is exact",
    "-ffinite-math-only": "guests see NaNs",
    "-ffp-contract=fast": "WebAssembly's arithmetic is exact",
    "-foptimize-sibling-calls": "endless recursion would be an endless loop, which no bound of the stack ends",
    "-fno-rounding-math": "WebAssembly's arithmetic is exact",
    "-fno-signaling-nans": "guests see NaNs",
    "-fsanitize": "a touch out of bounds is the guest's right, and a trap",
    "-fsplit-stack": "the runtime bounds the stack",
    "-funsafe-math-optimizations": "WebAssembly's arithmetic is exact",
    "-fassociative-math": "WebAssembly's arithmetic is exact",
    "-freciprocal-math": "WebAssembly's arithmetic is exact",
    "-fno-signed-zeros": "WebAssembly's arithmetic is exact",
    "-Wno-error": "the bound of the stack relies on -Werror=frame-larger-than",
    "-Wno-frame-larger-than": "the bound of the stack relies on it",
    "-w": "the bound of the stack relies on -Wframe-larger-than",
    "-DWASM_RT_": "the runtime sets these",
}

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

# For C++ beside that; Debian calls the packages by LLVM's version.
_CXX_NEEDS = [
    "/usr/lib/wasm32-wasi/libc++.a:libc++-14-dev-wasm32",
    "/usr/lib/wasm32-wasi/libc++abi.a:libc++abi-14-dev-wasm32",
]

def _wasm_binary_impl(ctx):
    output = ctx.actions.declare_file(ctx.attr.output)
    headers = depset(ctx.files.hdrs)

    # Quoted includes are found by path in the workspace, and beside any header.
    include_dirs = {".": None, ctx.bin_dir.path: None}
    for header in ctx.files.hdrs:
        include_dirs[header.dirname] = None
    if ctx.label.workspace_root:
        include_dirs[ctx.label.workspace_root] = None

    # C++ has its own driver, and libraries.
    cxx = [source for source in ctx.files.srcs if source.extension != "c"]
    arguments = [
        "--target=wasm32-wasi",
        # A library with _initialize instead of a program with main.
        "-mexec-model=reactor",
        "-O2",
        # Nothing of the build's machine in the output.
        "-ffile-prefix-map=.=",
        "-Wl,--strip-debug",
    ] + (["-fno-exceptions"] if cxx else [])
    for directory in include_dirs:
        arguments.append("-I" + directory)
    arguments += ctx.attr.copts
    arguments += ["-Wl,--export=" + name for name in ctx.attr.exports]
    for source in ctx.files.srcs:
        # clang++ would compile C as C++.
        if cxx:
            arguments += ["-x", "c" if source.extension == "c" else "c++"]
        arguments.append(source.path)
    if cxx:
        arguments += ["-x", "none"]
    arguments += ctx.attr.linkopts + ["-o", output.path]
    _run_tool(
        ctx,
        "/usr/bin/clang++" if cxx else "/usr/bin/clang",
        _CLANG_NEEDS + (_CXX_NEEDS if cxx else []),
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
        "hdrs": attr.label_list(allow_files = True),
        "linkopts": attr.string_list(),
        "output": attr.string(mandatory = True),
        "srcs": attr.label_list(allow_files = [".c", ".cc", ".cpp", ".cxx"], mandatory = True),
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

    # wasm2c aborts without a word at some of what it cannot translate.
    checked = ctx.actions.declare_file("%s.wasm2c/%s.checked" % (name, name))
    ctx.actions.run_shell(
        command = "\"$1\" --check \"$2\" && : > \"$3\"",
        arguments = [
            ctx.executable._describe_module.path,
            wasm.path,
            checked.path,
        ],
        inputs = [wasm],
        tools = [ctx.executable._describe_module],
        outputs = [checked],
        mnemonic = "CheckModule",
        progress_message = "Checking %s" % ctx.label,
    )

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
        [wasm, checked],
        [raw_c, raw_h],
        "Wasm2C",
        "Translating %s to C" % ctx.label,
    )

    header = ctx.actions.declare_file(name + ".h")
    description = ctx.actions.declare_file(name + ".firsttouch.h")
    code = ctx.actions.declare_file(name + ".c")
    ctx.actions.run(
        executable = ctx.executable._describe_module,
        arguments = (["--interruptible"] if ctx.attr.interruptible else []) + [
            wasm.path,
            raw_h.path,
            raw_c.path,
            ctx.label.package + "/" + name + ".h" if ctx.label.package else name + ".h",
            description.path,
            header.path,
            code.path,
        ],
        inputs = [wasm, raw_c, raw_h],
        outputs = [description, header, code],
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
        "interruptible": attr.bool(),
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
        interruptible = False,
        c_copts = [],
        **kwargs):
    """A guest as a cc_library.

    Args:
      name: of the library, and of the files that are made.
      srcs: C files of the guest, or C++ files (without exceptions). Either these
        or `wasm`.
      wasm: a .wasm or .wat file instead.
      hdrs: whatever srcs include.
      module_name: what generated symbols are named after; `name` by default.
      exports: functions to export beside those that say so in the source
        (__attribute__((export_name("...")))).
      copts: for clang, when it compiles srcs.
      linkopts: for clang, when it links them.
      wasm_features: options of wat2wasm and wasm2c, e.g. "--enable-exceptions".
      interruptible: whether the host can end a guest that never returns and
        calls nothing (Interrupt in runtime.h). Costs a load and a comparison at
        each turn of a loop.
      c_copts: for the host's compiler, when it compiles wasm2c's C, behind
        -O1 and what WebAssembly's meaning takes. More than -O1 takes long and
        gains little: the code was optimized by clang. Options that break guests
        are refused.
      **kwargs: tags, testonly, visibility.
    """
    if (srcs == None) == (wasm == None):
        fail("wasm2c_guest %s: give either srcs or wasm" % name)
    for option in c_copts:
        for prefix, why in _REFUSED_COPTS.items():
            if option.startswith(prefix):
                fail("wasm2c_guest %s: c_copts has %s: %s" % (name, option, why))
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
        interruptible = interruptible,
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
        copts = GENERATED_COPTS + c_copts,
        deps = [
            Label("//integrations/wasm2c:guest"),
            Label("//integrations/wasm2c:wasi"),
            Label("//integrations/wasm2c:wasm_rt"),
        ],
        **kwargs
    )
