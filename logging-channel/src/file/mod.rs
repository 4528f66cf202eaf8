//! A log on disk: recorded once, replayed anywhere, any number of times.
//!
//! A file is a sequence of frames: a header, the initial state in chunks (if any), log frames numbered from 1, a
//! trailer. A recording can be cut off at any moment (SIGKILL, full disk, power): everything before the cut is read,
//! then [`LogError::Truncated`] says how far it went. Damage is told apart from that: [`LogError::Damaged`] says which
//! frame, after every entry before it has been yielded. Reader and writer hold a frame or two, however long the log.

mod reader;
mod rewrite;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use reader::LogReader;
pub use rewrite::rewrite;
pub use writer::{LogTarget, LogWriter};

use crate::chunk::ChunkError;
use crate::codec::{EncodeError, FrameError};
use crate::flow::OrderError;
use ftvm_schema::entry::{Digest, EndReason, OutputSeq, Position};

/// The longest initial state, in bytes: more RAM than ftvm gives a guest.
pub const MAX_STATE_BYTES: u64 = 64 << 30;

/// A log frame is written once it has this many bytes: frames cost 24 bytes each, and an unwritten one is lost with the
/// recorder.
pub const FRAME_TARGET: usize = 64 << 10;

/// What the recording can be checked against while it is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verify {
    /// The running digest, at each mark.
    Marks,
    /// Also a check byte for each exit.
    Exit,
}

/// What a log file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// [`PROTOCOL_VERSION`](crate::message::PROTOCOL_VERSION) of the recorder.
    pub version: u32,
    /// When the recording began, in nanoseconds of Unix time.
    pub created_unix_ns: u64,
    pub verify: Verify,
    /// The program that recorded, with its version: text for people.
    pub program: String,
    /// How it was called: text for people.
    pub args: String,
    /// The machine's configuration (vmm's `MachineConfig`, encoded).
    pub config: Vec<u8>,
    /// The state the log starts from, for recordings that do not start at boot. At most [`MAX_STATE_BYTES`].
    pub state: Option<Vec<u8>>,
}

/// The header's frame; the state follows it in chunks.
#[derive(Serialize, Deserialize)]
struct HeaderRecord {
    version: u32,
    created_unix_ns: u64,
    verify: Verify,
    program: String,
    args: String,
    config: Vec<u8>,
    state_bytes: Option<u64>,
}

/// How the recorded run ended, as the recorder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingEnd {
    /// Guest-caused exits in all.
    pub exits: u64,
    /// Outputs in all.
    pub outputs: OutputSeq,
    /// The running digest at the end.
    pub digest: Digest,
    /// Hash of devices and memory at the end.
    pub memory_hash: Option<u64>,
    pub reason: EndReason,
    /// The outcome in words, for people.
    pub text: String,
}

/// What a log file ends with: the ending, and what the writer counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailer {
    pub ending: RecordingEnd,
    pub entries: u64,
    pub inputs: u64,
    /// Micro-checkpoints, however many chunks each has.
    pub checkpoints: u64,
    /// Bytes of all log frames, their headers included; file header, state and trailer are not.
    pub log_bytes: u64,
}

/// Whether a recording may replace a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    Replace,
}

/// What can go wrong with a log file.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("{} exists already: choose another name, or ask for it to be replaced", .path.display())]
    Exists { path: PathBuf },
    #[error(
        "no room left to write {}: {source}; it holds the first {offset} bytes of the recording, and {}",
        .path.display(), replayable(*.last_good)
    )]
    Full {
        path: PathBuf,
        /// Length of the part that is whole.
        offset: u64,
        /// Position of the last entry in that part.
        last_good: Option<Position>,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("{} is no ftvm log: {source}", .path.display())]
    NotALog {
        path: PathBuf,
        #[source]
        source: FrameError,
    },
    #[error("{} was recorded with log version {found}, this program reads {expected}", .path.display())]
    OtherVersion { path: PathBuf, expected: u32, found: u32 },
    #[error("{} is cut off at byte {offset}: {}", .path.display(), replayable(*.last_good))]
    Truncated {
        path: PathBuf,
        /// Length of the part that is whole.
        offset: u64,
        /// Position of the last entry in that part; `None` if there is none.
        last_good: Option<Position>,
    },
    #[error("{} is damaged in {source}; {}", .path.display(), replayable(*.last_good))]
    Damaged {
        path: PathBuf,
        /// Which frame, where it starts, and what is wrong with it.
        #[source]
        source: FrameError,
        last_good: Option<Position>,
    },
    #[error("{} lacks log frames: expected frame {expected}, found {found}; {}", .path.display(), replayable(*.last_good))]
    Missing {
        path: PathBuf,
        expected: u64,
        found: u64,
        last_good: Option<Position>,
    },
    #[error("{} holds an entry out of order: {source}; {}", .path.display(), replayable(*.last_good))]
    OutOfOrder {
        path: PathBuf,
        #[source]
        source: OrderError,
        last_good: Option<Position>,
    },
    #[error("the state in {} cannot be used: {source}", .path.display())]
    State {
        path: PathBuf,
        #[source]
        source: ChunkError,
    },
    #[error("the trailer of {} counts {expected} {what}, but it holds {found}", .path.display())]
    Miscounted {
        path: PathBuf,
        what: &'static str,
        expected: u64,
        found: u64,
    },
    #[error("cannot write to {}: {source}", .path.display())]
    Encode {
        path: PathBuf,
        #[source]
        source: EncodeError,
    },
}

fn replayable(last_good: Option<Position>) -> String {
    match last_good {
        Some(position) => format!("everything up to exit {} can be replayed", position.exit.0),
        None => "nothing of it can be replayed".to_owned(),
    }
}

/// What writer and reader both count, so that they can be compared.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    entries: u64,
    inputs: u64,
    checkpoints: u64,
    log_bytes: u64,
}

impl Counts {
    fn entry(&mut self, entry: &ftvm_schema::entry::LogEntry) {
        use ftvm_schema::entry::LogEntry;
        self.entries += 1;
        match entry {
            LogEntry::Input { .. } => self.inputs += 1,
            LogEntry::Checkpoint { chunk, .. } if chunk.offset == 0 => self.checkpoints += 1,
            _ => {}
        }
    }

    fn trailer(self, ending: RecordingEnd) -> Trailer {
        Trailer {
            ending,
            entries: self.entries,
            inputs: self.inputs,
            checkpoints: self.checkpoints,
            log_bytes: self.log_bytes,
        }
    }
}
