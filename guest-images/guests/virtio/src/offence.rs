//! A driver that breaks the rules, to see what a device makes of it: for tests of the machine, and nothing else.
//!
//! Each [`Offence`] leaves the rings of a freshly reset device in a state that virtio 1.2 forbids, and tells the device
//! to look. A device that cannot go on says DEVICE_NEEDS_RESET (2.1.2), and the machine around it must not care.

use guest_rt::memory::{FreeMemory, PAGE_SIZE};

use crate::device::{DRIVER_OK, Device, DeviceError, NEEDS_RESET};
use crate::dma::Dma;
use crate::pci::Function;

/// Descriptor flags (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where things are in the memory of an [`Offender`]: the descriptor table, the two rings, and a buffer.
const AVAILABLE: usize = PAGE_SIZE;
const USED: usize = 2 * PAGE_SIZE;
const BUFFER: usize = 3 * PAGE_SIZE;
const BYTES: usize = 4 * PAGE_SIZE;
/// An address where no RAM is: in the PCI hole.
const NO_RAM: u64 = 0xefff_f000;

/// A way of breaking the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// More chains are available than the queue has entries.
    AvailableIndex,
    /// A chain begins behind the table.
    DescriptorIndex,
    /// A chain that leads to itself.
    Loop,
    /// An indirect table, which was not agreed on.
    Indirect,
    /// A buffer without bytes.
    Empty,
    /// A buffer outside RAM.
    OutsideMemory,
    /// A readable buffer behind a writable one.
    Order,
    /// A chain of 4 GiB and more.
    TooLong,
    /// A request shorter than its header.
    TooShort,
    /// The rings are where no RAM is.
    Misplaced,
    /// The used ring lies over the available one. Nothing forbids it; each answer changes what is asked.
    Overlap,
    /// Random bits everywhere.
    Noise,
}

impl Offence {
    /// All there are.
    pub const ALL: [Offence; 12] = [
        Offence::AvailableIndex,
        Offence::DescriptorIndex,
        Offence::Loop,
        Offence::Indirect,
        Offence::Empty,
        Offence::OutsideMemory,
        Offence::Order,
        Offence::TooLong,
        Offence::TooShort,
        Offence::Misplaced,
        Offence::Overlap,
        Offence::Noise,
    ];

    /// Whether a device must stop for it.
    #[must_use]
    pub fn must_stop(self) -> bool {
        !matches!(self, Offence::Overlap | Offence::Noise)
    }
}

/// What a device made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits for a reset.
    Stopped,
    /// It goes on.
    GoesOn,
}

/// Memory for offences, and a source of noise.
#[derive(Debug)]
pub struct Offender {
    dma: Dma,
    memory_bytes: u64,
    random: u64,
}

impl Offender {
    /// Takes its pages. `memory_bytes` is the size of RAM. `None` if memory has run out.
    #[must_use]
    pub fn new(memory: &mut FreeMemory, memory_bytes: u64, seed: u64) -> Option<Self> {
        Some(Self {
            dma: Dma::new(memory, BYTES)?,
            memory_bytes,
            random: seed | 1,
        })
    }

    /// Resets a device, breaks the rules at its queue, and has it look. The device is left as it is then.
    ///
    /// # Errors
    /// The device is no usable one, or has no such queue.
    pub fn commit(&mut self, function: Function, queue: u16, offence: Offence) -> Result<Verdict, DeviceError> {
        let device = Device::open(function, 0, 0)?;
        let size = device.select(queue);
        if size == 0 {
            return Err(DeviceError::Queue(queue));
        }
        let notify = device.notification(queue)?;
        self.prepare(size, offence);
        let rings = [0, AVAILABLE, USED].map(|offset| self.dma.address(offset));
        device.enable(match offence {
            Offence::Misplaced => [NO_RAM; 3],
            Offence::Overlap => [rings[0], rings[1], rings[1]],
            _ => rings,
        });
        device.add_status(DRIVER_OK);
        notify.write16(0, queue);
        Ok(match device.status() & NEEDS_RESET {
            0 => Verdict::GoesOn,
            _ => Verdict::Stopped,
        })
    }

    /// Fills the rings.
    fn prepare(&mut self, size: u16, offence: Offence) {
        (0..BYTES).step_by(8).for_each(|offset| self.dma.write64(offset, 0));
        let buffer = self.dma.address(BUFFER);
        let mut available = (0, 1);
        match offence {
            Offence::AvailableIndex => available.1 = size + 1,
            Offence::DescriptorIndex => available.0 = size,
            Offence::Loop => self.describe(0, buffer, 64, NEXT, 0),
            Offence::Indirect => self.describe(0, buffer, 64, INDIRECT, 0),
            Offence::Empty => self.describe(0, buffer, 0, 0, 0),
            Offence::OutsideMemory => self.describe(0, NO_RAM, 64, 0, 0),
            Offence::Order => {
                self.describe(0, buffer, 64, WRITE | NEXT, 1);
                self.describe(1, buffer, 64, 0, 0);
            }
            Offence::TooLong => {
                let len = u32::try_from(self.memory_bytes).unwrap_or(u32::MAX);
                for at in 0..size {
                    let flags = if at + 1 < size { NEXT } else { 0 };
                    self.describe(at, 0, len, flags, (at + 1) % size);
                }
            }
            Offence::TooShort => self.describe(0, buffer, 1, 0, 0),
            Offence::Misplaced => {}
            Offence::Overlap => {
                self.describe(0, buffer, 64, NEXT, 1);
                self.describe(1, buffer + 64, 64, WRITE, 0);
            }
            Offence::Noise => {
                for offset in (0..BUFFER).step_by(8) {
                    let noise = self.noise();
                    self.dma.write64(offset, noise);
                }
                return;
            }
        }
        let (head, index) = available;
        self.dma.write16(AVAILABLE + 4, head);
        self.dma.write16(AVAILABLE + 2, index);
    }

    fn describe(&mut self, at: u16, address: u64, len: u32, flags: u16, next: u16) {
        let offset = 16 * usize::from(at);
        self.dma.write64(offset, address);
        self.dma.write32(offset + 8, len);
        self.dma.write16(offset + 12, flags);
        self.dma.write16(offset + 14, next);
    }

    fn noise(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
