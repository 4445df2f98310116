//! Wasmtime's linear memories from a firsttouch pool: started from images, grown
//! without a system call, and clean again for the next store.
//!
//! ```no_run
//! use firsttouch_wasmtime::{Instantiator, Pool, PoolOptions, split};
//! use wasmtime::{Config, Engine, Linker, Module, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Once for each program.
//! let wasm = std::fs::read("app.wasm")?;
//! let app = split("app", &wasm)?;
//!
//! // Once for each process.
//! let pool = Pool::new(&PoolOptions::default())?;
//! let mut config = Config::new();
//! pool.configure(&mut config);
//! let engine = Engine::new(&config)?;
//! let module = Module::from_binary(&engine, &app.module)?;
//! let pre = Linker::<()>::new(&engine).instantiate_pre(&module)?;
//! let images: Vec<_> = app.images.into_iter().map(|split| split.image).collect();
//! let app = Instantiator::new(pre, &images)?;
//!
//! // For each tenant.
//! let mut store = Store::new(&engine, ());
//! let instance = app.instantiate(&mut store)?;
//! # Ok(())
//! # }
//! ```
//!
//! README.md has what Wasmtime's hooks do not let through, and what it costs.

#![warn(missing_docs)]

mod error;
mod image;
mod instantiator;
mod pool;
mod scope;
mod split;
mod sys;
mod trap;

pub use error::{Error, Result};
pub use image::{Digest, Image, Segment};
pub use instantiator::Instantiator;
pub use pool::{Backing, Pool, PoolOptions, Supply, Unbound, zeroed};
pub use split::{Split, SplitImage, split};
