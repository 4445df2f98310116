//! SQLite for many tenants in a few slots, in each way of supplying memory: the
//! work and the checks of examples/sqlite_tenants.cc, in Wasmtime.
//!
//!     cargo run --release --example tenants -- sqlite_guest.wasm \
//!         [--tenants=4000] [--slots=64] [--rows=20000] [--rounds=8] [--threads=2]
//!
//! The guest is what `bazel build //examples:sqlite_guest.wasm` makes. It is set
//! up once and made into a module by Wizer: its heap is that module's data, and
//! the image of what split() makes of it.

mod ways;
use firsttouch_wasmtime::{Split, split};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wasmtime::{
    Caller, Engine, Extern, ExternType, Instance, Linker, Memory, Module, Store, Trap, Val,
    WasmParams,
};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};
use ways::{ALL, App, Sizes, Supply, Way};

const MAX_MEMORY_BYTES: u64 = 64 << 20;
/// One tenant in this many goes out of bounds.
const BAD_EVERY: u32 = 20;
const STEPS: u32 = 4;

struct Options {
    guest: String,
    tenants: u32,
    slots: u32,
    rows: u64,
    rounds: u32,
    threads: u32,
    /// Only this one, and nothing but the tenants: for counting system calls.
    way: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        guest: String::new(),
        tenants: 4000,
        slots: 64,
        rows: 20000,
        rounds: 8,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        way: None,
    };
    for argument in std::env::args().skip(1) {
        let Some((name, value)) = argument
            .strip_prefix("--")
            .and_then(|rest| rest.split_once('='))
        else {
            options.guest = argument;
            continue;
        };
        let number = || {
            value
                .parse::<u32>()
                .ok()
                .filter(|number| *number > 0)
                .ok_or(format!("{argument}: a number above 0 is expected"))
        };
        match name {
            "tenants" => options.tenants = number()?,
            "slots" => options.slots = number()?,
            "rows" => options.rows = number()?.into(),
            "rounds" => options.rounds = number()?,
            "threads" => options.threads = number()?,
            "way" => options.way = Some(value.to_string()),
            _ => return Err(format!("{argument}: there is no such option")),
        }
    }
    if options.guest.is_empty() {
        return Err("the path of sqlite_guest.wasm is expected".to_string());
    }
    options.threads = options.threads.min(options.slots);
    Ok(options)
}

// --- The little of WASI that SQLite calls in memory --------------------------

fn memory<T>(caller: &mut Caller<'_, T>) -> Memory {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        panic!("the guest exports its memory");
    };
    memory
}

/// What a tenant sees depends on neither time nor chance: the clock stands
/// still, there is no environment and no file.
fn link_wasi<T: 'static>(linker: &mut Linker<T>, module: &Module) {
    const BADF: i32 = 8;
    const NOSYS: i32 = 52;
    for import in module.imports() {
        let ExternType::Func(ty) = import.ty() else {
            panic!("{} is no function", import.name());
        };
        let name = import.name().to_string();
        linker
            .func_new(
                import.module(),
                import.name(),
                ty,
                move |mut caller, parameters, results| {
                    let zero = |caller: &mut Caller<'_, T>, parameter: &Val, bytes: usize| {
                        let at = parameter.unwrap_i32() as u32 as usize;
                        memory(caller).write(&mut *caller, at, &[0; 8][..bytes])
                    };
                    let answer = match name.as_str() {
                        "clock_time_get" => {
                            zero(&mut caller, &parameters[2], 8)?;
                            0
                        }
                        "environ_sizes_get" => {
                            zero(&mut caller, &parameters[0], 4)?;
                            zero(&mut caller, &parameters[1], 4)?;
                            0
                        }
                        "environ_get" => 0,
                        "fd_prestat_get" => BADF,
                        _ => NOSYS,
                    };
                    if let Some(result) = results.first_mut() {
                        *result = Val::I32(answer);
                    }
                    Ok(())
                },
            )
            .unwrap();
    }
}

// --- The database ------------------------------------------------------------

struct Wizened<'a>(&'a mut Store<()>, Instance);

impl InstanceState for Wizened<'_> {
    async fn global_get(&mut self, name: &str, _: wasmparser::ValType) -> SnapshotVal {
        match self
            .1
            .get_global(&mut *self.0, name)
            .unwrap()
            .get(&mut *self.0)
        {
            Val::I32(value) => SnapshotVal::I32(value),
            Val::I64(value) => SnapshotVal::I64(value),
            other => panic!("global {name} is {other:?}"),
        }
    }
    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.1.get_memory(&mut *self.0, name).unwrap();
        contents(memory.data(&*self.0));
    }
}

/// The guest with a database of `rows` rows in it.
fn set_up(guest: &[u8], rows: u64) -> Vec<u8> {
    let engine = Engine::default();
    let wizer = Wizer::new();
    let (context, instrumented) = wizer.instrument(guest).unwrap();
    let module = Module::from_binary(&engine, &instrumented).unwrap();
    let mut linker = Linker::new(&engine);
    link_wasi(&mut linker, &module);
    let mut store = Store::new(&engine, ());
    let instance = linker.instantiate(&mut store, &module).unwrap();
    instance
        .get_typed_func::<(), ()>(&mut store, "_initialize")
        .unwrap()
        .call(&mut store, ())
        .unwrap();
    let done = instance
        .get_typed_func::<i64, i64>(&mut store, "setup")
        .unwrap()
        .call(&mut store, rows as i64)
        .unwrap();
    assert_eq!(done, 0, "SQLite could not set up the database");
    let mut state = Wizened(&mut store, instance);
    let mut snapshot = std::pin::pin!(wizer.snapshot(&context, &mut state));
    let mut waiting = std::task::Context::from_waker(std::task::Waker::noop());
    match snapshot.as_mut().poll(&mut waiting) {
        std::task::Poll::Ready(module) => module.unwrap(),
        std::task::Poll::Pending => panic!("nothing in it waits"),
    }
}

// --- A tenant ----------------------------------------------------------------

/// Numbers that follow from the tenant.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }
    /// Of [first, last].
    fn between(&mut self, first: u64, last: u64) -> i64 {
        (first + self.next() % (last - first + 1)) as i64
    }
}

/// What one tenant asks for.
struct Tenant {
    number: u32,
    rows: i64,
    bad: bool,
    owner: i64,
    found: i64,
    first: i64,
    last: i64,
    updated: i64,
    inserted: i64,
    inserted_later: i64,
    beyond: i64,
    bad_write: bool,
}

impl Tenant {
    fn new(number: u32, rows: u64) -> Tenant {
        let mut numbers = Numbers(0x9e3779b97f4a7c15_u64.wrapping_add(number.into()));
        numbers.next();
        let owner = numbers.between(1, 1_000_000) * 10_000_000 + i64::from(number);
        let found = numbers.between(1, rows);
        let first = numbers.between(1, rows);
        Tenant {
            number,
            rows: rows as i64,
            bad: number % BAD_EVERY == BAD_EVERY / 2,
            owner,
            found,
            first,
            last: numbers.between(first as u64, (first as u64 + 99).min(rows)),
            updated: numbers.between(1, rows),
            inserted: numbers.between(1, 20),
            inserted_later: numbers.between(1, 20),
            beyond: numbers.between(0, 1 << 20) * 4,
            bad_write: numbers.between(0, 1) == 1,
        }
    }
}

/// What came out of it.
#[derive(Default)]
struct Results {
    tenants: u32,
    trapped: u32,
    answers: u64,
    wrong: u64,
    errors: Vec<String>,
}

impl Results {
    fn add(&mut self, other: Results) {
        self.tenants += other.tenants;
        self.trapped += other.trapped;
        self.answers += other.answers;
        self.wrong += other.wrong;
        self.errors.extend(other.errors);
    }
}

struct Session {
    store: Store<()>,
    instance: Instance,
    tenant: Tenant,
    step: u32,
}

impl Session {
    fn new(supply: &Supply, app: &App<()>, tenant: Tenant) -> Session {
        let mut store = Store::new(&supply.engine, ());
        let instance = app.instantiate(&mut store).unwrap();
        Session {
            store,
            instance,
            tenant,
            step: 0,
        }
    }

    fn call<P: WasmParams>(&mut self, name: &str, parameters: P) -> wasmtime::Result<i64> {
        self.instance
            .get_typed_func::<P, i64>(&mut self.store, name)?
            .call(&mut self.store, parameters)
    }

    fn expect<P: WasmParams>(
        &mut self,
        results: &mut Results,
        name: &str,
        wanted: i64,
        parameters: P,
    ) {
        results.answers += 1;
        match self.call(name, parameters) {
            Ok(got) if got == wanted => {}
            other => {
                results.wrong += 1;
                results.errors.push(format!(
                    "tenant {}: {name}: wanted {wanted}, got {other:?}",
                    self.tenant.number
                ));
            }
        }
    }

    /// Does the next step. False when the tenant is done.
    fn step(&mut self, results: &mut Results) -> bool {
        let Tenant {
            rows,
            bad,
            owner,
            found,
            first,
            last,
            updated,
            inserted,
            inserted_later,
            ..
        } = self.tenant;
        match self.step {
            0 => {
                // Nobody was here before.
                self.expect(results, "foreign", 0, owner);
                self.expect(results, "changed", 0, ());
                self.expect(results, "last", rows, ());
                self.expect(results, "find", found, found);
            }
            1 => {
                self.expect(results, "insert", 0, (owner, inserted));
                self.expect(results, "mine", inserted, owner);
                let sum = (first + last) * (last - first + 1) / 2;
                self.expect(results, "sum", sum, (first, last));
            }
            2 => {
                self.expect(results, "update", 0, (updated, owner));
                self.expect(results, "changed_by", owner, updated);
                // Its old text is not there any more.
                self.expect(results, "find", 0, updated);
                if bad {
                    self.go_out_of_bounds(results);
                    return false;
                }
            }
            _ => {
                self.expect(results, "insert", 0, (owner, inserted_later));
                self.expect(results, "mine", inserted + inserted_later, owner);
                self.expect(results, "changed", 1, ());
                // Nor did anybody come while it worked.
                self.expect(results, "foreign", 0, owner);
            }
        }
        self.step += 1;
        self.step < STEPS
    }

    /// Touches memory that is not there, and must get a trap that says where.
    fn go_out_of_bounds(&mut self, results: &mut Results) {
        let size = self.memory().data_size(&self.store);
        let at = size + self.tenant.beyond as usize;
        let touched = if self.tenant.bad_write {
            self.instance
                .get_typed_func::<(i32, i32), ()>(&mut self.store, "poke")
                .unwrap()
                .call(&mut self.store, (at as i32, 1))
        } else {
            self.instance
                .get_typed_func::<i32, i32>(&mut self.store, "peek")
                .unwrap()
                .call(&mut self.store, at as i32)
                .map(|_| ())
        };
        results.answers += 1;
        let wanted =
            format!("memory fault at wasm address 0x{at:x} in linear memory of size 0x{size:x}");
        match touched {
            Err(error)
                if error.downcast_ref::<Trap>() == Some(&Trap::MemoryOutOfBounds)
                    && format!("{error:?}").contains(&wanted) =>
            {
                results.trapped += 1;
            }
            other => {
                results.wrong += 1;
                results
                    .errors
                    .push(format!("tenant {}: {other:?}", self.tenant.number));
            }
        }
    }

    fn memory(&mut self) -> Memory {
        self.instance.get_memory(&mut self.store, "memory").unwrap()
    }
}

/// Serves tenants `first` to `end`. As many as there are slots are there at any
/// time, each in the middle of its work.
fn serve(supply: &Supply, app: &App<()>, options: &Options, first: u32, end: u32) -> Results {
    let next = AtomicU32::new(first);
    let all = Mutex::new(Results::default());
    std::thread::scope(|scope| {
        for thread in 0..options.threads {
            let (next, all) = (&next, &all);
            scope.spawn(move || {
                let places = options.slots / options.threads
                    + u32::from(thread < options.slots % options.threads);
                let mut results = Results::default();
                let mut sessions: Vec<Option<Session>> = (0..places).map(|_| None).collect();
                loop {
                    let mut live = 0;
                    for place in &mut sessions {
                        if let Some(session) = place
                            && !session.step(&mut results)
                        {
                            results.tenants += 1;
                            *place = None;
                        }
                        if place.is_none() {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number < end {
                                let tenant = Tenant::new(number, options.rows);
                                *place = Some(Session::new(supply, app, tenant));
                            }
                        }
                        live += u32::from(place.is_some());
                    }
                    if live == 0 {
                        break;
                    }
                }
                all.lock().unwrap().add(results);
            });
        }
    });
    all.into_inner().unwrap()
}

// --- What it takes -----------------------------------------------------------

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A store and an instance for each slot, done with their work or fresh.
fn fill(supply: &Supply, app: &App<()>, options: &Options, work: bool) -> Vec<Session> {
    (0..options.slots)
        .map(|number| {
            let mut tenant = Tenant::new(number, options.rows);
            tenant.bad = false;
            let mut session = Session::new(supply, app, tenant);
            let mut results = Results::default();
            while work && session.step(&mut results) {}
            session
        })
        .collect()
}

/// Anonymous bytes of the mappings in which the memories are, for each.
fn private_bytes_per_slot(sessions: &mut [Session]) -> u64 {
    let ranges: BTreeSet<(usize, usize)> = sessions
        .iter_mut()
        .map(|session| {
            let memory = session.memory();
            let base = memory.data_ptr(&session.store) as usize;
            (base, base + memory.data_size(&session.store))
        })
        .collect();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut counts = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if let Some((low, high)) = first.split_once('-')
            && let (Ok(low), Ok(high)) = (
                usize::from_str_radix(low, 16),
                usize::from_str_radix(high, 16),
            )
        {
            counts = ranges
                .iter()
                .any(|(begin, end)| *begin < high && low < *end);
        } else if counts && let Some(rest) = line.strip_prefix("Anonymous:") {
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap();
            sum += kib * 1024;
        }
    }
    sum / sessions.len() as u64
}

/// How many bytes of a fresh instance in each slot are other than at first.
fn differing_bytes(sessions: &mut [Session], split: &Split) -> usize {
    let image = &split.images[0].image;
    let mut wanted = vec![0; image.size() as usize];
    image.read(0, &mut wanted).unwrap();
    sessions
        .iter_mut()
        .map(|session| {
            let memory = session.memory();
            let bytes = memory.data(&session.store);
            assert_eq!(bytes.len(), wanted.len());
            bytes.iter().zip(&wanted).filter(|(a, b)| a != b).count()
        })
        .sum()
}

/// Microseconds of an instantiation and of the store's end, on average.
fn lifecycle(supply: &Supply, app: &App<()>, options: &Options) -> f64 {
    const TIMES: u32 = 300;
    let mut spent = Duration::ZERO;
    let mut results = Results::default();
    for number in 0..TIMES {
        let start = Instant::now();
        let mut session = Session::new(supply, app, Tenant::new(number, options.rows));
        spent += start.elapsed();
        while session.step(&mut results) {}
        let start = Instant::now();
        drop(session);
        spent += start.elapsed();
    }
    spent.as_nanos() as f64 / 1000.0 / f64::from(TIMES)
}

/// System calls of each tenant, by strace: what twice as many take more.
fn system_calls(options: &Options, way: Way, wizened: &str) -> Option<f64> {
    const TENANTS: u32 = 1024;
    let count = |tenants: u32| -> Option<f64> {
        let output = std::process::Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name"])
            .arg(std::env::current_exe().ok()?)
            .arg(wizened)
            .arg(format!("--tenants={tenants}"))
            .arg(format!("--slots={}", options.slots))
            .arg(format!("--rows={}", options.rows))
            .arg(format!("--threads={}", options.threads))
            .arg(format!("--way={}", way.name()))
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let total = said
            .lines()
            .find(|line| line.trim_end().ends_with(" total"))?;
        total.split_whitespace().next()?.parse().ok()
    };
    Some((count(2 * TENANTS)? - count(TENANTS)?) / f64::from(TENANTS))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("tenants: {why}");
            return ExitCode::from(1);
        }
    };
    let guest = match std::fs::read(&options.guest) {
        Ok(guest) => guest,
        Err(why) => {
            eprintln!("tenants: {}: {why}", options.guest);
            return ExitCode::from(1);
        }
    };
    // A run that is counted gets the module with the database in it.
    let wizened = if options.way.is_some() {
        guest
    } else {
        set_up(&guest, options.rows)
    };
    let database = split("database", &wizened).unwrap();
    let sizes = Sizes {
        slots: options.slots,
        max_memory_bytes: MAX_MEMORY_BYTES,
        kept_bytes: database.images[0].image.size() as usize,
    };
    let prepare = |way: Way| {
        let supply = Supply::new(way, &sizes);
        let app = supply.app::<()>(&wizened, &database, link_wasi);
        (supply, app)
    };

    if let Some(name) = &options.way {
        let Some(way) = ALL.into_iter().find(|way| way.name() == name) else {
            eprintln!("tenants: --way={name}: there is no such way");
            return ExitCode::from(1);
        };
        let (supply, app) = prepare(way);
        let results = serve(&supply, &app, &options, 0, options.tenants);
        return ExitCode::from(u8::from(results.wrong != 0) * 2);
    }

    println!(
        "SQLite with {} rows, {} bytes of memory; {} tenants in {} slots, {} threads, \
         {} rounds",
        options.rows,
        database.images[0].image.size(),
        options.tenants,
        options.slots,
        options.threads,
        options.rounds
    );
    let ways: Vec<_> = ALL.iter().map(|way| prepare(*way)).collect();
    println!("{}", ways[3].0.pool.as_ref().unwrap().describe().unwrap());

    let mut results: Vec<_> = ALL.iter().map(|_| Results::default()).collect();
    let mut speeds = vec![Vec::new(); ALL.len()];
    let mut lifecycles = speeds.clone();
    let each = options.tenants / options.rounds;
    for round in 0..options.rounds {
        for (i, (supply, app)) in ways.iter().enumerate() {
            let start = Instant::now();
            results[i].add(serve(
                supply,
                app,
                &options,
                round * each,
                (round + 1) * each,
            ));
            speeds[i].push(f64::from(each) / start.elapsed().as_secs_f64());
            lifecycles[i].push(lifecycle(supply, app, &options));
        }
    }

    let path = std::env::temp_dir().join(format!("tenants-{}.wasm", std::process::id()));
    std::fs::write(&path, &wizened).unwrap();
    let mut right = true;
    println!(
        "{:14}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "tenants/s", "lifecycle", "private", "system", "answers", "trapped", "bytes"
    );
    println!(
        "{:14}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "", "us", "KiB/slot", "calls", "wrong", "", "differ"
    );
    for (i, (supply, app)) in ways.iter().enumerate() {
        let mut sessions = fill(supply, app, &options, true);
        let private = private_bytes_per_slot(&mut sessions);
        drop(sessions);
        let mut sessions = fill(supply, app, &options, false);
        let differing = differing_bytes(&mut sessions, &database);
        drop(sessions);
        let calls = system_calls(&options, supply.way, path.to_str().unwrap());
        println!(
            "{:14}{:>12.0}{:>10.1}{:>10}{:>10}{:>10}{:>10}{:>10}",
            supply.way.name(),
            median(speeds[i].clone()),
            median(lifecycles[i].clone()),
            private / 1024,
            calls.map_or("?".to_string(), |calls| format!("{calls:.1}")),
            format!("{}/{}", results[i].wrong, results[i].answers),
            results[i].trapped,
            differing
        );
        right &=
            results[i].wrong == 0 && differing == 0 && results[i].tenants == each * options.rounds;
        for error in results[i].errors.iter().take(10) {
            eprintln!("{}: {error}", supply.way.name());
        }
    }
    std::fs::remove_file(&path).unwrap();
    let ratios = (0..options.rounds as usize)
        .map(|round| {
            let best = (0..3).map(|way| speeds[way][round]).fold(0.0, f64::max);
            speeds[3][round] / best
        })
        .collect();
    println!(
        "firsttouch serves {:.2} times as many tenants as the best of the others (median \
         of the rounds)",
        median(ratios)
    );
    if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}
