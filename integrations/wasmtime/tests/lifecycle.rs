//! Stores, instances, threads and processes that end early, late, or elsewhere.

use crate::common::*;
use firsttouch_wasmtime::{Instantiator, split};
use std::future::Future;
use std::task::{Context, Waker};
use wasmtime::{
    Caller, Config, Engine, InstanceAllocationStrategy, Linker, Module, PoolingAllocationConfig,
    Store, Trap,
};

const KEEPER: &str = r#"
    (module
      (import "host" "call" (func $call (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "image")
      (func (export "load") (param i32) (result i32) (i32.load8_u (local.get 0)))
      (func (export "keep") (param i32) (result i32)
        (i32.store8 (i32.const 0) (local.get 0))
        (i32.store8 (i32.const 60000) (local.get 0))
        (call $call))
      (func (export "loop") (param i32) (result i32)
        (loop $again
          (i32.store8 (i32.const 60000) (local.get 0))
          (br $again))
        (unreachable)))"#;

/// KEEPER, whose import is `call`.
fn keeper<T: 'static>(
    engine: &Engine,
    call: impl Fn(Caller<'_, T>) -> wasmtime::Result<i32> + Send + Sync + 'static,
) -> Instantiator<T> {
    let mut linker = Linker::new(engine);
    linker.func_wrap("host", "call", call).unwrap();
    instantiator_with(&linker, &binary(KEEPER))
}

/// More new instances than the pool has slots see nothing but the image.
fn assert_clean<T: 'static>(engine: &Engine, app: &Instantiator<T>, data: impl Fn() -> T) {
    let mut stores = Vec::new();
    for i in 0..16 {
        let mut store = Store::new(engine, data());
        store.set_epoch_deadline(1);
        let instance = app.instantiate(&mut store).unwrap();
        let bytes = bytes(&mut store, &instance, "memory");
        assert_eq!(&bytes[..5], b"image");
        assert!(bytes[5..].iter().all(|byte| *byte == 0));
        // Eight at once.
        if i < 7 {
            stores.push(store);
        }
    }
}

#[test]
fn a_store_outlives_engine_and_pool_and_ends_in_another_thread() {
    let pool = pool();
    let engine = engine(&pool);
    let app = keeper::<()>(&engine, |_| Ok(7));
    let mut store = Store::new(&engine, ());
    let instance = app.instantiate(&mut store).unwrap();
    drop((app, engine, pool));
    assert_eq!(call(&mut store, &instance, "keep", 3).unwrap(), 7);
    std::thread::spawn(move || {
        // A page that nobody has touched, and what is behind the end.
        assert_eq!(call(&mut store, &instance, "load", 30000).unwrap(), 0);
        assert!(call(&mut store, &instance, "load", 65536).is_err());
        drop(store);
    })
    .join()
    .unwrap();
}

#[test]
fn a_split_module_in_an_engine_without_the_pool_is_an_error() {
    let pool = pool();
    let mut pooling = Config::new();
    pool.configure(&mut pooling);
    pooling.allocation_strategy(InstanceAllocationStrategy::Pooling(
        PoolingAllocationConfig::new(),
    ));
    for config in [Config::new(), pooling] {
        let engine = Engine::new(&config).unwrap();
        let app = keeper::<()>(&engine, |_| Ok(0));
        let mut store = Store::new(&engine, ());
        let refused = app.instantiate(&mut store).unwrap_err();
        assert!(
            said(&refused).contains("its engine does not take memories from a pool"),
            "{}",
            said(&refused)
        );
        let refused = block_on(app.instantiate_async(&mut store)).unwrap_err();
        assert!(said(&refused).contains("configure"), "{}", said(&refused));
    }
}

#[test]
fn an_instantiation_that_fails_in_the_middle_gives_back_what_it_has() {
    let engine = engine(&pool());
    let memories = r#"(memory 1) (data (memory 0) (i32.const 0) "x")"#.to_string();
    // One more than there are slots.
    let many = instantiator(
        &engine,
        &format!("(module {memories} {})", "(memory 1)".repeat(8)),
    );
    let app = keeper::<()>(&engine, |_| Ok(0));
    for _ in 0..3 {
        let mut store = Store::new(&engine, ());
        let full = many.instantiate(&mut store).unwrap_err();
        assert!(said(&full).contains("tests"), "{}", said(&full));
        drop(store);
        assert_clean(&engine, &app, || ());
    }
}

#[test]
fn what_ends_a_guest_early_leaves_a_clean_slot() {
    let pool = pool();
    let mut config = Config::new();
    pool.configure(&mut config);
    config.consume_fuel(true).epoch_interruption(true);
    let engine = Engine::new(&config).unwrap();
    let fuel = |store: &mut Store<()>, fuel| store.set_fuel(fuel).unwrap();
    let app = keeper::<()>(&engine, |caller| {
        caller.engine().increment_epoch();
        Ok(0)
    });
    for trap in [Trap::OutOfFuel, Trap::Interrupt] {
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        fuel(&mut store, 100_000);
        let instance = app.instantiate(&mut store).unwrap();
        if trap == Trap::Interrupt {
            fuel(&mut store, u64::MAX);
            engine.increment_epoch();
        }
        let error = call(&mut store, &instance, "loop", 9).unwrap_err();
        assert_eq!(error.downcast_ref::<Trap>(), Some(&trap), "{error:?}");
        assert_eq!(bytes(&mut store, &instance, "memory")[0], b'i');
        drop(store);
        assert_clean(&engine, &app, || ());
    }
}

#[test]
fn errors_and_panics_of_the_host_leave_a_clean_slot() {
    let engine = engine(&pool());
    let app = keeper::<bool>(&engine, |caller| {
        assert!(!*caller.data(), "the host panics");
        Err(wasmtime::Error::msg("the host fails"))
    });
    for panics in [false, true] {
        let mut store = Store::new(&engine, panics);
        let instance = app.instantiate(&mut store).unwrap();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            call(&mut store, &instance, "keep", 5)
        }));
        assert_eq!(ended.is_err(), panics);
        assert_eq!(bytes(&mut store, &instance, "memory")[60000], 5);
        drop(store);
        assert_clean(&engine, &app, || false);
    }
}

#[test]
fn a_start_function_that_traps_leaves_a_clean_slot() {
    let engine = engine(&pool());
    let trapping = instantiator(
        &engine,
        r#"(module (memory 1) (data (i32.const 0) "other")
             (func $start
               (memory.fill (i32.const 0) (i32.const 7) (i32.const 65536))
               (drop (i32.load (i32.const 65536))))
             (start $start))"#,
    );
    let app = keeper::<()>(&engine, |_| Ok(0));
    for _ in 0..9 {
        let mut store = Store::new(&engine, ());
        let error = trapping.instantiate(&mut store).unwrap_err();
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
    }
    assert_clean(&engine, &app, || ());
}

#[test]
fn a_guest_that_waits_goes_on_in_another_thread_or_never() {
    let engine = engine(&pool());
    let mut linker = Linker::<()>::new(&engine);
    linker
        .func_wrap_async("host", "call", |_, ()| {
            Box::new(async {
                pause().await;
                Ok(65536_i32)
            })
        })
        .unwrap();
    let wasm = binary(
        r#"(module
             (import "host" "call" (func $call (result i32)))
             (memory (export "memory") 1) (data (i32.const 0) "image")
             (func (export "run") (result i32)
               (i32.store8 (i32.const 60000) (i32.const 7))
               (i32.load (call $call))))"#,
    );
    let app = instantiator_with(&linker, &wasm);
    for goes_on in [true, false] {
        let mut store = Store::new(&engine, ());
        let instance = block_on(app.instantiate_async(&mut store)).unwrap();
        let run = instance
            .get_typed_func::<(), i32>(&mut store, "run")
            .unwrap();
        let mut future = Box::pin(run.call_async(&mut store, ()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        if goes_on {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let error = block_on(future).unwrap_err();
                    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
                });
            });
        } else {
            drop(future);
        }
        assert_eq!(bytes(&mut store, &instance, "memory")[60000], 7);
        drop(store);
        assert_clean(&engine, &keeper(&engine, |_| Ok(0)), || ());
    }
}

#[test]
fn a_thread_that_has_never_run_a_guest_may_touch_its_memory() {
    let engine = engine(&pool());
    let app = keeper::<()>(&engine, |_| Ok(0));
    let mut store = Store::new(&engine, ());
    let instance = app.instantiate(&mut store).unwrap();
    let memory = instance.get_memory(&mut store, "memory").unwrap();
    std::thread::spawn(move || {
        let data = memory.data_mut(&mut store);
        assert_eq!(&data[..5], b"image");
        data[30000] = 1;
        assert_eq!(data[29999..30002], [0, 1, 0]);
        let mut beyond = [0];
        assert!(memory.read(&store, 65536, &mut beyond).is_err());
        assert!(memory.write(&mut store, 65535, &[1, 2]).is_err());
        memory.read(&store, 65535, &mut beyond).unwrap();
        assert_eq!(beyond, [0]);
    })
    .join()
    .unwrap();
}

#[test]
fn modules_of_one_store_share_a_memory_that_starts_from_an_image() {
    let engine = engine(&pool());
    let owner = instantiator(
        &engine,
        r#"(module (memory (export "memory") 1) (data (i32.const 0) "\2a"))"#,
    );
    let mut store = Store::new(&engine, ());
    let instance = owner.instantiate(&mut store).unwrap();
    let mut linker = Linker::new(&engine);
    linker.instance(&mut store, "owner", instance).unwrap();
    let user = instantiator_with(
        &linker,
        &binary(
            r#"(module (import "owner" "memory" (memory 1))
                 (memory $own 1) (data (memory $own) (i32.const 0) "\07")
                 (func (export "sum") (param i32) (result i32)
                   (i32.add (i32.load8_u (local.get 0))
                            (i32.load8_u $own (local.get 0)))))"#,
        ),
    );
    let user = user.instantiate(&mut store).unwrap();
    assert_eq!(call(&mut store, &user, "sum", 0).unwrap(), 49);
    let error = call(&mut store, &user, "sum", 65536).unwrap_err();
    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
}

#[test]
#[ignore = "forks; run by a_child_of_fork_cannot_use_the_pool_and_harms_nobody"]
fn forks() {
    let engine = engine(&pool());
    let app = keeper::<()>(&engine, |_| Ok(0));
    let mut store = Store::new(&engine, ());
    let instance = app.instantiate(&mut store).unwrap();
    call(&mut store, &instance, "keep", 5).unwrap();
    let child = unsafe { libc::fork() };
    if child == 0 {
        let works = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let refused = app.instantiate(Store::new(&engine, ())).unwrap_err();
            eprintln!("child: {}", said(&refused));
            // There is no memory here any more.
            let error = call(&mut store, &instance, "load", 0).unwrap_err();
            eprintln!("child: {error:?}");
            drop(store);
            drop(app);
            drop(engine);
        }));
        unsafe { libc::_exit(if works.is_ok() { 0 } else { 1 }) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(call(&mut store, &instance, "load", 0).unwrap(), 5);
    drop(store);
    assert_clean(&engine, &app, || ());
}

#[test]
fn a_child_of_fork_cannot_use_the_pool_and_harms_nobody() {
    let (status, said) = run_alone("lifecycle::forks");
    assert!(status.success(), "{said}");
    assert!(said.contains("child: pool \"tests\""), "{said}");
}

#[test]
#[ignore = "dies; run by a_host_that_overflows_its_stack_is_told_so_by_rust"]
fn host_overflows_its_stack() {
    fn deeper(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 100]);
        if room[3] == u64::MAX {
            return 0;
        }
        deeper(depth + 1) + room[3]
    }
    let engine = engine(&pool());
    let app = keeper::<()>(&engine, |_| Ok(deeper(0) as i32));
    let mut store = Store::new(&engine, ());
    let instance = app.instantiate(&mut store).unwrap();
    let _ = call(&mut store, &instance, "keep", 5);
}

#[test]
fn a_host_that_overflows_its_stack_is_told_so_by_rust() {
    let (signal, said) = dies("lifecycle::host_overflows_its_stack");
    assert_eq!(signal, Some(libc::SIGABRT), "{said}");
    assert!(said.contains("has overflowed its stack"), "{said}");
}

#[test]
fn a_module_that_names_an_image_otherwise_than_split_does_is_refused() {
    let engine = engine(&pool());
    let image = |bytes: &str| {
        let text = format!(r#"(module (memory 1) (data (i32.const 0) "{bytes}"))"#);
        images(&split("test", &binary(&text)).unwrap()).remove(0)
    };
    let (a, b) = (image("a"), image("b"));
    for (names, why) in [
        (
            format!("0/sha256:{} 0/sha256:{}", a.digest(), b.digest()),
            "two images for memory 0",
        ),
        (
            format!("1/sha256:{} 0/sha256:{}", a.digest(), b.digest()),
            "names memory 1, which is not one of the module's own",
        ),
        (
            format!("0/sha256:+{}", "a".repeat(63)),
            "<digest> is expected",
        ),
        ("0".to_string(), "<digest> is expected"),
    ] {
        let exports: String = names
            .split(' ')
            .map(|name| format!(r#"(export "firsttouch.image/{name}" (memory 0))"#))
            .collect();
        let wasm = binary(&format!("(module (memory 1) {exports})"));
        let module = Module::from_binary(&engine, &wasm).unwrap();
        let pre = Linker::<()>::new(&engine).instantiate_pre(&module).unwrap();
        let refused = Instantiator::new(pre, &[a.clone(), b.clone()])
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains(why), "{refused}");
    }
}
