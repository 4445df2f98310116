//! What several tests use.

use firsttouch_wasmtime::{Image, Instantiator, Pool, PoolOptions, Split, split};
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
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

/// Polls until there is a result.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
}

/// Is ready at the second poll.
pub async fn pause() {
    let paused = AtomicBool::new(false);
    std::future::poll_fn(|_| {
        if paused.swap(true, Ordering::Relaxed) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Runs an ignored test, one that needs a process of its own, in one. Its status,
/// and what it has written to standard error.
pub fn run_alone(test: &str) -> (std::process::ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("running 1 test"),
        "there is no test {test}"
    );
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The same for one that is made to die: the signal that it dies by.
pub fn dies(test: &str) -> (Option<i32>, String) {
    let (status, said) = run_alone(test);
    (status.signal(), said)
}
