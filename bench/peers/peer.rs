//! What the contenders written in Rust have in common: the requests that they
//! answer (README.md has the protocol), whatever Wasmtime does them. A contender
//! is a `main.rs` that includes this file and has a module `api`.

use crate::api::{App, Supply};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use wasmtime::{Caller, Extern, Instance, Memory, Store, TypedFunc, Val};

const PAGE: usize = 4096;
/// The guest's memory at most (guest.wat).
const MAX_MEMORY_BYTES: usize = 8 << 20;

/// What a supply is to have room for.
pub struct Sizes {
    pub slots: u32,
    pub max_memory_bytes: usize,
    /// What the ways that keep memory keep of each.
    pub kept_bytes: usize,
    /// What the instances of a module may have at most, where that is asked.
    #[allow(dead_code)]
    pub functions: u32,
    pub table_elements: u32,
}

// --- Requests ----------------------------------------------------------------

/// A line of words, of which all but the first are NAME=VALUE.
#[derive(Clone)]
pub struct Request {
    verb: String,
    words: BTreeMap<String, String>,
}

impl Request {
    fn parse(line: &str) -> Request {
        let mut words = line.split_whitespace();
        Request {
            verb: words.next().unwrap_or_default().to_string(),
            words: words
                .map(|word| {
                    let (name, value) = word.split_once('=').expect("NAME=VALUE");
                    (name.to_string(), value.to_string())
                })
                .collect(),
        }
    }
    fn text(&self, name: &str) -> &str {
        self.words.get(name).map_or("", |value| value)
    }
    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.words
            .get(name)
            .map_or(otherwise, |value| value.parse().expect("a number"))
    }
}

/// The guest's memory at the start.
fn memory_bytes(request: &Request) -> usize {
    (request.number("memory_kib", 2 << 10) as usize) << 10
}

/// One line of JSON.
#[derive(Default)]
struct Answer(Vec<String>);

impl Answer {
    fn number(&mut self, name: &str, value: f64) {
        self.0.push(format!("\"{name}\":{value:.4}"));
    }
    fn text(&mut self, name: &str, value: &str) {
        self.0.push(format!("\"{name}\":{value:?}"));
    }
    /// In ns. report.py takes a median and a mean of it.
    fn readings(&mut self, name: &str, ticks: &[u64]) {
        let ns: Vec<String> = ticks
            .iter()
            .map(|ticks| format!("{:.1}", *ticks as f64 / ticks_per_ns()))
            .collect();
        self.0.push(format!("\"{name}\":[{}]", ns.join(",")));
    }
    fn print(&self) {
        println!("{{{}}}", self.0.join(","));
        std::io::stdout().flush().unwrap();
    }
}

// --- What is read ------------------------------------------------------------

fn ticks() -> u64 {
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn ticks_per_ns() -> f64 {
    static ONCE: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *ONCE.get_or_init(|| {
        let (start, begun) = (std::time::Instant::now(), ticks());
        while start.elapsed().as_millis() < 20 {}
        (ticks() - begun) as f64 / start.elapsed().as_nanos() as f64
    })
}

/// Minor and major page faults of the process so far.
fn faults() -> u64 {
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        (usage.ru_minflt + usage.ru_majflt) as u64
    }
}

/// Between the two, system calls are counted where somebody traces the program
/// (examples/system_calls.h).
fn mark(begin: bool) {
    let none: libc::c_ulong = 0;
    let mark = if begin { 0x6674_0001 } else { 0x6674_0002 };
    unsafe { libc::prctl(mark, none, none, none, none) };
}

/// A number of KiB from a file in /proc/self.
fn proc_kib(file: &str, field: &str) -> f64 {
    std::fs::read_to_string(format!("/proc/self/{file}"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().unwrap())
        .sum()
}

/// Of the process: private, proportional, page tables (KiB), mappings.
fn footprint() -> [f64; 4] {
    [
        proc_kib("smaps_rollup", "Private_Dirty") + proc_kib("smaps_rollup", "Private_Clean"),
        proc_kib("smaps_rollup", "Pss"),
        proc_kib("status", "VmPTE"),
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count() as f64,
    ]
}

// --- Images ------------------------------------------------------------------

/// The bytes of an image, the same in every contender; no word of it is 0.
pub fn image_bytes(image: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8)
        .flat_map(|i| ((i + image * 0x10001).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes())
        .collect()
}

fn leb(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The module with the bytes as its data, from address 0 on.
fn with_data(module: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut data = vec![1, 0, 0x41, 0, 0x0b];
    leb(bytes.len(), &mut data);
    data.extend_from_slice(bytes);
    let mut whole = module.to_vec();
    whole.push(11);
    leb(data.len(), &mut whole);
    whole.extend_from_slice(&data);
    whole
}

/// guest.wat with a memory of so many bytes at the start, less than 8 MiB.
fn with_size(guest: &[u8], bytes: usize) -> Vec<u8> {
    // Its memory section: one memory, with a maximum, of 32 to 128 pages.
    const MEMORY: [u8; 7] = [5, 5, 1, 1, 32, 0x80, 1];
    let at = guest
        .windows(MEMORY.len())
        .position(|part| part == MEMORY)
        .expect("the memory of guest.wat");
    let mut sized = guest.to_vec();
    sized[at + 4] = (bytes >> 16) as u8;
    sized
}

/// The guest after it was set up: the same module with the bytes of its memory
/// as its data. Its globals are as at first once no call is left on its stack.
fn with_memory(module: &[u8], bytes: &[u8]) -> Vec<u8> {
    // The names of segments, and their number, are not those of the new ones.
    const CUSTOM: u8 = 0;
    const DATA_COUNT: u8 = 12;
    const MEMORY: u8 = 5;
    const DATA: u8 = 11;
    let mut whole = module[..8].to_vec();
    let mut at = 8;
    while at < module.len() {
        let (id, begun) = (module[at], at);
        let (mut size, mut shift) = (0, 0);
        loop {
            at += 1;
            size |= (module[at] as usize & 0x7f) << shift;
            shift += 7;
            if module[at] < 0x80 {
                break;
            }
        }
        at += 1 + size;
        match id {
            MEMORY => {
                // One memory, of no less than this.
                let mut limits = vec![1, 0];
                leb(bytes.len() >> 16, &mut limits);
                whole.push(MEMORY);
                leb(limits.len(), &mut whole);
                whole.extend_from_slice(&limits);
            }
            DATA => whole = with_data(&whole, bytes),
            CUSTOM | DATA_COUNT => {}
            _ => whole.extend_from_slice(&module[begun..at]),
        }
    }
    whole
}

fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Picks of so many images, the first most often (Zipf's law).
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(images: u64) -> Zipf {
        let mut sum = 0.0;
        Zipf(
            (1..=images)
                .map(|rank| {
                    sum += 1.0 / rank as f64;
                    sum
                })
                .collect(),
        )
    }
    fn pick(&self, number: u64) -> usize {
        let at = (mix(number) >> 11) as f64 / (1u64 << 53) as f64 * self.0[self.0.len() - 1];
        self.0
            .partition_point(|sum| *sum <= at)
            .min(self.0.len() - 1)
    }
}

/// The little of WASI that SQLite calls: there are neither files nor an
/// environment, and the clock stands still.
pub fn wasi(name: &str, mut caller: Caller<'_, ()>, parameters: &[Val], results: &mut [Val]) {
    const BADF: i32 = 8;
    const NOSYS: i32 = 52;
    let mut zero = |parameter: &Val, bytes: usize| {
        let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
            panic!("the guest exports its memory");
        };
        let at = parameter.unwrap_i32() as u32 as usize;
        memory.write(&mut caller, at, &[0; 8][..bytes]).unwrap();
    };
    let answer = match name {
        "clock_time_get" => {
            zero(&parameters[2], 8);
            0
        }
        "environ_sizes_get" => {
            zero(&parameters[0], 4);
            zero(&parameters[1], 4);
            0
        }
        "environ_get" => 0,
        "fd_prestat_get" => BADF,
        _ => NOSYS,
    };
    if let Some(result) = results.first_mut() {
        *result = Val::I32(answer);
    }
}

// --- The guests of one thread ------------------------------------------------

type Run = (i32, i32, i32, i32, i32, i32);

/// What a request says of cycles.
#[derive(Clone, Copy)]
struct Cycle {
    k: u64,
    same: u64,
    pages: u64,
    whole: bool,
    grown: u64,
    slots: u64,
    thread: u64,
    touch: Option<(u64, u64, u64, u64)>,
}

impl Cycle {
    fn new(request: &Request, thread: u64) -> Cycle {
        let k = request.number("k", 0);
        let touch = (request.text("work") == "touch").then(|| {
            (
                request.number("first", 0),
                request.number("count", 256),
                request.number("step", 1),
                request.number("write", 0),
            )
        });
        Cycle {
            k,
            same: match request.text("pages") {
                "others" => 0,
                "mixed" => 28,
                _ => k,
            },
            pages: request.number("of_kib", request.number("image_kib", 1024)) / 4,
            whole: request.number("whole", 0) != 0,
            grown: request.number("grown", 0),
            slots: request.number("slots", 1),
            thread,
            touch,
        }
    }
    fn run(&self, cycle: u64) -> Run {
        let start = if self.same == self.k {
            0
        } else {
            mix(cycle) % (self.pages - self.same)
        };
        (
            self.k as i32,
            self.same as i32,
            start as i32,
            self.pages as i32,
            cycle as i32,
            i32::from(self.whole),
        )
    }
}

struct Guest {
    store: Store<()>,
    instance: Instance,
}

impl Guest {
    fn new(supply: &Supply, app: &App) -> Guest {
        let mut store = Store::new(supply.engine(), ());
        let instance = app.instantiate(&mut store);
        Guest { store, instance }
    }
    fn run(&mut self, cycle: Run) -> u64 {
        self.call("run", cycle)
    }
    fn call<P: wasmtime::WasmParams>(&mut self, name: &str, parameters: P) -> u64 {
        let run: TypedFunc<P, i64> = self.instance.get_typed_func(&mut self.store, name).unwrap();
        run.call(&mut self.store, parameters).unwrap() as u64
    }
    fn memory(&mut self) -> Memory {
        self.instance.get_memory(&mut self.store, "memory").unwrap()
    }
}

/// What a thread has measured.
#[derive(Default)]
struct Part {
    /// Of each cycle, or of each batch of cycles.
    ticks: Vec<u64>,
    /// Of the guest's touches alone.
    touch_ticks: Vec<u64>,
    sum: u64,
    begun: u64,
    ended: u64,
}

struct Work {
    supply: Arc<Supply>,
    apps: Arc<Vec<App>>,
    zipf: Arc<Zipf>,
    cycle: Cycle,
    next: u64,
}

impl Work {
    /// So many cycles, or as many as begin within so many ticks.
    fn cycles(&mut self, cycles: u64, budget: u64) -> Part {
        let begun = ticks();
        let mut part = Part {
            begun,
            ..Part::default()
        };
        let mut last = begun;
        for _ in 0..cycles.div_ceil(self.cycle.slots) {
            if last - begun >= budget {
                break;
            }
            let mut guests = Vec::new();
            for i in 0..self.cycle.slots {
                let app = self.zipf.pick((self.next + i) ^ (self.cycle.thread << 32));
                guests.push(Guest::new(&self.supply, &self.apps[app]));
            }
            for guest in &mut guests {
                let run = self.cycle.run(self.next);
                let sum = if let Some((first, count, step, write)) = self.cycle.touch {
                    let begun = ticks();
                    let touched = (first as i32, count as i32, step as i32, write as i32);
                    let sum = guest.call("touch", touched);
                    part.touch_ticks.push(ticks() - begun);
                    sum
                } else if self.cycle.grown > 0 {
                    guest.call("grow", self.cycle.grown as i32)
                } else {
                    guest.run(run)
                };
                part.sum = part.sum.rotate_left(1) ^ sum;
                self.next += 1;
            }
            drop(guests);
            let now = ticks();
            part.ticks.push((now - last) / self.cycle.slots);
            last = now;
        }
        part.ended = last;
        part
    }

    /// Whether a fresh instance of the first image finds it, and zeroes.
    fn finds_clean(&self, image_bytes: &[u8], memory_bytes: usize) -> bool {
        (0..self.cycle.slots)
            .map(|_| Guest::new(&self.supply, &self.apps[0]))
            .collect::<Vec<_>>()
            .iter_mut()
            .all(|guest| {
                let bytes = guest.memory().data(&guest.store).to_vec();
                bytes.len() == memory_bytes
                    && bytes[..image_bytes.len()] == *image_bytes
                    && bytes[image_bytes.len()..].iter().all(|byte| *byte == 0)
            })
    }
}

// --- A row's threads ---------------------------------------------------------

enum Job {
    Cycles(u64, bool),
    Rest(u64),
    Check,
}

struct Row {
    supply: Arc<Supply>,
    threads: Vec<(Sender<Job>, Receiver<(Part, bool)>)>,
}

pub struct Modules {
    guest: Vec<u8>,
    rest: Vec<u8>,
}

impl Row {
    fn new(way: &str, modules: &Modules, request: &Request) -> Row {
        let threads = request.number("threads", 1);
        let budget = match request.number("ms", 0) {
            0 => u64::MAX,
            ms => (ms as f64 * 1e6 * ticks_per_ns()) as u64,
        };
        let images = request.number("images", 1);
        let image_kib = request.number("image_kib", 1024) as usize;
        let supply = Arc::new(Supply::new(
            way,
            &sizes_for(request.number("slots", 1) * threads + 1),
        ));
        let apps: Arc<Vec<App>> = Arc::new(
            (0..images)
                .map(|image| {
                    let guest = with_size(&modules.guest, memory_bytes(request));
                    supply.app(&with_data(&guest, &image_bytes(image, image_kib << 10)))
                })
                .collect(),
        );
        let rest = Arc::new(vec![supply.app(&modules.rest)]);
        let zipf = Arc::new(Zipf::new(images));
        let first = Arc::new(image_bytes(0, image_kib << 10));
        let (warmup, size) = (request.number("warmup", 400), memory_bytes(request));
        let barrier = Arc::new(std::sync::Barrier::new(threads as usize));
        let threads = (0..threads)
            .map(|thread| {
                let (jobs, todo) = channel::<Job>();
                let (done, parts) = channel();
                let work = |apps: &Arc<Vec<App>>, zipf: Zipf| Work {
                    supply: supply.clone(),
                    apps: apps.clone(),
                    zipf: Arc::new(zipf),
                    cycle: Cycle::new(request, thread),
                    next: 1,
                };
                let mut cycles = work(&apps, Zipf(zipf.0.clone()));
                let mut others = work(&rest, Zipf::new(1));
                others.cycle.touch = None;
                others.cycle.grown = 0;
                let (barrier, first) = (barrier.clone(), first.clone());
                std::thread::spawn(move || {
                    let mut warm = false;
                    for job in todo {
                        if !std::mem::replace(&mut warm, true) {
                            cycles.cycles(warmup, u64::MAX);
                            others.cycles(20, u64::MAX);
                        }
                        barrier.wait();
                        let answer = match job {
                            Job::Cycles(count, marked) => {
                                if marked {
                                    mark(true);
                                }
                                let part = cycles.cycles(count, budget);
                                if marked {
                                    mark(false);
                                }
                                (part, true)
                            }
                            Job::Rest(count) => (others.cycles(count, budget), true),
                            Job::Check => (Part::default(), cycles.finds_clean(&first, size)),
                        };
                        if done.send(answer).is_err() {
                            break;
                        }
                    }
                });
                (jobs, parts)
            })
            .collect();
        Row { supply, threads }
    }

    fn all(&self, job: impl Fn() -> Job) -> Vec<(Part, bool)> {
        for (jobs, _) in &self.threads {
            jobs.send(job()).unwrap();
        }
        self.threads
            .iter()
            .map(|(_, parts)| parts.recv().unwrap())
            .collect()
    }

    fn clean(&self) -> bool {
        self.all(|| Job::Check).iter().all(|(_, clean)| *clean)
    }

    fn round(&self, request: &Request, answer: &mut Answer) {
        // The warming up is in neither.
        self.all(|| Job::Cycles(1, false));
        let counted = request.number("marked", 0) != 0;
        let cycles = request.number("cycles", 500);
        let before = faults();
        let parts = self.all(|| Job::Cycles(cycles, counted));
        let faults = faults() - before;
        let all = |parts: &[(Part, bool)], of: fn(&Part) -> &Vec<u64>| -> Vec<u64> {
            parts
                .iter()
                .flat_map(|(part, _)| of(part))
                .copied()
                .collect()
        };
        let times = all(&parts, |part| &part.ticks);
        let touches = all(&parts, |part| &part.touch_ticks);
        if !touches.is_empty() {
            answer.readings("touch_ns", &touches);
        }
        let done = times.len() as f64 * request.number("slots", 1) as f64;
        answer.number("cycles", done);
        // Of all that passed, also while a thread waited for a core or for a lock.
        let begun = parts.iter().map(|(part, _)| part.begun).min().unwrap();
        let ended = parts.iter().map(|(part, _)| part.ended).max().unwrap();
        let ns = (ended - begun) as f64 / ticks_per_ns();
        answer.number("per_second", 1e9 * done / ns);
        answer.number("faults", faults as f64);
        if request.number("ms", 0) != 0 {
            // Who is faster comes further in a time, and reads more.
            return;
        }
        answer.readings("ns", &times);
        let sum = parts
            .iter()
            .fold(0_u64, |sum, (part, _)| sum.wrapping_add(part.sum));
        answer.text("sum", &format!("{sum:016x}"));
        if !counted {
            let rest = self.all(|| Job::Rest(cycles.div_ceil(4).max(40)));
            answer.readings("rest_ns", &all(&rest, |part| &part.ticks));
        }
    }
}

// --- Other requests ----------------------------------------------------------

fn sizes_for(slots: u64) -> Sizes {
    Sizes {
        slots: slots as u32,
        max_memory_bytes: MAX_MEMORY_BYTES,
        // The image, behind which few guests write: not zeroes that nobody changes.
        kept_bytes: 1 << 20,
        functions: 16,
        table_elements: 16,
    }
}

/// The first cycles of slots that nobody had, of an image that ran in another, or
/// with `new`, each of an image that ran nowhere.
fn first_cycles(way: &str, modules: &Modules, request: &Request, answer: &mut Answer) {
    let slots = request.number("slots", 12);
    let cycle = Cycle {
        slots: 1,
        ..Cycle::new(request, 0)
    };
    let supply = Supply::new(way, &sizes_for(slots + 1));
    let app = supply.app(&with_data(&modules.guest, &image_bytes(0, 1 << 20)));
    let rest = supply.app(&modules.rest);
    let timed = |apps: &[&App], sum: &mut u64| -> Vec<u64> {
        let mut guests = Vec::new();
        let mut times = Vec::new();
        for (i, app) in apps.iter().enumerate() {
            let begun = ticks();
            let mut guest = Guest::new(&supply, app);
            *sum = sum.rotate_left(1) ^ guest.run(cycle.run(i as u64 + 1));
            times.push(ticks() - begun);
            guests.push(guest);
        }
        for (i, guest) in guests.into_iter().enumerate() {
            let begun = ticks();
            drop(guest);
            times[i] += ticks() - begun;
        }
        times
    };
    let mut sum = 0;
    for _ in 0..20 {
        timed(&[&app], &mut sum);
        timed(&[&rest], &mut sum);
    }
    // Holds the slot that is not fresh.
    let held = Guest::new(&supply, &app);
    sum = 0;
    let new = request.number("new", 0) != 0;
    let new_apps: Vec<App> = (0..if new { slots } else { 0 })
        .map(|i| supply.app(&with_data(&modules.guest, &image_bytes(i + 1, 1 << 20))))
        .collect();
    let apps: Vec<&App> = (0..slots as usize)
        .map(|i| new_apps.get(i).unwrap_or(&app))
        .collect();
    let before = faults();
    let times = timed(&apps, &mut sum);
    answer.number("faults", (faults() - before) as f64);
    answer.readings("ns", &times);
    answer.number("cycles", slots as f64);
    answer.text("sum", &format!("{sum:016x}"));
    let rests = vec![&rest; slots as usize];
    answer.readings("rest_ns", &timed(&rests, &mut 0));
    drop(held);
}

/// Out of bounds and back, so many times in one instance.
fn traps(way: &str, modules: &Modules, request: &Request, answer: &mut Answer) {
    let supply = Supply::new(way, &sizes_for(2));
    let app = supply.app(&with_data(&modules.guest, &image_bytes(0, 1 << 20)));
    let mut guest = Guest::new(&supply, &app);
    let peek: TypedFunc<i32, i64> = guest
        .instance
        .get_typed_func(&mut guest.store, "peek")
        .unwrap();
    let mut times = Vec::new();
    let mut trapped = 0;
    for i in 0..request.number("cycles", 200) {
        let begun = ticks();
        let end = peek.call(
            &mut guest.store,
            (memory_bytes(request) + (i as usize % 64) * PAGE) as i32,
        );
        times.push(ticks() - begun);
        trapped += u64::from(end.is_err());
    }
    answer.number("first_ns", times[0] as f64 / ticks_per_ns());
    answer.number("cycles", times.len() as f64);
    answer.number("trapped", trapped as f64);
    answer.readings("ns", &times);
    // A call that comes back takes this.
    let mut rest = Vec::new();
    for _ in 0..200 {
        let begun = ticks();
        peek.call(&mut guest.store, 64).unwrap();
        rest.push(ticks() - begun);
    }
    answer.readings("rest_ns", &rest);
}

/// What a pool of so many slots takes: time for its parts, and memory.
fn many(way: &str, modules: &Modules, request: &Request, answer: &mut Answer) {
    let slots = request.number("slots", 100);
    let run = |cycle: u64| Cycle::new(request, 0).run(cycle);
    let ns = |begun: u64| (ticks() - begun) as f64 / ticks_per_ns();
    let begun = ticks();
    let supply = Supply::new(way, &sizes_for(slots));
    answer.number("create_ns", ns(begun));
    let app = supply.app(&with_data(&modules.guest, &image_bytes(0, 1 << 20)));
    for cycle in 0..100 {
        Guest::new(&supply, &app).run(run(cycle));
    }
    let before = footprint();
    let mut guests = Vec::new();
    let (mut acquire, mut touch, mut release) = (Vec::new(), Vec::new(), Vec::new());
    for cycle in 0..slots {
        let begun = ticks();
        let mut guest = Guest::new(&supply, &app);
        acquire.push(ticks() - begun);
        let begun = ticks();
        guest.run(run(cycle));
        touch.push(ticks() - begun);
        guests.push(guest);
    }
    let busy = footprint();
    for guest in guests {
        let begun = ticks();
        drop(guest);
        release.push(ticks() - begun);
    }
    let idle = footprint();
    for (name, mut times) in [("acquire", acquire), ("touch", touch), ("release", release)] {
        times.sort();
        let median = times[times.len() / 2] as f64;
        answer.number(&format!("{name}_ns"), median / ticks_per_ns());
    }
    for (state, now) in [("busy", busy), ("idle", idle)] {
        for (i, what) in ["private_kib", "pss_kib", "tables_kib", "mappings"]
            .iter()
            .enumerate()
        {
            answer.number(
                &format!("{state}_{what}"),
                (now[i] - before[i]) / slots as f64,
            );
        }
    }
}

/// Writes SQLite with a database of so many rows in it, of the guest without.
fn set_up(way: &str, directory: &str, request: &Request) {
    let module = std::fs::read(format!("{directory}/sqlite_guest.wasm")).unwrap();
    let supply = Supply::new(way, &sizes_of_sqlite());
    let mut guest = Guest::new(&supply, &supply.app(&module));
    let start: TypedFunc<(), ()> = guest
        .instance
        .get_typed_func(&mut guest.store, "_initialize")
        .unwrap();
    start.call(&mut guest.store, ()).unwrap();
    assert_eq!(
        guest.call("setup", request.number("rows", 20000) as i64),
        0,
        "setup"
    );
    let memory = guest.memory();
    let prepared = with_memory(&module, memory.data(&guest.store));
    std::fs::write(format!("{directory}/sqlite.wasm"), prepared).unwrap();
}

fn sizes_of_sqlite() -> Sizes {
    Sizes {
        slots: 2,
        max_memory_bytes: 64 << 20,
        kept_bytes: 16 << 20,
        functions: 4000,
        table_elements: 4000,
    }
}

/// SQLite's requests, each in a fresh instance.
struct Sqlite {
    supply: Supply,
    app: App,
    rows: i64,
    next: i64,
}

impl Sqlite {
    fn new(way: &str, wizened: &[u8], rows: i64) -> Sqlite {
        let supply = Supply::new(way, &sizes_of_sqlite());
        let app = supply.app(wizened);
        Sqlite {
            supply,
            app,
            rows,
            next: 0,
        }
    }
    fn request(&mut self, same: bool) -> u64 {
        self.next += 1;
        let number = if same { 0 } else { self.next };
        let found = (if number == 0 {
            self.rows / 8
        } else {
            number * 7919 % self.rows
        }) + 1;
        let updated = (if number == 0 { 7 } else { number * 104_729 }) % self.rows + 1;
        let owner = 4711_i64;
        let mut guest = Guest::new(&self.supply, &self.app);
        assert_eq!(guest.call("find", found), found as u64, "find");
        assert_eq!(guest.call("insert", (owner, 1_i64)), 0, "insert");
        assert_eq!(guest.call("update", (updated, owner)), 0, "update");
        (found ^ updated << 20) as u64
    }
    fn round(&mut self, request: &Request, answer: &mut Answer) {
        let same = request.text("pages") == "same";
        if self.next == 0 {
            for _ in 0..60 {
                self.request(same);
            }
        }
        let marked = request.number("marked", 0) != 0;
        let mut times = Vec::new();
        let mut sum = 0_u64;
        let before = faults();
        if marked {
            mark(true);
        }
        for _ in 0..request.number("cycles", 40) {
            let begun = ticks();
            sum = sum.rotate_left(1) ^ self.request(same);
            times.push(ticks() - begun);
        }
        if marked {
            mark(false);
        }
        answer.number("faults", (faults() - before) as f64);
        // A guest finds its own row, and nobody else's.
        let mut guest = Guest::new(&self.supply, &self.app);
        assert_eq!(guest.call("insert", (4711_i64, 1_i64)), 0, "insert");
        assert_eq!(guest.call("mine", 4711_i64), 1, "mine");
        assert_eq!(guest.call("foreign", 4711_i64), 0, "foreign");
        answer.number("cycles", times.len() as f64);
        answer.readings("ns", &times);
        answer.text("sum", &format!("{sum:016x}"));
    }
}

/// Answers the requests of standard input: PROGRAM WAY DIRECTORY-OF-MODULES.
pub fn main() {
    // Of whichever thread: the others would wait for it.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(1);
    }));
    let arguments: Vec<String> = std::env::args().collect();
    let (way, directory) = (&arguments[1], &arguments[2]);
    let read = |name: &str| std::fs::read(format!("{directory}/{name}")).unwrap();
    let modules = Modules {
        guest: read("guest.wasm"),
        rest: read("rest.wasm"),
    };
    // Of the request that was made last; a row is over when another begins.
    let mut row: Option<(String, Row)> = None;
    let mut sqlite: Option<(String, Sqlite)> = None;
    ticks_per_ns();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let request = Request::parse(&line);
        let mut answer = Answer::default();
        match (request.verb.as_str(), request.text("work")) {
            ("round", "first") => first_cycles(way, &modules, &request, &mut answer),
            ("round", "traps") => traps(way, &modules, &request, &mut answer),
            ("round", "many") => many(way, &modules, &request, &mut answer),
            ("round", "sqlite") => {
                if sqlite.as_ref().is_none_or(|(of, _)| *of != line) {
                    let rows = request.number("rows", 20000) as i64;
                    sqlite = Some((line, Sqlite::new(way, &read("sqlite.wasm"), rows)));
                }
                sqlite.as_mut().unwrap().1.round(&request, &mut answer);
            }
            ("round", _) => {
                if row.as_ref().is_none_or(|(of, _)| *of != line) {
                    drop(row.take());
                    row = Some((line, Row::new(way, &modules, &request)));
                }
                row.as_ref().unwrap().1.round(&request, &mut answer);
            }
            ("setup", _) => set_up(way, directory, &request),
            ("check", _) => {
                let clean = row.as_ref().is_none_or(|(_, row)| row.clean());
                answer.text("clean", if clean { "yes" } else { "no" });
                answer.text(
                    "supply",
                    &row.as_ref()
                        .map_or(String::new(), |(_, row)| row.supply.describe()),
                );
                row = None;
                sqlite = None;
            }
            _ => panic!("{line}: no such request"),
        }
        answer.print();
    }
}
