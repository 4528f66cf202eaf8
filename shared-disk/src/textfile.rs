//! Small text files that a person can read with `cat`: a first line that names the format, then lines of a name and a
//! value.
//!
//! They lie on storage that others can write to, so nothing is taken on trust. The length is bounded, every line must
//! be the expected one, and what is echoed in messages is limited to characters that mean nothing to a terminal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::str::Lines;
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;

/// The longest host name kept, in bytes (`HOST_NAME_MAX` of Linux).
pub(crate) const HOST_BYTES: usize = 64;

/// Why a text was not understood; ends a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Longer than any text of this format.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// The longest one accepted, in bytes.
        limit: usize,
    },
    /// Not text.
    #[error("it is not plain text")]
    NotText,
    /// Another first line.
    #[error("its first line is not '{expected}': it is something else, or of another version of ftvm")]
    FirstLine {
        /// The first line of this format.
        expected: &'static str,
    },
    /// A line that is missing, repeated or malformed.
    #[error("its '{0}' line is missing or malformed")]
    Field(&'static str),
    /// Something after the last line.
    #[error("it has more lines than it should")]
    Trailing,
}

/// The lines of a text that have not been read yet.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    lines: Lines<'a>,
}

impl<'a> Fields<'a> {
    /// Those behind the first line of a text of at most `limit` bytes, which must be `first_line`.
    ///
    /// # Errors
    /// [`FormatError::TooLong`], [`FormatError::NotText`] or [`FormatError::FirstLine`].
    pub(crate) fn open(bytes: &'a [u8], limit: usize, first_line: &'static str) -> Result<Self, FormatError> {
        if bytes.len() > limit {
            return Err(FormatError::TooLong { limit });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| FormatError::NotText)?;
        let mut lines = text.lines();
        if lines.next() == Some(first_line) {
            return Ok(Fields { lines });
        }
        Err(FormatError::FirstLine { expected: first_line })
    }

    /// The value of the next line, which must have this name and a value that `parse` accepts.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub(crate) fn next<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T, FormatError> {
        let line = self.lines.next().and_then(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.strip_prefix(' '));
        value.and_then(parse).ok_or(FormatError::Field(name))
    }

    /// There must be no further line.
    ///
    /// # Errors
    /// [`FormatError::Trailing`].
    pub(crate) fn end(mut self) -> Result<(), FormatError> {
        self.lines.next().map_or(Ok(()), |_| Err(FormatError::Trailing))
    }
}

/// The number, written without sign, blanks or leading zeros: numbers name files too, and each may have one name only.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let is_canonical = text == "0" || !text.starts_with('0');
    (is_canonical && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// An incarnation: exactly 32 hexadecimal digits, not all of them 0.
pub(crate) fn incarnation(text: &str) -> Option<u128> {
    let is_well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = is_well_formed.then(|| u128::from_str_radix(text, 16).ok())??;
    (id != 0).then_some(id)
}

/// A host's name, as [`this_host`] gives it.
pub(crate) fn host(text: &str) -> Option<String> {
    let is_host = (1..=HOST_BYTES).contains(&text.len()) && text.bytes().all(is_plain_byte);
    is_host.then(|| text.to_owned())
}

/// Letters, digits, `.`, `-` and `_`: what host names and the names of guests are made of.
pub(crate) fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// The name of this host, as far as it consists of plain characters; `unknown` if nothing is left.
pub(crate) fn this_host() -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let system = nix::sys::utsname::uname();
    plain_host(system.as_ref().map_or(b"", |system| system.nodename().as_bytes()))
}

fn plain_host(name: &[u8]) -> String {
    let kept = name
        .iter()
        .copied()
        .filter(|byte| is_plain_byte(*byte))
        .take(HOST_BYTES);
    let host: String = kept.map(char::from).collect();
    if host.is_empty() { "unknown".to_owned() } else { host }
}

/// Seconds since 1970 UTC by this host's clock; 0 before that.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// At most `limit` bytes of a regular file.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidData`] if the name stands for anything but a regular file, such as a
/// FIFO, which would block whoever reads it.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(u64::try_from(limit).unwrap_or(u64::MAX))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_made_safe() {
        assert_eq!(plain_host(b"node-1.example"), "node-1.example");
        assert_eq!(plain_host(b"a\n\x1b b"), "ab");
        assert_eq!(plain_host(b"\n"), "unknown");
        assert_eq!(plain_host(&[b'x'; 100]).len(), HOST_BYTES);
        assert_eq!(host(&this_host()), Some(this_host()));
    }
}
