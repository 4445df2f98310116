"""The packages of the npm registry that we use files of."""

load("//bazel:npm.bzl", "npm_package")

# Modules that people use, for //tests/images and //tests/npm_guests: repository,
# package, version, SHA-256 of the archive.
_WASM_PACKAGES = [
    ("npm_argon2", "argon2-browser", "1.18.0", "cdb11795a4971bde095fe6b836aa424de50c4558ed4b9505bc74111eee7f6d35"),
    ("npm_avif", "@jsquash/avif", "2.1.1", "b6c6204b63f9cb17aac7d6ee92b8a4aeba2403dccd49ffc9a93b778923049b5b"),
    ("npm_blake3", "blake3-wasm", "3.0.0", "83bad3dc00d9f4fcc97dab4ab1d32a87c32d1296a37db57c1b8e76a76514bd20"),
    ("npm_box2d", "box2d-wasm", "7.0.0", "8646a2a9d9532705623e65c54889dcca369f41511cee84e0312fc09f9d682d7f"),
    ("npm_esbuild", "esbuild-wasm", "0.28.2", "61594de12ce998652be2aa0ab72dda54bfa49407fb37ee3464468a2aac306baa"),
    ("npm_lodepng", "@cwasm/lodepng", "0.1.9", "5e739f062988d8dc858d46c044e4225fc72fe78df16062f1894805433500dd91"),
    ("npm_onigasm", "onigasm", "2.2.5", "e651cb278c5f14113637e2da0d6e5531d71a90d51410464334cbfb889fa71434"),
    ("npm_oniguruma", "vscode-oniguruma", "2.0.1", "3b42911fd9609f2cc3b9c6dd52236b3da73780e633aa7dc381267006b7e7da21"),
    ("npm_png", "@jsquash/png", "3.1.1", "bd2a9b1ea9f39d1ddaaf088f14e97a62cfb53b1b3868e5a2a65567ccdacb0e2e"),
    ("npm_pyodide", "pyodide", "314.0.7", "66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0"),
    ("npm_quickjs", "@jitl/quickjs-wasmfile-release-sync", "0.32.0", "8459053841d6b053207b70287b5a6d762fd5608a3908b40956c5aa3178dcf9c8"),
    ("npm_re2", "re2-wasm", "1.0.2", "921fcca89d8a0fec91e4a4e175d016d5fc91770af44090b6f7925896bd985231"),
    ("npm_source_map", "source-map", "0.8.0", "a4c6ad3393004545f55638f13e1c33a202310002dbd4b806c04743f924e3d882"),
    ("npm_sqlite", "@sqlite.org/sqlite-wasm", "3.41.2", "b08a935eb46c19907fc2329bc9e0cef4d029ef3df217e194c0f0c3fbf7fff633"),
    ("npm_tree_sitter", "web-tree-sitter", "0.27.2", "0b1d1b2edcc1476c7b1710a2a4589eef9ca9cf461baa50f89956d57530964362"),
    ("npm_tree_sitter_grammars", "tree-sitter-wasms", "0.1.13", "66a54a9bbb2685e8f61b458cef1474db54e72979ee2de168e8b602b562350dd0"),
    ("npm_zstd", "@bokuweb/zstd-wasm", "0.0.27", "680a6ae81375a786c30671cf3824ff8c1d04657b5e540b4f92178897f2210344"),
]

def npm_packages(exists):
    """Defines a repository for each; it is fetched when a target needs it.

    Args:
      exists: Tells of a name whether there is a repository of that name already,
        which then is left alone.
    """
    if not exists("sqlite_amalgamation"):
        npm_package(
            name = "sqlite_amalgamation",
            build_file = Label("//bazel/third_party:sqlite_amalgamation.BUILD"),
            package = "better-sqlite3",
            sha256 = "ebf0ed75a7a59dbcb3b24bbd014ef49d9f15bc328e4adcbf516f2a8fadfa2835",
            strip_prefix = "package/deps/sqlite3",
            version = "12.11.1",
        )
    if not exists("buildifier"):
        npm_package(
            name = "buildifier",
            build_file = Label("//bazel/third_party:buildifier.BUILD"),
            fallback_executables = [
                "buildifier-linux_amd64",
                "buildifier-linux_arm64",
            ],
            package = "@bazel/buildifier",
            sha256 = "b96ea9b13003036c801f52bee6f9b0314738f8432e5cb9d814c89f59292604ee",
            version = "8.2.1",
        )
    for name, package, version, sha256 in _WASM_PACKAGES:
        if not exists(name):
            npm_package(
                name = name,
                build_file = Label("//bazel/third_party:npm_wasm.BUILD"),
                package = package,
                sha256 = sha256,
                version = version,
            )
