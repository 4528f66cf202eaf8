//! Executes requests on the store.
//!
//! Time is an argument of [`Engine::advance`] and stands still in between, so that no key ends halfway through a
//! command. Whatever changes the store is journalled in a form that does not depend on time: deadlines are absolute, and
//! keys that ended are journalled as removals.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::command::{self, Command, Flag};
use crate::journal::Journal;
use crate::log::FlushPolicy;
use crate::reply::Reply;
use crate::resp::Arguments;
use crate::store::Store;

/// Most keys that one [`Engine::advance`] removes; time stands still before the deadline of the next one.
const EXPIRE_AT_ONCE: usize = 1000;
/// Nor are more removed once the journal has this many bytes.
const EXPIRE_JOURNAL: usize = 256 << 10;
/// Longest key in bytes. A key with a deadline is kept twice.
pub const MAX_KEY: usize = 64 << 10;
/// Names and values of an unknown command that its error repeats, in bytes, as in Redis.
const ERROR_ARGUMENTS: usize = 128;

/// What was decided when the guest started.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Writes are refused while the store's estimate of its memory is above this, in bytes.
    pub max_memory: usize,
    /// Longest reply in bytes.
    pub max_reply: usize,
    /// Connections that are accepted at a time.
    pub max_clients: usize,
    /// TCP port.
    pub port: u16,
    /// When the log is flushed; `None` without a log.
    pub append_fsync: Option<FlushPolicy>,
}

/// What a request asks for beyond its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Done,
    /// The connection ends after the reply.
    Quit,
    /// The reply holds once the log is flushed.
    Save,
    /// The log should be rewritten.
    Rewrite,
    /// The log is to be flushed, and the machine switched off. There is no reply.
    Shutdown,
}

/// What the engine knows of a connection.
#[derive(Debug, Default)]
pub struct Client {
    /// Numbers of connections count up from 1.
    pub id: u64,
    /// Set by CLIENT SETNAME.
    pub name: Vec<u8>,
}

/// Counters for INFO.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub commands: u64,
    pub connections_received: u64,
    pub connections_rejected: u64,
    pub connected_clients: usize,
    pub expired_keys: u64,
}

/// A request that cannot be executed. The text is what the client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The text without further ado.
    Text(&'static str),
    /// The command has another number of arguments.
    Arity(&'static str),
    /// The command has no such subcommand.
    Subcommand(&'static str),
    /// The deadline is not after 1970 or too far away.
    Deadline(&'static str),
    /// No command has this name.
    Unknown(Vec<u8>),
}

impl CommandError {
    pub(crate) const SYNTAX: Self = Self::Text("ERR syntax error");
    pub(crate) const NOT_INTEGER: Self = Self::Text("ERR value is not an integer or out of range");
    pub(crate) const OVERFLOW: Self = Self::Text("ERR increment or decrement would overflow");
    pub(crate) const TOO_LONG: Self = Self::Text("ERR string exceeds maximum allowed size (512kB)");
    pub(crate) const REPLY_TOO_LONG: Self =
        Self::Text("OOM the reply would take more memory than this server has for replies");
    const KEY_TOO_LONG: Self = Self::Text("ERR key exceeds maximum allowed size (64kB)");
    const OUT_OF_MEMORY: Self = Self::Text("OOM command not allowed when used memory > 'maxmemory'.");
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Text(text) => f.write_str(text),
            CommandError::Arity(name) => write!(f, "ERR wrong number of arguments for '{name}' command"),
            CommandError::Subcommand(name) => {
                write!(f, "ERR Unknown subcommand or wrong number of arguments for '{name}'")
            }
            CommandError::Deadline(name) => write!(f, "ERR invalid expire time in {name}"),
            CommandError::Unknown(text) => {
                f.write_str("ERR unknown command ")?;
                text.iter()
                    .try_for_each(|&byte| f.write_char(if byte.is_ascii() { char::from(byte) } else { '?' }))
            }
        }
    }
}

impl core::error::Error for CommandError {}

/// The store with what commands need around it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) journal: Journal,
    pub(crate) settings: Settings,
    /// Milliseconds since 1970, as of the last `advance`.
    pub(crate) now: u64,
    pub(crate) started: u64,
    /// Kept by the program around the engine.
    pub statistics: Statistics,
}

impl Engine {
    /// An engine with an empty store. Until [`Engine::start`] no time passes and nothing is journalled, as it should be
    /// while the log is read back.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            store: Store::default(),
            journal: Journal::new(),
            settings,
            now: 0,
            started: 0,
            statistics: Statistics::default(),
        }
    }

    /// Begins to serve, at `now` in milliseconds since 1970.
    pub fn start(&mut self, now: u64) {
        if self.settings.append_fsync.is_some() {
            self.journal.start();
        }
        self.started = now;
        self.advance(now);
    }

    /// Moves time on to `now` (never back), and removes the keys that end by then. If too many do at a time, time moves to
    /// just before the first that is left; the next calls catch up.
    pub fn advance(&mut self, now: u64) {
        let mut now = now.max(self.now);
        for _ in 0..EXPIRE_AT_ONCE {
            if self.journal.pending().len() >= EXPIRE_JOURNAL {
                break;
            }
            let Some(key) = self.store.expire_one(now) else {
                break;
            };
            self.journal.append([&b"DEL"[..], &key].into_iter());
            self.statistics.expired_keys += 1;
        }
        if let Some(deadline) = self.store.next_deadline() {
            now = now.min(deadline.saturating_sub(1));
        }
        self.now = now.max(self.now);
    }

    /// Executes a request of at least one argument and appends its reply to `output`.
    pub fn execute(&mut self, arguments: Arguments<'_>, client: &mut Client, output: &mut Vec<u8>) -> Outcome {
        self.statistics.commands += 1;
        let mut call = Call {
            reply: Reply::new(output, self.settings.max_reply),
            engine: self,
            arguments,
            client,
            outcome: Outcome::Done,
        };
        let result = call.run();
        if let Err(error) = result {
            call.reply.clear();
            call.reply.error(error);
        }
        call.outcome
    }

    /// Executes a command that the journal once held.
    ///
    /// # Errors
    /// It is none that changes the store, or it fails: the log does not belong to this program.
    pub fn replay(&mut self, arguments: Arguments<'_>) -> Result<(), CommandError> {
        let mut output = Vec::new();
        let mut client = Client::default();
        let command = lookup(arguments)?;
        if command.flag == Flag::Read {
            return Err(CommandError::Text("ERR a command in the log changes nothing"));
        }
        let reply = Reply::new(&mut output, usize::MAX);
        let mut call = Call {
            engine: self,
            arguments,
            client: &mut client,
            reply,
            outcome: Outcome::Done,
        };
        (command.run)(&mut call)
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the log has not taken yet.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The store and, separately, the journal, as the log needs them.
    pub fn store_and_journal(&mut self) -> (&Store, &mut Journal) {
        (&self.store, &mut self.journal)
    }

    /// Commands journalled so far.
    #[must_use]
    pub fn journalled(&self) -> u64 {
        self.journal.appended()
    }

    /// What was decided at the start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// One request on its way through the engine.
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) engine: &'a mut Engine,
    pub(crate) arguments: Arguments<'a>,
    pub(crate) client: &'a mut Client,
    pub(crate) reply: Reply<'a>,
    pub(crate) outcome: Outcome,
}

impl<'a> Call<'a> {
    fn run(&mut self) -> Result<(), CommandError> {
        let command = lookup(self.arguments)?;
        if command.flag == Flag::Grow && self.engine.store.used() > self.engine.settings.max_memory {
            return Err(CommandError::OUT_OF_MEMORY);
        }
        if command.flag == Flag::Grow && self.argument(1).len() > MAX_KEY {
            return Err(CommandError::KEY_TOO_LONG);
        }
        (command.run)(self)
    }

    /// The argument at `index`, which the command's arity promises.
    pub(crate) fn argument(&self, index: usize) -> &'a [u8] {
        self.arguments.get(index).unwrap_or_default()
    }

    /// The argument at `index` as an integer.
    pub(crate) fn integer(&self, index: usize) -> Result<i64, CommandError> {
        parse_integer(self.argument(index)).ok_or(CommandError::NOT_INTEGER)
    }

    /// Journals the request as it came.
    pub(crate) fn journal_request(&mut self) {
        self.engine.journal.append(self.arguments.from(0));
    }

    /// Journals a command.
    pub(crate) fn journal(&mut self, command: &[&[u8]]) {
        self.engine.journal.append(command.iter().copied());
    }

    /// An error if a reply that only reads has become too long.
    pub(crate) fn check_reply(&self) -> Result<(), CommandError> {
        if self.reply.is_too_long() {
            Err(CommandError::REPLY_TOO_LONG)
        } else {
            Ok(())
        }
    }
}

fn lookup(arguments: Arguments<'_>) -> Result<&'static Command, CommandError> {
    let name = arguments.get(0).unwrap_or_default();
    let command = command::find(name).ok_or_else(|| unknown(arguments))?;
    let (count, least) = (arguments.len(), usize::from(command.arity.unsigned_abs()));
    let fits = if command.arity < 0 {
        count >= least
    } else {
        count == least
    };
    if fits {
        Ok(command)
    } else {
        Err(CommandError::Arity(command.name))
    }
}

fn unknown(arguments: Arguments<'_>) -> CommandError {
    let clip = |text: &'_ [u8]| -> Vec<u8> { text[..text.len().min(ERROR_ARGUMENTS)].to_vec() };
    let mut text = [
        b"`",
        &clip(arguments.get(0).unwrap_or_default())[..],
        b"`, with args beginning with: ",
    ]
    .concat();
    let end = text.len() + ERROR_ARGUMENTS;
    for argument in arguments.from(1) {
        if text.len() >= end {
            break;
        }
        text.push(b'`');
        text.extend(clip(argument));
        text.extend(b"`, ");
    }
    CommandError::Unknown(text)
}

/// An integer as Redis accepts it: no sign but `-`, no leading zeros, no spaces.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.len() > 19 || (digits.first()? == &b'0' && text != b"0") {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, &digit| {
        let digit = char::from(digit).to_digit(10).map(i64::from)?;
        let value = value.checked_mul(10)?;
        if negative {
            value.checked_sub(digit)
        } else {
            value.checked_add(digit)
        }
    })
}

#[cfg(test)]
mod tests;
