//! PCI configuration space by mechanism 1 (ports CF8 and CFC), bus 0.

use guest_rt::cpu::{inl, outl};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Vendor of virtio devices; modern ones have device ids from 0x1040 on (virtio 1.2, 4.1.2).
const VIRTIO_VENDOR: u32 = 0x1af4;
const VIRTIO_DEVICES: u32 = 0x1040;

/// One function of a device on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    device: u32,
}

/// What a virtio device is (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Net,
    Block,
}

impl Kind {
    fn id(self) -> u32 {
        match self {
            Kind::Net => 1,
            Kind::Block => 2,
        }
    }
}

/// The first virtio device of a kind.
#[must_use]
pub fn find(kind: Kind) -> Option<Function> {
    let id = (VIRTIO_DEVICES + kind.id()) << 16 | VIRTIO_VENDOR;
    (0..32)
        .map(|device| Function { device })
        .find(|function| function.read(0) == id)
}

impl Function {
    /// A doubleword of the configuration space; `offset` is a multiple of 4 below 256.
    pub(crate) fn read(&self, offset: u8) -> u32 {
        self.select(offset);
        inl(DATA)
    }

    pub(crate) fn write(&self, offset: u8, value: u32) {
        self.select(offset);
        outl(DATA, value);
    }

    pub(crate) fn read_byte(&self, offset: u8) -> u8 {
        self.read(offset & !3).to_le_bytes()[usize::from(offset & 3)]
    }

    fn select(&self, offset: u8) {
        outl(ADDRESS, 1 << 31 | self.device << 11 | u32::from(offset & !3));
    }
}
