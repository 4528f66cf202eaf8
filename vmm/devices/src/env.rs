//! What a device sees of the world, and what it does to it.

use ftvm_schema::entry::ConsolePort;
use ftvm_schema::request::DiskRequest;

use ftvm_hypervisor::GuestMemory;

/// What a device sees of the world during one access or input.
#[derive(Debug)]
pub struct DeviceEnv<'a> {
    /// Guest RAM, written only through its accessors.
    pub memory: &'a GuestMemory,
    /// The virtual clock in nanoseconds. Fresh only where
    /// [`Chipset::access_needs_clock`](crate::Chipset::access_needs_clock) asked for it, or the input is a clock.
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
