//! The backup's side: log frames in, entries out to whoever executes them, acks back.
//!
//! An ack says "decoded, validated, stored" (PROTOCOL 6), so a frame is admitted whole or not at all. A checkpoint is
//! acked only whole and checksummed (PROTOCOL 4): from its first chunk to its last, acks stop at the frame before it.
//! What is admitted is taken out at once, by whoever executes it; how much of it waits to be executed is that side's to
//! bound, by admitting nothing more.

use std::collections::VecDeque;

use super::horizon::{Horizon, OrderError};
use crate::chunk::{Assembler, ChunkError};
use crate::message::Ack;
use ftvm_schema::entry::{Chunk, Generation, Incarnation, LogEntry, OutputSeq, Position};

/// Why a log frame was not admitted. The session is over: what follows it cannot be acked either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    #[error("log frame {number} is of generation {}, expected {}", .found.0, .expected.0)]
    Generation {
        number: u64,
        expected: Generation,
        found: Generation,
    },
    #[error("expected log frame {expected}, found {found}")]
    NotContiguous { expected: u64, found: u64 },
    #[error("log frame {number}: {source}")]
    Order {
        number: u64,
        #[source]
        source: OrderError,
    },
    #[error("log frame {number}: an input, mark or end inside a checkpoint of which {held} bytes have come")]
    InsideCheckpoint { number: u64, held: u64 },
    #[error("log frame {number}: a checkpoint at exit {} goes on at exit {}", .began.exit.0, .found.exit.0)]
    CheckpointMoved {
        number: u64,
        began: Position,
        found: Position,
    },
    #[error("log frame {number}: the checkpoint at exit {}: {source}", .at.exit.0)]
    Checkpoint {
        number: u64,
        at: Position,
        #[source]
        source: ChunkError,
    },
    #[error("log frame {number} arrived after an earlier one was refused: the session is over")]
    Over { number: u64 },
}

/// An incomplete checkpoint, left behind at go-live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    pub at: Position,
    pub held: u64,
    pub total: u64,
}

/// What a backup has been sent; the module's text says how it acks.
#[derive(Debug)]
pub struct Inbox {
    incarnation: Incarnation,
    generation: Generation,
    stored: VecDeque<LogEntry>,
    horizon: Horizon,
    /// The last frame admitted, and the last that may be acked.
    last: u64,
    ackable: u64,
    checkpoint: Assembler,
    checkpoint_at: Option<Position>,
    executed: Position,
    echo_ns: u64,
    /// What the last ack said.
    acked: Option<Ack>,
    over: bool,
}

impl Inbox {
    /// An inbox for the log that goes on from `at` (the grant's position), where `outputs` outputs had been produced.
    ///
    /// `checkpoint_cap` bounds one micro-checkpoint, in bytes: RAM plus devices.
    #[must_use]
    pub fn new(
        incarnation: Incarnation,
        generation: Generation,
        at: Position,
        outputs: OutputSeq,
        checkpoint_cap: u64,
    ) -> Inbox {
        Inbox {
            incarnation,
            generation,
            stored: VecDeque::new(),
            horizon: Horizon::new(at, outputs),
            last: 0,
            ackable: 0,
            checkpoint: Assembler::new(checkpoint_cap),
            checkpoint_at: None,
            executed: at,
            echo_ns: 0,
            acked: None,
            over: false,
        }
    }

    /// Admits the log frame `number` of a session, decoded, and stores its entries.
    ///
    /// # Errors
    /// The frame is not the next one, not of this generation, or an entry in it is out of place. It is not acked, none
    /// of it is stored, and no later frame is admitted.
    pub fn admit(&mut self, generation: Generation, number: u64, entries: Vec<LogEntry>) -> Result<(), InboxError> {
        if self.over {
            return Err(InboxError::Over { number });
        }
        let before = (self.stored.len(), self.horizon, self.echo_ns);
        self.try_admit(generation, number, entries).inspect_err(|_| {
            self.stored.truncate(before.0);
            (self.horizon, self.echo_ns) = (before.1, before.2);
            self.discard_checkpoint();
            self.over = true;
        })
    }

    fn try_admit(&mut self, generation: Generation, number: u64, entries: Vec<LogEntry>) -> Result<(), InboxError> {
        if generation != self.generation {
            return Err(InboxError::Generation {
                number,
                expected: self.generation,
                found: generation,
            });
        }
        let expected = self.last + 1;
        if number != expected {
            return Err(InboxError::NotContiguous {
                expected,
                found: number,
            });
        }
        for entry in entries {
            self.store(number, entry)?;
        }
        self.last = number;
        if self.checkpoint_at.is_none() {
            self.ackable = number;
        }
        Ok(())
    }

    fn store(&mut self, number: u64, entry: LogEntry) -> Result<(), InboxError> {
        self.horizon
            .advance(&entry)
            .map_err(|source| InboxError::Order { number, source })?;
        let entry = match entry {
            LogEntry::Checkpoint { at, chunk } => match self.add_chunk(number, at, chunk)? {
                Some(whole) => whole,
                None => return Ok(()),
            },
            LogEntry::Input { .. } | LogEntry::Mark(_) | LogEntry::End { .. } if self.checkpoint_at.is_some() => {
                let held = self.checkpoint.held().unwrap_or(0);
                return Err(InboxError::InsideCheckpoint { number, held });
            }
            other => other,
        };
        if let LogEntry::Mark(mark) = &entry {
            self.echo_ns = self.echo_ns.max(mark.sent_ns);
        }
        self.stored.push_back(entry);
        Ok(())
    }

    /// The whole checkpoint as one chunk, once it is whole.
    fn add_chunk(&mut self, number: u64, at: Position, chunk: Chunk) -> Result<Option<LogEntry>, InboxError> {
        let began = *self.checkpoint_at.get_or_insert(at);
        if began != at {
            let found = at;
            return Err(InboxError::CheckpointMoved { number, began, found });
        }
        let (total, crc) = (chunk.total, chunk.crc);
        let added = self.checkpoint.add(chunk);
        let record = added.map_err(|source| InboxError::Checkpoint { number, at, source })?;
        Ok(record.map(|bytes| {
            self.checkpoint_at = None;
            let chunk = Chunk {
                total,
                offset: 0,
                crc,
                bytes,
            };
            LogEntry::Checkpoint { at, chunk }
        }))
    }

    /// The next entry to execute. A checkpoint comes whole, as a single chunk.
    pub fn take(&mut self) -> Option<LogEntry> {
        self.stored.pop_front()
    }

    /// The backup has executed up to `position`. Earlier positions than before are ignored.
    pub fn executed(&mut self, position: Position) {
        self.executed = self.executed.max(position);
    }

    /// A heartbeat of the primary carried this send time.
    pub fn heard(&mut self, sent_ns: u64) {
        self.echo_ns = self.echo_ns.max(sent_ns);
    }

    /// The ack that is due: something changed since the last one.
    pub fn ack(&mut self) -> Option<Ack> {
        let ack = self.current_ack();
        if self.acked == Some(ack) {
            return None;
        }
        self.acked = Some(ack);
        Some(ack)
    }

    /// What an ack would say now. `received` is where the last ackable frame reaches.
    fn current_ack(&self) -> Ack {
        Ack {
            incarnation: self.incarnation,
            frame: self.ackable,
            received: self.horizon.position(),
            executed: self.executed.min(self.horizon.position()),
            echo_ns: self.echo_ns,
        }
    }

    /// How far the log is known: the backup executes no further, and goes live exactly there (PROTOCOL 3).
    #[must_use]
    pub fn horizon(&self) -> &Horizon {
        &self.horizon
    }

    /// At go-live: discards a checkpoint that is not whole, and admits nothing more. What is stored can still be taken.
    pub fn close(&mut self) -> Option<Discarded> {
        self.over = true;
        self.discard_checkpoint()
    }

    fn discard_checkpoint(&mut self) -> Option<Discarded> {
        let at = self.checkpoint_at.take()?;
        let (held, total) = self.checkpoint.discard()?;
        Some(Discarded { at, held, total })
    }
}
