//! Memory that a device reads and writes too.

use guest_rt::memory::{FreeMemory, PAGE_SIZE};

/// A range of memory whose physical addresses are its virtual ones.
#[derive(Debug)]
pub(crate) struct Dma {
    base: *mut u8,
    len: usize,
}

macro_rules! read {
    ($name:ident, $type:ty) => {
        pub(crate) fn $name(&self, offset: usize) -> $type {
            // SAFETY: `at` checks the range; the access is volatile, because the device may write at any time.
            unsafe {
                self.at(offset, size_of::<$type>())
                    .cast::<$type>()
                    .read_volatile()
            }
        }
    };
}

macro_rules! write {
    ($name:ident, $type:ty) => {
        pub(crate) fn $name(&mut self, offset: usize, value: $type) {
            // SAFETY: `at` checks the range; the access is volatile, because the device may read at any time.
            unsafe {
                self.at(offset, size_of::<$type>())
                    .cast::<$type>()
                    .write_volatile(value)
            }
        }
    };
}

impl Dma {
    /// Takes whole pages for `len` bytes. `None` if memory has run out.
    pub(crate) fn new(memory: &mut FreeMemory, len: usize) -> Option<Self> {
        let words = memory.take(len.div_ceil(PAGE_SIZE))?;
        words.fill(0);
        Some(Self {
            base: words.as_mut_ptr().cast(),
            len: size_of_val(words),
        })
    }

    /// Address of a byte for the device.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.at(offset, 0).addr() as u64
    }

    read!(read8, u8);
    read!(read16, u16);
    read!(read32, u32);
    write!(write8, u8);
    write!(write16, u16);
    write!(write32, u32);
    write!(write64, u64);

    /// Bytes that the device has given back, so that it does not change them.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: `at` checks the range, which holds initialised bytes; queues hand out buffers that the device has done with.
        unsafe { core::slice::from_raw_parts(self.at(offset, len), len) }
    }

    /// Bytes that the device has given back or not yet got.
    pub(crate) fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: as `bytes`; the borrow of `self` keeps other Rust references away.
        unsafe { core::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of {}",
            self.len
        );
        self.base.wrapping_add(offset)
    }
}
