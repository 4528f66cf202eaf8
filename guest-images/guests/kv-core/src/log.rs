//! The append-only log on a disk: a state machine that says what to write and when to flush.
//!
//! The disk has two superblocks and two regions. Commands are appended to the active region in *frames* of whole
//! sectors, each a header with length, position and CRC-32C in front of journalled commands. When the region is full, or on
//! request, the store is written anew to the other region, and the superblock that is not current is overwritten to make
//! that one active: at any moment one superblock and one region are whole. Every start of the guest takes a new epoch, so
//! that frames which were beyond the point where an earlier start found the log's end never count again.
//! The store's limit (see [`Geometry::max_store`]) is such that it always fits into a region.

mod format;
mod recovery;

use alloc::vec::Vec;
use core::fmt;

use format::{Frame, Superblock};
pub use format::{Geometry, GeometryError, SECTOR};
pub use recovery::{End, ReadSectors, Recovered, RecoveryError, format, recover};

use crate::journal::Journal;
use crate::store::Store;

mod snapshot;
use snapshot::Cursor;

/// Payload that a frame of a rewritten store has at least, if there is as much.
const REWRITE_PAYLOAD: usize = 64 << 10;
/// Milliseconds between flushes with [`FlushPolicy::EverySecond`].
const FLUSH_INTERVAL: u64 = 1000;

/// When the log is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// Before replies that follow a write.
    Always,
    /// Once a second.
    EverySecond,
    /// When the disk likes.
    No,
}

impl FlushPolicy {
    /// Its name in Redis.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FlushPolicy::Always => "always",
            FlushPolicy::EverySecond => "everysec",
            FlushPolicy::No => "no",
        }
    }
}

/// A word that names no flush policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFlushPolicy;

impl fmt::Display for UnknownFlushPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected always, everysec or no")
    }
}

impl core::str::FromStr for FlushPolicy {
    type Err = UnknownFlushPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Always, Self::EverySecond, Self::No]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or(UnknownFlushPolicy)
    }
}

/// What the disk is to do next. There is one step at a time; [`Log::done`] says that it is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write whole sectors.
    Write { sector: u64, data: Vec<u8> },
    /// Make stable what has been written.
    Flush,
}

/// The step that the disk is at.
#[derive(Debug)]
enum State {
    Idle,
    /// Writing a frame that holds the journal up to `journalled` and ends before `next_sector`.
    Appending {
        journalled: u64,
        next_sector: u64,
    },
    /// Flushing what was written when the journal was at `journalled`.
    Flushing {
        journalled: u64,
    },
    Rewriting(Rewrite),
}

/// The store on its way to the other region. It does not change meanwhile.
#[derive(Debug)]
struct Rewrite {
    phase: Phase,
    cursor: Option<Cursor>,
    next_sector: u64,
    first_sequence: u64,
    sequence: u64,
    journalled: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Frames,
    FlushFrames,
    WriteSuperblock,
    FlushSuperblock,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    geometry: Geometry,
    policy: FlushPolicy,
    superblock: Superblock,
    /// First sector of the active region that is free.
    next_sector: u64,
    /// Sequence number of the next frame.
    sequence: u64,
    state: State,
    /// How far the journal is in the log, and how far that is stable.
    written: u64,
    durable: u64,
    /// Up to where somebody waits for a flush, whatever the policy.
    wanted: u64,
    rewrite_wanted: bool,
    /// Writes since the last flush exist from this time on, in milliseconds.
    last_flush: u64,
}

impl Log {
    /// How far the journal is stable, in commands.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Up to where a reply has to wait for `durable` if it follows changes up to `journalled`.
    #[must_use]
    pub fn barrier(&self, journalled: u64) -> Option<u64> {
        (self.policy == FlushPolicy::Always && journalled > self.durable).then_some(journalled)
    }

    /// Whether the store must not change now, because it is being written as a whole.
    #[must_use]
    pub fn needs_still_store(&self) -> bool {
        matches!(self.state, State::Rewriting(_))
    }

    /// Wants a flush of everything up to `journalled`, whatever the policy.
    pub fn want_flush(&mut self, journalled: u64) {
        self.wanted = self.wanted.max(journalled);
    }

    /// Wants the store to be written anew.
    pub fn want_rewrite(&mut self) {
        self.rewrite_wanted = true;
    }

    /// What the disk should do next, if the last step is done and there is anything to do at `now` (milliseconds).
    pub fn next_step(&mut self, store: &Store, journal: &mut Journal, now: u64) -> Option<Step> {
        match &self.state {
            State::Idle => {}
            State::Rewriting(_) => return None,
            State::Appending { .. } | State::Flushing { .. } => return None,
        }
        let journalled = journal.appended();
        let frame_sectors = Frame::sectors(journal.pending().len());
        let fits = self.next_sector + frame_sectors <= self.geometry.region_end(self.superblock.region);
        if self.rewrite_wanted || !fits {
            return Some(self.start_rewrite(store, journal));
        }
        if self.flush_is_due(now) {
            self.last_flush = now;
            self.state = State::Flushing {
                journalled: self.written,
            };
            return Some(Step::Flush);
        }
        if journal.pending().is_empty() {
            return None;
        }
        let data = self.frame(self.sequence).encode(journal.pending());
        journal.clear();
        let sector = self.next_sector;
        self.state = State::Appending {
            journalled,
            next_sector: sector + frame_sectors,
        };
        Some(Step::Write { sector, data })
    }

    /// Takes note that the step is done, and says what follows at once.
    pub fn done(&mut self, store: &Store) -> Option<Step> {
        match core::mem::replace(&mut self.state, State::Idle) {
            State::Idle => None,
            State::Appending {
                journalled,
                next_sector,
            } => {
                self.written = journalled;
                self.next_sector = next_sector;
                self.sequence += 1;
                None
            }
            State::Flushing { journalled } => {
                self.durable = journalled;
                None
            }
            State::Rewriting(rewrite) => self.continue_rewrite(rewrite, store),
        }
    }

    fn flush_is_due(&self, now: u64) -> bool {
        let unstable = self.written > self.durable;
        let by_policy = match self.policy {
            FlushPolicy::Always => true,
            FlushPolicy::EverySecond => now.saturating_sub(self.last_flush) >= FLUSH_INTERVAL,
            FlushPolicy::No => false,
        };
        unstable && (by_policy || self.wanted > self.durable && self.written >= self.wanted)
    }

    fn frame(&self, sequence: u64) -> Frame {
        Frame {
            disk: self.superblock.disk,
            epoch: self.superblock.epoch,
            sequence,
        }
    }

    /// Begins to write the store, which holds everything that is in the journal, to the other region.
    fn start_rewrite(&mut self, store: &Store, journal: &mut Journal) -> Step {
        self.rewrite_wanted = false;
        journal.clear();
        let rewrite = Rewrite {
            phase: Phase::Frames,
            cursor: Some(Cursor::default()),
            next_sector: self.geometry.region_start(self.superblock.other_region()),
            first_sequence: self.sequence,
            sequence: self.sequence,
            journalled: journal.appended(),
        };
        self.next_frame(rewrite, store)
    }

    fn continue_rewrite(&mut self, mut rewrite: Rewrite, store: &Store) -> Option<Step> {
        let step = match rewrite.phase {
            Phase::Frames => return Some(self.next_frame(rewrite, store)),
            Phase::FlushFrames => {
                rewrite.phase = Phase::WriteSuperblock;
                let next = self.next_superblock(&rewrite);
                Step::Write {
                    sector: next.sector(),
                    data: next.encode().to_vec(),
                }
            }
            Phase::WriteSuperblock => {
                rewrite.phase = Phase::FlushSuperblock;
                Step::Flush
            }
            Phase::FlushSuperblock => {
                self.superblock = self.next_superblock(&rewrite);
                self.next_sector = rewrite.next_sector;
                self.sequence = rewrite.sequence;
                self.written = rewrite.journalled;
                self.durable = rewrite.journalled;
                return None;
            }
        };
        self.state = State::Rewriting(rewrite);
        Some(step)
    }

    fn next_frame(&mut self, mut rewrite: Rewrite, store: &Store) -> Step {
        let Some(cursor) = rewrite.cursor.take() else {
            rewrite.phase = Phase::FlushFrames;
            self.state = State::Rewriting(rewrite);
            return Step::Flush;
        };
        let mut payload = Vec::with_capacity(REWRITE_PAYLOAD + REWRITE_PAYLOAD / 4);
        rewrite.cursor = cursor.write(store, &mut payload, REWRITE_PAYLOAD);
        let (sector, data) = (rewrite.next_sector, self.frame(rewrite.sequence).encode(&payload));
        rewrite.next_sector += Frame::sectors(payload.len());
        let end = self.geometry.region_end(self.superblock.other_region());
        assert!(
            rewrite.next_sector <= end,
            "the store's limit keeps it smaller than a region"
        );
        rewrite.sequence += 1;
        self.state = State::Rewriting(rewrite);
        Step::Write { sector, data }
    }

    fn next_superblock(&self, rewrite: &Rewrite) -> Superblock {
        Superblock {
            generation: self.superblock.generation + 1,
            region: self.superblock.other_region(),
            first_sequence: rewrite.first_sequence,
            ..self.superblock
        }
    }
}

#[cfg(test)]
mod tests;
