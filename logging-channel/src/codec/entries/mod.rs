//! Log entries as bytes: a tag, then differences to the entries before it in the same frame.
//!
//! All differences start at zero with each frame, so that every frame decodes alone: its first entry carries the whole
//! number. A difference is taken modulo 2^64; what the codec is given it gives back, whatever its order. Whether
//! positions really grow is `flow`'s business.
//!
//! | tag | entry | fields |
//! |---|---|---|
//! | 1 | Input::Clock | +exit, +clock |
//! | 2 | Input::NetRx | +exit, nic, frame |
//! | 3 | Input::DiskDone | +exit, disk, id, status, data |
//! | 4 | Input::ConsoleRx | +exit, port, bytes |
//! | 5 | Input::Entropy | +exit, bytes |
//! | 6 | Mark | +exit, k, digest (8), +outputs, +sent, parts, 18 registers (8 each)?, memory hash (8)? |
//! | 7 | Released | +through |
//! | 8 | Checkpoint | +exit, k, chunk |
//! | 9 | Checks | +from (to the end of the checks before), bytes |
//! | 10 | End | +exit, k, reason |
//! | 11 | Input::DiskRead | +exit, disk, id, digest (8) |
//! | 12 | Input::Control | +exit, intervention |
//! | 64 + e | Input::Clock, e exits (up to 63) after the entry before | +clock |
//! | 128 + e | the same, a multiple of 1024 ns later | +clock in steps of 1024 ns |
//!
//! `+x` is a varint difference, a name alone a varint or one byte, `(n)` fixed little-endian, bytes have a varint
//! length.

mod put;
mod read;

pub(super) use put::{put_chunk, put_numbered};
pub(super) use read::{read_chunk, read_log, read_numbered};

use ftvm_schema::entry::{EndReason, Input, LogEntry};

/// The most data one entry or chunk may carry, in bytes: several times what a guest's block driver asks for at once.
/// Devices must refuse larger requests; checkpoints and records are split.
pub const MAX_DATA_BYTES: usize = 4 << 20;

/// The most entries in a frame: decoded, an entry of two bytes takes up to a hundred, so payload length alone would
/// not bound memory.
pub const MAX_ENTRIES: usize = 1 << 16;

/// What the differences refer to: the entry before, field by field. Zero at a frame's start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Base {
    exit: u64,
    clock: u64,
    outputs: u64,
    released: u64,
    sent: u64,
    checks: u64,
}

/// Tags, and the bits of a mark's parts.
mod wire {
    pub(super) const CLOCK: u8 = 1;
    pub(super) const NET_RX: u8 = 2;
    pub(super) const DISK_DONE: u8 = 3;
    pub(super) const CONSOLE_RX: u8 = 4;
    pub(super) const ENTROPY: u8 = 5;
    pub(super) const MARK: u8 = 6;
    pub(super) const RELEASED: u8 = 7;
    pub(super) const CHECKPOINT: u8 = 8;
    pub(super) const CHECKS: u8 = 9;
    pub(super) const END: u8 = 10;
    pub(super) const DISK_READ: u8 = 11;
    pub(super) const CONTROL: u8 = 12;
    /// Clock readings are most of an idle guest's log: those that follow each other closely have the exit in the tag.
    pub(super) const NEAR_CLOCK: u8 = 64;
    pub(super) const NEAR_CLOCK_GRAINED: u8 = 128;
    /// Exits that such a tag can say.
    pub(super) const NEAR: u8 = 64;
    pub(super) const NEAR_CLOCK_END: u8 = NEAR_CLOCK_GRAINED + NEAR;

    pub(super) const WITH_REGISTERS: u8 = 1;
    pub(super) const WITH_MEMORY_HASH: u8 = 2;
}

/// The longest byte string in `entry`.
pub fn data_bytes(entry: &LogEntry) -> usize {
    match entry {
        LogEntry::Input { input, .. } => match input {
            Input::Clock(_) | Input::DiskRead { .. } | Input::Control(_) => 0,
            Input::NetRx { frame, .. } => frame.len(),
            Input::DiskDone { data, .. } => data.len(),
            Input::ConsoleRx { bytes, .. } | Input::Entropy { bytes } => bytes.len(),
        },
        LogEntry::Mark(_) | LogEntry::Released { .. } => 0,
        LogEntry::Checkpoint { chunk, .. } => chunk.bytes.len(),
        LogEntry::Checks { bytes, .. } => bytes.len(),
        LogEntry::End { reason, .. } => match reason {
            EndReason::GuestFailure { what } => what.len(),
            _ => 0,
        },
    }
}
