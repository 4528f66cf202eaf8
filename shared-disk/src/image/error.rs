//! What can go wrong with a disk image, in words that say what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{REQUEST_BYTES, SECTOR};

/// Why an image cannot be used, or a transfer failed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be opened or examined.
    #[error("cannot open disk image {}: {cause}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A directory, pipe, character device, ...
    #[error("disk image {} is neither a regular file nor a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// The size is no disk's.
    #[error(
        "disk image {} has {size} bytes; expected a multiple of {SECTOR}, and not 0: create it with \
         `truncate --size 1G`, or pad it",
        path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file system knows no O_DIRECT.
    #[error(
        "disk image {} lies on a file system without direct I/O ({cause}): a shared disk must lie elsewhere; a private \
         one may be opened buffered",
        path.display()
    )]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The device's blocks are larger than the image's size allows.
    #[error(
        "disk image {} has {size} bytes, but its device does direct I/O in blocks of {alignment}: pad the image to a \
         multiple of that",
        path.display()
    )]
    Alignment {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The device's block size in bytes.
        alignment: usize,
    },
    /// A transfer that does not lie on the disk, or not on sectors.
    #[error("{len} bytes at {offset} are not whole sectors of a disk of {size} bytes")]
    Range {
        /// Where the transfer starts, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: usize,
        /// The disk's size in bytes.
        size: u64,
    },
    /// More than [`REQUEST_BYTES`].
    #[error("a read of {len} bytes is longer than {REQUEST_BYTES}")]
    Length {
        /// The length asked for, in bytes.
        len: u32,
    },
    /// A write to a disk opened read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The device failed, or the image is shorter than when it was opened.
    #[error("cannot {action} {len} bytes at {offset} of {}: {cause}", path.display())]
    Io {
        /// `read`, `write` or `flush`.
        action: &'static str,
        /// The image.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        len: usize,
        /// The system's answer.
        cause: io::Error,
    },
}
