//! The archive format that Linux unpacks as its first root file system: cpio, "newc" variant.
//!
//! The nested host's whole world is one such archive, written here as a stream, so no root privileges, no loop
//! devices and no image tools are needed. The same format carries files back out of the guest, where busybox writes
//! it, so there is a reader too; it treats the archive as hostile. Format: Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const MAGIC: &[u8; 6] = b"070701";
/// The magic and thirteen fields of eight hexadecimal digits.
const HEADER_LEN: usize = 6 + 13 * 8;
/// A last entry of this name ends the archive.
const TRAILER: &str = "TRAILER!!!";
/// Linux's PATH_MAX; a longer name in an archive is taken for damage.
const MAX_NAME: u32 = 4096;

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// What can go wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reader or writer underneath failed; `what` names the entry.
    #[error("cpio archive, at {what}: {source}")]
    Io {
        /// The entry in question.
        what: String,
        /// The failure itself.
        source: io::Error,
    },
    /// The format holds sizes of 32 bits.
    #[error("{path} has {size} bytes; a cpio archive holds files of less than 4 GiB")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The bytes are not an archive.
    #[error("cpio archive, entry {entry}: {reason}")]
    Malformed {
        /// Number of the entry, from 0.
        entry: u64,
        /// What was expected and what was found.
        reason: String,
    },
    /// All files together are larger than the caller allows.
    #[error("the archive holds more than {limit} bytes of files, the most that is taken; at {path}")]
    OverLimit {
        /// The limit in bytes.
        limit: u64,
        /// The file that went over.
        path: String,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Writes an archive entry by entry. Directories that a path needs are added on the way.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    next_inode: u32,
    present: BTreeSet<PathBuf>,
}

impl<W: Write> Writer<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            next_inode: 1,
            present: BTreeSet::new(),
        }
    }

    /// Whether `path` (relative to the archive's root) was added already.
    pub fn contains(&self, path: &Path) -> bool {
        self.present.contains(path)
    }

    /// Adds a directory with mode 0755. Adding it twice is fine.
    ///
    /// # Errors
    /// Fails when the writer underneath does.
    pub fn directory(&mut self, path: &Path) -> Result<(), Error> {
        if path.as_os_str().is_empty() || self.present.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, DIRECTORY | 0o755, 0, &mut io::empty())
    }

    /// Adds a symbolic link at `path` that says `target`.
    ///
    /// # Errors
    /// Fails when the writer underneath does.
    pub fn symlink(&mut self, path: &Path, target: &str) -> Result<(), Error> {
        self.parents(path)?;
        let size = u32::try_from(target.len()).map_err(|_| Error::TooLarge {
            path: path.display().to_string(),
            size: u64::MAX,
        })?;
        self.entry(path, SYMLINK | 0o777, size, &mut target.as_bytes())
    }

    /// Adds a file of `size` bytes, read from `data`, with the permission bits of `mode`.
    ///
    /// # Errors
    /// Fails when the file is 4 GiB or larger, when `data` ends before `size` bytes, or when a reader or writer fails.
    pub fn file(&mut self, path: &Path, mode: u32, size: u64, data: &mut impl Read) -> Result<(), Error> {
        self.parents(path)?;
        let short = u32::try_from(size).map_err(|_| Error::TooLarge {
            path: path.display().to_string(),
            size,
        })?;
        self.entry(path, REGULAR | (mode & 0o7777), short, data)
    }

    /// Ends the archive and hands back what is underneath.
    ///
    /// # Errors
    /// Fails when the writer underneath does.
    pub fn finish(mut self) -> Result<W, Error> {
        self.entry(Path::new(TRAILER), 0, 0, &mut io::empty())?;
        self.out.flush().map_err(Error::io(TRAILER))?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> Result<(), Error> {
        match path.parent() {
            Some(parent) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, size: u32, data: &mut impl Read) -> Result<(), Error> {
        let name = path.as_os_str().as_bytes();
        let name_size = u32::try_from(name.len() + 1)
            .ok()
            .filter(|n| *n <= MAX_NAME)
            .ok_or_else(|| Error::Io {
                what: path.display().to_string(),
                source: io::Error::from(io::ErrorKind::InvalidFilename),
            })?;
        let inode = self.next_inode;
        self.next_inode += 1;
        // inode, mode, uid, gid, links, mtime, size, device (major, minor), special device (major, minor), name, check
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = Vec::with_capacity(HEADER_LEN + name.len() + 4);
        head.extend_from_slice(MAGIC);
        for field in fields {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(name);
        head.push(0);
        head.resize(head.len().next_multiple_of(4), 0);
        let written = self.out.write_all(&head).and_then(|()| {
            let copied = io::copy(&mut data.take(u64::from(size)), &mut self.out)?;
            if copied != u64::from(size) {
                let reason = format!("{size} bytes were announced, but the data ended after {copied}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
            self.out.write_all(&[0; 3][..padding(size)])
        });
        written.map_err(Error::io(path.display().to_string()))?;
        self.present.insert(path.to_owned());
        Ok(())
    }
}

/// Bytes between the end of `size` bytes and the next multiple of four.
fn padding(size: u32) -> usize {
    [0, 3, 2, 1][(size % 4) as usize]
}

/// Unpacks the regular files and directories of an archive into `dir`, and returns the files' paths relative to it.
/// Stops after the archive's trailer; what follows is left unread. An input without a single byte is an empty archive.
///
/// # Errors
/// Fails, leaving what was unpacked so far, on damage, on a path that leads out of `dir`, on an entry that is neither
/// file nor directory, when the files together exceed `limit` bytes, or when reading or writing fails.
pub fn unpack(input: &mut impl Read, dir: &Path, limit: u64) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut total: u64 = 0;
    for entry in 0.. {
        let Some(header) = Header::read(input, entry)? else {
            break;
        };
        let Some(relative) = relative_path(&header.name) else {
            return Err(malformed(
                entry,
                format!("the path {:?} leads out of the archive", header.name),
            ));
        };
        let target = dir.join(&relative);
        match header.mode & TYPE_MASK {
            DIRECTORY => fs::create_dir_all(&target).map_err(Error::io(target.display().to_string()))?,
            REGULAR => {
                total += u64::from(header.size);
                if total > limit {
                    return Err(Error::OverLimit {
                        limit,
                        path: header.name,
                    });
                }
                write_file(input, &target, header.size)?;
                skip(input, padding(header.size), entry)?;
                files.push(relative);
            }
            other => {
                return Err(malformed(
                    entry,
                    format!("{:?} has type {other:o}, not file or directory", header.name),
                ));
            }
        }
    }
    Ok(files)
}

fn malformed(entry: u64, reason: String) -> Error {
    Error::Malformed { entry, reason }
}

/// The path with `.` removed, or nothing if it is absolute or has a `..`.
fn relative_path(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn write_file(input: &mut impl Read, target: &Path, size: u32) -> Result<(), Error> {
    let mut copy = || -> io::Result<()> {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let copied = io::copy(&mut input.take(u64::from(size)), &mut File::create(target)?)?;
        if copied == u64::from(size) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    };
    copy().map_err(Error::io(target.display().to_string()))
}

fn skip(input: &mut impl Read, count: usize, entry: u64) -> Result<(), Error> {
    let mut waste = [0; 4];
    input
        .read_exact(&mut waste[..count])
        .map_err(Error::io(format!("entry {entry}, padding")))
}

struct Header {
    mode: u32,
    size: u32,
    name: String,
}

impl Header {
    /// Reads one header and its name; nothing at the trailer, or where an empty input ends before its first byte.
    fn read(input: &mut impl Read, entry: u64) -> Result<Option<Self>, Error> {
        let mut first = [0; 1];
        if entry == 0 && input.read(&mut first).map_err(Error::io("its first byte"))? == 0 {
            return Ok(None);
        }
        let mut raw = [0; HEADER_LEN];
        raw[0] = first[0];
        let unread = if entry == 0 { &mut raw[1..] } else { &mut raw[..] };
        input
            .read_exact(unread)
            .map_err(Error::io(format!("entry {entry}, header")))?;
        if &raw[..6] != MAGIC {
            let found = String::from_utf8_lossy(&raw[..6]).into_owned();
            return Err(malformed(entry, format!("expected the magic 070701, found {found:?}")));
        }
        let field = |index: usize| {
            let digits = &raw[6 + index * 8..][..8];
            std::str::from_utf8(digits)
                .ok()
                .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|text| u32::from_str_radix(text, 16).ok())
                .ok_or_else(|| malformed(entry, format!("field {index} is not a hexadecimal number")))
        };
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        let name = read_name(input, name_size, entry)?;
        Ok((name != TRAILER).then_some(Self { mode, size, name }))
    }
}

fn read_name(input: &mut impl Read, size: u32, entry: u64) -> Result<String, Error> {
    if size == 0 || size > MAX_NAME {
        return Err(malformed(
            entry,
            format!("expected a name of 1 to {MAX_NAME} bytes, found {size}"),
        ));
    }
    let size = size as usize;
    let mut name = vec![0; (HEADER_LEN + size).next_multiple_of(4) - HEADER_LEN];
    input
        .read_exact(&mut name)
        .map_err(Error::io(format!("entry {entry}, name")))?;
    name.truncate(size - 1);
    match String::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(malformed(entry, "the name is not UTF-8 text".to_owned())),
    }
}

#[cfg(test)]
#[path = "cpio_tests.rs"]
mod tests;
