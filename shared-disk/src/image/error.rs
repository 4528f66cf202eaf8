//! What can go wrong with a disk image, in words that say what to do.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
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
    /// Two sides were given one private image.
    #[error(
        "disk image {} is in use by another process ({cause}): a private disk is one side's own; give each an image of its \
         own",
        path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
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

/// What a host answers when it is the way to the disk that is gone, not a sector, room or a right: another host may still
/// reach it (errno(3)). EIO is among them, as this is what a file system or driver makes of most losses.
const LOST: [Errno; 13] = [
    Errno::IO,
    Errno::NXIO,
    Errno::NODEV,
    Errno::STALE,
    Errno::NOLINK,
    Errno::REMOTEIO,
    Errno::TIMEDOUT,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::NETUNREACH,
    Errno::NOTCONN,
    Errno::SHUTDOWN,
    Errno::NOMEDIUM,
];

/// What Linux makes of a RESERVATION CONFLICT (`blk_errors`, `block/blk-core.c`).
const EBADE: i32 = 52;

impl ImageError {
    /// Whether the device refuses this host because of another's persistent reservation.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, ImageError::Io { cause, .. } if cause.raw_os_error() == Some(EBADE))
    }

    /// Whether this host seems to have lost the way to the disk.
    #[must_use]
    pub fn is_path_loss(&self) -> bool {
        let ImageError::Io { cause, .. } = self else {
            return false;
        };
        let errno = Errno::from_io_error(cause);
        errno.is_some_and(|errno| LOST.contains(&errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_lost_one() {
        let error = |cause| ImageError::Io {
            action: "write",
            path: PathBuf::new(),
            offset: 0,
            len: 512,
            cause,
        };
        for (errno, lost) in [
            (Errno::IO, true),
            (Errno::NODEV, true),
            (Errno::STALE, true),
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::ROFS, false),
            (Errno::FBIG, false),
        ] {
            assert_eq!(error(errno.into()).is_path_loss(), lost, "{errno}");
        }
        assert!(!error(io::Error::other("short")).is_path_loss());
        assert!(!ImageError::ReadOnly.is_path_loss());
    }

    #[test]
    fn only_a_reservation_conflict_is_a_fence() {
        let failed = |number| ImageError::Io {
            action: "write",
            path: "disk".into(),
            offset: 0,
            len: 512,
            cause: io::Error::from_raw_os_error(number),
        };
        assert!(failed(52).is_fenced());
        // EIO, ENOSPC, EREMOTEIO, and the neighbours.
        for number in [5, 28, 121, 51, 53] {
            assert!(!failed(number).is_fenced(), "{number}");
        }
        assert!(!ImageError::ReadOnly.is_fenced());
    }
}
