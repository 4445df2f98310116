//! What several tests use.

#![allow(dead_code)]

use firsttouch_wasmtime::{Image, Instantiator, Pool, PoolOptions, Split, split};
use wasmtime::{Config, Engine, Instance, Linker, Module, Store};

/// A small pool.
pub fn pool() -> Pool {
    Pool::new(&PoolOptions {
        name: "tests".to_string(),
        memories: 8,
        max_memory_bytes: 4 << 20,
        ..PoolOptions::default()
    })
    .unwrap()
}

/// An engine with memories from `pool`.
pub fn engine(pool: &Pool) -> Engine {
    let mut config = Config::new();
    pool.configure(&mut config);
    Engine::new(&config).unwrap()
}

/// An engine with Wasmtime's own memories.
pub fn plain_engine() -> Engine {
    Engine::new(&Config::new()).unwrap()
}

pub fn binary(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

pub fn images(split: &Split) -> Vec<Image> {
    split
        .images
        .iter()
        .map(|split| split.image.clone())
        .collect()
}

/// Splits a module, and makes it ready with what `linker` has.
pub fn instantiator_with<T>(linker: &Linker<T>, wasm: &[u8]) -> Instantiator<T> {
    let split = split("test", wasm).unwrap();
    let module = Module::from_binary(linker.engine(), &split.module).unwrap();
    let pre = linker.instantiate_pre(&module).unwrap();
    Instantiator::new(pre, &images(&split)).unwrap()
}

pub fn instantiator(engine: &Engine, text: &str) -> Instantiator<()> {
    instantiator_with(&Linker::new(engine), &binary(text))
}

/// All bytes of an exported memory.
pub fn bytes<T: 'static>(store: &mut Store<T>, instance: &Instance, name: &str) -> Vec<u8> {
    let memory = instance.get_memory(&mut *store, name).unwrap();
    memory.data(&mut *store).to_vec()
}

pub fn call<T: 'static>(
    store: &mut Store<T>,
    instance: &Instance,
    name: &str,
    argument: i32,
) -> wasmtime::Result<i32> {
    instance
        .get_typed_func::<i32, i32>(&mut *store, name)?
        .call(store, argument)
}

/// Everything that an error says.
pub fn said(error: &wasmtime::Error) -> String {
    format!("{error:#}")
}
