//! What can go wrong with a disk image, in words that say what to do.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use super::REQUEST_BYTES;
use crate::SECTOR;

/// Why an image cannot be used, or a transfer failed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be opened or examined.
    #[error("cannot open disk image {}: {cause}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
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
    /// The file system has no O_DIRECT.
    #[error(
        "disk image {} lies on a file system without direct I/O ({cause}): a shared disk must lie elsewhere; a private \
         one may be opened buffered",
        path.display()
    )]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
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
        #[source]
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
    /// A read that is longer than any that a guest is allowed.
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
        #[source]
        cause: io::Error,
    },
}

/// The answers that mean that the way to the disk is gone (errno(3)), not that a sector is bad, room is missing or a
/// right: another host may still reach the disk. EIO is among them, since most file systems and drivers turn a loss
/// into that.
const PATH_LOSSES: [Errno; 13] = [
    Errno::EIO,
    Errno::ENXIO,
    Errno::ENODEV,
    Errno::ESTALE,
    Errno::ENOLINK,
    Errno::EREMOTEIO,
    Errno::ETIMEDOUT,
    Errno::EHOSTDOWN,
    Errno::EHOSTUNREACH,
    Errno::ENETUNREACH,
    Errno::ENOTCONN,
    Errno::ESHUTDOWN,
    Errno::ENOMEDIUM,
];

impl ImageError {
    /// Whether the device refused a transfer because another host holds its persistent reservation. Linux makes EBADE
    /// of a RESERVATION CONFLICT (`blk_errors`, `block/blk-core.c`).
    #[must_use]
    pub fn is_reservation_conflict(&self) -> bool {
        self.errno() == Some(Errno::EBADE)
    }

    /// Whether this host seems to have lost the way to the disk.
    #[must_use]
    pub fn is_path_loss(&self) -> bool {
        self.errno().is_some_and(|errno| PATH_LOSSES.contains(&errno))
    }

    /// With which number the system refused a transfer.
    fn errno(&self) -> Option<Errno> {
        let ImageError::Io { cause, .. } = self else {
            return None;
        };
        cause.raw_os_error().map(Errno::from_raw)
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
            (Errno::EIO, true),
            (Errno::ENODEV, true),
            (Errno::ESTALE, true),
            (Errno::ENOSPC, false),
            (Errno::EDQUOT, false),
            (Errno::EROFS, false),
            (Errno::EFBIG, false),
        ] {
            assert_eq!(error(errno.into()).is_path_loss(), lost, "{errno}");
        }
        assert!(!error(io::Error::other("short")).is_path_loss());
        assert!(!ImageError::ReadOnly.is_path_loss());
    }

    #[test]
    fn only_ebade_is_a_reservation_conflict() {
        let failed = |number| ImageError::Io {
            action: "write",
            path: "disk".into(),
            offset: 0,
            len: 512,
            cause: io::Error::from_raw_os_error(number),
        };
        assert!(failed(52).is_reservation_conflict());
        // EIO, ENOSPC, EREMOTEIO, and the neighbours.
        for number in [5, 28, 121, 51, 53] {
            assert!(!failed(number).is_reservation_conflict(), "{number}");
        }
        assert!(!ImageError::ReadOnly.is_reservation_conflict());
    }
}
