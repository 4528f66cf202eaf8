//! The primary's side: what has been sent, what of it is acked, and how far behind the backup executes.
//!
//! An output at p is released only after a *mark* at or beyond p is acked (PROTOCOL 2): inputs that are acked prove
//! nothing about those that follow them. What is kept per frame is bounded by thinning out: of the frames in the middle
//! every other is merged into its successor, which can delay a release, never allow one too early.

use std::collections::VecDeque;

use super::horizon::{Horizon, OrderError};
use crate::message::Ack;
use ftvm_schema::entry::{Incarnation, LogEntry, OutputSeq, Position};

/// Most frames with marks that each queue remembers: those not acked, and those acked and not executed. At one mark per
/// 100 us, which a guest with an output at every exit makes, that is more than a second before anything is thinned out.
pub(super) const MAX_TRACKED_FRAMES: usize = 1 << 14;

/// Bytes of unacked log from which on the channel counts as full: acks then wait for what is queued before them, and
/// not only for the round trip. It is what 20 Mbit/s, which is much for a log, put into a round trip of 100 ms.
const CHANNEL_FULL: u64 = 256 << 10;

/// An ack that cannot be one of this session's, or a frame out of order. The session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    #[error("an ack from incarnation {:032x}, expected {:032x}: it is another backup", .found.0, .expected.0)]
    Incarnation { expected: Incarnation, found: Incarnation },
    #[error("{what} from the future: found {found}, but only {sent} was sent")]
    Future { what: &'static str, sent: u64, found: u64 },
    #[error("{what} goes back from {before} to {found}")]
    Backwards {
        what: &'static str,
        before: u64,
        found: u64,
    },
    #[error("it has executed exit {} input {}, beyond exit {} input {} that it received",
        .executed.exit.0, .executed.k, .received.exit.0, .received.k)]
    ExecutedBeyondReceived { executed: Position, received: Position },
    #[error("expected to send log frame {expected}, found {found}")]
    NotContiguous { expected: u64, found: u64 },
    #[error("about to send log frame {number}: {source}")]
    Order {
        number: u64,
        #[source]
        source: OrderError,
    },
}

/// A frame's last mark (or end).
#[derive(Clone, Copy, Debug)]
struct Marked {
    number: u64,
    at: Position,
    sent_ns: u64,
}

/// The primary's book of frames and marks; the module's text says what for.
#[derive(Debug)]
pub struct AckTracker {
    incarnation: Incarnation,
    horizon: Horizon,
    last_sent: u64,
    sent_bytes: u64,
    /// The latest send time that an echo can carry.
    newest_ns: u64,
    unacked: VecDeque<Marked>,
    /// Bytes of frames up to each unacked one.
    frames: VecDeque<(u64, u64)>,
    acked_bytes: u64,
    unexecuted: VecDeque<Marked>,
    /// Acked marks that are not executed, and when their acks came.
    stored: VecDeque<(Position, u64)>,
    acked: Ack,
    covered: Option<Position>,
    lag_ns: u64,
    backlog_ns: u64,
}

impl AckTracker {
    /// For a backup of this incarnation that holds the guest at `at` (the grant), where `outputs` had been produced.
    #[must_use]
    pub fn new(incarnation: Incarnation, at: Position, outputs: OutputSeq) -> AckTracker {
        AckTracker {
            incarnation,
            horizon: Horizon::new(at, outputs),
            last_sent: 0,
            sent_bytes: 0,
            newest_ns: 0,
            unacked: VecDeque::new(),
            frames: VecDeque::new(),
            acked_bytes: 0,
            unexecuted: VecDeque::new(),
            stored: VecDeque::new(),
            acked: Ack {
                incarnation,
                frame: 0,
                received: at,
                executed: at,
                echo_ns: 0,
            },
            covered: None,
            lag_ns: 0,
            backlog_ns: 0,
        }
    }

    /// Log frame `number` of `bytes` bytes is about to be sent at `now_ns`.
    ///
    /// # Errors
    /// It is not the next frame, or an entry in it is out of order: a bug on this side, which the backup would refuse.
    pub fn sent(&mut self, number: u64, bytes: usize, entries: &[LogEntry], now_ns: u64) -> Result<(), AckError> {
        let expected = self.last_sent + 1;
        if number != expected {
            return Err(AckError::NotContiguous {
                expected,
                found: number,
            });
        }
        let mut marked = None;
        for entry in entries {
            self.horizon
                .advance(entry)
                .map_err(|source| AckError::Order { number, source })?;
            match entry {
                LogEntry::Mark(mark) => {
                    self.newest_ns = self.newest_ns.max(mark.sent_ns);
                    marked = Some((mark.at, mark.sent_ns));
                }
                LogEntry::End { at, .. } => marked = Some((*at, now_ns)),
                _ => {}
            }
        }
        self.last_sent = number;
        self.sent_bytes += bytes as u64;
        push_bounded(&mut self.frames, (number, self.sent_bytes));
        if let Some((at, sent_ns)) = marked {
            let marked = Marked { number, at, sent_ns };
            push_bounded(&mut self.unacked, marked);
            push_bounded(&mut self.unexecuted, marked);
        }
        Ok(())
    }

    /// A heartbeat was sent at `sent_ns`: acks may echo it.
    pub fn heartbeat_sent(&mut self, sent_ns: u64) {
        self.newest_ns = self.newest_ns.max(sent_ns);
    }

    /// An ack arrived at `now_ns`.
    ///
    /// # Errors
    /// It is another incarnation's, from the future, or goes backwards: nothing of it is believed.
    pub fn acked(&mut self, ack: &Ack, now_ns: u64) -> Result<(), AckError> {
        self.check(ack)?;
        while let Some(marked) = self.unacked.front().filter(|marked| marked.number <= ack.frame) {
            self.covered = Some(marked.at);
            push_bounded(&mut self.stored, (marked.at, now_ns));
            self.unacked.pop_front();
        }
        while let Some((_, bytes)) = self.frames.front().filter(|(number, _)| *number <= ack.frame) {
            self.acked_bytes = *bytes;
            self.frames.pop_front();
        }
        while let Some(marked) = self.unexecuted.front().filter(|marked| marked.at <= ack.executed) {
            self.lag_ns = now_ns.saturating_sub(marked.sent_ns);
            self.unexecuted.pop_front();
        }
        while let Some((_, acked_ns)) = self.stored.front().filter(|(at, _)| *at <= ack.executed) {
            self.backlog_ns = now_ns.saturating_sub(*acked_ns);
            self.stored.pop_front();
        }
        self.acked = *ack;
        Ok(())
    }

    /// Refuses an ack that no backup of this session can have sent.
    fn check(&self, ack: &Ack) -> Result<(), AckError> {
        if ack.incarnation != self.incarnation {
            return Err(AckError::Incarnation {
                expected: self.incarnation,
                found: ack.incarnation,
            });
        }
        self.check_future(ack)?;
        self.check_backwards(ack)?;
        if ack.executed > ack.received {
            return Err(AckError::ExecutedBeyondReceived {
                executed: ack.executed,
                received: ack.received,
            });
        }
        Ok(())
    }

    /// Nothing is acked that has not been sent.
    fn check_future(&self, ack: &Ack) -> Result<(), AckError> {
        let refused = |what, sent, found| Err(AckError::Future { what, sent, found });
        let horizon = self.horizon.position();
        if ack.frame > self.last_sent {
            return refused("the acked frame", self.last_sent, ack.frame);
        }
        if ack.received > horizon {
            return refused("the acked exit", horizon.exit.0, ack.received.exit.0);
        }
        if ack.echo_ns > self.newest_ns {
            return refused("the echoed time", self.newest_ns, ack.echo_ns);
        }
        Ok(())
    }

    /// Nothing that was acked is taken back.
    fn check_backwards(&self, ack: &Ack) -> Result<(), AckError> {
        let refused = |what, before, found| Err(AckError::Backwards { what, before, found });
        let before = &self.acked;
        if ack.frame < before.frame {
            return refused("the acked frame", before.frame, ack.frame);
        }
        if ack.received < before.received {
            return refused("the acked exit", before.received.exit.0, ack.received.exit.0);
        }
        if ack.executed < before.executed {
            return refused("the executed exit", before.executed.exit.0, ack.executed.exit.0);
        }
        if ack.echo_ns < before.echo_ns {
            return refused("the echoed time", before.echo_ns, ack.echo_ns);
        }
        Ok(())
    }

    /// Whether an output produced at `position` may be released, as far as acks go: a mark there or later is acked. The
    /// lease is another question.
    #[must_use]
    pub fn covers(&self, position: Position) -> bool {
        self.covered.is_some_and(|covered| covered >= position)
    }

    /// The last mark that is acked.
    #[must_use]
    pub fn covered(&self) -> Option<Position> {
        self.covered
    }

    /// Whether every frame sent is acked, as a clean end waits for (PROTOCOL 18).
    #[must_use]
    pub fn all_acked(&self) -> bool {
        self.acked.frame == self.last_sent
    }

    /// How far the backup says it has executed.
    #[must_use]
    pub fn executed(&self) -> Position {
        self.acked.executed
    }

    /// Bytes sent and not acked. No window: a checkpoint is acked only whole, however long it is.
    #[must_use]
    pub(super) fn unacked_bytes(&self) -> u64 {
        self.sent_bytes - self.acked_bytes
    }

    /// Age of the oldest unacked mark at `now_ns`; 0 if all are acked.
    #[must_use]
    pub(super) fn oldest_unacked_age(&self, now_ns: u64) -> u64 {
        let oldest = self.unacked.front();
        oldest.map_or(0, |marked| now_ns.saturating_sub(marked.sent_ns))
    }

    /// Elements in all queues.
    #[cfg(test)]
    pub(super) fn tracked(&self) -> usize {
        self.unacked.len() + self.frames.len() + self.unexecuted.len() + self.stored.len()
    }

    /// Execution lag at `now_ns`, in nanoseconds: from the sending of a mark to the arrival of the ack that says the
    /// backup has executed up to it. While a mark waits for that longer than the last one did, it is its age.
    #[must_use]
    pub fn execution_lag(&self, now_ns: u64) -> u64 {
        let waiting = self
            .unexecuted
            .front()
            .map_or(0, |marked| now_ns.saturating_sub(marked.sent_ns));
        self.lag_ns.max(waiting)
    }

    /// How much of the lag would become less if the primary slowed down, in nanoseconds: the time from the ack of a
    /// mark to the ack that says it is executed, in which the length of the channel cancels out; and the age of the
    /// oldest unacked mark, while the channel is full, or if that is more than `length_ns`, which no channel of use
    /// takes: then a host has more frames and acks to handle than it can.
    #[must_use]
    pub fn backlog(&self, now_ns: u64, length_ns: u64) -> u64 {
        let waiting = self
            .stored
            .front()
            .map_or(0, |(_, acked_ns)| now_ns.saturating_sub(*acked_ns));
        let age = self.oldest_unacked_age(now_ns);
        let carried = match self.unacked_bytes() > CHANNEL_FULL || age > length_ns {
            true => age,
            false => 0,
        };
        self.backlog_ns.max(waiting).max(carried)
    }
}

/// Appends; when full, first drops every other element but the oldest, each of which its successor then stands for.
fn push_bounded<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == MAX_TRACKED_FRAMES {
        let mut index = 0;
        queue.retain(|_| {
            index += 1;
            index == 1 || index % 2 == 0
        });
    }
    queue.push_back(value);
}
