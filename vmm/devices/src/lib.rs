//! The guest's devices: pure state machines, `(&mut state, access or input) -> effects`.
//!
//! No clock, file descriptor, thread or randomness in here; time is [`Env::now`], which the machine took from the log
//! or has just logged. What a device wants from outside leaves as an [`Effect`]; what comes back arrives as an
//! [`Input`](ftvm_schema::entry::Input) at a numbered exit.
//!
//! [`Chipset`] is the whole platform and the only thing the machine talks to. A device's struct is its state, so saving
//! is cloning; all of them keep one contract, which `testing::contract` states and checks. Guest memory and what comes
//! from outside are hostile: bounds are named constants, and a broken ring stops its device ([`Fault`]), nothing else.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod chipset;
mod config;
mod i8042;
mod pci;
mod pic;
mod pit;
mod pm_timer;
mod power;
mod rtc;
#[cfg(test)]
pub(crate) mod testing;
mod timebase;
mod uart;
mod virtio;

pub use chipset::{Access, ApplyError, BadState, Chipset, ChipsetState, Direction, RestoreError};
pub use config::{ConfigError, DiskAccess, DiskConfig, DiskSharing, NicConfig, PlatformConfig, SECTOR};
pub use virtio::{Fault, MAX_OUTSTANDING, MAX_OUTSTANDING_DATA};

use ftvm_schema::entry::ConsolePort;
use ftvm_schema::request::DiskRequest;

use ftvm_hypervisor::GuestMemory;

/// What a device sees of the world during one access or input.
#[derive(Debug)]
pub struct Env<'a> {
    /// Guest RAM, written only through its accessors.
    pub memory: &'a GuestMemory,
    /// The virtual clock in nanoseconds. Fresh only where [`Chipset::access_needs_clock`] asked for it, or the input is
    /// a clock.
    pub now: u64,
    /// What leaves the machine, in order.
    pub effects: &'a mut Vec<Effect>,
}

/// Something a device does to the outside world. Which of these are outputs under the output rule is decided in one
/// place, `ftvm_machine::output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The guest sent an Ethernet frame.
    Frame { nic: u8, bytes: Vec<u8> },
    /// The guest wrote to a console.
    Console { port: ConsolePort, bytes: Vec<u8> },
    /// The guest made a disk request.
    Disk(DiskRequest),
    /// virtio-rng wants this many bytes; they arrive as `Input::Entropy`.
    WantEntropy { len: u32 },
    /// The guest switched itself off with this status (0xF4, or 0 by port 0x604).
    PowerOff { status: u8 },
    /// The guest asked for a reset (port 0x64 command 0xFE, port 0xCF9).
    Reset,
}
