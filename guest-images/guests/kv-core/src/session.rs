//! One connection: bytes in, bytes out.

use alloc::vec::Vec;

use crate::engine::{Client, Engine, Outcome};
use crate::reply::Reply;
use crate::resp::{MAX_REQUEST, Parsed, Parser};

/// No request is executed while a client has this many bytes of replies to take: one that does not read cannot fill the
/// memory.
pub const MAX_OUTPUT: usize = 256 << 10;
/// No request is executed while the log has this much to take.
pub const MAX_JOURNAL: usize = 1 << 20;
/// No more is received while there is this much: a request of the greatest length with its framing.
pub const MAX_INPUT: usize = MAX_REQUEST + (64 << 10);
/// Buffers that have grown beyond this are given back when empty.
const KEPT_BUFFER: usize = 16 << 10;

/// Why a connection's requests are not executed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// There is no complete request.
    NeedsInput,
    /// Others should have their turn.
    Turn,
    /// The client should take its replies first.
    OutputFull,
    /// The log should take the journal first.
    JournalFull,
    /// The connection has ended, or ends when its output is sent.
    Closing,
    /// A request asked for this.
    Asked(Outcome),
}

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    parser: Parser,
    input: Vec<u8>,
    output: Vec<u8>,
    client: Client,
    closing: bool,
}

impl Session {
    /// A connection; `id` counts up from 1.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            client: Client { id, name: Vec::new() },
            ..Self::default()
        }
    }

    /// How many bytes more it takes.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.closing || self.output.len() >= MAX_OUTPUT {
            0
        } else {
            MAX_INPUT.saturating_sub(self.input.len())
        }
    }

    /// Takes bytes, at most `room` of them.
    pub fn receive(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.input.extend_from_slice(bytes);
    }

    /// Replies that are to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Forgets output that has been sent.
    pub fn sent(&mut self, len: usize) {
        self.output.drain(..len);
        if self.output.is_empty() {
            self.output.shrink_to(KEPT_BUFFER);
        }
    }

    /// Whether the connection should be closed once its output is sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Refuses what the client wants, with a reason, and ends.
    pub fn refuse(&mut self, reason: &str) {
        Reply::new(&mut self.output, 0).error(reason);
        self.end();
    }

    /// The client sends no more, or should not be listened to any more.
    pub fn end(&mut self) {
        self.closing = true;
        self.input = Vec::new();
    }

    /// Memory of its buffers, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// Executes up to `turn` requests.
    pub fn process(&mut self, engine: &mut Engine, turn: usize) -> Pause {
        let mut at = 0;
        let pause = self.process_from(&mut at, engine, turn);
        if !self.closing {
            self.input.drain(..at);
            if self.input.is_empty() {
                self.input.shrink_to(KEPT_BUFFER);
            }
        }
        pause
    }

    fn process_from(&mut self, at: &mut usize, engine: &mut Engine, turn: usize) -> Pause {
        for _ in 0..turn {
            if self.closing {
                return Pause::Closing;
            }
            if self.output.len() >= MAX_OUTPUT {
                return Pause::OutputFull;
            }
            if engine.journal().pending().len() >= MAX_JOURNAL {
                return Pause::JournalFull;
            }
            let input = &mut self.input[*at..];
            match self.parser.parse(input) {
                Ok(Parsed::Incomplete) => return Pause::NeedsInput,
                Ok(Parsed::Request { len }) => {
                    let arguments = self.parser.arguments(input);
                    let outcome = if arguments.is_empty() {
                        Outcome::Done
                    } else {
                        engine.execute(arguments, &mut self.client, &mut self.output)
                    };
                    self.parser.reset();
                    *at += len;
                    match outcome {
                        Outcome::Done => {}
                        Outcome::Quit => self.end(),
                        asked => return Pause::Asked(asked),
                    }
                }
                Err(error) => {
                    Reply::new(&mut self.output, 0).error(format_args!("ERR Protocol error: {error}"));
                    self.end();
                }
            }
        }
        if self.closing { Pause::Closing } else { Pause::Turn }
    }
}

#[cfg(test)]
mod tests;
