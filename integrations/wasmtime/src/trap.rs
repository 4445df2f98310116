//! Hands touches outside the bounds to Wasmtime.
//!
//! They reach firsttouch as SIGBUS or SIGSEGV; on Linux, Wasmtime listens to the
//! latter only. Its handler for SIGSEGV is called as the kernel would call it,
//! with a siginfo that has the touched address and with the interrupted code's
//! context. Where the instruction is one of a guest's, Wasmtime notes the trap
//! and its backtrace, and makes the context go on where the guest was entered.

use crate::error::{Error, Result};
use crate::sys;
use core::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Wasmtime's handler for SIGSEGV; 0 until it is found.
static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// The present action of a signal. May be called in a signal handler.
fn action(signal: c_int) -> libc::sigaction {
    // SAFETY: all zero is a sigaction; the call can fail for a bad signal only.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action);
        action
    }
}

/// Finds Wasmtime's handler, which its first engine in a process installs. Must
/// be called before firsttouch puts its own in front.
pub(crate) fn find_handler() -> Result<()> {
    static FINDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FINDING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if HANDLER.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let before = action(libc::SIGSEGV);
    wasmtime::Engine::new(&wasmtime::Config::new())
        .map_err(|error| Error::new(format!("Wasmtime's engine cannot be made: {error:#}")))?;
    let after = action(libc::SIGSEGV);
    // There was an engine before. What handles SIGBUS as well is not Wasmtime's,
    // and came after it.
    let covered = after.sa_sigaction == before.sa_sigaction
        && after.sa_sigaction == action(libc::SIGBUS).sa_sigaction;
    if covered || after.sa_flags & libc::SA_SIGINFO == 0 || after.sa_sigaction <= libc::SIG_IGN {
        return Err(Error::new(
            "Wasmtime's handler for SIGSEGV is not found: after the first engine of \
             this process somebody else has put a handler of SIGSEGV in front of it; \
             make the first firsttouch_wasmtime::Pool before that",
        ));
    }
    HANDLER.store(after.sa_sigaction, Ordering::Release);
    Ok(())
}

/// Instruction and stack pointer of a context: what Wasmtime changes.
#[cfg(target_arch = "x86_64")]
fn place(context: &libc::ucontext_t) -> (i64, i64) {
    let registers = &context.uc_mcontext.gregs;
    (
        registers[libc::REG_RIP as usize],
        registers[libc::REG_RSP as usize],
    )
}
#[cfg(target_arch = "aarch64")]
fn place(context: &libc::ucontext_t) -> (u64, u64) {
    (context.uc_mcontext.pc, context.uc_mcontext.sp)
}

/// A pool's trap callback.
///
/// # Safety
///
/// For the library to call, in signal context.
pub(crate) unsafe extern "C" fn on_trap(
    trap: *const sys::ft_trap,
    _user: *mut c_void,
) -> sys::ft_trap_action {
    // SAFETY: the library gives a trap with a context, both until we return; the
    // address in HANDLER is that of a handler with SA_SIGINFO.
    unsafe {
        let trap = &*trap;
        let context = trap.ucontext.cast::<libc::ucontext_t>();
        let handler = mem::transmute::<usize, Handler>(HANDLER.load(Ordering::Acquire));
        let mut info = SegvInfo {
            signal: libc::SIGSEGV,
            error: 0,
            code: 2, // SEGV_ACCERR: what a guard page raises.
            padding: 0,
            address: trap.address,
            rest: [0; 13],
        };
        let was = place(&*context);
        let front = action(libc::SIGSEGV);
        handler(libc::SIGSEGV, (&raw mut info).cast(), context.cast());
        if place(&*context) != was {
            return sys::FT_TRAP_RESUME;
        }
        // Not a guest's instruction: the process is to die by the signal that it
        // got. A handler behind Wasmtime's may have given SIGSEGV up; it was
        // not raised, so it stays as it was.
        libc::sigaction(libc::SIGSEGV, &front, ptr::null_mut());
        sys::FT_TRAP_UNHANDLED
    }
}

/// The part of siginfo_t that a SIGSEGV has, and its size. (The libc crate has
/// the address as a function only.)
#[repr(C)]
struct SegvInfo {
    signal: c_int,
    error: c_int,
    code: c_int,
    padding: c_int,
    address: u64,
    rest: [u64; 13],
}
const _: () = assert!(size_of::<SegvInfo>() == size_of::<libc::siginfo_t>());
