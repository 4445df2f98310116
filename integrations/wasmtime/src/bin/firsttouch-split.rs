//! Takes the active data segments of a module out and into image files.
//!
//!     firsttouch-split app.wasm split.wasm
//!
//! writes the module without them to split.wasm, and the image of memory 0 to
//! split.0.ftimg, that of memory 1 to split.1.ftimg and so on. Exit codes: 1 for
//! bad arguments, 2 for a module that cannot be split, or a file that cannot be
//! read or written; standard error says what.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn run(input: &Path, output: &Path) -> Result<(), String> {
    let wasm = std::fs::read(input).map_err(|error| format!("{}: {error}", input.display()))?;
    let name = input.file_stem().unwrap_or_default().to_string_lossy();
    let split = firsttouch_wasmtime::split(&name, &wasm)
        .map_err(|error| format!("{}: {error}", input.display()))?;
    for part in &split.images {
        let path = output.with_extension(format!("{}.ftimg", part.memory));
        part.image.write(&path).map_err(|error| error.to_string())?;
        println!("{}: {}", path.display(), part.image.digest());
    }
    // Last: a module is there only if all of its images are.
    std::fs::write(output, &split.module).map_err(|error| format!("{}: {error}", output.display()))
}

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: firsttouch-split <module.wasm> <split module.wasm>");
        return ExitCode::from(1);
    };
    match run(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("firsttouch-split: {why}");
            ExitCode::from(2)
        }
    }
}
