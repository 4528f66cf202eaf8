//! Memory that begins at a multiple of some number, as devices ask for. It is a stretch of a slightly larger vector, so
//! that it needs no unsafe code.

use std::ops::Range;

/// Bytes of a page of memory on x86.
pub(crate) const PAGE: usize = 4096;

/// Zeroed memory that begins at a multiple of an alignment.
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    range: Range<usize>,
}

impl AlignedBuffer {
    /// `len` bytes at a multiple of `alignment`, a power of two.
    pub(crate) fn new(len: usize, alignment: usize) -> Self {
        let memory = vec![0; len + alignment - 1];
        let start = memory.as_ptr().align_offset(alignment);
        AlignedBuffer {
            memory,
            range: start..start + len,
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }
}
