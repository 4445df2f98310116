//! Finds libfirsttouch: in the directory that FIRSTTOUCH_LIB_DIR names, or as
//! pkg-config says.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=FIRSTTOUCH_LIB_DIR");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    let directory = match std::env::var("FIRSTTOUCH_LIB_DIR") {
        Ok(directory) if !directory.is_empty() => directory,
        _ => from_pkg_config(),
    };
    println!("cargo:rustc-link-search=native={directory}");
    println!("cargo:rustc-link-lib=dylib=firsttouch");
    // For this package's own tests and examples; a program that depends on it
    // has to say itself where it finds the library at run time.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{directory}");
}

fn from_pkg_config() -> String {
    let asked = Command::new("pkg-config")
        .args(["--variable=libdir", "firsttouch"])
        .output();
    if let Ok(output) = asked
        && output.status.success()
    {
        return String::from_utf8_lossy(&output.stdout).trim().to_string();
    }
    panic!(
        "libfirsttouch.so is not found: set FIRSTTOUCH_LIB_DIR to the directory \
         that has it, or PKG_CONFIG_PATH to that of firsttouch.pc"
    );
}
