//! From messages and entries to frames, in buffers that are kept: after the first few, a frame costs no allocation.

use serde::Serialize;

use super::entries::{Base, MAX_DATA_BYTES, MAX_ENTRIES, data_bytes, put_chunk, put_numbered};
use super::frame::{FrameKind, HEADER_BYTES, MAX_PAYLOAD, seal};
use crate::message::{Heartbeat, MAX_BLOCKS, MAX_PAGES, Message};
use ftvm_schema::entry::{Generation, LogEntry};
use ftvm_schema::record::{self, CodecError};

/// Why something could not become a frame. The encoder stays usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// One entry or chunk carries too much; whoever made it must refuse or split it.
    #[error("{what} carries {len} bytes, more than the {limit} allowed")]
    DataTooLong {
        what: &'static str,
        len: usize,
        limit: usize,
    },
    /// The batch has no room for the entry: seal it and begin another.
    #[error("the batch is full: {entries} entries in {bytes} bytes")]
    BatchFull { entries: usize, bytes: usize },
    /// A message does not fit a frame.
    #[error("a {kind:?} message of {len} bytes is longer than the {MAX_PAYLOAD} a frame holds")]
    MessageTooLong { kind: FrameKind, len: usize },
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A log frame in the making.
///
/// ```
/// # use logging_channel::codec::LogBatch;
/// # use ftvm_schema::entry::{Generation, LogEntry, OutputSeq};
/// let mut batch = LogBatch::new(1);
/// batch.push(&LogEntry::Released { through: OutputSeq(1) })?;
/// let frame: &[u8] = batch.seal(Generation(1));
/// # assert!(frame.len() > 24);
/// batch.begin(2);
/// # Ok::<(), logging_channel::codec::EncodeError>(())
/// ```
#[derive(Debug)]
pub struct LogBatch {
    frame: Vec<u8>,
    base: Base,
    number: u64,
    entries: usize,
}

impl LogBatch {
    /// An empty log frame of this number (from 1, contiguous within a session or file).
    #[must_use]
    pub fn new(number: u64) -> LogBatch {
        let mut batch = LogBatch {
            frame: Vec::new(),
            base: Base::default(),
            number,
            entries: 0,
        };
        batch.begin(number);
        batch
    }

    /// Forgets what is in the batch and begins the log frame `number`, keeping the buffer.
    pub fn begin(&mut self, number: u64) {
        self.frame.clear();
        self.frame.resize(HEADER_BYTES, 0);
        super::bytes::put_varint(&mut self.frame, number);
        self.base = Base::default();
        self.number = number;
        self.entries = 0;
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`EncodeError::DataTooLong`] or [`EncodeError::BatchFull`]; the batch is then as it was before.
    pub fn push(&mut self, entry: &LogEntry) -> Result<(), EncodeError> {
        let len = data_bytes(entry);
        if len > MAX_DATA_BYTES {
            return Err(EncodeError::DataTooLong {
                what: "a log entry",
                len,
                limit: MAX_DATA_BYTES,
            });
        }
        let (before, base) = (self.frame.len(), self.base);
        if self.entries < MAX_ENTRIES {
            self.base.put(&mut self.frame, entry);
            if self.frame.len() <= HEADER_BYTES + MAX_PAYLOAD {
                self.entries += 1;
                return Ok(());
            }
            self.frame.truncate(before);
            self.base = base;
        }
        Err(EncodeError::BatchFull {
            entries: self.entries,
            bytes: before,
        })
    }

    /// The number this frame will have.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Length of the frame so far, header included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }

    /// The finished frame. [`LogBatch::begin`] the next one after it is sent.
    pub fn seal(&mut self, generation: Generation) -> &[u8] {
        seal(&mut self.frame, FrameKind::Log, generation);
        &self.frame
    }
}

fn check_len(what: &'static str, len: usize, limit: usize) -> Result<(), EncodeError> {
    if len > limit {
        return Err(EncodeError::DataTooLong { what, len, limit });
    }
    Ok(())
}

/// Encodes messages, one at a time, into a buffer it keeps.
#[derive(Debug)]
pub struct FrameEncoder {
    frame: Vec<u8>,
    batch: LogBatch,
}

impl Default for FrameEncoder {
    fn default() -> FrameEncoder {
        FrameEncoder {
            frame: Vec::new(),
            batch: LogBatch::new(0),
        }
    }
}

impl FrameEncoder {
    #[must_use]
    pub fn new() -> FrameEncoder {
        FrameEncoder::default()
    }

    /// The frame of `message`.
    ///
    /// # Errors
    /// The message is longer than a frame.
    pub fn message(&mut self, generation: Generation, message: &Message) -> Result<&[u8], EncodeError> {
        match message {
            Message::Join(join) => self.record(FrameKind::Join, generation, join),
            Message::Welcome(welcome) => self.record(FrameKind::Welcome, generation, welcome),
            Message::Proof { nonce } => self.record(FrameKind::Proof, generation, nonce),
            Message::Refuse { reason } => self.record(FrameKind::Refuse, generation, reason),
            Message::State(chunk) | Message::Boot(chunk) => {
                let kind = match message {
                    Message::Boot(_) => FrameKind::Boot,
                    _ => FrameKind::State,
                };
                check_len("a chunk", chunk.bytes.len(), MAX_DATA_BYTES)?;
                self.begin();
                put_chunk(&mut self.frame, chunk);
                self.seal(kind, generation)
            }
            Message::Grant(grant) => self.record(FrameKind::Grant, generation, grant),
            Message::Log { number, entries } => self.log(generation, *number, entries),
            Message::Ack(ack) => self.record(FrameKind::Ack, generation, ack),
            Message::Diverged { at, what } => self.record(FrameKind::Diverged, generation, &(at, what)),
            Message::Pages { numbers, content } => {
                check_len("a message of pages", numbers.len(), MAX_PAGES)?;
                check_len("the content of pages", content.len(), MAX_DATA_BYTES)?;
                self.begin();
                put_numbered(&mut self.frame, numbers, content);
                self.seal(FrameKind::Pages, generation)
            }
            Message::Health(health) => self.record(FrameKind::Health, generation, health),
            Message::Bye => self.bare(FrameKind::Bye, generation),
            Message::Dismiss => self.bare(FrameKind::Dismiss, generation),
            Message::Handover => self.bare(FrameKind::Handover, generation),
            Message::Blocks { disk, numbers, content } => {
                check_len("a message of blocks", numbers.len(), MAX_BLOCKS)?;
                check_len("the content of blocks", content.len(), MAX_DATA_BYTES)?;
                self.begin();
                self.frame.push(*disk);
                put_numbered(&mut self.frame, numbers, content);
                self.seal(FrameKind::Blocks, generation)
            }
            Message::FlushBlocks => self.bare(FrameKind::FlushBlocks, generation),
            Message::BlocksWritten { incarnation, messages } => {
                self.record(FrameKind::BlocksWritten, generation, &(incarnation, messages))
            }
        }
    }

    /// The frame of `Message::Log { number, entries }`, without the entries having to be owned.
    ///
    /// # Errors
    /// An entry carries too much, or all together do not fit a frame (use a [`LogBatch`] to split them).
    pub fn log(&mut self, generation: Generation, number: u64, entries: &[LogEntry]) -> Result<&[u8], EncodeError> {
        self.batch.begin(number);
        for entry in entries {
            self.batch.push(entry)?;
        }
        Ok(self.batch.seal(generation))
    }

    /// The datagram of a heartbeat: one frame, checked by [`decode_heartbeat`](super::decode_heartbeat).
    ///
    /// # Errors
    /// None in practice: a heartbeat always fits.
    pub fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<&[u8], EncodeError> {
        self.record(FrameKind::Heartbeat, heartbeat.generation, heartbeat)
    }

    /// The frame of any serde record, for kinds that hold just one.
    pub(crate) fn record<T: Serialize + ?Sized>(
        &mut self,
        kind: FrameKind,
        generation: Generation,
        value: &T,
    ) -> Result<&[u8], EncodeError> {
        self.begin();
        record::append(value, &mut self.frame)?;
        self.seal(kind, generation)
    }

    /// The frame of a message that says nothing but its kind.
    fn bare(&mut self, kind: FrameKind, generation: Generation) -> Result<&[u8], EncodeError> {
        self.begin();
        self.seal(kind, generation)
    }

    fn begin(&mut self) {
        self.frame.clear();
        self.frame.resize(HEADER_BYTES, 0);
    }

    fn seal(&mut self, kind: FrameKind, generation: Generation) -> Result<&[u8], EncodeError> {
        let len = self.frame.len() - HEADER_BYTES;
        if len > MAX_PAYLOAD {
            return Err(EncodeError::MessageTooLong { kind, len });
        }
        seal(&mut self.frame, kind, generation);
        Ok(&self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::FrameDecoder;
    use ftvm_schema::entry::{ExitSeq, Input, OutputSeq};

    fn tick(exit: u64, ns: u64) -> LogEntry {
        LogEntry::Input {
            at: ExitSeq(exit),
            input: Input::Clock(ns),
        }
    }

    fn bulk(len: usize) -> LogEntry {
        LogEntry::Input {
            at: ExitSeq(1),
            input: Input::Entropy { bytes: vec![7; len] },
        }
    }

    #[test]
    fn a_timer_tick_costs_at_most_eight_bytes() {
        let mut batch = LogBatch::new(1_000_000);
        batch.push(&tick(1 << 40, 1 << 50)).unwrap();
        for n in 1..=1000u64 {
            let before = batch.bytes();
            batch
                .push(&tick((1 << 40) + n * 700, (1 << 50) + n * 10_900_000))
                .unwrap();
            let cost = batch.bytes() - before;
            assert!(cost <= 8, "tick {n} took {cost} bytes");
        }
    }

    #[test]
    fn a_batch_refuses_what_does_not_fit_and_stays_as_it_was() {
        let mut batch = LogBatch::new(1);
        assert!(matches!(
            batch.push(&bulk(MAX_DATA_BYTES + 1)),
            Err(EncodeError::DataTooLong { .. })
        ));
        batch.push(&bulk(MAX_DATA_BYTES)).unwrap();
        batch.push(&tick(500, 10_000_000)).unwrap();
        let before = batch.bytes();
        assert!(matches!(
            batch.push(&bulk(MAX_DATA_BYTES)),
            Err(EncodeError::BatchFull { entries: 2, .. })
        ));
        assert_eq!(batch.bytes(), before);
        batch.push(&tick(700, 20_000_000)).unwrap();
        let mut decoder = FrameDecoder::new();
        decoder.push_all(batch.seal(Generation(3)));
        let Message::Log { entries, .. } = decoder.next_frame().unwrap().unwrap().message else {
            panic!("no log frame")
        };
        assert_eq!(entries[1..], [tick(500, 10_000_000), tick(700, 20_000_000)]);
    }

    #[test]
    fn a_batch_is_bounded_in_entries() {
        let mut batch = LogBatch::new(1);
        let released = LogEntry::Released { through: OutputSeq(0) };
        for _ in 0..MAX_ENTRIES {
            batch.push(&released).unwrap();
        }
        assert!(matches!(
            batch.push(&released),
            Err(EncodeError::BatchFull {
                entries: MAX_ENTRIES,
                ..
            })
        ));
        let mut decoder = FrameDecoder::new();
        decoder.push_all(batch.seal(Generation(3)));
        assert!(decoder.next_frame().unwrap().is_some());
    }

    #[test]
    fn buffers_are_kept() {
        let mut batch = LogBatch::new(1);
        let mut encoder = FrameEncoder::new();
        let mut kept = None;
        for number in 1..100 {
            batch.begin(number);
            for n in 0..50 {
                batch.push(&tick(number * 100 + n, number * 1_000_000 + n)).unwrap();
            }
            let entries = [tick(number, number)];
            let log = encoder.log(Generation(1), number, &entries).unwrap().as_ptr();
            let ack = encoder
                .message(Generation(1), &Message::Ack(crate::message::Ack::default()))
                .unwrap()
                .as_ptr();
            let now = (batch.seal(Generation(1)).as_ptr(), log, ack);
            if number > 2 {
                assert_eq!(
                    *kept.get_or_insert(now),
                    now,
                    "a buffer was allocated anew at frame {number}"
                );
            }
        }
    }

    #[test]
    fn a_message_longer_than_a_frame_is_refused() {
        let reason = "x".repeat(MAX_PAYLOAD);
        let error = FrameEncoder::new()
            .message(Generation(0), &Message::Refuse { reason })
            .unwrap_err();
        assert!(
            matches!(
                error,
                EncodeError::MessageTooLong {
                    kind: FrameKind::Refuse,
                    ..
                }
            ),
            "{error}"
        );
    }
}
