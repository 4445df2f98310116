//! Memories of a pool as Wasmtime uses them.

use crate::common::*;
use firsttouch_wasmtime::{Instantiator, Pool, PoolOptions, Unbound, split, zeroed};
use wasmtime::{Config, Engine, Linker, Memory, MemoryType, Module, Store};

const COUNTER: &str = r#"
    (module
      (memory (export "memory") 1 3)
      (data (i32.const 100) "\05\00\00\00")
      (data (i32.const 65528) "the end.")
      (func (export "add") (param i32) (result i32)
        (i32.store (i32.const 100) (i32.add (i32.load (i32.const 100)) (local.get 0)))
        (i32.load (i32.const 100)))
      (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"#;

#[test]
fn a_memory_starts_from_its_image_and_the_next_tenant_sees_nothing_of_the_last() {
    let engine = engine(&pool());
    let counter = instantiator(&engine, COUNTER);
    // More tenants than slots, one after the other.
    for _ in 0..40 {
        let mut store = Store::new(&engine, ());
        let instance = counter.instantiate(&mut store).unwrap();
        assert_eq!(call(&mut store, &instance, "add", 3).unwrap(), 8);
        assert_eq!(call(&mut store, &instance, "add", 4).unwrap(), 12);
        let bytes = bytes(&mut store, &instance, "memory");
        assert_eq!(bytes.len(), 65536);
        assert_eq!(&bytes[65528..], b"the end.");
    }
}

#[test]
fn a_memory_grows_to_its_maximum_with_zeroes_and_the_next_tenant_starts_small() {
    let engine = engine(&pool());
    let counter = instantiator(&engine, COUNTER);
    for _ in 0..10 {
        let mut store = Store::new(&engine, ());
        let instance = counter.instantiate(&mut store).unwrap();
        assert!(call(&mut store, &instance, "load", 65536).is_err());
        assert_eq!(call(&mut store, &instance, "grow", 2).unwrap(), 1);
        assert_eq!(call(&mut store, &instance, "load", 65536).unwrap(), 0);
        assert_eq!(call(&mut store, &instance, "grow", 1).unwrap(), -1);
        let memory = instance.get_memory(&mut store, "memory").unwrap();
        memory.data_mut(&mut store)[65536..].fill(7);
    }
}

#[test]
fn a_memory_cannot_grow_past_what_the_pool_has() {
    let engine = engine(&pool());
    let grower = instantiator(
        &engine,
        r#"(module (memory 1)
             (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"#,
    );
    let mut store = Store::new(&engine, ());
    let instance = grower.instantiate(&mut store).unwrap();
    assert_eq!(call(&mut store, &instance, "grow", 63).unwrap(), 1);
    assert_eq!(call(&mut store, &instance, "grow", 1).unwrap(), -1);
}

#[test]
fn slots_come_back_when_their_stores_go_and_a_full_pool_says_so() {
    let engine = engine(&pool());
    let counter = instantiator(&engine, COUNTER);
    let mut stores = Vec::new();
    for _ in 0..8 {
        let mut store = Store::new(&engine, ());
        counter.instantiate(&mut store).unwrap();
        stores.push(store);
    }
    let mut store = Store::new(&engine, ());
    let full = counter.instantiate(&mut store).unwrap_err();
    assert!(said(&full).contains("tests"), "{}", said(&full));
    stores.pop();
    counter.instantiate(&mut store).unwrap();
}

#[test]
fn several_memories_of_a_module_start_from_their_own_images() {
    let engine = engine(&pool());
    let module = instantiator(
        &engine,
        r#"(module
             (memory (export "a") 1) (memory (export "b") 1) (memory (export "c") 2)
             (data (memory 0) (i32.const 0) "first")
             (data (memory 2) (i32.const 65536) "third"))"#,
    );
    let mut store = Store::new(&engine, ());
    let instance = module.instantiate(&mut store).unwrap();
    assert_eq!(&bytes(&mut store, &instance, "a")[..5], b"first");
    assert!(
        bytes(&mut store, &instance, "b")
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(&bytes(&mut store, &instance, "c")[65536..65541], b"third");
}

#[test]
fn a_memory_of_which_nobody_says_what_it_starts_from_is_refused() {
    let engine = engine(&pool());
    let split = split("test", &binary(COUNTER)).unwrap();
    let module = Module::from_binary(&engine, &split.module).unwrap();
    let mut store = Store::new(&engine, ());
    let linker = Linker::new(&engine);
    // By Wasmtime's own way, a split module would run without its data.
    let refused = linker.instantiate(&mut store, &module).unwrap_err();
    assert!(
        said(&refused).contains("nobody has said what this memory starts from"),
        "{}",
        said(&refused)
    );
    let module = Module::from_binary(&engine, &binary(COUNTER)).unwrap();
    let refused = linker.instantiate(&mut store, &module).unwrap_err();
    assert!(said(&refused).contains("zeroed()"), "{}", said(&refused));
    let instance = zeroed(|| linker.instantiate(&mut store, &module)).unwrap();
    assert_eq!(call(&mut store, &instance, "add", 1).unwrap(), 6);
}

#[test]
fn memories_that_the_host_makes_are_wasmtimes_own() {
    let engine = engine(&pool());
    let mut store = Store::new(&engine, ());
    // More than the pool has.
    for _ in 0..20 {
        Memory::new(&mut store, MemoryType::new(1, None)).unwrap();
    }
}

#[test]
fn a_pool_may_let_such_memories_start_from_zeroes() {
    let pool = Pool::new(&PoolOptions {
        memories: 2,
        max_memory_bytes: 1 << 20,
        unbound: Unbound::Zeroes,
        ..PoolOptions::default()
    })
    .unwrap();
    let engine = engine(&pool);
    let module = Module::from_binary(&engine, &binary(COUNTER)).unwrap();
    let mut store = Store::new(&engine, ());
    // Not split: Wasmtime copies the segments.
    let instance = Linker::new(&engine)
        .instantiate(&mut store, &module)
        .unwrap();
    assert_eq!(call(&mut store, &instance, "add", 1).unwrap(), 6);
}

#[test]
fn a_module_that_was_not_split_works_and_is_copied_by_wasmtime() {
    let engine = engine(&pool());
    let module = Module::from_binary(&engine, &binary(COUNTER)).unwrap();
    let pre = Linker::new(&engine).instantiate_pre(&module).unwrap();
    let counter = Instantiator::new(pre, &[]).unwrap();
    for _ in 0..3 {
        let mut store = Store::new(&engine, ());
        let instance = counter.instantiate(&mut store).unwrap();
        assert_eq!(call(&mut store, &instance, "add", 1).unwrap(), 6);
    }
}

#[test]
fn a_start_function_that_instantiates_another_module_takes_no_image_of_its_own() {
    let engine = engine(&pool());
    let inner = instantiator(
        &engine,
        r#"(module (memory (export "memory") 1) (data (i32.const 0) "inner"))"#,
    );
    let mut linker = Linker::<()>::new(&engine);
    linker
        .func_wrap(
            "host",
            "nest",
            move |mut caller: wasmtime::Caller<'_, ()>| {
                let instance = inner.instantiate(&mut caller).unwrap();
                let memory = instance.get_memory(&mut caller, "memory").unwrap();
                assert_eq!(&memory.data(&caller)[..5], b"inner");
                // The outer instantiation has made all of its memories.
                let plain = Module::from_binary(caller.engine(), &binary("(module (memory 1))"));
                assert!(wasmtime::Instance::new(&mut caller, &plain.unwrap(), &[]).is_err());
            },
        )
        .unwrap();
    let outer = instantiator_with(
        &linker,
        &binary(
            r#"(module
                 (import "host" "nest" (func $nest))
                 (memory (export "memory") 1) (data (i32.const 0) "outer")
                 (start $nest))"#,
        ),
    );
    let mut store = Store::new(&engine, ());
    let instance = outer.instantiate(&mut store).unwrap();
    assert_eq!(&bytes(&mut store, &instance, "memory")[..5], b"outer");
}

#[test]
fn what_the_engine_reserves_and_what_the_pool_has_must_fit_and_the_error_names_both() {
    let pool = pool();
    let mut config = Config::new();
    pool.configure(&mut config);
    config.memory_guard_size(64 << 20);
    let engine = Engine::new(&config).unwrap();
    let mut store = Store::new(&engine, ());
    let refused = instantiator(&engine, COUNTER)
        .instantiate(&mut store)
        .unwrap_err();
    assert!(
        said(&refused)
            .contains("memory_reservation of 4294967296 and a memory_guard_size of 67108864 bytes")
            && said(&refused).contains("reservation_bytes = 4294967296 and guard_bytes = 33554432"),
        "{}",
        said(&refused)
    );
}

#[test]
fn memories_that_a_pool_does_not_have_are_refused_by_name() {
    let pool = pool();
    let mut config = Config::new();
    config.wasm_custom_page_sizes(true).wasm_memory64(true);
    pool.configure(&mut config);
    let engine = Engine::new(&config).unwrap();
    for (text, why) in [
        (
            r#"(module (memory 5 (pagesize 1)))"#,
            "a memory with pages of 1 bytes is asked for",
        ),
        (
            r#"(module (memory 65))"#,
            "a memory of 4259840 bytes is asked for, and max_memory_bytes is 4194304",
        ),
    ] {
        let mut store = Store::new(&engine, ());
        let refused = instantiator(&engine, text)
            .instantiate(&mut store)
            .unwrap_err();
        assert!(said(&refused).contains(why), "{}", said(&refused));
    }
}

#[test]
fn a_memory_with_64_bit_addresses_works_within_the_pools_size() {
    let pool = pool();
    let mut config = Config::new();
    config.wasm_memory64(true);
    pool.configure(&mut config);
    let engine = Engine::new(&config).unwrap();
    let module = instantiator(
        &engine,
        r#"(module (memory i64 1)
             (data (i64.const 8) "\2a")
             (func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
             (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0))))"#,
    );
    let mut store = Store::new(&engine, ());
    let instance = module.instantiate(&mut store).unwrap();
    let load = instance
        .get_typed_func::<i64, i32>(&mut store, "load")
        .unwrap();
    let grow = instance
        .get_typed_func::<i64, i64>(&mut store, "grow")
        .unwrap();
    assert_eq!(load.call(&mut store, 8).unwrap(), 42);
    assert!(load.call(&mut store, 65536).is_err());
    assert!(load.call(&mut store, 1 << 40).is_err());
    assert_eq!(grow.call(&mut store, 1).unwrap(), 1);
    assert_eq!(load.call(&mut store, 65536).unwrap(), 0);
    assert_eq!(grow.call(&mut store, 1000).unwrap(), -1);
}

#[test]
fn options_that_cannot_work_are_errors_with_their_names() {
    let error = |options: PoolOptions| Pool::new(&options).err().unwrap().to_string();
    let odd = error(PoolOptions {
        max_memory_bytes: 65536 + 4096,
        ..PoolOptions::default()
    });
    assert!(odd.contains("max_memory_bytes = 69632"), "{odd}");
    let none = error(PoolOptions {
        memories: 0,
        ..PoolOptions::default()
    });
    assert!(none.contains("instances"), "{none}");
    let much = error(PoolOptions {
        guard_bytes: u64::MAX,
        ..PoolOptions::default()
    });
    assert!(
        much.contains("guard_bytes = 18446744073709551615"),
        "{much}"
    );
}

#[test]
fn what_a_pool_is_can_be_read() {
    let pool = pool();
    assert!(!pool.describe().unwrap().is_empty());
    let worth = Pool::new(&PoolOptions {
        memories: 1,
        retained_bytes_per_us: Some(1234),
        ..PoolOptions::default()
    })
    .unwrap();
    if worth.uses_userfaultfd().unwrap() {
        let text = worth.describe().unwrap();
        assert!(text.contains("at most 1234 bytes for each us"), "{text}");
    }
    let stats = pool.stats_json().unwrap();
    assert!(stats.starts_with('{') && stats.ends_with('}'), "{stats}");
}
