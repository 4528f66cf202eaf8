//! What happens to a pair, in the words of its users: for the log on standard error, `--events`, and the timeline.

use ftvm_schema::entry::{Intervention, LogEntry};
use logging_channel::chunk;
use serde::{Deserialize, Serialize};

use super::exit_code::ExitCode;
use super::operation::{Operation, Path};

/// How protected the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Nobody would carry on.
    NotProtected,
    /// A backup is receiving the state.
    Starting,
    /// A backup holds everything that has been said.
    Protected,
    /// This side has asked for the next generation and waits.
    Deciding,
}

/// One thing that happened. Durations are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// This side is the primary of this generation.
    Leading { generation: u64 },
    /// This side follows as backup.
    Following { generation: u64 },
    /// This host waits until a guest needs a backup; what it found last.
    StandingBy { why: String },
    /// The guest's protection changed.
    State { protection: Protection, why: String },
    /// A joining backup is getting the guest's pages while the guest runs on: so many of a round's are sent, about every
    /// second; the rest of the round takes `left_ms` at this speed.
    Cloning {
        round: u32,
        pages: u64,
        of: u64,
        left_ms: u64,
    },
    /// It is getting the blocks of the guest's private disks: so many bytes of a round's are written there, about every
    /// second; the rest takes `left_ms` at this speed.
    Mirroring { bytes: u64, of: u64, left_ms: u64 },
    /// It has all of them, and the state record follows: what was sent in the rounds, how much of private disks that brought
    /// level, how long all of it took, for how many thousandths of the last rounds the guest stood still because it wrote as
    /// fast as the link carries, and how long it was stopped at the end.
    Cloned {
        rounds: u32,
        pages: u64,
        bytes: u64,
        disk_bytes: u64,
        total_ns: u64,
        slowed_permille: u32,
        stopped_ns: u64,
    },
    /// A state record left or arrived.
    StateRecord { bytes: u64 },
    /// What protection costs, about every second while there is a backup: bytes of log frames given to the backup's
    /// connection, exits the log covers, log frames, micro-checkpoints, and bytes of these (compressed, as they are sent);
    /// all counted from a beginning of no meaning. And how far the backup's execution is behind right now, and how many
    /// thousandths of the time the guest stands still for it to keep up.
    Traffic {
        log_bytes: u64,
        exits: u64,
        frames: u64,
        checkpoints: u64,
        checkpoint_bytes: u64,
        lag_ns: u64,
        idle_permille: u32,
    },
    /// An operation was asked for, and this came of it.
    Operated {
        operation: Operation,
        done: bool,
        text: String,
    },
    /// The guest was paused, goes on, or starts again.
    Intervened { what: Intervention },
    /// The guest stops, to be handed over to the backup.
    HandingOver { why: String },
    /// Everything has left, and nothing more will from here; the backup may go live.
    HandedOver,
    /// This host has lost the way to something; whether the guest is handed over for it.
    PathLost { path: Path, what: String, hands_over: bool },
    /// A disk has not answered for so long; whether a write is among what it was asked, and whether the guest is handed over.
    DiskSilent {
        disk: u8,
        silent_ms: u64,
        write: bool,
        hands_over: bool,
    },
    /// A disk that was silent answers again.
    DiskAnswers { disk: u8 },
    /// The backup's replay differs from the log.
    Diverged { exit: u64, what: String },
    /// The other side is taken for dead; final.
    Suspected { reason: String },
    /// The test-and-set is under way.
    ClaimAsked { generation: u64 },
    /// It was won.
    ClaimWon { generation: u64, took_ns: u64 },
    /// The storage does not answer; waiting.
    StorageUnreachable { why: String },
    /// The lease of the dead primary has been outwaited.
    LeaseOver { waited_ns: u64 },
    /// Everything received has been replayed.
    Drained { took_ns: u64 },
    /// This side is live.
    WentLive {
        generation: u64,
        reissued: u64,
        reemitted: u64,
    },
    /// The first output since this side went live has left.
    FirstOutput,
    /// This side ends.
    Ending { code: ExitCode, why: String },
}

/// What the log to one backup has cost since its grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Log frames.
    pub frames: u64,
    /// Micro-checkpoints whose last chunk has been sent.
    pub checkpoints: u64,
    /// Bytes of their chunks.
    pub checkpoint_bytes: u64,
    /// Execution lag at this moment ([`logging_channel::flow::AckTracker::execution_lag`]).
    pub lag_ns: u64,
    /// Thousandths of the time that the guest stands still for the backup ([`logging_channel::flow::Pace`]).
    pub idle_permille: u32,
}

impl Cost {
    /// An entry is sent.
    pub(super) fn add(&mut self, entry: &LogEntry) {
        if let LogEntry::Checkpoint { chunk, .. } = entry {
            self.checkpoints += u64::from(chunk::is_last(chunk));
            self.checkpoint_bytes += chunk.bytes.len() as u64;
        }
    }
}

/// An event with its time, as a JSON line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub at_ns: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// Exit code and words for a guest's own end (PROTOCOL 18).
#[must_use]
pub fn clean_end(reason: &ftvm_schema::entry::EndReason) -> (ExitCode, String) {
    use ftvm_schema::entry::EndReason;
    let code = match reason {
        EndReason::PowerOff { status: 0 } | EndReason::Stopped | EndReason::Limit | EndReason::Reset => {
            ExitCode::Success
        }
        EndReason::Halted | EndReason::PowerOff { .. } | EndReason::GuestFailure { .. } => ExitCode::GuestFailed,
    };
    let what = super::replay::describe_end(reason);
    let text = match reason {
        EndReason::PowerOff { status: 1.. } => format!("{what}; the guest's console says why"),
        _ => what,
    };
    (code, text)
}
