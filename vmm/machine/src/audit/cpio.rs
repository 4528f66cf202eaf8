//! Files of an initrd: cpio archives in the "newc" form, one behind the other, plain or compressed
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The archive is hostile input.

use crate::boot::linux::decompress::{Compression, DecompressError};

/// Largest expansion of one archive.
const MAX_ARCHIVE: u64 = 2 << 30;

/// A header: magic and 13 numbers of 8 hexadecimal digits.
const HEADER: usize = 110;

/// Longest path, as PATH_MAX.
const MAX_NAME: usize = 4096;

/// S_IFMT and S_IFREG.
const TYPE_MASK: usize = 0o170_000;
const REGULAR: usize = 0o100_000;

/// Whether `bytes` begin as an archive does.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

/// What is wrong with an initrd.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// An archive is cut off or nonsense.
    #[error("the cpio archive is damaged at byte {at}")]
    Damaged { at: usize },
    /// Neither an archive nor a compressed one.
    #[error("{left} bytes before its end, the initrd has neither a cpio archive nor a known compression")]
    Unknown { left: usize },
    /// A compressed something else.
    #[error("the {format:?} stream in the initrd holds something else than cpio archives")]
    OtherContent { format: Compression },
    /// The archive does not expand.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
}

/// Hands every regular file of all archives in `bytes` to `each`.
///
/// # Errors
/// Where the archive is damaged; the files before have been handed out.
pub(super) fn files(bytes: &[u8], each: &mut dyn FnMut(&str, &[u8])) -> Result<(), CpioError> {
    let mut rest = bytes;
    loop {
        // Archives are separated by zeros.
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        rest = &rest[zeros..];
        if rest.is_empty() {
            return Ok(());
        }
        if is_archive(rest) {
            rest = archive(rest, each)?;
            continue;
        }
        let left = rest.len();
        let format = Compression::detect(rest).ok_or(CpioError::Unknown { left })?;
        let expanded = format.expand(rest, MAX_ARCHIVE)?;
        let mut inner = expanded.as_slice();
        loop {
            if !is_archive(inner) {
                return Err(CpioError::OtherContent { format });
            }
            inner = archive(inner, each)?;
            let zeros = inner.iter().take_while(|byte| **byte == 0).count();
            inner = &inner[zeros..];
            if inner.is_empty() {
                // A compressed archive is the last one: nothing tells where its stream ends.
                return Ok(());
            }
        }
    }
}

/// One archive; returns what stands behind its trailer.
fn archive<'a>(bytes: &'a [u8], each: &mut dyn FnMut(&str, &[u8])) -> Result<&'a [u8], CpioError> {
    let mut at = 0;
    loop {
        let damaged = || CpioError::Damaged { at };
        let header = bytes
            .get(at..at + HEADER)
            .filter(|header| is_archive(header))
            .ok_or_else(damaged)?;
        let number = |index: usize| -> Option<usize> {
            let digits = std::str::from_utf8(&header[6 + 8 * index..14 + 8 * index]).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (mode, size, name_size) = (number(1), number(6), number(11));
        let (Some(mode), Some(size), Some(name_size @ 1..=MAX_NAME)) = (mode, size, name_size) else {
            return Err(damaged());
        };
        let name_end = at + HEADER + name_size;
        let name = bytes.get(at + HEADER..name_end - 1).ok_or_else(damaged)?;
        let data = name_end.next_multiple_of(4);
        let content = bytes.get(data..data + size).ok_or_else(damaged)?;
        at = (data + size).next_multiple_of(4);
        if name == b"TRAILER!!!" {
            return Ok(bytes.get(at..).unwrap_or_default());
        }
        if mode & TYPE_MASK == REGULAR {
            each(&String::from_utf8_lossy(name), content);
        }
    }
}
