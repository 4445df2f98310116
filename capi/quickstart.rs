//! quickstart.c in Rust: rustc quickstart.rs -l firsttouch

#![allow(dead_code)]

use std::ffi::{c_char, c_void, CStr};
use std::mem::{size_of, zeroed};
use std::ptr::null_mut;

#[derive(Clone, Copy)]
#[repr(C)]
struct Handle {
    entry: u64,
    serial: u64,
}

#[repr(C)]
struct Error {
    struct_size: usize,
    status: i32,
    message_length: u32,
    message: [c_char; 2032],
}

#[repr(C)]
struct LayoutOptions {
    struct_size: usize,
    instances: u32,
    memories_per_instance: u32,
    bytes: [u64; 5],
}

#[repr(C)]
struct PoolOptions {
    struct_size: usize,
    flags: u64,
    name: *const c_char,
    layout: *const LayoutOptions,
    choices: [i32; 10],
    limits: [u64; 2],
    trap_callback: *const c_void,
    trap_user: *const c_void,
}

#[repr(C)]
struct ImageOptions {
    struct_size: usize,
    name: *const c_char,
    size_bytes: u64,
}

#[repr(C)]
struct MemoryOptions {
    struct_size: usize,
    image: Handle,
    size_bytes: u64,
    wait_ns: i64,
    trap_callback: *const c_void,
    trap_user: *const c_void,
}

#[repr(C)]
struct Trap {
    struct_size: usize,
    address: u64,
    program_counter: u64,
    offset_bytes: i64,
    size_bytes: u64,
    numbers: [u32; 6],
    pool_name: *const c_char,
    ucontext: *const c_void,
}

const TRAPPED: i32 = 34;

extern "C" {
    fn ft_layout_wasm32(instances: u32, options: *mut LayoutOptions, error: *mut Error) -> i32;
    fn ft_pool_create(options: *const PoolOptions, pool: *mut Handle, error: *mut Error) -> i32;
    fn ft_pool_destroy(pool: Handle, error: *mut Error) -> i32;
    fn ft_image_from_bytes(
        options: *const ImageOptions,
        bytes: *const c_void,
        length: usize,
        image: *mut Handle,
        error: *mut Error,
    ) -> i32;
    fn ft_image_release(image: Handle, error: *mut Error) -> i32;
    fn ft_memory_acquire(
        pool: Handle,
        options: *const MemoryOptions,
        memory: *mut Handle,
        base: *mut *mut c_void,
        error: *mut Error,
    ) -> i32;
    fn ft_memory_release(memory: Handle, error: *mut Error) -> i32;
    fn ft_run_guarded(
        memory: Handle,
        run: extern "C" fn(*mut c_void),
        argument: *mut c_void,
        trap: *mut Trap,
        error: *mut Error,
    ) -> i32;
}

/// What a struct begins as: its size, and zeroes, which are the defaults.
fn init<T>() -> T {
    unsafe {
        let mut value: T = zeroed();
        *(&mut value as *mut T as *mut usize) = size_of::<T>();
        value
    }
}

fn check(status: i32, error: &Error) {
    if status != 0 {
        let text = unsafe { CStr::from_ptr(error.message.as_ptr()) };
        panic!("{}", text.to_string_lossy());
    }
}

// The guest: nothing in it has to be cleaned up.
extern "C" fn write_far(base: *mut c_void) {
    unsafe { (base as *mut u8).add(1 << 20).write_volatile(1) }
}

fn main() {
    let mut error = init::<Error>();
    let mut layout = init::<LayoutOptions>();
    let mut pool = Handle { entry: 0, serial: 0 };
    let mut image = pool;
    unsafe {
        check(ft_layout_wasm32(100, &mut layout, &mut error), &error);
        let mut pool_options = init::<PoolOptions>();
        pool_options.layout = &layout;
        check(ft_pool_create(&pool_options, &mut pool, &mut error), &error);
        let mut image_options = init::<ImageOptions>();
        image_options.size_bytes = 65536;
        let bytes = b"hello\0".as_ptr() as *const c_void;
        check(ft_image_from_bytes(&image_options, bytes, 6, &mut image, &mut error), &error);
        let mut options = init::<MemoryOptions>();
        options.image = image;
        options.size_bytes = 1 << 20;
        for tenant in 1..=3 {
            let mut memory = Handle { entry: 0, serial: 0 };
            let mut base: *mut c_void = null_mut();
            check(ft_memory_acquire(pool, &options, &mut memory, &mut base, &mut error), &error);
            let text = CStr::from_ptr(base as *const c_char).to_string_lossy().into_owned();
            println!("tenant {} reads \"{}\"", tenant, text);
            std::ptr::copy_nonoverlapping(b"secret\0".as_ptr(), base as *mut u8, 7);
            if tenant == 3 {
                let mut trap = init::<Trap>();
                if ft_run_guarded(memory, write_far, base, &mut trap, null_mut()) == TRAPPED {
                    println!("tenant {} trapped at offset {}", tenant, trap.offset_bytes);
                }
            }
            check(ft_memory_release(memory, &mut error), &error);
        }
        check(ft_image_release(image, &mut error), &error);
        check(ft_pool_destroy(pool, &mut error), &error);
    }
}
