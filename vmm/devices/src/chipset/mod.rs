//! The platform: which device answers at which address, and how their interrupt lines meet at the PIC.
//!
//! The machine talks to the guest's devices through [`Chipset`] alone. Whatever a call changes is settled when it
//! returns: interrupt lines, effects, guest memory. Unclaimed reads are all ones and unclaimed writes are ignored, as
//! on a PC. Ports are bytes; a wider access to a byte-wide device is split into accesses to consecutive ports.

#[cfg(test)]
mod contract;
#[cfg(test)]
mod damaged;
mod state;
#[cfg(test)]
mod tests;

use ftvm_schema::entry::{ConsolePort, Input};
use ftvm_schema::request::DiskRequest;

use super::config::{ConfigError, PlatformConfig};
use super::env::DeviceEnv;
use super::error::ApplyError;
use super::i8042::I8042;
use super::pci::{self, Pci};
use super::pic::Pic;
use super::pit::Pit;
use super::rtc::Rtc;
use super::uart::Uart;
use super::virtio::QueueFault;
use super::{pm_timer, power};

pub use state::{ChipsetState, RestoreError};

/// IRQ of PIT channel 0.
const IRQ_TIMER: u8 = 0;
/// IRQ of the serial port.
const IRQ_SERIAL: u8 = 4;
/// IRQ of the real-time clock.
const IRQ_RTC: u8 = 8;
/// First port of the serial port's eight.
const SERIAL: u16 = 0x3F8;

/// Which way an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessDirection {
    Read,
    Write,
}

/// Where an access goes, before it is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Port { port: u16, dir: AccessDirection },
    Mmio { addr: u64, dir: AccessDirection },
}

/// All devices of one machine.
#[derive(Debug)]
pub struct Chipset {
    config: PlatformConfig,
    /// The largest clock applied.
    clock: u64,
    pic: Pic,
    pit: Pit,
    uart: Uart,
    rtc: Rtc,
    i8042: I8042,
    pci: Pci,
}

impl Chipset {
    /// Builds the platform as firmware would leave it.
    ///
    /// # Errors
    /// The configuration breaks one of [`PlatformConfig`]'s bounds.
    pub fn new(config: &PlatformConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Chipset {
            config: config.clone(),
            clock: 0,
            pic: Pic::new(pci::IRQS.iter().fold(0, |level, irq| level | 1 << irq)),
            pit: Pit::new(),
            uart: Uart::new(),
            rtc: Rtc::new(config.wall_clock_ns),
            i8042: I8042::new(),
            pci: Pci::new(config),
        })
    }

    /// Puts the platform into the state in which firmware would leave it; time goes on. Requests that disks have taken
    /// stay outstanding, and no driver is told when they end (PROTOCOL 8).
    ///
    /// # Errors
    /// None in practice: the configuration was accepted before.
    pub fn reset(&mut self) -> Result<(), ConfigError> {
        let mut fresh = Chipset::new(&self.config)?;
        fresh.clock = self.clock;
        fresh.pci.inherit(&self.pci);
        *self = fresh;
        Ok(())
    }

    /// Whether the access shows or depends on the time as it passes, so that the machine must log a fresh clock first.
    #[must_use]
    pub fn access_needs_clock(&self, access: Access) -> bool {
        match access {
            Access::Port {
                port,
                dir: AccessDirection::Read,
            } => {
                pm_timer::claims(port)
                    || (Pit::claims(port) && self.pit.read_needs_clock(port))
                    || self.rtc.read_needs_clock(port)
            }
            Access::Port {
                port,
                dir: AccessDirection::Write,
            } => Pit::write_needs_clock(port) || self.rtc.write_needs_clock(port),
            Access::Mmio { .. } => false,
        }
    }

    /// The guest reads 1, 2 or 4 bytes from a port.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], env: &mut DeviceEnv<'_>) {
        if pm_timer::claims(port) {
            return pm_timer::read(port, data, env.now);
        }
        if Pci::claims(port) {
            self.pci.port_read(port, data, env);
            return self.settle_pci();
        }
        let mut port = port;
        for byte in data {
            *byte = self.read_byte(port, env);
            port = port.wrapping_add(1);
        }
        self.settle();
    }

    /// The guest writes 1, 2 or 4 bytes to a port.
    pub fn port_write(&mut self, port: u16, data: &[u8], env: &mut DeviceEnv<'_>) {
        if power::claims(port) {
            return power::write(port, data, env);
        }
        if Pci::claims(port) {
            self.pci.port_write(port, data, env);
            return self.settle_pci();
        }
        let mut port = port;
        for &value in data {
            self.write_byte(port, value, env);
            port = port.wrapping_add(1);
        }
        self.settle();
    }

    /// The guest reads 1 to 8 bytes from an address without RAM.
    pub fn mmio_read(&mut self, addr: u64, data: &mut [u8], env: &mut DeviceEnv<'_>) {
        if self.pci.mmio_read(addr, data, env) {
            self.settle_pci();
        } else {
            data.fill(0xFF);
        }
    }

    /// The guest writes 1 to 8 bytes to an address without RAM.
    pub fn mmio_write(&mut self, addr: u64, data: &[u8], env: &mut DeviceEnv<'_>) {
        if self.pci.mmio_write(addr, data, env) {
            self.settle_pci();
        }
    }

    /// Something from outside reaches the devices. A clock also fires every deadline up to it, each timer once however
    /// many of its periods have passed.
    ///
    /// # Errors
    /// The input does not fit the devices' state; see [`ApplyError`]. Nothing has changed then.
    pub fn apply(&mut self, input: &Input, env: &mut DeviceEnv<'_>) -> Result<(), ApplyError> {
        match input {
            Input::Clock(now) => self.advance_clock(*now, env)?,
            Input::ConsoleRx {
                port: ConsolePort::Serial,
                bytes,
            } => self.uart.receive(bytes),
            Input::ConsoleRx {
                port: ConsolePort::Virtio,
                bytes,
            } => {
                let console = self.pci.console.as_mut().ok_or(no_device("virtio console", 0))?;
                console.serve(env, |console, queues, env| console.receive(bytes, queues, env));
            }
            Input::NetRx { nic, frame } => {
                let card = self
                    .pci
                    .nics
                    .get_mut(usize::from(*nic))
                    .ok_or(no_device("network card", *nic))?;
                card.serve(env, |card, queues, env| card.receive(frame, queues, env));
            }
            Input::DiskDone { disk, id, status, data } => {
                let disk = self
                    .pci
                    .disks
                    .get_mut(usize::from(*disk))
                    .ok_or(no_device("disk", *disk))?;
                let completion = disk.model_mut().complete(*id, *status, data)?;
                disk.serve(env, |disk, queues, env| disk.answer(completion, queues, env));
            }
            // The machine itself takes these.
            Input::Control(_) => {}
            Input::DiskRead { disk, id, .. } => return Err(ApplyError::WithoutData { disk: *disk, id: *id }),
            Input::Entropy { bytes } => {
                let rng = self.pci.rng.as_mut().ok_or(no_device("entropy source", 0))?;
                rng.serve(env, |rng, queues, env| rng.answer(bytes, queues, env));
            }
        }
        self.settle();
        self.settle_pci();
        Ok(())
    }

    /// The interrupt controllers' INT output. The interrupt may enter as soon as the CPU takes one.
    #[must_use]
    pub fn interrupt_pending(&self) -> bool {
        self.pic.interrupt_pending()
    }

    /// INTA: the vector to inject, which must then reach the guest. Without a pending interrupt, the spurious vector.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// The virtual time in nanoseconds at which `apply(Input::Clock)` will do something by itself.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.pit
            .next_deadline()
            .into_iter()
            .chain(self.rtc.next_deadline())
            .min()
    }

    /// Disk requests the guest has made and no input has completed, in the order it made them per disk, with the data
    /// of writes: what go-live issues again (PROTOCOL 8).
    #[must_use]
    pub fn outstanding_requests(&self) -> Vec<DiskRequest> {
        self.pci
            .disks
            .iter()
            .flat_map(|disk| disk.model().outstanding())
            .cloned()
            .collect()
    }

    /// How many bytes the oldest unanswered entropy request wants.
    #[must_use]
    pub fn entropy_wanted(&self) -> Option<u32> {
        self.pci.rng.as_ref().filter(|rng| rng.is_running())?.model().wanted()
    }

    /// Whether network card `nic` would take a frame now. A frame applied when it would not is dropped.
    #[must_use]
    pub fn net_rx_ready(&self, nic: u8) -> bool {
        self.pci
            .nics
            .get(usize::from(nic))
            .is_some_and(|card| card.is_running() && card.model().rx_ready())
    }

    /// How many bytes the console would take now. Bytes applied beyond that are dropped.
    #[must_use]
    pub fn console_rx_room(&self, port: ConsolePort) -> usize {
        match port {
            ConsolePort::Serial => self.uart.room(),
            ConsolePort::Virtio => {
                let running = self.pci.console.as_ref().filter(|console| console.is_running());
                running.map_or(0, |console| console.model().room())
            }
        }
    }

    /// Virtio devices whose driver has broken its rings, by PCI slot, and what it did first. They wait for a reset.
    pub fn faults(&self) -> impl Iterator<Item = (u8, QueueFault)> {
        self.pci.faults()
    }

    fn advance_clock(&mut self, input: u64, env: &DeviceEnv<'_>) -> Result<(), ApplyError> {
        if input != env.now {
            return Err(ApplyError::ClockDiffers { input, now: env.now });
        }
        if input < self.clock {
            return Err(ApplyError::ClockWentBack {
                input,
                last: self.clock,
            });
        }
        self.clock = input;
        if self.pit.advance(input) {
            self.pic.pulse(IRQ_TIMER);
        }
        self.rtc.tick(input);
        Ok(())
    }

    fn read_byte(&mut self, port: u16, env: &mut DeviceEnv<'_>) -> u8 {
        match port {
            SERIAL..=0x3FF => self.uart.read(port - SERIAL),
            _ if Pic::claims(port) => self.pic.read(port),
            _ if Pit::claims(port) => self.pit.read(port, env.now),
            _ if Rtc::claims(port) => self.rtc.read(port, env.now),
            _ if I8042::claims(port) => self.i8042.read(port),
            _ => 0xFF,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, env: &mut DeviceEnv<'_>) {
        match port {
            SERIAL..=0x3FF => self.write_serial(port - SERIAL, value, env),
            _ if Pic::claims(port) => self.pic.write(port, value),
            _ if Pit::claims(port) => self.pit.write(port, value, env.now),
            _ if Rtc::claims(port) => self.rtc.write(port, value, env.now),
            _ if I8042::claims(port) => self.i8042.write(port, value, env),
            _ => {}
        }
    }

    fn write_serial(&mut self, offset: u16, value: u8, env: &mut DeviceEnv<'_>) {
        self.uart.withdraw_before_write(offset);
        self.pic.set_line(IRQ_SERIAL, self.uart.interrupt());
        self.uart.write(offset, value, env);
    }

    /// Brings the interrupt lines of the byte-wide devices to what they drive now.
    fn settle(&mut self) {
        self.pic.set_line(IRQ_SERIAL, self.uart.interrupt());
        self.pic.set_line(IRQ_RTC, self.rtc.interrupt());
    }

    /// Brings the shared PCI lines to what the functions drive now.
    fn settle_pci(&mut self) {
        let lines = self.pci.interrupts();
        for irq in pci::IRQS {
            self.pic.set_line(irq, lines & 1 << irq != 0);
        }
    }
}

fn no_device(device: &'static str, index: u8) -> ApplyError {
    ApplyError::NoSuchDevice { device, index }
}
