//! The PCI function a virtio device is: configuration space, capabilities, and the structures in its BAR
//! (PCI 3.0, 6.1 and 6.2; virtio 1.2, 4.1.4).
//!
//! The VMM plays firmware: BAR and interrupt line are assigned and memory decoding is on when the guest starts, so a
//! guest without any PCI code of its own can use the device. There is no MSI-X; INTA is the only interrupt.

use serde::{Deserialize, Serialize};

use super::fault::QueueFault;
use super::model::{CONFIG_SIZE, Model, Served};
use super::queue::VirtQueue;
use super::transport::Transport;
use crate::env::DeviceEnv;
use crate::error::BadState;

/// Size of a function's one BAR, 32-bit memory.
pub(crate) const BAR_SIZE: u32 = 0x4000;

const VENDOR_VIRTIO: u32 = 0x1AF4;
/// Non-transitional device ids begin here (virtio 1.2, 4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Revision of a non-transitional device.
const REVISION: u32 = 1;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
const STATUS_INTERRUPT: u32 = 1 << 3;
const STATUS_CAPABILITIES: u32 = 1 << 4;
const INTERRUPT_PIN_A: u32 = 1;

/// Configuration registers, by byte offset.
mod register {
    pub(super) const ID: u8 = 0x00;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const CLASS: u8 = 0x08;
    pub(super) const BAR0: u8 = 0x10;
    pub(super) const SUBSYSTEM: u8 = 0x2C;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const INTERRUPT: u8 = 0x3C;
    /// The capability VIRTIO_PCI_CAP_PCI_CFG: reaches the BAR through here (virtio 1.2, 4.1.4.9).
    pub(super) const WINDOW: u8 = 0x84;
    pub(super) const WINDOW_BAR: u8 = 0x88;
    pub(super) const WINDOW_OFFSET: u8 = 0x8C;
    pub(super) const WINDOW_LENGTH: u8 = 0x90;
    pub(super) const WINDOW_DATA: u8 = 0x94;
}

/// Where the structures lie in the BAR; each has a page.
mod area {
    pub(super) const COMMON: u32 = 0x0000;
    pub(super) const ISR: u32 = 0x1000;
    pub(super) const DEVICE: u32 = 0x2000;
    pub(super) const NOTIFY: u32 = 0x3000;
    pub(super) const SIZE: u32 = 0x1000;
}

/// Bytes between the notification addresses of neighbouring queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// A vendor capability: place in configuration space, type, structure (virtio 1.2, 4.1.4).
struct Capability {
    at: u8,
    next: u8,
    len: u8,
    kind: u8,
    offset: u32,
    length: u32,
}

const CAPABILITIES: [Capability; 4] = [
    Capability {
        at: 0x40,
        next: 0x50,
        len: 16,
        kind: 1,
        offset: area::COMMON,
        length: 0x38,
    },
    Capability {
        at: 0x50,
        next: 0x60,
        len: 16,
        kind: 3,
        offset: area::ISR,
        length: 1,
    },
    Capability {
        at: 0x60,
        next: 0x70,
        len: 16,
        kind: 4,
        offset: area::DEVICE,
        length: 0x40,
    },
    Capability {
        at: 0x70,
        next: register::WINDOW,
        len: 20,
        kind: 2,
        offset: area::NOTIFY,
        length: area::SIZE,
    },
];

/// Vendor capability, the last one, 20 bytes, VIRTIO_PCI_CAP_PCI_CFG.
const WINDOW_HEADER: [u8; 4] = [0x09, 0, 20, 5];

/// What the window's capability has been set to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    bar: u8,
    offset: u32,
    length: u32,
}

/// A virtio device on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioPci<M> {
    transport: Transport<M>,
    command: u16,
    bar: u32,
    interrupt_line: u8,
    window: Window,
}

/// What the PCI bus asks of a function, whatever device it is.
pub(crate) trait PciFunction {
    /// The aligned configuration dword at `register`.
    fn read_register(&mut self, register: u8, env: &mut DeviceEnv<'_>) -> u32;
    /// Writes `data` (1, 2 or 4 bytes) at `lane` of the aligned configuration dword at `register`.
    fn write_register(&mut self, register: u8, lane: usize, data: &[u8], env: &mut DeviceEnv<'_>);
    /// The offset into the BAR if it claims all `len` bytes at `addr`.
    fn decode(&self, addr: u64, len: usize) -> Option<u32>;
    /// Reads from the BAR.
    fn read_bar(&mut self, offset: u32, data: &mut [u8], env: &mut DeviceEnv<'_>);
    /// Writes to the BAR.
    fn write_bar(&mut self, offset: u32, data: &[u8], env: &mut DeviceEnv<'_>);
    /// The level of INTA.
    fn interrupt(&self) -> bool;
    /// Why the device waits for a reset, if it does.
    fn fault(&self) -> Option<QueueFault>;
}

impl<M: Model> VirtioPci<M> {
    const DEVICE_ID: u16 = DEVICE_BASE + M::TYPE;

    /// A function with its BAR and interrupt line preassigned.
    pub(crate) fn new(model: M, bar: u32, irq: u8) -> Self {
        VirtioPci {
            transport: Transport::new(model),
            command: COMMAND_MEMORY | COMMAND_BUS_MASTER,
            bar,
            interrupt_line: irq,
            window: Window::default(),
        }
    }

    pub(crate) fn model(&self) -> &M {
        &self.transport.model
    }

    /// The model, for what reaches it whether or not a driver runs it.
    pub(crate) fn model_mut(&mut self) -> &mut M {
        &mut self.transport.model
    }

    /// Whether a driver runs the device and has not broken it.
    pub(crate) fn is_running(&self) -> bool {
        self.transport.is_running()
    }

    /// Lets the model work on its queues if the device is running.
    pub(crate) fn serve(
        &mut self,
        env: &mut DeviceEnv<'_>,
        work: impl FnOnce(&mut M, &mut [VirtQueue], &mut DeviceEnv<'_>) -> Served,
    ) {
        self.transport.serve(env, work);
    }

    pub(crate) fn check(&self, built: &Self) -> Result<(), BadState> {
        self.transport.check(&built.transport)
    }

    fn read_window(&mut self, env: &mut DeviceEnv<'_>) -> u32 {
        let mut data = [0; 4];
        if let Some((offset, length)) = self.window_target() {
            self.read_bar(offset, &mut data[..length], env);
        }
        u32::from_le_bytes(data)
    }

    fn write_window(&mut self, data: &[u8], env: &mut DeviceEnv<'_>) {
        if let Some((offset, length)) = self.window_target()
            && let Some(data) = data.get(..length)
        {
            self.write_bar(offset, data, env);
        }
    }

    /// Offset and length of the BAR access the window stands for, if its capability describes one.
    fn window_target(&self) -> Option<(u32, usize)> {
        let Window { bar, offset, length } = self.window;
        let length_bytes = match length {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return None,
        };
        let fits = bar == 0 && offset.is_multiple_of(length) && offset < BAR_SIZE;
        fits.then_some((offset, length_bytes))
    }
}

impl<M: Model> PciFunction for VirtioPci<M> {
    fn read_register(&mut self, register: u8, env: &mut DeviceEnv<'_>) -> u32 {
        match register {
            register::ID => u32::from(Self::DEVICE_ID) << 16 | VENDOR_VIRTIO,
            register::COMMAND => {
                let pending = if self.transport.interrupt() {
                    STATUS_INTERRUPT
                } else {
                    0
                };
                (STATUS_CAPABILITIES | pending) << 16 | u32::from(self.command)
            }
            register::CLASS => M::CLASS << 8 | REVISION,
            register::BAR0 => self.bar,
            register::SUBSYSTEM => u32::from(Self::DEVICE_ID) << 16 | VENDOR_VIRTIO,
            register::CAPABILITIES => CAPABILITIES[0].at.into(),
            register::INTERRUPT => INTERRUPT_PIN_A << 8 | u32::from(self.interrupt_line),
            register::WINDOW => u32::from_le_bytes(WINDOW_HEADER),
            register::WINDOW_BAR => self.window.bar.into(),
            register::WINDOW_OFFSET => self.window.offset,
            register::WINDOW_LENGTH => self.window.length,
            register::WINDOW_DATA => self.read_window(env),
            _ => read_capability(register),
        }
    }

    fn write_register(&mut self, register: u8, lane: usize, data: &[u8], env: &mut DeviceEnv<'_>) {
        if register == register::WINDOW_DATA && lane == 0 {
            return self.write_window(data, env);
        }
        let old = match register {
            register::COMMAND => self.command.into(),
            register::BAR0 => self.bar,
            register::INTERRUPT => self.interrupt_line.into(),
            register::WINDOW_BAR => self.window.bar.into(),
            register::WINDOW_OFFSET => self.window.offset,
            register::WINDOW_LENGTH => self.window.length,
            _ => return,
        };
        let mut bytes: [u8; 4] = old.to_le_bytes();
        for (byte, &value) in bytes.iter_mut().skip(lane).zip(data) {
            *byte = value;
        }
        let value = u32::from_le_bytes(bytes);
        match register {
            register::COMMAND => self.command = u16::from_le_bytes([bytes[0], bytes[1]]) & COMMAND_WRITABLE,
            // Sizing works by itself: the bits below the size are not writable.
            register::BAR0 => self.bar = value & !(BAR_SIZE - 1),
            register::INTERRUPT => self.interrupt_line = bytes[0],
            register::WINDOW_BAR => self.window.bar = bytes[0],
            register::WINDOW_OFFSET => self.window.offset = value,
            _ => self.window.length = value,
        }
    }

    fn decode(&self, addr: u64, len: usize) -> Option<u32> {
        if self.command & COMMAND_MEMORY == 0 {
            return None;
        }
        let offset = addr.checked_sub(self.bar.into())?;
        let end = offset.checked_add(len as u64)?;
        if end > BAR_SIZE.into() {
            None
        } else {
            u32::try_from(offset).ok()
        }
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8], _env: &mut DeviceEnv<'_>) {
        data.fill(0);
        let (area, inside) = area_of(offset);
        match area {
            area::COMMON => {
                let value = self.transport.read_common(inside.into(), data.len()).to_le_bytes();
                data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            }
            area::ISR if inside == 0 => data[0] = self.transport.read_isr(),
            area::DEVICE if (inside as usize) < CONFIG_SIZE => {
                let config = self.transport.model.config();
                data.iter_mut()
                    .zip(&config[inside as usize..])
                    .for_each(|(to, &from)| *to = from);
            }
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8], env: &mut DeviceEnv<'_>) {
        let (area, inside) = area_of(offset);
        match area {
            area::COMMON => {
                let mut value = [0; 8];
                value.iter_mut().zip(data).for_each(|(to, &from)| *to = from);
                self.transport
                    .write_common(inside.into(), data.len(), u64::from_le_bytes(value), env);
            }
            area::NOTIFY => self.transport.notify((inside / NOTIFY_MULTIPLIER) as usize, env),
            // ISR is read-only, and so is every configuration field offered here.
            _ => {}
        }
    }

    fn interrupt(&self) -> bool {
        self.transport.interrupt() && self.command & COMMAND_INTX_DISABLE == 0
    }

    fn fault(&self) -> Option<QueueFault> {
        self.transport.fault()
    }
}

/// The area of the BAR that an offset is in, and how far inside.
fn area_of(offset: u32) -> (u32, u32) {
    let inside = offset % area::SIZE;
    (offset.saturating_sub(inside), inside)
}

/// A dword of the four fixed capabilities; 0 outside them.
fn read_capability(register: u8) -> u32 {
    let inside = |capability: &'static Capability| {
        let at = register.checked_sub(capability.at)?;
        (at < capability.len).then_some((capability, at))
    };
    let Some((capability, at)) = CAPABILITIES.iter().find_map(inside) else {
        return 0;
    };
    match at {
        0 => u32::from_le_bytes([0x09, capability.next, capability.len, capability.kind]),
        // BAR 0, id 0.
        4 => 0,
        8 => capability.offset,
        12 => capability.length,
        _ => NOTIFY_MULTIPLIER,
    }
}
