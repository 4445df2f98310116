//! A pool of memories for Wasmtime.

use crate::error::{Error, Result, call, text};
use crate::image::c_string;
use crate::scope::{self, Next, Scope};
use crate::{sys, trap};
use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use wasmtime::{Config, Engine, LinearMemory, MemoryCreator, MemoryType};

/// What supplies memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supply {
    /// userfaultfd where kernel and permissions allow it, else the kernel's
    /// mappings; or what FIRSTTOUCH_SUPPLY in the environment names.
    #[default]
    Any,
    /// userfaultfd, or an error.
    Userfaultfd,
    /// The kernel's mappings.
    Mappings,
}

/// How a page gets its contents, with userfaultfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Whatever suits the machine.
    #[default]
    Any,
    /// Clean pages are shared with the image; two mappings a slot.
    Shared,
    /// Pages are copied at first touch; no mapping a slot.
    Copied,
}

/// What happens to a memory of which nobody has said what it starts from: one of
/// an instance that is not made by an [`Instantiator`](crate::Instantiator) nor in
/// [`zeroed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unbound {
    /// It is an error, so that no module of [`split`](crate::split()) ever runs
    /// without its image.
    #[default]
    Refuse,
    /// It starts from zeroes.
    Zeroes,
}

/// What a pool is asked for.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// For people: in errors, /proc/PID/maps and pooldump. 1 to 128 bytes.
    pub name: String,
    /// How many memories at once.
    pub memories: u32,
    /// The most that one of them can grow to, in bytes; a multiple of 64 KiB.
    pub max_memory_bytes: u64,
    /// Addresses of each memory that code reaches without a check, in bytes, and
    /// what follows them where nothing ever is: Wasmtime's `memory_reservation`
    /// and `memory_guard_size`, to which [`Pool::configure`] sets it.
    pub reservation_bytes: u64,
    /// See `reservation_bytes`.
    pub guard_bytes: u64,
    /// What supplies memory.
    pub supply: Supply,
    /// How a page gets its contents, with userfaultfd.
    pub backing: Backing,
    /// How many threads of the pool's own resolve faults, with userfaultfd; 0:
    /// each is resolved in the thread that took it.
    pub handler_threads: u32,
    /// What memory is worth: the private bytes that all memories together may keep
    /// from one lease to the next for each microsecond by which that shortens a
    /// cycle. 0: memory is free. None: the library's default, 512 KiB.
    pub retained_bytes_per_us: Option<u64>,
    /// Memories of which nobody has said what they start from.
    pub unbound: Unbound,
}

impl Default for PoolOptions {
    /// 1,000 memories of up to 4 GiB, with what Wasmtime 48 has by default.
    fn default() -> PoolOptions {
        PoolOptions {
            name: "wasmtime".to_string(),
            memories: 1000,
            max_memory_bytes: 4 << 30,
            reservation_bytes: 4 << 30,
            guard_bytes: 32 << 20,
            supply: Supply::Any,
            backing: Backing::Any,
            handler_threads: 0,
            retained_bytes_per_us: None,
            unbound: Unbound::Refuse,
        }
    }
}

pub(crate) struct Inner {
    pool: sys::ft_pool,
    name: String,
    max_memory_bytes: u64,
    reservation_bytes: u64,
    guard_bytes: u64,
    unbound: Unbound,
}

impl Inner {
    /// Wasmtime makes the heap of its garbage collector by the same hook as the
    /// memories of modules, before those of the module that needs it, and does
    /// not say which is which. So its guard has a size of its own.
    fn gc_heap_guard_bytes(&self) -> u64 {
        self.guard_bytes.saturating_sub(HOST_PAGE)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The last memory is gone: each holds the pool.
        let _ = call(|error| unsafe { sys::ft_pool_destroy(self.pool, error) });
    }
}

/// A pool of memories. Clones are the same pool, which is there until the last
/// of them, the last engine that was configured with it and the last memory are
/// gone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl Pool {
    /// Makes a pool. Errors name the option, its value, the rule and a way out,
    /// or what the process or the machine lacks.
    pub fn new(options: &PoolOptions) -> Result<Pool> {
        let reach = options
            .reservation_bytes
            .checked_add(options.guard_bytes)
            .ok_or_else(|| {
                Error::new(format!(
                    "reservation_bytes = {} and guard_bytes = {}: together they are \
                     more than there are addresses",
                    options.reservation_bytes, options.guard_bytes
                ))
            })?;
        if options.max_memory_bytes % WASM_PAGE != 0 {
            return Err(Error::new(format!(
                "max_memory_bytes = {}: memories grow in pages of 65536 bytes, so it \
                 must be a multiple of that",
                options.max_memory_bytes
            )));
        }
        // Before firsttouch puts its handlers in front.
        trap::find_handler()?;
        prepare_thread();
        let name = c_string(options.name.clone())?;
        let layout = sys::ft_layout_options {
            struct_size: size_of::<sys::ft_layout_options>(),
            instances: options.memories,
            memories_per_instance: 1,
            max_memory_bytes: options.max_memory_bytes,
            guard_before_bytes: 0,
            // A memory that is as large as it can be still ends in a guard.
            guard_after_bytes: reach
                .saturating_sub(options.max_memory_bytes)
                .max(options.guard_bytes),
            page_bytes: 0,
            fault_around_bytes: 0,
        };
        let wanted = sys::ft_pool_options {
            struct_size: size_of::<sys::ft_pool_options>(),
            flags: match options.retained_bytes_per_us {
                Some(_) => sys::FT_POOL_RETAINED_BYTES_PER_US,
                None => 0,
            },
            name: name.as_ptr(),
            layout: &layout,
            supply: options.supply as i32,
            backing: options.backing as i32,
            faults: i32::from(options.handler_threads > 0),
            handler_threads: options.handler_threads,
            trap_callback: Some(trap::on_trap),
            retained_bytes_per_us: options.retained_bytes_per_us.unwrap_or(0),
            // SAFETY: all zero is what the header promises to be the default.
            ..unsafe { std::mem::zeroed() }
        };
        let mut pool = sys::ft_pool::default();
        call(|error| unsafe { sys::ft_pool_create(&wanted, &mut pool, error) })?;
        Ok(Pool(Arc::new(Inner {
            pool,
            name: options.name.clone(),
            max_memory_bytes: options.max_memory_bytes,
            reservation_bytes: options.reservation_bytes,
            guard_bytes: options.guard_bytes,
            unbound: options.unbound,
        })))
    }

    /// Makes engines of `config` take their memories from this pool: sets the
    /// creator, the reservation and the guard (those of the garbage collector's
    /// heap, too), and `memory_init_cow` to false, since Wasmtime's own images
    /// need its own memories. The allocation strategy must be Wasmtime's default,
    /// `OnDemand`; `PoolingAllocator` does not ask the creator.
    pub fn configure(&self, config: &mut Config) {
        config
            .with_host_memory(Arc::new(self.clone()))
            .memory_init_cow(false)
            .memory_reservation(self.0.reservation_bytes)
            .memory_guard_size(self.0.guard_bytes)
            .gc_heap_reservation(self.0.reservation_bytes)
            .gc_heap_guard_size(self.0.gc_heap_guard_bytes());
    }

    /// What was picked and why, some lines for people.
    pub fn describe(&self) -> Result<String> {
        text(|buffer, capacity, length, error| unsafe {
            sys::ft_pool_describe(self.0.pool, buffer, capacity, length, error)
        })
    }

    /// The statistics of docs/statistics.md as a JSON object.
    pub fn stats_json(&self) -> Result<String> {
        text(|buffer, capacity, length, error| unsafe {
            sys::ft_pool_stats_json(self.0.pool, buffer, capacity, length, error)
        })
    }

    /// Whether userfaultfd supplies the memory.
    pub fn uses_userfaultfd(&self) -> Result<bool> {
        let mut info: sys::ft_pool_info = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<sys::ft_pool_info>();
        call(|error| unsafe { sys::ft_pool_get_info(self.0.pool, &mut info, error) })?;
        Ok(info.supply == Supply::Userfaultfd as i32)
    }
}

/// Calls `run`, in which memories of a pool start from zeroes: those of instances
/// that are made without an [`Instantiator`](crate::Instantiator). (What the host
/// makes by `Memory::new` is no memory of a pool.)
pub fn zeroed<R>(run: impl FnOnce() -> R) -> R {
    Scope::zeroes().enter(run)
}

const WASM_PAGE: u64 = 64 * 1024;
const HOST_PAGE: u64 = 4096;

// Has Wasmtime give the calling thread its alternate signal stack now: it is
// large enough for our handler, too, where that of Rust's own threads may not be.
fn prepare_thread() {
    thread_local! {
        static PREPARED: Cell<bool> = const { Cell::new(false) };
    }
    if !PREPARED.replace(true) {
        Engine::tls_eager_initialize();
    }
}

// SAFETY: the pool gives memory out to one owner at a time, at a fixed address,
// with a guard that is as large as what is asked for, or refuses.
unsafe impl MemoryCreator for Pool {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> std::result::Result<Box<dyn LinearMemory>, String> {
        let pool = &*self.0;
        let refused = |why: String| Err(format!("pool \"{}\": {why}", pool.name));
        if ty.is_shared() {
            return refused(
                "a shared memory is asked for: the pool has memories of one store only".to_string(),
            );
        }
        if ty.page_size() != WASM_PAGE {
            return refused(format!(
                "a memory with pages of {} bytes is asked for: the pool has memories \
                 with pages of {WASM_PAGE} bytes only",
                ty.page_size()
            ));
        }
        let reserved = reserved_size_in_bytes.unwrap_or(minimum) as u64;
        let guard = guard_size_in_bytes as u64;
        if reserved.saturating_add(guard) > pool.reservation_bytes + pool.guard_bytes
            || guard > pool.guard_bytes
        {
            return refused(format!(
                "Wasmtime asks for a memory_reservation of {reserved} and a \
                 memory_guard_size of {guard} bytes, and the pool was made with \
                 reservation_bytes = {} and guard_bytes = {}: call Pool::configure \
                 last, or give the pool what the engine has",
                pool.reservation_bytes, pool.guard_bytes
            ));
        }
        if minimum as u64 > pool.max_memory_bytes {
            return refused(format!(
                "a memory of {minimum} bytes is asked for, and max_memory_bytes is {}",
                pool.max_memory_bytes
            ));
        }
        prepare_thread();
        let make = |start: Next<'_>| {
            let image = match start {
                Next::Image(image) => image.handle(),
                Next::Zeroes => sys::ft_image::default(),
                Next::Unknown if pool.unbound == Unbound::Zeroes => sys::ft_image::default(),
                Next::Unknown => {
                    return refused(
                        "nobody has said what this memory starts from: instantiate by \
                         an Instantiator, or in zeroed(), or give the pool \
                         Unbound::Zeroes"
                            .to_string(),
                    );
                }
            };
            let options = sys::ft_memory_options {
                struct_size: size_of::<sys::ft_memory_options>(),
                image,
                // 0 would be the image's size, and there are memories of no bytes.
                size_bytes: minimum as u64,
                wait_ns: 0,
                trap_callback: None,
                trap_user: ptr::null_mut(),
            };
            let mut memory = sys::ft_memory::default();
            let mut base = ptr::null_mut();
            call(|error| unsafe {
                sys::ft_memory_acquire(pool.pool, &options, &mut memory, &mut base, error)
            })
            .map_err(|error| error.to_string())?;
            Ok(Box::new(PoolMemory {
                memory,
                base: base.cast(),
                size: minimum,
                pool: self.clone(),
            }) as Box<dyn LinearMemory>)
        };
        if guard != pool.guard_bytes && guard == pool.gc_heap_guard_bytes() {
            return make(Next::Zeroes);
        }
        scope::next(ty.minimum(), make)
    }
}

/// A memory that is held, until it is dropped with its store.
struct PoolMemory {
    memory: sys::ft_memory,
    base: *mut u8,
    size: usize,
    pool: Pool,
}

// SAFETY: the C interface may be called from any thread, and the pointer stays
// what it is.
unsafe impl Send for PoolMemory {}
unsafe impl Sync for PoolMemory {}

// SAFETY: the base never moves, and `size` bytes may be touched.
unsafe impl LinearMemory for PoolMemory {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.pool.0.max_memory_bytes as usize
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        call(|error| unsafe { sys::ft_memory_grow(self.memory, new_size as u64, error) })
            .map_err(wasmtime::Error::new)?;
        self.size = new_size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        // A slot that cannot be made clean is not leased again: nothing is left
        // to do about it here.
        let _ = call(|error| unsafe { sys::ft_memory_release(self.memory, error) });
    }
}
