//! src/sys.rs has what capi/firsttouch.h has.

#[allow(dead_code)]
#[path = "../src/sys.rs"]
mod sys;

use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::process::Command;

macro_rules! structs {
    ($($name:ident { $($field:ident),* })*) => {
        [$((
            stringify!($name),
            size_of::<sys::$name>(),
            vec![$((stringify!($field), offset_of!(sys::$name, $field))),*],
        )),*]
    };
}

#[test]
fn structs_and_constants_are_those_of_the_header() {
    let mut source = String::from("#include <stddef.h>\n#include \"firsttouch.h\"\n");
    for (name, size, fields) in structs! {
        ft_error { struct_size, status, message_length, message }
        ft_trap {
            struct_size, address, program_counter, offset_bytes, size_bytes, access,
            os_error, instance, memory_index, leased, pool_id, pool_name, ucontext
        }
        ft_layout_options {
            struct_size, instances, memories_per_instance, max_memory_bytes,
            guard_before_bytes, guard_after_bytes, page_bytes, fault_around_bytes
        }
        ft_pool_options {
            struct_size, flags, name, layout, supply, backing, faults, handler_threads,
            kernel_faults, tracking, scan, strategy, signals, retained_cycles,
            retained_pages_limit, resident_budget_bytes, trap_callback, trap_user,
            retained_bytes_per_us
        }
        ft_pool_info {
            struct_size, base, pool_id, supply, backing, scan, serves_kernel_faults,
            reserved
        }
        ft_image_options { struct_size, name, size_bytes }
        ft_segment { offset_bytes, bytes, length }
        ft_image_info {
            struct_size, id, size_bytes, stored_pages, memory_bytes, is_file_backed,
            has_source, has_parent, has_working_set
        }
        ft_memory_options {
            struct_size, image, size_bytes, wait_ns, trap_callback, trap_user
        }
    } {
        writeln!(
            source,
            "_Static_assert(sizeof({name}) == {size}, \"{name}\");"
        )
        .unwrap();
        for (field, offset) in fields {
            writeln!(
                source,
                "_Static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");"
            )
            .unwrap();
        }
    }
    for (name, value) in [
        ("FT_OK", sys::FT_OK),
        ("FT_DIGEST_BYTES", sys::FT_DIGEST_BYTES as i32),
        (
            "FT_POOL_RETAINED_BYTES_PER_US",
            sys::FT_POOL_RETAINED_BYTES_PER_US as i32,
        ),
        ("FT_TRAP_UNHANDLED", sys::FT_TRAP_UNHANDLED),
        ("FT_TRAP_RESUME", sys::FT_TRAP_RESUME),
        ("FT_SUPPLY_ANY", firsttouch_wasmtime::Supply::Any as i32),
        (
            "FT_SUPPLY_USERFAULTFD",
            firsttouch_wasmtime::Supply::Userfaultfd as i32,
        ),
        (
            "FT_SUPPLY_MAPPINGS",
            firsttouch_wasmtime::Supply::Mappings as i32,
        ),
        ("FT_BACKING_ANY", firsttouch_wasmtime::Backing::Any as i32),
        (
            "FT_BACKING_SHARED",
            firsttouch_wasmtime::Backing::Shared as i32,
        ),
        (
            "FT_BACKING_COPIED",
            firsttouch_wasmtime::Backing::Copied as i32,
        ),
        ("FT_FAULTS_IN_THREAD", 0),
        ("FT_FAULTS_IN_HANDLER_THREADS", 1),
    ] {
        writeln!(source, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for handle in ["ft_pool", "ft_image", "ft_memory"] {
        writeln!(
            source,
            "_Static_assert(sizeof({handle}) == {}, \"{handle}\");",
            size_of::<sys::ft_handle>()
        )
        .unwrap();
    }

    let include = std::env::var("FIRSTTOUCH_INCLUDE_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../capi").to_string());
    let path = std::env::temp_dir().join(format!("firsttouch-header-{}.c", std::process::id()));
    std::fs::write(&path, source).unwrap();
    let output = Command::new("cc")
        .args(["-std=c11", "-fsyntax-only", "-I", &include])
        .arg(&path)
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
