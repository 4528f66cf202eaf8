//! A client that must not notice the failover: one TCP connection, numbered writes, and a reading of all of them back.
//!
//! It has a stack of its own ([`stack`]) on a port of the demo's hub, so no root and no TAP are needed, and the kernel's
//! timers are not in the way. Every acknowledgement is timed; the longest silence is what a user would have felt. In the
//! end every acknowledged write is read back over the same connection: the output rule says that none may be missing.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use smoltcp::socket::tcp::State;

use ftvm_host::net::{Dgram, NetError};
pub use history::AckHistory;
use stack::Stack;
use workload::{Answer, Workload};
pub use workload::{Gap, Tally};

pub mod resp;
pub mod stack;

mod history;
mod workload;

/// How often the client looks whether it is to finish.
const LOOK: Duration = Duration::from_millis(10);

/// Keys at most: their latest numbers are kept, 8 bytes each.
pub const MAX_KEYS: usize = 1 << 20;

/// First local port; each attempt to connect takes the next one (RFC 6335, dynamic ports).
const FIRST_PORT: u16 = 49_152;

/// Pause between two attempts to connect to a server that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);

/// Where the client is, whom it talks to, and how much.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The client's socket, which it makes: `peer` of its hub port.
    pub local: PathBuf,
    /// The hub's socket of that port.
    pub hub: PathBuf,
    /// The client's Ethernet address.
    pub mac: [u8; 6],
    /// The client's IP address, and how many bits of it name the network; the server must be in it.
    pub ip: Ipv4Addr,
    pub prefix: u8,
    /// The server's IP address and TCP port.
    pub server: (Ipv4Addr, u16),
    /// Keys written in turn, 1 to [`MAX_KEYS`]; with as many as writes, each write is read back.
    pub keys: usize,
    /// Writes without an acknowledgement at one time.
    pub depth: usize,
    /// Time from one write to the next, at least; 0 for as fast as acknowledgements come.
    pub write_every: Duration,
    /// How long connecting may take: the guest may still be booting.
    pub connect_wait: Duration,
    /// How long the server may be silent before the client gives it up.
    pub silence: Duration,
    /// How long reading everything back may take.
    pub verify_wait: Duration,
}

/// How the connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything was read back, on the connection that was opened first.
    Verified,
    /// There was no connection within `connect_wait`.
    NeverConnected,
    /// The server closed or reset the connection, or the stack gave it up.
    ConnectionLost,
    /// The server was silent for longer than `silence`, or reading back took longer than `verify_wait`.
    Silent,
    /// The server's answers are not what a key-value server says.
    Protocol(String),
}

/// What the client saw.
#[derive(Clone, Debug)]
pub struct ClientReport {
    pub ending: Ending,
    pub tally: Tally,
    pub history: AckHistory,
    /// Time 0 of all the client's nanoseconds.
    pub begun: Instant,
}

impl ClientReport {
    /// Whether the one connection lived to the end.
    #[must_use]
    pub fn connection_survived(&self) -> bool {
        self.ending == Ending::Verified
    }

    /// The longest time between two acknowledgements, in milliseconds.
    #[must_use]
    pub fn client_gap_ms(&self) -> u64 {
        self.tally.longest_gap.len_ns() / 1_000_000
    }
}

/// What the client has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The connection is open.
    pub connected: bool,
    pub acked_writes: u64,
    pub longest_gap: Gap,
    /// How long ago the latest acknowledgement was, in nanoseconds.
    pub since_last_ack_ns: Option<u64>,
    /// The thread has ended; [`Client::finish`] says how.
    pub ended: bool,
}

/// Why a client cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("client: {0}")]
    Cable(#[from] NetError),
    #[error("client: {0} keys; 1 to {MAX_KEYS} are possible")]
    Keys(usize),
    #[error("client: {0} bits for the network; 1 to 32 are possible")]
    Prefix(u8),
    #[error("client: cannot start its thread: {0}")]
    Thread(std::io::Error),
    #[error("client: its thread panicked")]
    Panicked,
}

/// A running client. Dropping it ends it without reading back.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    begun: Instant,
    thread: Option<JoinHandle<ClientReport>>,
}

#[derive(Debug, Default)]
struct Shared {
    finish: AtomicBool,
    abandon: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    progress: Progress,
    history: AckHistory,
}

impl Client {
    /// Plugs the client in and starts it: it connects and writes until it is to finish.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn start(config: ClientConfig) -> Result<Client, ClientError> {
        if !(1..=MAX_KEYS).contains(&config.keys) {
            return Err(ClientError::Keys(config.keys));
        }
        if !(1..=32).contains(&config.prefix) {
            return Err(ClientError::Prefix(config.prefix));
        }
        let dgram = Dgram::open(&config.local, &config.hub)?;
        let shared = Arc::new(Shared::default());
        let begun = Instant::now();
        let run = {
            let shared = Arc::clone(&shared);
            move || Run::new(config, dgram, begun, shared).run()
        };
        let thread = std::thread::Builder::new()
            .name("client".into())
            .spawn(run)
            .map_err(ClientError::Thread)?;
        Ok(Client {
            shared,
            begun,
            thread: Some(thread),
        })
    }

    /// Time 0 of the client's nanoseconds.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// What it has seen so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let mut progress = self.shared.seen().progress.clone();
        progress.ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        progress
    }

    /// Acknowledgements so far; see [`AckHistory::columns`].
    #[must_use]
    pub fn history(&self) -> AckHistory {
        self.shared.seen().history.clone()
    }

    /// Stops writing, reads everything back, and says what was seen. Bounded by the configuration's waits.
    ///
    /// # Errors
    /// [`ClientError::Panicked`].
    pub fn finish(mut self) -> Result<ClientReport, ClientError> {
        self.shared.finish.store(true, Ordering::Release);
        let thread = self.thread.take().ok_or(ClientError::Panicked)?;
        thread.join().map_err(|_| ClientError::Panicked)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the client panicked");
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock()
    }
}

/// The client's thread.
struct Run {
    config: ClientConfig,
    stack: Stack,
    workload: Workload,
    shared: Arc<Shared>,
    begun: Instant,
    next_write: Instant,
    /// Requests that the socket has not taken yet.
    unsent: Vec<u8>,
    /// Bytes of answers that are not complete yet.
    unread: Vec<u8>,
}

impl Run {
    fn new(config: ClientConfig, dgram: Dgram, begun: Instant, shared: Arc<Shared>) -> Run {
        let stack = Stack::new(dgram, config.mac, config.ip, config.prefix, rand::random());
        let workload = Workload::new(config.keys, config.depth);
        Run {
            config,
            stack,
            workload,
            shared,
            begun,
            next_write: begun,
            unsent: Vec::new(),
            unread: Vec::new(),
        }
    }

    fn run(mut self) -> ClientReport {
        let ending = match self.connect() {
            Ok(()) => self.converse(),
            Err(ending) => Err(ending),
        };
        let ending = ending.err().unwrap_or(Ending::Verified);
        self.stack.socket().abort();
        self.stack.turn();
        ClientReport {
            ending,
            tally: self.workload.finish(),
            history: std::mem::take(&mut self.shared.seen().history),
            begun: self.begun,
        }
    }

    /// Connects, trying again while the server refuses.
    fn connect(&mut self) -> Result<(), Ending> {
        let deadline = Instant::now() + self.config.connect_wait;
        let mut port = FIRST_PORT;
        loop {
            self.stack.turn();
            match self.stack.socket().state() {
                State::Established => return Ok(()),
                State::Closed => {
                    std::thread::sleep(RETRY);
                    port = port.checked_add(1).unwrap_or(FIRST_PORT);
                    if self.stack.connect(self.config.server, port).is_err() {
                        return Err(Ending::NeverConnected);
                    }
                    self.stack.turn();
                }
                _ => {}
            }
            if Instant::now() >= deadline || self.is_abandoned() {
                return Err(Ending::NeverConnected);
            }
            self.stack.wait(LOOK);
        }
    }

    /// Writes until told to finish, then reads everything back.
    fn converse(&mut self) -> Result<(), Ending> {
        let mut heard = Instant::now();
        let mut verify_until = None;
        loop {
            self.stack.turn();
            if self.receive()? {
                heard = Instant::now();
            }
            let mut done = false;
            if self.shared.finish.load(Ordering::Acquire) {
                let until = *verify_until.get_or_insert_with(|| Instant::now() + self.config.verify_wait);
                if Instant::now() >= until {
                    return Err(Ending::Silent);
                }
                done = self.read_back();
            } else {
                self.write();
            }
            self.send()?;
            self.show();
            if done {
                return Ok(());
            }
            // Without anything unanswered there is nothing to be silent about.
            if self.workload.waiting() == 0 {
                heard = Instant::now();
            }
            if heard.elapsed() > self.config.silence || self.is_abandoned() {
                return Err(Ending::Silent);
            }
            self.wait();
        }
    }

    fn write(&mut self) {
        let every = self.config.write_every;
        let now = Instant::now();
        while self.workload.has_room() && now >= self.next_write {
            self.workload.write(&mut self.unsent);
            // After a silence it goes on at its pace, and does not make up for what it has missed.
            self.next_write = if self.next_write + every < now {
                now
            } else {
                self.next_write + every
            };
        }
    }

    /// Asks for the next keys; whether all have been answered.
    fn read_back(&mut self) -> bool {
        while self.workload.has_room() && self.workload.read_back(&mut self.unsent) {}
        self.workload.waiting() == 0
    }

    fn send(&mut self) -> Result<(), Ending> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let sent = self
            .stack
            .socket()
            .send_slice(&self.unsent)
            .map_err(|_| Ending::ConnectionLost)?;
        self.unsent.drain(..sent);
        self.stack.turn();
        Ok(())
    }

    /// Takes the answers that have come; whether there were any.
    fn receive(&mut self) -> Result<bool, Ending> {
        let mut buffer = [0; 4096];
        loop {
            match self.stack.socket().recv_slice(&mut buffer) {
                Ok(0) => break,
                Ok(len) => self.unread.extend_from_slice(&buffer[..len]),
                Err(_) => return Err(Ending::ConnectionLost),
            }
        }
        let now_ns = self.now_ns();
        let mut used = 0;
        while let Some((reply, len)) =
            resp::read_reply(&self.unread[used..]).map_err(|error| Ending::Protocol(error.to_string()))?
        {
            used += len;
            let answer = self.workload.answer(&reply, now_ns);
            if answer.map_err(|error| Ending::Protocol(error.to_string()))? == Answer::Acknowledgement {
                self.shared.seen().history.add(now_ns);
            }
        }
        self.unread.drain(..used);
        Ok(used > 0)
    }

    fn wait(&mut self) {
        let until_write = match self.workload.has_room() {
            true => self.next_write.saturating_duration_since(Instant::now()),
            false => LOOK,
        };
        self.stack.wait(until_write.min(LOOK));
    }

    fn show(&self) {
        self.shared.seen().progress = Progress {
            connected: true,
            acked_writes: self.workload.tally.acked_writes,
            longest_gap: self.workload.tally.longest_gap,
            since_last_ack_ns: self.workload.since_last_ack(self.now_ns()),
            ended: false,
        };
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_abandoned(&self) -> bool {
        self.shared.abandon.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
