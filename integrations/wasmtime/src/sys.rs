//! What we use of capi/firsttouch.h, by hand. tests/header.rs holds the sizes
//! and the offsets to the header.

#![allow(non_camel_case_types)]

use core::ffi::{c_char, c_void};

pub type ft_status = i32;
pub const FT_OK: ft_status = 0;

pub const FT_DIGEST_BYTES: usize = 32;

#[repr(C)]
pub struct ft_error {
    pub struct_size: usize,
    pub status: ft_status,
    pub message_length: u32,
    pub message: [c_char; 2032],
}

/// A handle; all zero is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ft_handle {
    pub entry: u64,
    pub serial: u64,
}
pub type ft_pool = ft_handle;
pub type ft_image = ft_handle;
pub type ft_memory = ft_handle;

#[repr(C)]
pub struct ft_trap {
    pub struct_size: usize,
    pub address: u64,
    pub program_counter: u64,
    pub offset_bytes: i64,
    pub size_bytes: u64,
    pub access: i32,
    pub os_error: i32,
    pub instance: u32,
    pub memory_index: u32,
    pub leased: u32,
    pub pool_id: u32,
    pub pool_name: *const c_char,
    pub ucontext: *mut c_void,
}

pub type ft_trap_action = i32;
pub const FT_TRAP_UNHANDLED: ft_trap_action = 0;
pub const FT_TRAP_RESUME: ft_trap_action = 1;
pub type ft_trap_callback =
    Option<unsafe extern "C" fn(trap: *const ft_trap, user: *mut c_void) -> ft_trap_action>;

#[repr(C)]
pub struct ft_layout_options {
    pub struct_size: usize,
    pub instances: u32,
    pub memories_per_instance: u32,
    pub max_memory_bytes: u64,
    pub guard_before_bytes: u64,
    pub guard_after_bytes: u64,
    pub page_bytes: u64,
    pub fault_around_bytes: u64,
}

pub const FT_POOL_RETAINED_BYTES_PER_US: u64 = 16;

#[repr(C)]
pub struct ft_pool_options {
    pub struct_size: usize,
    pub flags: u64,
    pub name: *const c_char,
    pub layout: *const ft_layout_options,
    pub supply: i32,
    pub backing: i32,
    pub faults: i32,
    pub handler_threads: u32,
    pub kernel_faults: i32,
    pub tracking: i32,
    pub scan: i32,
    pub strategy: i32,
    pub signals: i32,
    pub retained_cycles: u32,
    pub retained_pages_limit: u64,
    pub resident_budget_bytes: u64,
    pub trap_callback: ft_trap_callback,
    pub trap_user: *mut c_void,
    pub retained_bytes_per_us: u64,
}

#[repr(C)]
pub struct ft_pool_info {
    pub struct_size: usize,
    pub base: u64,
    pub pool_id: u32,
    pub supply: i32,
    pub backing: i32,
    pub scan: i32,
    pub serves_kernel_faults: u32,
    pub reserved: u32,
}

#[repr(C)]
pub struct ft_image_options {
    pub struct_size: usize,
    pub name: *const c_char,
    pub size_bytes: u64,
}

#[repr(C)]
pub struct ft_segment {
    pub offset_bytes: u64,
    pub bytes: *const c_void,
    pub length: usize,
}

#[repr(C)]
pub struct ft_image_info {
    pub struct_size: usize,
    pub id: u64,
    pub size_bytes: u64,
    pub stored_pages: u64,
    pub memory_bytes: u64,
    pub is_file_backed: u32,
    pub has_source: u32,
    pub has_parent: u32,
    pub has_working_set: u32,
}

pub const FT_OPEN_COPY: u64 = 1;
pub const FT_OPEN_VERIFY: u64 = 2;

#[repr(C)]
pub struct ft_open_options {
    pub struct_size: usize,
    pub flags: u64,
    pub name: *const c_char,
    pub parent: ft_image,
    pub find_parent: *const c_void,
    pub progress: *const c_void,
    pub user: *mut c_void,
}

#[repr(C)]
pub struct ft_memory_options {
    pub struct_size: usize,
    pub image: ft_image,
    pub size_bytes: u64,
    pub wait_ns: i64,
    pub trap_callback: ft_trap_callback,
    pub trap_user: *mut c_void,
}

unsafe extern "C" {
    pub fn ft_pool_create(
        options: *const ft_pool_options,
        pool: *mut ft_pool,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_pool_destroy(pool: ft_pool, error: *mut ft_error) -> ft_status;
    pub fn ft_pool_describe(
        pool: ft_pool,
        buffer: *mut c_char,
        capacity: usize,
        length: *mut usize,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_pool_stats_json(
        pool: ft_pool,
        buffer: *mut c_char,
        capacity: usize,
        length: *mut usize,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_pool_get_info(
        pool: ft_pool,
        info: *mut ft_pool_info,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_from_segments(
        options: *const ft_image_options,
        segments: *const ft_segment,
        count: usize,
        image: *mut ft_image,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_open(
        path: *const c_char,
        options: *const ft_open_options,
        image: *mut ft_image,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_write(
        image: ft_image,
        path: *const c_char,
        options: *const c_void,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_get_info(
        image: ft_image,
        info: *mut ft_image_info,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_get_digest(image: ft_image, digest: *mut u8, error: *mut ft_error)
    -> ft_status;
    pub fn ft_image_read(
        image: ft_image,
        offset_bytes: u64,
        into: *mut c_void,
        length: usize,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_image_release(image: ft_image, error: *mut ft_error) -> ft_status;
    pub fn ft_memory_acquire(
        pool: ft_pool,
        options: *const ft_memory_options,
        memory: *mut ft_memory,
        base: *mut *mut c_void,
        error: *mut ft_error,
    ) -> ft_status;
    pub fn ft_memory_release(memory: ft_memory, error: *mut ft_error) -> ft_status;
    pub fn ft_memory_grow(memory: ft_memory, size_bytes: u64, error: *mut ft_error) -> ft_status;
}
