//! What split() takes out of a module, and what it leaves.

use crate::common::*;
use firsttouch_wasmtime::{Image, Instantiator, Segment, split};
use wasmtime::{Engine, Linker, Memory, MemoryType, Module, Store, Trap};

fn read(image: &Image, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    image.read(offset, &mut bytes).unwrap();
    bytes
}

/// How many bytes of data segments a module has.
fn data_bytes(wasm: &[u8]) -> usize {
    let mut bytes = 0;
    for payload in wasmparser::Parser::new(0).parse_all(wasm) {
        if let wasmparser::Payload::DataSection(segments) = payload.unwrap() {
            bytes += segments
                .into_iter()
                .map(|data| data.unwrap().data.len())
                .sum::<usize>();
        }
    }
    bytes
}

#[test]
fn segments_go_into_the_image_in_the_modules_order() {
    let split = split(
        "test",
        &binary(
            r#"(module (memory 2)
                 (data (i32.const 10) "aaaa")
                 (data (i32.const 12) "bb")
                 (data (i32.add (i32.const 65530) (i32.mul (i32.const 2) (i32.const 3))) "c")
                 (global $at i32 (i32.const 131071))
                 (data (global.get $at) "d"))"#,
        ),
    )
    .unwrap();
    assert_eq!(split.images.len(), 1);
    let image = &split.images[0].image;
    assert_eq!((split.images[0].memory, image.size()), (0, 131072));
    assert_eq!(read(image, 9, 6), b"\0aabb\0");
    assert_eq!(read(image, 65535, 2), b"\0c");
    assert_eq!(read(image, 131071, 1), b"d");
    assert_eq!(data_bytes(&split.module), 0);
    wasmparser::Validator::new()
        .validate_all(&split.module)
        .unwrap();
}

/// What there is of an instance after its instantiation, or what that says.
fn outcome(engine: &Engine, wasm: &[u8], split_first: bool) -> Result<Vec<u8>, String> {
    let linker = Linker::<()>::new(engine);
    let module = if split_first {
        instantiator_with(&linker, wasm)
    } else {
        let module = Module::from_binary(engine, wasm).unwrap();
        Instantiator::new(linker.instantiate_pre(&module).unwrap(), &[]).unwrap()
    };
    let mut store = Store::new(engine, ());
    let instance = module
        .instantiate(&mut store)
        .map_err(|error| error.root_cause().to_string())?;
    if let Ok(run) = instance.get_typed_func::<(), ()>(&mut store, "run") {
        run.call(&mut store, ())
            .map_err(|error| error.root_cause().to_string())?;
    }
    Ok(bytes(&mut store, &instance, "memory"))
}

#[test]
fn a_split_module_does_what_it_did_before() {
    let on_pool = engine(&pool());
    let own = plain_engine();
    for text in [
        // A start function sees the data, and changes it.
        r#"(module (memory (export "memory") 1) (data (i32.const 4) "\01")
             (func $start (i32.store8 (i32.const 5) (i32.load8_u (i32.const 4))))
             (start $start))"#,
        // Passive segments keep their index, whatever is before them.
        r#"(module (memory (export "memory") 1)
             (data (i32.const 0) "active") (data $passive "passive")
             (func (export "run")
               (memory.init $passive (i32.const 20) (i32.const 1) (i32.const 3))
               (data.drop $passive)))"#,
        // A start function that grows, and fills to the end.
        r#"(module (memory (export "memory") 1 2) (data (i32.const 9) "data")
             (func $start
               (drop (memory.grow (i32.const 1)))
               (memory.fill (i32.const 65530) (i32.const 7) (i32.const 65542)))
             (start $start))"#,
        // What does not fit is not done at all.
        r#"(module (memory (export "memory") 1) (data (i32.const 9) "data")
             (func (export "run")
               (memory.fill (i32.const 65530) (i32.const 7) (i32.const 7))))"#,
        // Pages that nobody has touched, copied from one memory to the other.
        r#"(module (memory (export "memory") 1) (memory $other 2)
             (data (memory $other) (i32.const 100000) "other")
             (func (export "run")
               (memory.copy 0 $other (i32.const 5) (i32.const 90000) (i32.const 20000))))"#,
        // One that is used after it has been dropped.
        r#"(module (memory (export "memory") 1)
             (data $passive "passive") (data (i32.const 0) "active")
             (func (export "run")
               (data.drop $passive)
               (memory.init $passive (i32.const 20) (i32.const 1) (i32.const 3))))"#,
        // An active segment counts as dropped: no bytes of it are left,
        r#"(module (memory (export "memory") 1)
             (data $active (i32.const 0) "active")
             (func (export "run")
               (memory.init $active (i32.const 20) (i32.const 0) (i32.const 1))))"#,
        // but none at all can be had.
        r#"(module (memory (export "memory") 1)
             (data $active (i32.const 0) "active")
             (func (export "run")
               (memory.init $active (i32.const 20) (i32.const 0) (i32.const 0))
               (data.drop $active)))"#,
        // Out of bounds, by one byte, by a number that seems negative, and in no
        // memory at all.
        r#"(module (memory (export "memory") 1)
             (data (i32.const 0) "in") (data (i32.const 65535) "no"))"#,
        r#"(module (memory (export "memory") 1) (data (i32.const -1) "no"))"#,
        r#"(module (memory (export "memory") 0) (data (i32.const 0) "no"))"#,
        // Empty ones have bounds as well.
        r#"(module (memory (export "memory") 1) (data (i32.const 65536) ""))"#,
        r#"(module (memory (export "memory") 1) (data (i32.const 65537) ""))"#,
        r#"(module (memory (export "memory") 0) (data (i32.const 0) ""))"#,
        // Elements come before data, and keep their bounds.
        r#"(module (memory (export "memory") 1) (data (i32.const 0) "data")
             (table 1 funcref) (func $f) (elem (i32.const 0) $f)
             (func (export "run") (call_indirect (i32.const 0))))"#,
        r#"(module (memory (export "memory") 1) (data (i32.const 0) "data")
             (table 1 funcref) (func $f) (elem (i32.const 1) $f))"#,
        // No exports of the module's own but one, no code.
        r#"(module (memory (export "memory") 1) (data (i32.const 0) "x"))"#,
        // 64-bit addresses.
        r#"(module (memory (export "memory") i64 1)
             (data $active (i64.const 3) "x")
             (func (export "run") (data.drop $active)))"#,
    ] {
        let wasm = binary(text);
        let wanted = outcome(&own, &wasm, false);
        assert_eq!(outcome(&on_pool, &wasm, true), wanted, "{text}");
        assert_eq!(outcome(&on_pool, &wasm, false), wanted, "{text}");
    }
}

#[test]
fn everything_but_data_and_exports_stays_byte_by_byte() {
    let wasm = binary(
        r#"(module $named
             (import "host" "f" (func $f (param i32)))
             (memory (export "memory") 1) (table (export "table") 2 funcref)
             (global (export "global") (mut i32) (i32.const 7))
             (data (i32.const 0) "data") (elem (i32.const 0) $f $g)
             (func $g (export "g") (param $p i32) (call $f (local.get $p)))
             (@custom "mine" "bytes"))"#,
    );
    let split = split("test", &wasm).unwrap();
    let sections = |wasm: &[u8]| -> Vec<(u8, Vec<u8>)> {
        wasmparser::Parser::new(0)
            .parse_all(wasm)
            .filter_map(|payload| {
                let (id, range) = payload.unwrap().as_section()?;
                Some((id, wasm[range].to_vec()))
            })
            .filter(|(id, _)| ![7, 11, 12].contains(id))
            .collect()
    };
    assert_eq!(sections(&split.module), sections(&wasm));
    let engine = plain_engine();
    let names = |wasm: &[u8]| -> Vec<String> {
        let module = Module::from_binary(&engine, wasm).unwrap();
        module
            .exports()
            .map(|export| export.name().to_string())
            .collect()
    };
    let mut wanted = names(&wasm);
    wanted.push(format!(
        "firsttouch.image/0/sha256:{}",
        split.images[0].image.digest()
    ));
    assert_eq!(names(&split.module), wanted);
}

#[test]
fn segments_of_an_imported_memory_stay() {
    let wasm = binary(
        r#"(module (import "host" "memory" (memory 1))
             (memory (export "own") 1)
             (data (memory 0) (i32.const 0) "theirs")
             (data (memory 1) (i32.const 0) "own"))"#,
    );
    let split = split("test", &wasm).unwrap();
    assert_eq!(split.images.len(), 1);
    assert_eq!(split.images[0].memory, 1);
    assert_eq!(data_bytes(&split.module), "theirs".len());

    let engine = engine(&pool());
    let mut store = Store::new(&engine, ());
    let memory = Memory::new(&mut store, MemoryType::new(1, None)).unwrap();
    let mut linker = Linker::new(&engine);
    linker.define(&store, "host", "memory", memory).unwrap();
    let instance = instantiator_with(&linker, &wasm)
        .instantiate(&mut store)
        .unwrap();
    assert_eq!(&memory.data(&store)[..6], b"theirs");
    assert_eq!(&bytes(&mut store, &instance, "own")[..3], b"own");
}

#[test]
fn a_segment_out_of_bounds_traps_at_instantiation() {
    let engine = engine(&pool());
    let module = instantiator(
        &engine,
        r#"(module (memory 1) (data (i32.const 0) "in") (data (i32.const 65535) "no"))"#,
    );
    let mut store = Store::new(&engine, ());
    let error = module.instantiate(&mut store).unwrap_err();
    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
}

#[test]
fn what_cannot_be_split_is_refused_by_name() {
    let refused = |wasm: &[u8]| split("test", wasm).unwrap_err().to_string();
    let position_independent = refused(&binary(
        r#"(module (import "env" "__memory_base" (global $base i32)) (memory 1)
             (data (i32.const 0) "a") (data (global.get $base) "b"))"#,
    ));
    assert!(
        position_independent.contains("data segment 1 of memory 0 cannot be taken out")
            && position_independent.contains("imported global 0"),
        "{position_independent}"
    );
    let shared = refused(&binary(
        r#"(module (memory 1 1 shared) (data (i32.const 0) "a"))"#,
    ));
    assert!(shared.contains("the memory is shared"), "{shared}");
    let small_pages = refused(&binary(
        r#"(module (memory 5 (pagesize 1)) (data (i32.const 0) "a"))"#,
    ));
    assert!(small_pages.contains("pages of 1 bytes"), "{small_pages}");
    let invalid = refused(b"\0asm\x01\0\0\0\x05");
    assert!(invalid.contains("not valid"), "{invalid}");
    let component = refused(b"\0asm\x0d\0\x01\0");
    assert!(component.contains("component"), "{component}");
    let once = split(
        "test",
        &binary(r#"(module (memory 1) (data (i32.const 0) "a"))"#),
    );
    let twice = refused(&once.unwrap().module);
    assert!(twice.contains("split already"), "{twice}");
}

#[test]
fn the_wrong_image_is_an_error_and_so_is_none_or_one_too_many() {
    let engine = engine(&pool());
    let right = split(
        "right",
        &binary(r#"(module (memory 1) (data (i32.const 0) "a"))"#),
    )
    .unwrap();
    let wrong = split(
        "wrong",
        &binary(r#"(module (memory 1) (data (i32.const 0) "b"))"#),
    )
    .unwrap();
    let module = Module::from_binary(&engine, &right.module).unwrap();
    let with = |images: &[Image]| {
        let pre = Linker::<()>::new(&engine).instantiate_pre(&module).unwrap();
        Instantiator::new(pre, images)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(with(&images(&right)), None);
    let error = with(&images(&wrong)).unwrap();
    for named in [&right, &wrong] {
        assert!(
            error.contains(&named.images[0].image.digest().to_string()),
            "{error}"
        );
    }
    let error = with(&[]).unwrap();
    assert!(error.ends_with("given: none"), "{error}");
    let both = [images(&right), images(&wrong)].concat();
    let error = with(&both).unwrap();
    assert!(
        error.contains("belongs to no memory of the module"),
        "{error}"
    );
}

#[test]
fn a_compiled_module_still_names_its_image() {
    let engine = engine(&pool());
    let split = split(
        "test",
        &binary(r#"(module (memory 1) (data (i32.const 0) "a"))"#),
    )
    .unwrap();
    let compiled = engine.precompile_module(&split.module).unwrap();
    let module = unsafe { Module::deserialize(&engine, &compiled) }.unwrap();
    let pre = Linker::<()>::new(&engine).instantiate_pre(&module).unwrap();
    assert!(Instantiator::new(pre.clone(), &[]).is_err());
    Instantiator::new(pre, &images(&split)).unwrap();
}

#[test]
fn an_image_goes_through_a_file() {
    let directory = std::env::temp_dir().join(format!("firsttouch-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("image.ftimg");
    let image = Image::from_segments(
        "test",
        65536,
        &[Segment {
            offset: 5000,
            bytes: b"bytes",
        }],
    )
    .unwrap();
    image.write(&path).unwrap();
    let opened = Image::open(&path).unwrap();
    assert_eq!(opened.digest(), image.digest());
    assert_eq!(read(&opened, 5000, 5), b"bytes");
    assert_eq!(Image::load(&path).unwrap().digest(), image.digest());
    // Somebody writes to the file: that is seen by who reads it whole.
    let mut file = std::fs::read(&path).unwrap();
    let at = file.windows(5).position(|bytes| bytes == b"bytes").unwrap();
    file[at] = b'B';
    std::fs::write(&path, file).unwrap();
    let damaged = Image::load(&path).unwrap_err().to_string();
    assert!(
        damaged.contains("image.ftimg") && damaged.contains("SHA-256"),
        "{damaged}"
    );
    std::fs::remove_dir_all(&directory).unwrap();
    let missing = Image::open(&path).unwrap_err().to_string();
    assert!(missing.contains("image.ftimg"), "{missing}");
}

#[test]
fn the_tool_writes_a_module_and_its_images() {
    let directory = std::env::temp_dir().join(format!("firsttouch-split-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let run = |text: &str| {
        std::fs::write(directory.join("app.wasm"), binary(text)).unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_firsttouch-split"))
            .args(["app.wasm", "split.wasm"])
            .current_dir(&directory)
            .output()
            .unwrap()
    };
    let text = r#"(module (memory 1) (memory (export "memory") 1)
                    (data (memory 1) (i32.const 9) "tool"))"#;
    assert!(run(text).status.success());
    let engine = engine(&pool());
    let module = Module::from_file(&engine, directory.join("split.wasm")).unwrap();
    let image = Image::open(&directory.join("split.1.ftimg")).unwrap();
    let pre = Linker::new(&engine).instantiate_pre(&module).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = Instantiator::new(pre, &[image])
        .unwrap()
        .instantiate(&mut store)
        .unwrap();
    assert_eq!(&bytes(&mut store, &instance, "memory")[9..13], b"tool");

    let refused = run(r#"(module (memory 1 1 shared) (data (i32.const 0) "a"))"#);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("app.wasm: data segment 0"), "{said}");
    std::fs::remove_dir_all(&directory).unwrap();
}

/// An instance, as Wizer reads it.
struct Wizened<'a>(&'a mut Store<()>, wasmtime::Instance);

impl wasmtime_wizer::InstanceState for Wizened<'_> {
    async fn global_get(
        &mut self,
        name: &str,
        _: wasmparser::ValType,
    ) -> wasmtime_wizer::SnapshotVal {
        let global = self.1.get_global(&mut *self.0, name).unwrap();
        match global.get(&mut *self.0) {
            wasmtime::Val::I32(value) => wasmtime_wizer::SnapshotVal::I32(value),
            other => panic!("{other:?}"),
        }
    }
    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.1.get_memory(&mut *self.0, name).unwrap();
        contents(memory.data(&*self.0));
    }
}

#[test]
fn the_heap_of_a_module_that_wizer_has_made_is_its_image() {
    let wasm = binary(
        r#"(module (memory (export "memory") 1) (global $set (mut i32) (i32.const 0))
             (data (i32.const 0) "at first")
             (func (export "setup")
               (global.set $set (i32.const 1))
               (drop (memory.grow (i32.const 1)))
               (i32.store (i32.const 70000) (i32.const 12345)))
             (func (export "value") (param i32) (result i32)
               (i32.mul (global.get $set) (i32.load (local.get 0)))))"#,
    );
    let own = plain_engine();
    let wizer = wasmtime_wizer::Wizer::new();
    let (context, instrumented) = wizer.instrument(&wasm).unwrap();
    let mut store = Store::new(&own, ());
    let module = Module::from_binary(&own, &instrumented).unwrap();
    let instance = Linker::new(&own).instantiate(&mut store, &module).unwrap();
    instance
        .get_typed_func::<(), ()>(&mut store, "setup")
        .unwrap()
        .call(&mut store, ())
        .unwrap();
    let mut snapshot = Box::pin(async {
        wizer
            .snapshot(&context, &mut Wizened(&mut store, instance))
            .await
            .unwrap()
    });
    let mut waiting = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(wizened) = snapshot.as_mut().poll(&mut waiting) else {
        panic!("nothing in it waits");
    };

    let split = split("wizened", &wizened).unwrap();
    assert_eq!(data_bytes(&split.module), 0);
    assert_eq!(split.images[0].image.size(), 131072);
    let engine = engine(&pool());
    let module = Module::from_binary(&engine, &split.module).unwrap();
    let pre = Linker::new(&engine).instantiate_pre(&module).unwrap();
    let app = Instantiator::new(pre, &images(&split)).unwrap();
    let mut store = Store::new(&engine, ());
    let instance = app.instantiate(&mut store).unwrap();
    assert_eq!(call(&mut store, &instance, "value", 70000).unwrap(), 12345);
    assert_eq!(&bytes(&mut store, &instance, "memory")[..8], b"at first");
}
