//! What O_DIRECT asks of memory and offsets.
//!
//! Since Linux 6.1 statx(2) tells. Before that, and on NFS, it is found by trying which reads work.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::SECTOR_LEN;
use crate::aligned::{AlignedBuffer, PAGE};
use crate::syscall::statx::{DirectIoAlignment, direct_io_alignment};

/// The largest bounce buffer, in bytes. Longer transfers go piece by piece.
pub(super) const BOUNCE_BYTES: usize = 1 << 20;

/// How many alignments of offsets are tried where the kernel does not tell: one sector and its first doublings, 512 to
/// 4096 bytes.
const PROBES: u32 = 4;

/// What transfers must be aligned to, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// The memory's address.
    pub(super) memory: usize,
    /// Offsets and lengths.
    pub(super) offset: usize,
}

/// The page cache asks for nothing.
pub(super) const UNALIGNED: Alignment = Alignment { memory: 1, offset: 1 };

/// What direct I/O on `file` asks for, by statx(2) or by trial.
///
/// # Errors
/// If the file knows no direct I/O, or cannot be read.
pub(super) fn direct_alignment(file: &File) -> io::Result<Alignment> {
    // A kernel that cannot answer is one that does not tell.
    let told = direct_io_alignment(file).ok().flatten();
    match told.map(|DirectIoAlignment { memory, offset }| (as_size(memory), as_size(offset))) {
        Some((memory, offset)) if memory.is_power_of_two() && offset.is_power_of_two() && offset <= BOUNCE_BYTES => {
            Ok(Alignment { memory, offset })
        }
        Some((0, 0)) => Err(io::Error::from(io::ErrorKind::Unsupported)),
        _ => probed_alignment(file),
    }
}

/// The smallest alignment with which a read works.
pub(super) fn probed_alignment(file: &File) -> io::Result<Alignment> {
    let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
    for doublings in 0..PROBES {
        let offset = SECTOR_LEN << doublings;
        // No device asks more of memory than that it begins on a page.
        match file.read_at(AlignedBuffer::new(offset, PAGE).bytes(), 0) {
            Ok(_) => return Ok(Alignment { memory: PAGE, offset }),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}

fn as_size(value: u32) -> usize {
    usize::try_from(value).expect("usize has at least 32 bits on any host with KVM")
}
