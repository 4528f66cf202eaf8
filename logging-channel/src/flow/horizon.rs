//! How far a log reaches, and that it only ever reaches further (PROTOCOL 1-4).

use crate::chunk;
use ftvm_schema::entry::{ExitSeq, LogEntry, OutputSeq, Position};

/// An entry stands where it cannot: the sender has a bug, or is no sender of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("the log goes backwards: after exit {} input {}, found {what} at exit {} input {}",
        .after.exit.0, .after.k, .found.exit.0, .found.k)]
    Backwards {
        what: &'static str,
        after: Position,
        found: Position,
    },
    #[error("output numbers go backwards: after {}, found {what} {}", .after.0, .found.0)]
    OutputsBackwards {
        what: &'static str,
        after: OutputSeq,
        found: OutputSeq,
    },
    #[error("{what} after the guest's end at exit {}", .end.exit.0)]
    AfterEnd { what: &'static str, end: Position },
    #[error("more than {} inputs at exit {}", u32::MAX, .at.0)]
    TooManyInputs { at: ExitSeq },
}

/// The position of the last input, mark, whole checkpoint or end seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    position: Position,
    outputs: OutputSeq,
    released: OutputSeq,
    end: Option<Position>,
}

impl Horizon {
    /// A log that goes on from `position`, where `outputs` outputs had been produced.
    #[must_use]
    pub fn new(position: Position, outputs: OutputSeq) -> Horizon {
        Horizon {
            position,
            outputs,
            released: OutputSeq(0),
            end: None,
        }
    }

    /// How far the log is known to reach.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Where the guest ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<Position> {
        self.end
    }

    /// Moves on over `entry`. Chunks of a checkpoint move nothing but the last (PROTOCOL 4).
    ///
    /// # Errors
    /// The entry's place is before the horizon, or after the guest's end; the horizon is then as before.
    pub fn advance(&mut self, entry: &LogEntry) -> Result<(), OrderError> {
        match entry {
            LogEntry::Input { at, .. } => {
                let k = if *at == self.position.exit { self.position.k } else { 0 };
                let k = k.checked_add(1).ok_or(OrderError::TooManyInputs { at: *at })?;
                self.open("an input")?;
                self.reach("an input", Position { exit: *at, k })
            }
            LogEntry::Mark(mark) => {
                if mark.outputs < self.outputs {
                    return Err(OrderError::OutputsBackwards {
                        what: "a mark with",
                        after: self.outputs,
                        found: mark.outputs,
                    });
                }
                self.reach("a mark", mark.at)?;
                self.outputs = mark.outputs;
                Ok(())
            }
            LogEntry::Checkpoint { at, chunk } => {
                self.open("a checkpoint")?;
                let before = self.position;
                self.reach("a checkpoint", *at)?;
                if !chunk::is_last(chunk) {
                    self.position = before;
                }
                Ok(())
            }
            LogEntry::Released { through } => {
                if *through < self.released {
                    return Err(OrderError::OutputsBackwards {
                        what: "released through",
                        after: self.released,
                        found: *through,
                    });
                }
                self.released = *through;
                Ok(())
            }
            LogEntry::Checks { .. } => Ok(()),
            LogEntry::End { at, .. } => {
                self.open("an end")?;
                self.reach("an end", *at)?;
                self.end = Some(*at);
                Ok(())
            }
        }
    }

    fn open(&self, what: &'static str) -> Result<(), OrderError> {
        match self.end {
            None => Ok(()),
            Some(end) => Err(OrderError::AfterEnd { what, end }),
        }
    }

    fn reach(&mut self, what: &'static str, found: Position) -> Result<(), OrderError> {
        let after = self.position;
        if found < after {
            return Err(OrderError::Backwards { what, after, found });
        }
        match self.end {
            Some(end) if found > end => Err(OrderError::AfterEnd { what, end }),
            _ => {
                self.position = found;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::samples::position;
    use ftvm_schema::entry::{Chunk, Digest, EndReason, Input, Mark};

    fn input(exit: u64) -> LogEntry {
        LogEntry::Input {
            at: ExitSeq(exit),
            input: Input::Clock(0),
        }
    }

    fn mark(exit: u64, k: u32, outputs: u64) -> LogEntry {
        LogEntry::Mark(Mark {
            at: position(exit, k),
            digest: Digest::default(),
            outputs: OutputSeq(outputs),
            sent_ns: 0,
            registers: None,
            memory_hash: None,
        })
    }

    fn checkpoint(exit: u64, k: u32, offset: u64) -> LogEntry {
        LogEntry::Checkpoint {
            at: position(exit, k),
            chunk: Chunk {
                total: 2,
                offset,
                crc: 0,
                bytes: vec![0],
            },
        }
    }

    #[test]
    fn inputs_count_within_an_exit_and_marks_move_it() {
        let mut horizon = Horizon::default();
        for (entry, expected) in [
            (input(5), position(5, 1)),
            (input(5), position(5, 2)),
            (mark(5, 2, 0), position(5, 2)),
            (mark(9, 0, 1), position(9, 0)),
            (input(9), position(9, 1)),
            (input(10), position(10, 1)),
        ] {
            horizon.advance(&entry).unwrap();
            assert_eq!(horizon.position(), expected, "{entry:?}");
        }
    }

    #[test]
    fn nothing_goes_backwards() {
        let mut horizon = Horizon::new(position(5, 2), OutputSeq(3));
        let before = horizon;
        for entry in [
            input(4),
            mark(5, 1, 3),
            mark(4, 9, 3),
            mark(5, 2, 2),
            checkpoint(5, 1, 0),
            checkpoint(4, 9, 1),
        ] {
            assert!(horizon.advance(&entry).is_err(), "{entry:?}");
            assert_eq!(horizon, before, "{entry:?}");
        }
        horizon.advance(&LogEntry::Released { through: OutputSeq(2) }).unwrap();
        assert!(horizon.advance(&LogEntry::Released { through: OutputSeq(1) }).is_err());
        horizon.advance(&LogEntry::Released { through: OutputSeq(2) }).unwrap();
    }

    #[test]
    fn a_checkpoint_moves_it_only_when_whole() {
        let mut horizon = Horizon::new(position(5, 2), OutputSeq(0));
        horizon.advance(&checkpoint(5, 3, 0)).unwrap();
        assert_eq!(horizon.position(), position(5, 2));
        horizon.advance(&checkpoint(5, 3, 1)).unwrap();
        assert_eq!(horizon.position(), position(5, 3));
    }

    #[test]
    fn after_the_end_only_marks_and_releases_at_the_end() {
        let mut horizon = Horizon::new(position(5, 2), OutputSeq(0));
        let end = LogEntry::End {
            at: position(6, 0),
            reason: EndReason::Reset,
        };
        horizon.advance(&end).unwrap();
        assert_eq!(horizon.end(), Some(position(6, 0)));
        for entry in [input(6), input(7), mark(6, 1, 0), checkpoint(7, 0, 1), end] {
            assert!(
                matches!(horizon.advance(&entry), Err(OrderError::AfterEnd { .. })),
                "{entry:?}"
            );
        }
        horizon.advance(&mark(6, 0, 0)).unwrap();
        horizon.advance(&LogEntry::Released { through: OutputSeq(1) }).unwrap();
    }

    #[test]
    fn the_input_count_does_not_overflow() {
        let mut horizon = Horizon::new(position(5, u32::MAX), OutputSeq(0));
        assert_eq!(
            horizon.advance(&input(5)),
            Err(OrderError::TooManyInputs { at: ExitSeq(5) })
        );
        horizon.advance(&input(6)).unwrap();
    }
}
