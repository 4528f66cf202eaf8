//! The machine: RAM, one vCPU and the devices, moved from guest-caused exit to guest-caused exit.
//!
//! It is a function of its inputs. Everything asynchronous is given to [`Machine::apply`] at an exit; a clock reading
//! that an exit itself needs is asked of a [`TimeSource`], which either reads the host and logs, or reads the log. What
//! leaves the guest piles up as [`Output`]s. So recording, replaying, the primary and the backup drive the same code
//! (DESIGN, "The four ideas").

mod clock;
mod error;
mod exit;
pub mod intervention;
pub(crate) mod linux;
mod outgoing;
pub mod pages;
mod record_error;
mod run;
pub mod state;
#[cfg(test)]
mod tests;
pub mod trail;
mod working_set;

pub use error::{HistoryError, HistoryPoint, MachineError};
pub use record_error::{BootRecordError, StateError};

use ftvm_schema::entry::{Digest, EndReason, OutputSeq, Position};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::config::{GuestKind, MachineConfig};
use crate::output::Output;
use clock::VirtualClock;
use ftvm_devices::{Chipset, Effect};
use ftvm_hypervisor::{Cpu, DeliveryMode, GuestMemory};
use intervention::BootCell;
use pages::PageCopies;
use trail::Trail;
use working_set::WorkingSet;

/// Where a clock reading comes from that an exit itself needs: from the host, and then into the log; or from the log.
pub trait TimeSource {
    /// What can go wrong while the machine runs with this source: the machine's own errors, and those of the log.
    type Error: From<MachineError>;

    /// The time for the exit at `at`, at least `floor` virtual nanoseconds.
    ///
    /// # Errors
    /// If a log that is written cannot be, or one that is read has something else at this place.
    fn read(&mut self, at: Position, floor: u64) -> Result<u64, Self::Error>;
}

/// How far one call moved the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A numbered exit was taken and handled.
    Exit,
    /// The guest sleeps in HLT until an input raises an interrupt.
    Halted,
    /// The guest was interrupted from outside; nothing has a number.
    Interrupted,
    /// The guest's life is over.
    Ended(EndReason),
}

/// Whether the interrupt for the coming entry has been decided: inputs are applied before, the guest runs after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// At an exit that may still have a part to come (`Cpu::complete` not yet called).
    AtExit,
    /// At an exit, completed.
    Settled,
    /// Interrupts are decided; the guest has been or is about to be entered.
    Entered,
}

/// One virtual machine.
#[derive(Debug)]
pub struct Machine<C: Cpu> {
    memory: GuestMemory,
    cpu: C,
    chipset: Chipset,
    delivery: DeliveryMode,
    guest: GuestKind,
    clock: VirtualClock,
    at: Position,
    digest: Digest,
    outputs: OutputSeq,
    /// Bytes written to each console so far.
    console: [u64; 2],
    private_disks: Vec<u8>,
    halted: bool,
    phase: Phase,
    ended: Option<EndReason>,
    effects: Vec<Effect>,
    emitted: Vec<Output>,
    trail: Option<Trail>,
    copies: PageCopies,
    working_set: WorkingSet,
    /// Whether the operator has paused it.
    paused: bool,
    /// What a reset starts from.
    boot: BootCell,
}

/// Guest RAM of `bytes` bytes from address 0.
///
/// # Errors
/// If the host has no such memory to give.
pub fn allocate_memory(bytes: u64) -> Result<GuestMemory, MachineError> {
    let size = usize::try_from(bytes).map_err(|_| MachineError::Oversized { bytes })?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).map_err(|source| MachineError::NoRam {
        mib: bytes >> 20,
        source,
    })
}

impl<C: Cpu> Machine<C> {
    /// A machine that has not run yet; `cpu` was made on `memory`.
    ///
    /// # Errors
    /// If the platform in `config` cannot be built.
    pub fn new(config: &MachineConfig, memory: GuestMemory, cpu: C) -> Result<Self, MachineError> {
        config.validate()?;
        Ok(Machine {
            memory,
            cpu,
            chipset: Chipset::new(&config.platform)?,
            delivery: config.profile.delivery,
            guest: config.guest,
            clock: VirtualClock::default(),
            at: Position::default(),
            digest: Digest::default(),
            outputs: OutputSeq::default(),
            console: [0; 2],
            private_disks: config.platform.private_disks().collect(),
            halted: false,
            phase: Phase::Settled,
            ended: None,
            effects: Vec::new(),
            emitted: Vec::new(),
            trail: None,
            copies: PageCopies::default(),
            working_set: WorkingSet::default(),
            paused: false,
            boot: BootCell::default(),
        })
    }

    /// Keeps check bytes and registers of the latest exits from now on.
    pub fn keep_trail(&mut self) {
        self.trail = Some(Trail::default());
    }

    /// The latest exits, if kept.
    pub fn trail(&mut self) -> Option<&mut Trail> {
        self.trail.as_mut()
    }

    /// Where the guest's history stands.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// The running digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The next output's number.
    #[must_use]
    pub fn outputs(&self) -> OutputSeq {
        self.outputs
    }

    /// Numbers of the disks of which each host has a copy of its own.
    #[must_use]
    pub fn private_disks(&self) -> &[u8] {
        &self.private_disks
    }

    /// Last logged virtual time in nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The smallest virtual time an input may carry.
    #[must_use]
    pub fn time_floor(&self) -> u64 {
        self.clock.floor()
    }

    /// The devices, to ask them what they wait for.
    #[must_use]
    pub fn chipset(&self) -> &Chipset {
        &self.chipset
    }

    /// The vCPU, for its kick handle and registers.
    #[must_use]
    pub fn cpu(&self) -> &C {
        &self.cpu
    }

    /// The guest's RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes what has left the guest since the last call, in order.
    pub fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.emitted.drain(..)
    }

    /// Whether something has left the guest since the last drain.
    #[must_use]
    pub fn has_outputs(&self) -> bool {
        !self.emitted.is_empty()
    }
}
