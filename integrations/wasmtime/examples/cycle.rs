//! What one tenant's memory costs: a store, an instance, a run that changes k of
//! the 256 pages of a 1 MiB image, and the store's end; less the same with a
//! module that has no memory.
//!
//!     cargo run --release --example cycle [-- rounds]

mod ways;
use firsttouch_wasmtime::split;
use std::time::Instant;
use wasmtime::Store;
use ways::{ALL, App, Sizes, Supply, Way};

const PAGES: usize = 256;
const CHANGED: [i32; 4] = [1, 4, 16, 64];
/// Cycles of one way in one round: so many that the caches are warm, and so few
/// that there are rounds in which nothing else ran.
const CYCLES: usize = 250;

/// `first`: the image's first bytes, so that there are several images.
fn module(memory: bool, first: i32) -> Vec<u8> {
    // Every page has bytes: nothing is saved for zeroes.
    let mut bytes = String::new();
    for i in 0..PAGES * 4096 / 4 {
        for byte in (i as u32 + first as u32).to_le_bytes() {
            bytes += &format!("\\{byte:02x}");
        }
    }
    let (memory, store) = if memory {
        (
            format!(r#"(memory (export "memory") 16) (data (i32.const 0) "{bytes}")"#),
            "(i32.store8 (i32.shl (local.get $page) (i32.const 12)) (i32.const 7))",
        )
    } else {
        (String::new(), "")
    };
    // Changed pages lie apart from each other.
    wat::parse_str(format!(
        r#"(module {memory}
             (func (export "run") (param $changed i32) (local $i i32) (local $page i32)
               (loop $next
                 (local.set $page
                   (i32.rem_u (i32.mul (local.get $i) (i32.const 37)) (i32.const {PAGES})))
                 {store}
                 (br_if $next (i32.lt_u
                   (local.tee $i (i32.add (local.get $i) (i32.const 1)))
                   (local.get $changed))))))"#
    ))
    .unwrap()
}

/// Nanoseconds of one cycle, on average.
fn measure(supply: &Supply, app: &App<()>, changed: i32) -> f64 {
    let start = Instant::now();
    for _ in 0..CYCLES {
        let mut store = Store::new(&supply.engine, ());
        let instance = app.instantiate(&mut store).unwrap();
        let run = instance
            .get_typed_func::<i32, ()>(&mut store, "run")
            .unwrap();
        run.call(&mut store, changed).unwrap();
    }
    start.elapsed().as_nanos() as f64 / CYCLES as f64
}

fn main() {
    let rounds: usize = std::env::args()
        .nth(1)
        .map_or(100, |text| text.parse().expect("a number of rounds"));
    // A program for each number of pages: what a pool has found out about one is
    // not what is right for another.
    let with = CHANGED.map(|changed| module(true, changed));
    let split_with = with.each_ref().map(|wasm| split("cycle", wasm).unwrap());
    let without = module(false, 0);
    let split_without = split("cycle", &without).unwrap();
    let sizes = Sizes {
        slots: 8,
        max_memory_bytes: 16 << 20,
        kept_bytes: PAGES * 4096,
    };
    let supplies: Vec<_> = ALL.iter().map(|way| Supply::new(*way, &sizes)).collect();
    let apps: Vec<_> = supplies
        .iter()
        .map(|supply| {
            let with: Vec<_> = with
                .iter()
                .zip(&split_with)
                .map(|(wasm, split)| supply.app::<()>(wasm, split, |_, _| {}))
                .collect();
            (with, supply.app::<()>(&without, &split_without, |_, _| {}))
        })
        .collect();
    println!("{}", supplies[3].pool.as_ref().unwrap().describe().unwrap());

    // Of each round: [way][k], and [way] without a memory.
    let mut cycles = vec![vec![Vec::new(); CHANGED.len()]; ALL.len()];
    let mut rests = ALL.map(|_| Vec::new());
    for round in 0..rounds + 1 {
        for (k, changed) in CHANGED.into_iter().enumerate() {
            for (way, (supply, (with, without))) in supplies.iter().zip(&apps).enumerate() {
                let cycle = measure(supply, &with[k], changed);
                let rest = measure(supply, without, changed);
                // The first round is to warm up.
                if round > 0 {
                    cycles[way][k].push(cycle);
                    rests[way].push(rest);
                }
            }
        }
    }

    // Other work on the machine only adds.
    let fastest = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        "the fastest of {rounds} rounds of {CYCLES} cycles, in us: memory's part (whole cycle)"
    );
    print!("{:14}", "changed pages");
    for changed in CHANGED {
        print!("{changed:>16}");
    }
    println!();
    let rest = rests.map(|rests| fastest(&rests));
    let part = |way: usize, k: usize| fastest(&cycles[way][k]) - rest[way];
    for (way, name) in ALL.iter().enumerate() {
        print!("{:14}", name.name());
        for k in 0..CHANGED.len() {
            print!(
                "{:>16}",
                format!(
                    "{:.2} ({:.2})",
                    part(way, k) / 1000.0,
                    fastest(&cycles[way][k]) / 1000.0
                )
            );
        }
        println!();
    }
    let ours = ALL.iter().position(|way| *way == Way::Firsttouch).unwrap();
    print!("{:14}", "ratio");
    for k in 0..CHANGED.len() {
        let best = (0..ALL.len())
            .filter(|way| *way != ours)
            .map(|way| part(way, k))
            .fold(f64::INFINITY, f64::min);
        print!("{:>16.2}", part(ours, k) / best);
    }
    println!("   firsttouch over the best of the others, memory's part");
}
