//! Sizes, reservations, and ways of supplying memory, at their ends.

use crate::common::*;
use firsttouch_wasmtime::{Backing, Pool, PoolOptions, Supply, split};
use wasmtime::{
    Config, Engine, MemoryCreator, MemoryType, Store, StoreLimits, StoreLimitsBuilder, Trap,
};

const GROWER: &str = r#"
    (module
      (memory (export "memory") 1)
      (data (i32.const 65532) "\2a")
      (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
      (func (export "byte") (param i32) (result i32) (i32.load8_u (local.get 0)))
      (func (export "store") (param i32) (result i32)
        (i32.store8 (local.get 0) (i32.const 7)) (i32.const 0))
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"#;

fn assert_out_of_bounds(result: wasmtime::Result<i32>) {
    let error = result.unwrap_err();
    assert_eq!(
        error.downcast_ref::<Trap>(),
        Some(&Trap::MemoryOutOfBounds),
        "{error:?}"
    );
}

/// Image, isolation, growth and bounds.
fn assert_works(engine: &Engine, what: &str) {
    let app = instantiator(engine, GROWER);
    for round in 0..5 {
        let mut store = Store::new(engine, ());
        let instance = app.instantiate(&mut store).expect(what);
        let mut run = |name, argument| call(&mut store, &instance, name, argument);
        assert_eq!(run("load", 65532).unwrap(), 42, "{what}, {round}");
        for at in [65533, 65536, 70000, 0x7fff_ffff, -1] {
            assert_out_of_bounds(run("load", at));
        }
        assert_out_of_bounds(run("store", 65536));
        assert_eq!(run("grow", 1).unwrap(), 1);
        assert_eq!(run("load", 65536).unwrap(), 0, "{what}, {round}");
        assert_out_of_bounds(run("store", 131072));
        for at in [0, 65532, 65536, 131071] {
            run("store", at).unwrap();
            assert_eq!(run("byte", at).unwrap(), 7, "{what}, {round}");
        }
        assert_eq!(run("grow", 63).unwrap(), -1);
    }
}

#[test]
fn a_pool_works_in_each_way_of_supplying_memory() {
    let options = PoolOptions {
        name: "ways".to_string(),
        memories: 2,
        max_memory_bytes: 4 << 20,
        ..PoolOptions::default()
    };
    for (what, options) in [
        (
            "mappings",
            PoolOptions {
                supply: Supply::Mappings,
                ..options.clone()
            },
        ),
        (
            "copied",
            PoolOptions {
                backing: Backing::Copied,
                ..options.clone()
            },
        ),
        (
            "handler threads",
            PoolOptions {
                handler_threads: 1,
                ..options.clone()
            },
        ),
    ] {
        match Pool::new(&options) {
            Ok(pool) => assert_works(&engine(&pool), what),
            Err(why) => println!("skipped: {what}: {why}"),
        }
    }
}

#[test]
fn a_pool_works_with_any_reservation_and_guard() {
    for (reservation_bytes, guard_bytes) in [(0, 0), (0, 65536), (1 << 20, 65536), (8 << 20, 0)] {
        let pool = Pool::new(&PoolOptions {
            memories: 2,
            max_memory_bytes: 4 << 20,
            reservation_bytes,
            guard_bytes,
            ..PoolOptions::default()
        })
        .unwrap();
        assert_works(
            &engine(&pool),
            &format!("{reservation_bytes} and {guard_bytes}"),
        );
    }
    let pool = pool();
    for (what, signals, moves) in [
        ("no signals", false, true),
        ("no moving", true, false),
        ("neither", false, false),
    ] {
        let mut config = Config::new();
        pool.configure(&mut config);
        config.signals_based_traps(signals).memory_may_move(moves);
        assert_works(&Engine::new(&config).unwrap(), what);
    }
}

#[test]
fn a_memory_of_4_gib_is_there_to_its_last_byte() {
    let pool = Pool::new(&PoolOptions {
        memories: 1,
        ..PoolOptions::default()
    })
    .unwrap();
    let engine = engine(&pool);
    let app = instantiator(&engine, GROWER);
    for _ in 0..2 {
        let mut store = Store::new(&engine, ());
        let instance = app.instantiate(&mut store).unwrap();
        let mut run = |name, argument| call(&mut store, &instance, name, argument);
        assert_eq!(run("grow", 65535).unwrap(), 1);
        assert_eq!(run("grow", 1).unwrap(), -1);
        assert_eq!(run("load", -4).unwrap(), 0);
        run("store", -1).unwrap();
        assert_eq!(run("load", -4).unwrap(), 0x0700_0000);
        assert_out_of_bounds(run("load", -3));
    }
}

#[test]
fn a_limit_of_the_store_is_kept() {
    let engine = engine(&pool());
    let app = instantiator_with(
        &wasmtime::Linker::<StoreLimits>::new(&engine),
        &binary(GROWER),
    );
    let limited = |builder: StoreLimitsBuilder| {
        let mut store = Store::new(&engine, builder.build());
        store.limiter(|limits| limits);
        store
    };
    let mut store = limited(StoreLimitsBuilder::new().memory_size(2 * 65536));
    let instance = app.instantiate(&mut store).unwrap();
    assert_eq!(call(&mut store, &instance, "grow", 2).unwrap(), -1);
    assert_eq!(call(&mut store, &instance, "grow", 1).unwrap(), 1);
    assert_eq!(call(&mut store, &instance, "load", 65532).unwrap(), 42);

    // What the pool does not have may be a trap as well.
    let mut store = limited(StoreLimitsBuilder::new().trap_on_grow_failure(true));
    let instance = app.instantiate(&mut store).unwrap();
    let error = call(&mut store, &instance, "grow", 64).unwrap_err();
    assert!(
        said(&error).contains("Memory maximum size exceeded"),
        "{}",
        said(&error)
    );

    let mut store = limited(StoreLimitsBuilder::new().memory_size(65535));
    let refused = app.instantiate(&mut store).unwrap_err();
    assert!(
        said(&refused).contains("memory limits"),
        "{}",
        said(&refused)
    );
}

#[test]
fn the_heap_of_the_garbage_collector_takes_no_memorys_place() {
    let pool = pool();
    let asked =
        |guard: usize| pool.new_memory(MemoryType::new(1, None), 65536, None, Some(4 << 30), guard);
    // As Wasmtime asks for it, see Pool::configure.
    let heap = asked((32 << 20) - 4096).unwrap();
    assert_eq!(heap.byte_size(), 65536);
    assert!(asked(32 << 20).err().unwrap().contains("nobody has said"));
}

#[test]
fn memories_that_no_machine_has_are_errors() {
    let huge = binary(
        r#"(module (memory i64 0x1_0000_0000_0000) (data (i64.const 0xffff_ffff_0000) "x"))"#,
    );
    let error = split("huge", &huge).unwrap_err().to_string();
    assert!(error.contains("18446744073709551615"), "{error}");
    let error = Pool::new(&PoolOptions {
        memories: u32::MAX,
        ..PoolOptions::default()
    })
    .err()
    .unwrap()
    .to_string();
    assert!(error.contains("4294967295"), "{error}");
}
