//! What a memory holds at first.

use crate::error::{Error, Result, call};
use crate::sys;
use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// The SHA-256 digest of an image, as firsttouch defines it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; sys::FT_DIGEST_BYTES]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Digest> {
        let bad = || {
            Error::new(format!(
                "\"{text}\" is not a digest: 64 hexadecimal digits are"
            ))
        };
        // (from_str_radix takes a sign, too.)
        if text.len() != 2 * sys::FT_DIGEST_BYTES
            || !text.bytes().all(|digit| digit.is_ascii_hexdigit())
        {
            return Err(bad());
        }
        let mut digest = [0; sys::FT_DIGEST_BYTES];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Digest(digest))
    }
}

/// Some bytes of an image, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Bytes from the memory's start.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

struct Handle {
    image: sys::ft_image,
    size: u64,
    digest: Digest,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // It names an image until here, which is all that could be wrong.
        let _ = call(|error| unsafe { sys::ft_image_release(self.image, error) });
    }
}

/// An image: immutable, and shared by any number of memories, pools and threads.
/// Clones are the same image.
#[derive(Clone)]
pub struct Image(Arc<Handle>);

impl Image {
    /// Zeroes of `size` bytes with `segments` written over them, in order.
    /// `name` is for people. Errors: a segment that does not end within `size`,
    /// and what the process or the machine has run out of.
    pub fn from_segments(name: &str, size: u64, segments: &[Segment<'_>]) -> Result<Image> {
        let name = c_string(name)?;
        let options = sys::ft_image_options {
            struct_size: size_of::<sys::ft_image_options>(),
            name: name.as_ptr(),
            size_bytes: size,
        };
        let segments: Vec<_> = segments
            .iter()
            .map(|segment| sys::ft_segment {
                offset_bytes: segment.offset,
                bytes: segment.bytes.as_ptr().cast(),
                length: segment.bytes.len(),
            })
            .collect();
        let mut image = sys::ft_image::default();
        call(|error| unsafe {
            sys::ft_image_from_segments(
                &options,
                segments.as_ptr(),
                segments.len(),
                &mut image,
                error,
            )
        })?;
        Image::adopt(image)
    }

    /// An image file (`.ftimg`), whose pages are read when they are first
    /// touched. A file that is not there, or whose header is damaged, is an error
    /// that names it. The file must stay as it is: pages are not compared with
    /// the digest.
    pub fn open(path: &Path) -> Result<Image> {
        Image::open_as(path, 0)
    }

    /// The same, but reads the whole file now, and compares it with its digest:
    /// for a file that others may write to. Other contents are an error.
    pub fn load(path: &Path) -> Result<Image> {
        Image::open_as(path, sys::FT_OPEN_COPY | sys::FT_OPEN_VERIFY)
    }

    fn open_as(path: &Path, flags: u64) -> Result<Image> {
        let path = c_string(path.as_os_str().as_bytes())?;
        let options = sys::ft_open_options {
            struct_size: size_of::<sys::ft_open_options>(),
            flags,
            // SAFETY: all zero is what the header promises to be the default.
            ..unsafe { std::mem::zeroed() }
        };
        let mut image = sys::ft_image::default();
        call(|error| unsafe { sys::ft_image_open(path.as_ptr(), &options, &mut image, error) })?;
        Image::adopt(image)
    }

    /// Writes an image file. It appears whole, or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let path = c_string(path.as_os_str().as_bytes())?;
        call(|error| unsafe {
            sys::ft_image_write(self.0.image, path.as_ptr(), std::ptr::null(), error)
        })
    }

    fn adopt(image: sys::ft_image) -> Result<Image> {
        // From here on it is released, whatever happens.
        let mut handle = Handle {
            image,
            size: 0,
            digest: Digest([0; sys::FT_DIGEST_BYTES]),
        };
        let mut info: sys::ft_image_info = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<sys::ft_image_info>();
        call(|error| unsafe { sys::ft_image_get_info(image, &mut info, error) })?;
        handle.size = info.size_bytes;
        call(|error| unsafe {
            sys::ft_image_get_digest(image, handle.digest.0.as_mut_ptr(), error)
        })?;
        Ok(Image(Arc::new(handle)))
    }

    /// Bytes from the start of a memory that the image is for.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The digest of the contents.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Copies `into.len()` bytes from `offset` on out; an error where they do
    /// not end within the image.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        call(|error| unsafe {
            sys::ft_image_read(
                self.0.image,
                offset,
                into.as_mut_ptr().cast(),
                into.len(),
                error,
            )
        })
    }

    pub(crate) fn handle(&self) -> sys::ft_image {
        self.0.image
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes, {})", self.size(), self.digest())
    }
}

pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|error| {
        Error::new(format!(
            "{:?} has a NUL, which C takes for its end",
            String::from_utf8_lossy(&error.into_vec())
        ))
    })
}
