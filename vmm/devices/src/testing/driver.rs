//! A driver's half of virtio, as little of it as the tests need: rings in guest memory, and the initialisation
//! sequence.

use super::Surroundings;

/// Where a ring's parts lie, from its base on; a page each.
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Offsets into the BAR, as the capabilities say.
pub(crate) const ISR: u32 = 0x1000;
pub(crate) const CONFIG: u32 = 0x2000;
pub(crate) const NOTIFY: u32 = 0x3000;

pub(crate) const STATUS: u32 = 0x14;
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 0x40;

/// A piece of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// Address and length, for the device to read.
    Out(u64, u32),
    /// Address and length, for the device to write.
    In(u64, u32),
}

/// The driver's view of one virtqueue.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub base: u64,
    pub size: u16,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
}

impl Ring {
    /// A ring of `size` entries in the three pages from `base` on, which must be zero.
    pub(crate) fn new(base: u64, size: u16) -> Self {
        Ring {
            base,
            size,
            next_desc: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    pub(crate) fn avail(&self) -> u64 {
        self.base + AVAIL
    }

    /// Writes one descriptor.
    pub(crate) fn describe(&self, around: &Surroundings, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        around.write(self.base + DESC + 16 * u64::from(index), &bytes);
    }

    /// Makes the chain that begins at descriptor `head` available.
    pub(crate) fn offer(&mut self, around: &Surroundings, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        around.write(self.avail() + 4 + 2 * slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        around.write(self.avail() + 2, &self.next_avail.to_le_bytes());
    }

    /// Describes a chain in the next free descriptors and makes it available. Old descriptors are overwritten.
    pub(crate) fn chain(&mut self, around: &Surroundings, pieces: &[Piece]) -> u16 {
        let head = self.next_desc % self.size;
        for (number, piece) in pieces.iter().enumerate() {
            let index = self.next_desc % self.size;
            self.next_desc = self.next_desc.wrapping_add(1);
            let next = self.next_desc % self.size;
            let more = if number + 1 < pieces.len() { NEXT } else { 0 };
            match *piece {
                Piece::Out(addr, len) => self.describe(around, index, addr, len, more, next),
                Piece::In(addr, len) => self.describe(around, index, addr, len, more | WRITE, next),
            }
        }
        self.offer(around, head);
        head
    }

    /// The next used entry: head and length.
    pub(crate) fn used(&mut self, around: &Surroundings) -> Option<(u16, u32)> {
        let index = around.read(self.base + USED + 2, 2);
        if self.next_used == u16::from_le_bytes([index[0], index[1]]) {
            return None;
        }
        let entry = around.read(self.base + USED + 4 + 8 * u64::from(self.next_used % self.size), 8);
        self.next_used = self.next_used.wrapping_add(1);
        Some((
            u16::from_le_bytes([entry[0], entry[1]]),
            u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        ))
    }
}

/// Access to a function's BAR.
pub(crate) trait Bar {
    fn read_bar(&mut self, offset: u32, data: &mut [u8]);
    fn write_bar(&mut self, offset: u32, data: &[u8]);

    fn read_u8(&mut self, offset: u32) -> u8 {
        let mut data = [0];
        self.read_bar(offset, &mut data);
        data[0]
    }

    fn read_u32(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.read_bar(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn status(&mut self) -> u8 {
        self.read_u8(STATUS)
    }

    fn set_status(&mut self, status: u8) {
        self.write_bar(STATUS, &[status]);
    }

    fn isr(&mut self) -> u8 {
        self.read_u8(ISR)
    }

    fn notify(&mut self, queue: u16) {
        self.write_bar(NOTIFY + 4 * u32::from(queue), &queue.to_le_bytes());
    }

    /// Everything from reset to FEATURES_OK, accepting every feature offered.
    fn negotiate(&mut self) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(1 | 2);
        for half in [0u32, 1] {
            self.write_bar(0x00, &half.to_le_bytes());
            let offered = self.read_u32(0x04);
            self.write_bar(0x08, &half.to_le_bytes());
            self.write_bar(0x0C, &offered.to_le_bytes());
        }
        self.set_status(1 | 2 | FEATURES_OK);
    }

    /// Describes and enables queue `index`.
    fn enable_queue(&mut self, index: u16, ring: &Ring) {
        self.write_bar(0x16, &index.to_le_bytes());
        self.write_bar(0x18, &ring.size.to_le_bytes());
        for (register, address) in [
            (0x20, ring.base + DESC),
            (0x28, ring.base + AVAIL),
            (0x30, ring.base + USED),
        ] {
            let [a, b, c, d, high @ ..] = address.to_le_bytes();
            self.write_bar(register, &[a, b, c, d]);
            self.write_bar(register + 4, &high);
        }
        self.write_bar(0x1C, &1u16.to_le_bytes());
    }

    /// The whole initialisation sequence (virtio 1.2, 3.1.1).
    fn bring_up(&mut self, rings: &[Ring]) {
        self.negotiate();
        for (index, ring) in (0..).zip(rings) {
            self.enable_queue(index, ring);
        }
        self.set_status(1 | 2 | FEATURES_OK | DRIVER_OK);
    }
}
