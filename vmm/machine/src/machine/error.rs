//! What stops a machine from going on, other than its guest.

use ftvm_schema::entry::{Digest, OutputSeq, Position};
use vm_memory::mmap::FromRangesError;

use super::record_error::StateError;
use crate::config::MachineConfigError;
use ftvm_devices::{ApplyError, ConfigError};
use ftvm_hypervisor::{CpuError, Exit};

/// Why a machine cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The hypervisor failed.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// An instruction that takes one exit everywhere took more here.
    #[error("finishing a one-byte OUT gave another exit, {exit:x?}")]
    OutInParts { exit: Exit },
    /// An input does not fit the machine's state.
    #[error("input at exit {}.{}: {source}", at.exit.0, at.k)]
    Apply { at: Position, source: ApplyError },
    /// What the machine is given belongs to another history than its own.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The configuration is not one that this program builds.
    #[error(transparent)]
    Config(#[from] MachineConfigError),
    /// The configured devices cannot be built.
    #[error(transparent)]
    Platform(#[from] ConfigError),
    /// More RAM than this process can address.
    #[error("{bytes} bytes of RAM do not fit")]
    Oversized { bytes: u64 },
    /// The host has no such memory to give.
    #[error("{mib} MiB of guest RAM: {source}")]
    NoRam { mib: u64, source: FromRangesError },
    /// A state record does not fit this machine.
    #[error("state record: {0}")]
    State(#[from] StateError),
}

/// How what a machine is given shows that its history is another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A logged time lies before one that the guest has seen (PROTOCOL 20).
    #[error("the clock would run backwards: at least {floor} ns expected, {found} found")]
    ClockBackwards {
        /// The smallest time that may come next, in virtual nanoseconds.
        floor: u64,
        found: u64,
    },
    /// A micro-checkpoint was made elsewhere than this machine stands.
    #[error("a checkpoint for {} meets a machine at {}", made, stands)]
    CheckpointElsewhere {
        /// Where it was made.
        made: Box<HistoryPoint>,
        /// Where the machine would take it.
        stands: Box<HistoryPoint>,
    },
    /// A micro-checkpoint stands where the guest comes to an exit by itself.
    #[error("a checkpoint stands where the guest makes a further exit, {exit:?}")]
    CheckpointAtExit { exit: Exit },
}

/// A place in a history, and what the history has been up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPoint {
    pub at: Position,
    pub digest: Digest,
    pub outputs: OutputSeq,
}

impl std::fmt::Display for HistoryPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let HistoryPoint { at, digest, outputs } = self;
        write!(
            f,
            "exit {}.{} (digest {:016x}, {} outputs)",
            at.exit.0, at.k, digest.0, outputs.0
        )
    }
}
