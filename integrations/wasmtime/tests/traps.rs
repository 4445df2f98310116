//! Touches outside the bounds, as Wasmtime's errors.

use crate::common::*;
use firsttouch_wasmtime::Instantiator;
use std::future::Future;
use std::task::{Context, Waker};
use wasmtime::{Engine, Linker, Store, Trap, WasmBacktrace};

const TOUCHER: &str = r#"
    (module $toucher
      (memory (export "memory") 1)
      (data (i32.const 0) "\01")
      (func $inner (param i32) (result i32) (i32.load (local.get 0)))
      (func $outer (export "load") (param i32) (result i32) (call $inner (local.get 0)))
      (func (export "store") (param i32) (result i32)
        (i32.store (local.get 0) (i32.const 1)) (i32.const 0))
      (func (export "far") (param i32) (result i32)
        (i32.load offset=0x7ffffff0 (local.get 0))))"#;

/// Out of bounds at `address`, in functions `names`, from the innermost.
fn assert_trap(error: &wasmtime::Error, address: u64, names: &[&str]) {
    assert_eq!(
        error.downcast_ref::<Trap>(),
        Some(&Trap::MemoryOutOfBounds),
        "{error:?}"
    );
    assert!(
        said(error).contains(&format!(
            "memory fault at wasm address 0x{address:x} in linear memory of size 0x10000"
        )) || format!("{error:?}").contains(&format!(
            "memory fault at wasm address 0x{address:x} in linear memory of size 0x10000"
        )),
        "{error:?}"
    );
    let trace = error.downcast_ref::<WasmBacktrace>().unwrap();
    let traced: Vec<_> = trace
        .frames()
        .iter()
        .filter_map(|frame| frame.func_name())
        .collect();
    assert_eq!(traced, names);
    assert!(
        trace
            .frames()
            .iter()
            .all(|frame| frame.func_offset().is_some())
    );
}

#[test]
fn a_touch_out_of_bounds_is_wasmtimes_trap_with_its_address_and_backtrace() {
    let engine = engine(&pool());
    let toucher = instantiator(&engine, TOUCHER);
    let mut store = Store::new(&engine, ());
    let instance = toucher.instantiate(&mut store).unwrap();
    // A trap is an answer like another: the instance goes on.
    for _ in 0..3 {
        let error = call(&mut store, &instance, "load", 65536).unwrap_err();
        assert_trap(&error, 0x10000, &["inner", "outer"]);
        let error = call(&mut store, &instance, "store", -4).unwrap_err();
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
        // The last bytes that 32 bits and an offset reach.
        let error = call(&mut store, &instance, "far", -1).unwrap_err();
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
        // An access that begins in bounds.
        let error = call(&mut store, &instance, "load", 65534).unwrap_err();
        assert_trap(&error, 0x10000, &["inner", "outer"]);
        assert_eq!(call(&mut store, &instance, "load", 0).unwrap(), 1);
    }
}

#[test]
fn errors_are_those_of_wasmtimes_own_memories() {
    let on_pool = engine(&pool());
    let own = plain_engine();
    let mut said_by = Vec::new();
    for engine in [&on_pool, &own] {
        let module = wasmtime::Module::from_binary(engine, &binary(TOUCHER)).unwrap();
        let pre = Linker::new(engine).instantiate_pre(&module).unwrap();
        let toucher = Instantiator::new(pre, &[]).unwrap();
        let mut store = Store::new(engine, ());
        let instance = toucher.instantiate(&mut store).unwrap();
        let errors: Vec<_> = [65536, 65533, 70000, -1]
            .into_iter()
            .map(|at| {
                let error = call(&mut store, &instance, "load", at).unwrap_err();
                format!("{error:?}")
            })
            .collect();
        said_by.push(errors);
    }
    assert_eq!(said_by[0], said_by[1]);
}

#[test]
fn other_traps_and_pools_side_by_side_are_as_before() {
    let text = r#"
        (module (memory 1)
          (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
          (func (export "divide") (param i32) (result i32)
            (i32.div_s (i32.const 1) (local.get 0)))
          (func (export "never") (param i32) (result i32) unreachable)
          (func $deep (export "deep") (param i32) (result i32)
            (i32.add (call $deep (local.get 0)) (i32.const 1))))"#;
    let engines = [engine(&pool()), plain_engine(), engine(&pool())];
    for _ in 0..2 {
        for engine in &engines {
            let module = instantiator(engine, text);
            let mut store = Store::new(engine, ());
            let instance = module.instantiate(&mut store).unwrap();
            for (name, argument, trap) in [
                ("load", 65536, Trap::MemoryOutOfBounds),
                ("divide", 0, Trap::IntegerDivisionByZero),
                ("never", 0, Trap::UnreachableCodeReached),
                ("deep", 0, Trap::StackOverflow),
            ] {
                let error = call(&mut store, &instance, name, argument).unwrap_err();
                assert_eq!(error.downcast_ref::<Trap>(), Some(&trap), "{error:?}");
            }
        }
    }
}

/// A host function that calls back into `load` of its caller's instance, and
/// says whether that trapped.
fn reentering(engine: &Engine) -> Instantiator<()> {
    let mut linker = Linker::<()>::new(engine);
    linker
        .func_wrap(
            "host",
            "again",
            |mut caller: wasmtime::Caller<'_, ()>, at: i32| -> wasmtime::Result<i32> {
                let load = caller.get_export("load").unwrap().into_func().unwrap();
                load.typed::<i32, i32>(&caller)?.call(&mut caller, at)
            },
        )
        .unwrap();
    instantiator_with(
        &linker,
        &binary(
            r#"(module
                 (import "host" "again" (func $again (param i32) (result i32)))
                 (memory 1) (data (i32.const 0) "\01")
                 (func $load (export "load") (param i32) (result i32)
                   (i32.load (local.get 0)))
                 (func $through (export "through") (param i32) (result i32)
                   (call $again (local.get 0))))"#,
        ),
    )
}

#[test]
fn a_trap_inside_a_host_call_goes_through_it() {
    let engine = engine(&pool());
    let module = reentering(&engine);
    let mut store = Store::new(&engine, ());
    let instance = module.instantiate(&mut store).unwrap();
    for _ in 0..3 {
        let error = call(&mut store, &instance, "through", 65536).unwrap_err();
        assert_trap(&error, 0x10000, &["load", "through"]);
        assert_eq!(call(&mut store, &instance, "through", 0).unwrap(), 1);
    }
}

#[test]
fn threads_trap_by_themselves_also_where_the_store_comes_from_another() {
    let engine = engine(&pool());
    let toucher = instantiator(&engine, TOUCHER);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // The store is made here, and runs in a thread that has made none.
            let mut store = Store::new(&engine, ());
            let instance = toucher.instantiate(&mut store).unwrap();
            scope.spawn(move || {
                for _ in 0..50 {
                    let error = call(&mut store, &instance, "load", 65536).unwrap_err();
                    assert_trap(&error, 0x10000, &["inner", "outer"]);
                    assert_eq!(call(&mut store, &instance, "load", 0).unwrap(), 1);
                }
            });
        }
    });
}

#[test]
fn traps_on_a_fibers_stack_are_the_same() {
    let engine = engine(&pool());
    let mut linker = Linker::<()>::new(&engine);
    linker
        .func_wrap_async("host", "pause", |_, ()| Box::new(pause()))
        .unwrap();
    let text = r#"
        (module
          (import "host" "pause" (func $pause))
          (memory (export "memory") 1) (data (i32.const 0) "\01")
          (func $load (export "load") (param i32) (result i32)
            (call $pause) (i32.load (local.get 0)))
          (func $start (call $pause))
          (start $start))"#;
    let module = instantiator_with(&linker, &binary(text));
    let mut futures = Vec::new();
    for i in 0..4 {
        let module = module.clone();
        let engine = engine.clone();
        // Several instantiations are under way at once.
        futures.push(Box::pin(async move {
            let mut store = Store::new(&engine, ());
            let instance = module.instantiate_async(&mut store).await.unwrap();
            let load = instance
                .get_typed_func::<i32, i32>(&mut store, "load")
                .unwrap();
            for _ in 0..3 {
                let error = load.call_async(&mut store, 65536 + i).await.unwrap_err();
                assert_trap(&error, 0x10000 + i as u64, &["load"]);
                assert_eq!(load.call_async(&mut store, 0).await.unwrap(), 1);
            }
        }));
    }
    let mut context = Context::from_waker(Waker::noop());
    while !futures.is_empty() {
        futures.retain_mut(|future| future.as_mut().poll(&mut context).is_pending());
    }
}

#[test]
fn an_instantiation_may_go_on_in_another_thread() {
    let engine = engine(&pool());
    // The limiter waits before the memory is made.
    struct Limits;
    #[async_trait::async_trait]
    impl wasmtime::ResourceLimiterAsync for Limits {
        async fn memory_growing(
            &mut self,
            _current: usize,
            _desired: usize,
            _maximum: Option<usize>,
        ) -> wasmtime::Result<bool> {
            pause().await;
            Ok(true)
        }
        async fn table_growing(
            &mut self,
            _current: usize,
            _desired: usize,
            _maximum: Option<usize>,
        ) -> wasmtime::Result<bool> {
            Ok(true)
        }
    }
    let module = instantiator_with(&Linker::<Limits>::new(&engine), &binary(TOUCHER));
    let mut store = Store::new(&engine, Limits);
    store.limiter_async(|limits| limits);
    let mut future = Box::pin(async {
        let instance = module.instantiate_async(&mut store).await.unwrap();
        let memory = instance.get_memory(&mut store, "memory").unwrap();
        assert_eq!(memory.data(&store)[0], 1);
    });
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    std::thread::scope(|scope| {
        scope.spawn(|| block_on(future));
    });
}

#[test]
#[ignore = "dies; run by the_host_that_touches_a_guard_dies_by_the_signal_and_is_told_where"]
fn host_touches_a_guard() {
    let engine = engine(&pool());
    let toucher = instantiator(&engine, TOUCHER);
    let mut store = Store::new(&engine, ());
    let instance = toucher.instantiate(&mut store).unwrap();
    let memory = instance.get_memory(&mut store, "memory").unwrap();
    let guard = memory.data_ptr(&store).wrapping_add(65536);
    unsafe { guard.read_volatile() };
}

#[test]
#[ignore = "dies; run by the_host_that_touches_a_guard_dies_by_the_signal_and_is_told_where"]
fn host_call_touches_a_guard() {
    let engine = engine(&pool());
    let mut linker = Linker::<()>::new(&engine);
    linker
        .func_wrap("host", "again", |mut caller: wasmtime::Caller<'_, ()>| {
            let memory = caller.get_export("memory").unwrap().into_memory().unwrap();
            let guard = memory.data_ptr(&caller).wrapping_add(65536);
            unsafe { guard.read_volatile() };
        })
        .unwrap();
    let module = instantiator_with(
        &linker,
        &binary(
            r#"(module (import "host" "again" (func $again))
                 (memory (export "memory") 1) (start $again))"#,
        ),
    );
    let mut store = Store::new(&engine, ());
    module.instantiate(&mut store).unwrap();
}

#[test]
#[ignore = "dies; run by the_host_that_touches_a_guard_dies_by_the_signal_and_is_told_where"]
fn host_touches_nothing_of_ours() {
    let _engine = engine(&pool());
    unsafe { std::hint::black_box(8 as *const u8).read_volatile() };
}

#[test]
fn the_host_that_touches_a_guard_dies_by_the_signal_and_is_told_where() {
    for test in [
        "traps::host_touches_a_guard",
        "traps::host_call_touches_a_guard",
    ] {
        let (signal, said) = dies(test);
        assert!(
            matches!(signal, Some(libc::SIGBUS | libc::SIGSEGV)),
            "{test}: {signal:?}, {said}"
        );
        assert!(
            said.contains("offset 65536 is not below the size of 65536 bytes"),
            "{said}"
        );
        assert!(!said.contains("no handler any more"), "{said}");
    }
    let (signal, said) = dies("traps::host_touches_nothing_of_ours");
    assert_eq!(signal, Some(libc::SIGSEGV), "{said}");
}
