//! Device memory.

use guest_abi::PCI_HOLE_ADDR;

/// A range of physical addresses behind RAM, where devices (or nothing) answer.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: usize,
    len: usize,
}

macro_rules! mmio_access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Loads from `offset` bytes into the range.
        ///
        /// # Panics
        /// If that is not inside the range.
        #[must_use]
        pub fn $read(&self, offset: usize) -> $type {
            // SAFETY: `address` gives a mapped address that is no RAM, so no Rust object is there.
            unsafe {
                core::ptr::with_exposed_provenance::<$type>(self.address(offset, size_of::<$type>())).read_volatile()
            }
        }

        /// Stores to `offset` bytes into the range.
        ///
        /// # Panics
        /// If that is not inside the range.
        pub fn $write(&self, offset: usize, value: $type) {
            let address = self.address(offset, size_of::<$type>());
            // SAFETY: as the load.
            unsafe { core::ptr::with_exposed_provenance_mut::<$type>(address).write_volatile(value) }
        }
    };
}

impl Mmio {
    /// A range of `len` bytes. `None` unless all of it lies between the PCI hole's start and 4 GiB, which is where the boot
    /// contract maps addresses that are never RAM.
    #[must_use]
    pub fn new(base: u64, len: u64) -> Option<Self> {
        let end = base.checked_add(len)?;
        if base < PCI_HOLE_ADDR || end > 1 << 32 {
            return None;
        }
        Some(Self {
            base: usize::try_from(base).ok()?,
            len: usize::try_from(len).ok()?,
        })
    }

    /// A part of the range, if it is inside.
    #[must_use]
    pub fn part(&self, offset: u32, len: u32) -> Option<Self> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        (offset.checked_add(len)? <= self.len).then_some(Self {
            base: self.base + offset,
            len,
        })
    }

    /// Physical address of the range.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base as u64
    }

    /// Bytes of the range.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    mmio_access!(read8, write8, u8);
    mmio_access!(read16, write16, u16);
    mmio_access!(read32, write32, u32);
    mmio_access!(read64, write64, u64);

    /// `or` of a constant into memory: one instruction, a load and a store for the machine.
    ///
    /// # Panics
    /// If that is not inside the range.
    pub fn or32(&self, offset: usize, value: u32) {
        let address = self.address(offset, size_of::<u32>());
        // SAFETY: as a store.
        unsafe { core::arch::asm!("or dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
    }

    /// A store of 8 bytes at any alignment, across a page as well: two stores for the machine then.
    ///
    /// # Panics
    /// If that is not inside the range.
    pub fn write64_unaligned(&self, offset: usize, value: u64) {
        let address = self.address(offset, size_of::<u64>());
        // SAFETY: as a store; the instruction takes any alignment.
        unsafe {
            core::arch::asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack, preserves_flags))
        };
    }

    fn address(&self, offset: usize, size: usize) -> usize {
        assert!(
            offset.checked_add(size).is_some_and(|end| end <= self.len),
            "offset {offset:#x} in {self:x?}"
        );
        self.base + offset
    }
}
