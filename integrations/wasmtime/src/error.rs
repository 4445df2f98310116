//! Errors of the C interface, and our own.

use crate::sys;
use std::fmt;

/// What went wrong, with which value, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    message: String,
}

/// A result with our error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Error {
        Error {
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<wasmparser::BinaryReaderError> for Error {
    fn from(error: wasmparser::BinaryReaderError) -> Error {
        Error::new(format!("the module cannot be read: {error}"))
    }
}

/// Calls a function of the C interface with a place for its error.
pub(crate) fn call(run: impl FnOnce(*mut sys::ft_error) -> sys::ft_status) -> Result<()> {
    // Only what the library looks at and what it does not write is set: 2 KiB
    // of zeroes would be the dearest part of a short call.
    let mut error = std::mem::MaybeUninit::<sys::ft_error>::uninit();
    // SAFETY: inside of `error`; no reference to what is not set is made.
    unsafe {
        (&raw mut (*error.as_mut_ptr()).struct_size).write(size_of::<sys::ft_error>());
    }
    let status = run(error.as_mut_ptr());
    if status == sys::FT_OK {
        return Ok(());
    }
    // SAFETY: a call that fails has written a status and a text with a NUL.
    let message = unsafe {
        std::ffi::CStr::from_ptr((&raw const (*error.as_ptr()).message).cast())
            .to_string_lossy()
            .into_owned()
    };
    Err(Error { message })
}

/// What a function that writes a text into a buffer says.
pub(crate) fn text(
    run: impl Fn(*mut core::ffi::c_char, usize, *mut usize, *mut sys::ft_error) -> sys::ft_status,
) -> Result<String> {
    let mut length = 0;
    call(|error| run(std::ptr::null_mut(), 0, &mut length, error))?;
    // What is said may be longer the next time: it counts.
    let mut buffer = vec![0_u8; length + 256];
    call(|error| run(buffer.as_mut_ptr().cast(), buffer.len(), &mut length, error))?;
    buffer.truncate(length.min(buffer.len() - 1));
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}
