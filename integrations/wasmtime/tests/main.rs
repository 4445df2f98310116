//! All tests, as one program: each more would be linked with Wasmtime again.

mod common;
mod header;
mod lifecycle;
mod limits;
mod memory;
mod splitting;
mod traps;
