//! Which image the next memory of this thread starts from.
//!
//! Wasmtime tells a `MemoryCreator` the type of a memory and nothing of the
//! module that it is for. It asks in the thread that instantiates, for the
//! module's own memories in their order, before any code of the module runs. So
//! whoever instantiates says beforehand, in a thread-local variable, what each of
//! them starts from. An asynchronous instantiation may go on in another thread:
//! what it has said goes with its future, and is in the variable of the thread
//! that polls it, for as long as it polls.

use crate::image::Image;
use std::cell::Cell;
use std::ptr;

/// What one memory starts from.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    Zeroes,
    /// `minimum`: of the memory's type, in pages of WebAssembly.
    Image {
        image: Image,
        minimum: u64,
    },
}

/// What the creator is to do.
pub(crate) enum Next<'a> {
    Zeroes,
    Image(&'a Image),
    /// Nobody has said it.
    Unknown,
}

/// What has been said for some memories that are still to be made.
pub(crate) struct Scope<'a> {
    starts: &'a [Start],
    next: Cell<usize>,
    /// Whether any further ones are zeroes.
    endless: bool,
    outer: Cell<*const Scope<'static>>,
}

thread_local! {
    static CURRENT: Cell<*const Scope<'static>> = const { Cell::new(ptr::null()) };
}

impl<'a> Scope<'a> {
    /// Memories that start from `starts`, the first `done` of which are made.
    pub(crate) fn new(starts: &'a [Start], done: usize) -> Scope<'a> {
        Scope {
            starts,
            next: Cell::new(done),
            endless: false,
            outer: Cell::new(ptr::null()),
        }
    }

    /// Any number of memories of zeroes.
    pub(crate) fn zeroes() -> Scope<'static> {
        Scope {
            starts: &[],
            next: Cell::new(0),
            endless: true,
            outer: Cell::new(ptr::null()),
        }
    }

    /// How many of the memories are made.
    pub(crate) fn done(&self) -> usize {
        self.next.get()
    }

    /// Calls `run`; what the scope says holds until that returns, for the
    /// calling thread. Scopes may be nested: the innermost one holds.
    pub(crate) fn enter<R>(&self, run: impl FnOnce() -> R) -> R {
        struct Leave<'b>(&'b Cell<*const Scope<'static>>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                CURRENT.set(self.0.get());
            }
        }
        self.outer
            .set(CURRENT.replace(ptr::from_ref(self).cast::<Scope<'static>>()));
        let _leave = Leave(&self.outer);
        run()
    }
}

/// Calls `use_it` with what the next memory of this thread starts from, and
/// counts the memory as made. `minimum` is that of its type: a memory of another
/// type than the module's is not one of them.
pub(crate) fn next<R>(minimum: u64, use_it: impl FnOnce(Next<'_>) -> R) -> R {
    let current = CURRENT.get();
    // SAFETY: the variable names a scope that is entered, and borrowed as long.
    let Some(scope) = (unsafe { current.as_ref() }) else {
        return use_it(Next::Unknown);
    };
    match scope.starts.get(scope.next.get()) {
        Some(Start::Image {
            minimum: wanted, ..
        }) if *wanted != minimum => use_it(Next::Unknown),
        Some(start) => {
            scope.next.set(scope.next.get() + 1);
            match start {
                Start::Zeroes => use_it(Next::Zeroes),
                Start::Image { image, .. } => use_it(Next::Image(image)),
            }
        }
        None if scope.endless => use_it(Next::Zeroes),
        None => use_it(Next::Unknown),
    }
}
