//! How a replayed history can differ from the recorded one.

use ftvm_schema::entry::{Digest, ExitSeq, OutputSeq, Position, RegisterFile};
use ftvm_schema::request::DiskOp;

/// The first difference that a replay notices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Difference {
    /// An exit needs the time, and the log has something else there.
    #[error("exit {} reads the clock, but the log's next entry is {next}", exit.0)]
    ClockNotNext { exit: ExitSeq, next: String },
    /// A completion of a request that the guest has not made.
    #[error("the log ends request {id} of disk {disk}, which this guest has not made")]
    RequestNotMade { disk: u8, id: u64 },
    /// An input comes at an exit that here is only the first part of an access.
    #[error("the log applies {entry} at exit {}, which here is followed by a further exit of the same instruction", exit.0)]
    FurtherExit { exit: ExitSeq, entry: String },
    /// The log's entries go backwards, or the guest has come too far.
    #[error("the log's next entry is at exit {}, but the guest is already at exit {}", exit.0, here.0)]
    AlreadyBehind { exit: ExitSeq, here: ExitSeq },
    /// The guest does not get as far as the recorded one.
    #[error("the log goes on to exit {}, but the guest {found} after exit {}", exit.0, here.0)]
    StopsShort {
        exit: ExitSeq,
        here: ExitSeq,
        /// What it did instead.
        found: String,
    },
    /// The guest does not end as the recorded one.
    #[error("the log ends at exit {} ({reason}), but the guest goes on: {found}", exit.0)]
    EndsLater {
        exit: ExitSeq,
        reason: String,
        found: String,
    },
    /// The running digest differs from a mark's.
    #[error("{0}")]
    Mark(Box<MarkDifference>),
    /// An exit's check byte differs from the recorded one.
    #[error("registers, access or outputs at exit {} differ from the recorded ones", exit.0)]
    Check {
        exit: ExitSeq,
        registers: Box<RegisterFile>,
    },
}

/// A mark and the machine that should agree with it: position, running digest, outputs so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MarkDifference {
    pub expected: (Position, Digest, OutputSeq),
    pub found: (Position, Digest, OutputSeq),
    /// Registers in the log, if it has them.
    pub recorded: Option<RegisterFile>,
}

impl std::fmt::Display for MarkDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |(at, digest, outputs): (Position, Digest, OutputSeq)| {
            format!(
                "digest {:016x} with {} outputs at exit {}.{}",
                digest.0, outputs.0, at.exit.0, at.k
            )
        };
        write!(
            f,
            "the log has {}, the replay {}",
            side(self.expected),
            side(self.found)
        )
    }
}

/// A disk brings something else here than what the primary read from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "disk {disk} has other contents here than on the primary: {op:?} gives digest {:016x}, there {:016x}; is it the same \
     disk, opened with direct=on on both hosts?",
    found.0,
    there.0
)]
pub(super) struct OtherContents {
    pub disk: u8,
    pub op: DiskOp,
    pub found: Digest,
    pub there: Digest,
}
