//! What O_DIRECT asks of memory and offsets, and memory that has it.
//!
//! Since Linux 6.1 statx(2) tells the alignments; before that, and on NFS, the smallest read that works does. The
//! aligned memory is a stretch of a slightly larger vector, so that nothing here is unsafe.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, StatxFlags};

/// Bounce buffers are no larger than this; longer transfers go piece by piece.
pub(super) const BOUNCE_BYTES: usize = 1 << 20;

/// Memory alignment where the kernel does not tell: no device asks for more than a page.
const PAGE: usize = 4096;

/// Offset alignments tried where the kernel does not tell (before Linux 6.1, and on NFS).
const PROBED_ALIGNMENTS: [usize; 4] = [512, 1024, 2048, 4096];

/// What O_DIRECT asks for, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    pub(super) memory: usize,
    /// Offsets and lengths.
    pub(super) offset: usize,
}

/// The page cache asks for nothing.
pub(super) const UNALIGNED: Alignment = Alignment { memory: 1, offset: 1 };

/// Memory that begins at a multiple of an alignment.
pub(super) struct Bounce {
    memory: Vec<u8>,
    range: Range<usize>,
}

impl Bounce {
    pub(super) fn new(len: usize, alignment: usize) -> Self {
        let memory = vec![0; len + alignment - 1];
        let start = memory.as_ptr().align_offset(alignment);
        Bounce {
            memory,
            range: start..start + len,
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }
}

/// What statx(2) says of direct I/O on `file`, or what a trial finds.
pub(super) fn direct_alignment(file: &File) -> io::Result<Alignment> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let known = stat
        .ok()
        .filter(|stat| StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN));
    let told = known.map(|stat| (as_size(stat.stx_dio_mem_align), as_size(stat.stx_dio_offset_align)));
    match told {
        Some((memory, offset)) if memory.is_power_of_two() && offset.is_power_of_two() && offset <= BOUNCE_BYTES => {
            Ok(Alignment { memory, offset })
        }
        Some((0, 0)) => Err(io::Error::from(io::ErrorKind::Unsupported)),
        _ => probed_alignment(file),
    }
}

pub(super) fn probed_alignment(file: &File) -> io::Result<Alignment> {
    let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
    for offset in PROBED_ALIGNMENTS {
        match file.read_at(Bounce::new(offset, PAGE).bytes(), 0) {
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
