//! A virtio device behind PCI: its registers, its initialisation, its interrupt (virtio 1.2, 3.1 and 4.1).

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::interrupts::{self, Frame};
use guest_rt::memory::FreeMemory;
use guest_rt::mmio::Mmio;
use guest_rt::pic;

use crate::pci::Function;
use crate::queue::Queue;

/// Status bits (virtio 1.2, 2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
pub(crate) const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 64;

/// The device follows virtio 1.
const VERSION_1: u64 = 1 << 32;

/// Capability types (virtio 1.2, 4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
/// More capabilities do not fit into a configuration space.
const MAX_CAPABILITIES: usize = 48;
/// How often the status is read until a reset is taken as failed.
const RESET_PATIENCE: usize = 100_000;

/// ISR registers by IRQ; a line may be shared by as many devices.
const SHARED: usize = 4;
static ISR_OF_IRQ: [[AtomicU64; SHARED]; 16] = [const { [const { AtomicU64::new(0) }; SHARED] }; 16];

/// Why a device cannot be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// It lacks a capability of that type, or one points outside the PCI hole.
    Capability(u8),
    /// It does not come out of reset.
    Reset,
    /// It lacks these features.
    Features(u64),
    /// It does not take the features that were chosen among those it offers.
    Refused(u64),
    /// It has no queue of that number.
    Queue(u16),
    /// Its interrupt line is none of the PIC's, or too many devices are on it.
    Interrupt(u8),
    /// There is no memory left for its queues.
    Memory,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::Capability(kind) => {
                write!(
                    f,
                    "no usable PCI capability of virtio type {kind}; the device has to be a modern one"
                )
            }
            DeviceError::Reset => f.write_str("the device does not come out of reset"),
            DeviceError::Features(missing) => write!(f, "the device lacks the features {missing:#x}"),
            DeviceError::Refused(features) => write!(f, "the device refuses the features {features:#x} of its offer"),
            DeviceError::Queue(index) => write!(f, "the device has no queue {index}"),
            DeviceError::Interrupt(line) => write!(f, "interrupt line {line} is unusable or shared by too many"),
            DeviceError::Memory => f.write_str("no memory is left for the device's queues"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// A device that is being set up, or runs.
#[derive(Debug)]
pub(crate) struct Device {
    function: Function,
    common: Mmio,
    notify: Mmio,
    /// Bytes between the notification registers of two queues.
    notify_multiplier: usize,
    isr: Mmio,
    /// Device-specific configuration.
    pub(crate) config: Mmio,
    /// What device and driver agreed on.
    pub(crate) features: u64,
}

impl Device {
    /// Resets a device and agrees on features: those of `wanted` that it offers, `required` ones in any case.
    pub(crate) fn open(function: Function, wanted: u64, required: u64) -> Result<Self, DeviceError> {
        // Memory space and bus master.
        function.write(0x04, function.read(0x04) & 0xffff | 0x6);
        let (notify, notify_capability) = find_capability(function, NOTIFY)?;
        let mut device = Self {
            function,
            common: find_capability(function, COMMON)?.0,
            notify,
            notify_multiplier: usize::try_from(function.read(notify_capability + 16)).unwrap_or(usize::MAX),
            isr: find_capability(function, ISR)?.0,
            config: find_capability(function, DEVICE)?.0,
            features: 0,
        };
        device.common.write8(0x14, 0);
        if !(0..RESET_PATIENCE).any(|_| device.status() == 0) {
            return Err(DeviceError::Reset);
        }
        device.add_status(ACKNOWLEDGE);
        device.add_status(DRIVER);
        device.negotiate(wanted, required | VERSION_1)?;
        Ok(device)
    }

    fn negotiate(&mut self, wanted: u64, required: u64) -> Result<(), DeviceError> {
        let half = |select: u32| {
            self.common.write32(0x00, select);
            u64::from(self.common.read32(0x04))
        };
        let offered = half(0) | half(1) << 32;
        if required & !offered != 0 {
            return Err(DeviceError::Features(required & !offered));
        }
        self.features = offered & (wanted | required);
        let [a, b, c, d, e, f, g, h] = self.features.to_le_bytes();
        for (select, half) in [(0, [a, b, c, d]), (1, [e, f, g, h])] {
            self.common.write32(0x08, select);
            self.common.write32(0x0c, u32::from_le_bytes(half));
        }
        self.add_status(FEATURES_OK);
        if self.status() & FEATURES_OK == 0 {
            Err(DeviceError::Refused(self.features))
        } else {
            Ok(())
        }
    }

    /// Sets up queue `index` with at most `size` descriptors (a power of two).
    pub(crate) fn queue(&self, index: u16, size: u16, memory: &mut FreeMemory) -> Result<Queue, DeviceError> {
        let size = size.min(self.select(index));
        if size == 0 || !size.is_power_of_two() {
            return Err(DeviceError::Queue(index));
        }
        self.common.write16(0x18, size);
        let queue = Queue::new(index, size, self.notification(index)?, memory).ok_or(DeviceError::Memory)?;
        self.enable(queue.addresses());
        Ok(queue)
    }

    /// The most descriptors of queue `index`, which becomes the selected one; 0 if there is no such queue.
    pub(crate) fn select(&self, index: u16) -> u16 {
        self.common.write16(0x16, index);
        self.common.read16(0x18)
    }

    /// The notification register of the selected queue `index`.
    pub(crate) fn notification(&self, index: u16) -> Result<Mmio, DeviceError> {
        let offset = usize::from(self.common.read16(0x1e)).checked_mul(self.notify_multiplier);
        let notify = offset.and_then(|offset| self.notify.part(u32::try_from(offset).ok()?, 2));
        notify.ok_or(DeviceError::Queue(index))
    }

    /// Says where the selected queue's descriptor table, available ring and used ring are, and enables it.
    pub(crate) fn enable(&self, addresses: [u64; 3]) {
        for (register, address) in (0x20..).step_by(8).zip(addresses) {
            let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
            self.common.write32(register, u32::from_le_bytes([a, b, c, d]));
            self.common.write32(register + 4, u32::from_le_bytes([e, f, g, h]));
        }
        self.common.write16(0x1c, 1);
    }

    /// Lets the device's interrupts through, and starts it.
    pub(crate) fn start(&self) -> Result<(), DeviceError> {
        let line = self.function.read_byte(0x3c);
        let slots = ISR_OF_IRQ.get(usize::from(line)).ok_or(DeviceError::Interrupt(line))?;
        let slot = slots.iter().find(|slot| slot.load(Ordering::Relaxed) == 0);
        slot.ok_or(DeviceError::Interrupt(line))?
            .store(self.isr.base(), Ordering::Relaxed);
        interrupts::set_handler(line, on_interrupt);
        self.add_status(DRIVER_OK);
        pic::unmask(line);
        Ok(())
    }

    pub(crate) fn status(&self) -> u8 {
        self.common.read8(0x14)
    }

    pub(crate) fn add_status(&self, bit: u8) {
        self.common.write8(0x14, self.status() | bit);
    }
}

/// Reads the ISR of every device on the line, which lowers it. What there is to do the program sees in its queues.
fn on_interrupt(frame: &mut Frame) {
    let irq = frame.vector - u64::from(pic::FIRST_VECTOR);
    let slots = usize::try_from(irq).ok().and_then(|irq| ISR_OF_IRQ.get(irq));
    for slot in slots.into_iter().flatten() {
        if let Some(isr) = Mmio::new(slot.load(Ordering::Relaxed), 1) {
            let _ = isr.read8(0);
        }
    }
}

/// The registers of a virtio capability, and where the capability itself is.
fn find_capability(function: Function, wanted: u8) -> Result<(Mmio, u8), DeviceError> {
    let mut at = function.read_byte(0x34) & !3;
    for _ in 0..MAX_CAPABILITIES {
        if !(0x40..=0xec).contains(&at) {
            break;
        }
        let [id, next, _, kind] = function.read(at).to_le_bytes();
        if id == 0x09 && kind == wanted {
            let bar = function.read_byte(at + 4);
            let (offset, len) = (function.read(at + 8), function.read(at + 12));
            let registers = base_address(function, bar)
                .and_then(|base| Mmio::new(base.checked_add(u64::from(offset))?, u64::from(len)));
            return registers
                .map(|registers| (registers, at))
                .ok_or(DeviceError::Capability(wanted));
        }
        at = next & !3;
    }
    Err(DeviceError::Capability(wanted))
}

/// The address in a memory BAR.
fn base_address(function: Function, bar: u8) -> Option<u64> {
    let register = (bar < 6).then_some(0x10 + 4 * bar)?;
    let low = function.read(register);
    let high = match low & 0x7 {
        0x0 => 0,
        0x4 if bar < 5 => function.read(register + 4),
        _ => return None,
    };
    Some(u64::from(high) << 32 | u64::from(low & !0xf))
}
