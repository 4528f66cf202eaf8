//! The platform: which device answers at which address, and how their interrupt lines meet at the PIC.
//!
//! The machine talks to the guest's devices through [`Chipset`] alone. Whatever a call changes is settled when it
//! returns: interrupt lines, effects, guest memory. Unclaimed reads are all ones and unclaimed writes are ignored, as on
//! a PC. Ports are bytes; a wider access to a byte-wide device is split into accesses to consecutive ports.

mod state;
#[cfg(test)]
mod tests;

use logging_channel::entry::{ConsolePort, Input};
use shared_disk::request::DiskRequest;

use super::config::{ConfigError, PlatformConfig};
use super::i8042::I8042;
use super::pic::Pic;
use super::pit::Pit;
use super::uart::Uart;
use super::{Env, pm_timer, power};

pub use state::{BadState, ChipsetState, RestoreError};

/// IRQ of PIT channel 0.
const IRQ_TIMER: u8 = 0;
/// IRQ of the serial port.
const IRQ_SERIAL: u8 = 4;
/// First port of the serial port's eight.
const SERIAL: u16 = 0x3F8;

/// Which way an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// Where an access goes, before it is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Port { port: u16, dir: Direction },
    Mmio { addr: u64, dir: Direction },
}

/// Why an input cannot be applied: the log, or who feeds it, is wrong. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The environment's time is not the input's.
    #[error("clock input says {input} ns but the environment says {now} ns; they must be the same")]
    ClockDiffers { input: u64, now: u64 },
    /// Time runs forward only (PROTOCOL 20).
    #[error("clock input says {input} ns, earlier than {last} ns handed out before; the log is damaged or misplaced")]
    ClockWentBack { input: u64, last: u64 },
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
    i8042: I8042,
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
            pic: Pic::new(0),
            pit: Pit::new(),
            uart: Uart::new(),
            i8042: I8042::new(),
        })
    }

    /// Whether the access shows or depends on the time as it passes, so that the machine must log a fresh clock first.
    #[must_use]
    pub fn access_needs_clock(&self, access: Access) -> bool {
        match access {
            Access::Port {
                port,
                dir: Direction::Read,
            } => pm_timer::claims(port) || (Pit::claims(port) && self.pit.read_needs_clock(port)),
            Access::Port {
                port,
                dir: Direction::Write,
            } => Pit::write_needs_clock(port),
            Access::Mmio { .. } => false,
        }
    }

    /// The guest reads 1, 2 or 4 bytes from a port.
    pub fn port_read(&mut self, port: u16, data: &mut [u8], env: &mut Env<'_>) {
        if pm_timer::claims(port) {
            return pm_timer::read(port, data, env.now);
        }
        let mut port = port;
        for byte in data {
            *byte = self.read_byte(port, env);
            port = port.wrapping_add(1);
        }
        self.settle();
    }

    /// The guest writes 1, 2 or 4 bytes to a port.
    pub fn port_write(&mut self, port: u16, data: &[u8], env: &mut Env<'_>) {
        if power::claims(port) {
            return power::write(port, data, env);
        }
        let mut port = port;
        for &value in data {
            self.write_byte(port, value, env);
            port = port.wrapping_add(1);
        }
        self.settle();
    }

    /// The guest reads 1 to 8 bytes from an address without RAM.
    pub fn mmio_read(&mut self, _addr: u64, data: &mut [u8], _env: &mut Env<'_>) {
        data.fill(0xFF);
    }

    /// The guest writes 1 to 8 bytes to an address without RAM.
    pub fn mmio_write(&mut self, _addr: u64, _data: &[u8], _env: &mut Env<'_>) {}

    /// Something from outside reaches the devices. A clock also fires every deadline up to it, each timer once however
    /// many of its periods have passed.
    ///
    /// # Errors
    /// The input does not fit the devices' state; see [`ApplyError`]. Nothing has changed then.
    pub fn apply(&mut self, input: &Input, env: &mut Env<'_>) -> Result<(), ApplyError> {
        match input {
            Input::Clock(now) => self.advance_clock(*now, env)?,
            Input::ConsoleRx {
                port: ConsolePort::Serial,
                bytes,
            } => self.uart.receive(bytes),
            _ => {}
        }
        self.settle();
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
        self.pit.next_deadline()
    }

    /// Disk requests the guest has made and no input has completed, in the order it made them per disk, with the data
    /// of writes: what go-live issues again (PROTOCOL 8).
    #[must_use]
    pub fn outstanding_requests(&self) -> Vec<DiskRequest> {
        Vec::new()
    }

    /// How many bytes the oldest unanswered entropy request wants.
    #[must_use]
    pub fn entropy_wanted(&self) -> Option<u32> {
        None
    }

    /// Whether network card `nic` would take a frame now. A frame applied when it would not is dropped.
    #[must_use]
    pub fn net_rx_ready(&self, _nic: u8) -> bool {
        false
    }

    /// How many bytes the console would take now. Bytes applied beyond that are dropped.
    #[must_use]
    pub fn console_rx_room(&self, port: ConsolePort) -> usize {
        match port {
            ConsolePort::Serial => self.uart.room(),
            ConsolePort::Virtio => 0,
        }
    }

    fn advance_clock(&mut self, input: u64, env: &Env<'_>) -> Result<(), ApplyError> {
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
        Ok(())
    }

    fn read_byte(&mut self, port: u16, env: &mut Env<'_>) -> u8 {
        match port {
            SERIAL..=0x3FF => self.uart.read(port - SERIAL),
            _ if Pic::claims(port) => self.pic.read(port),
            _ if Pit::claims(port) => self.pit.read(port, env.now),
            _ if I8042::claims(port) => self.i8042.read(port),
            _ => 0xFF,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, env: &mut Env<'_>) {
        match port {
            SERIAL..=0x3FF => self.write_serial(port - SERIAL, value, env),
            _ if Pic::claims(port) => self.pic.write(port, value),
            _ if Pit::claims(port) => self.pit.write(port, value, env.now),
            _ if I8042::claims(port) => self.i8042.write(port, value, env),
            _ => {}
        }
    }

    fn write_serial(&mut self, offset: u16, value: u8, env: &mut Env<'_>) {
        self.uart.withdraw_before_write(offset);
        self.pic.set_line(IRQ_SERIAL, self.uart.interrupt());
        self.uart.write(offset, value, env);
    }

    /// Brings the interrupt lines to what the devices drive now.
    fn settle(&mut self) {
        self.pic.set_line(IRQ_SERIAL, self.uart.interrupt());
    }
}
