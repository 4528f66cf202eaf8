//! Concurrent Redis clients that keep a record of everything they asked and were told.
//!
//! Each has a TCP/IP stack of its own at the network, one connection and one request at a time; concurrency comes from
//! there being several. They read and write a few keys in common, and now and then a key that nobody else writes and that
//! is never written again: at the end all keys are read, so that each of those writes must still be there. A connection is
//! given up only when it breaks or is silent for too long; the answer that was due is then *ambiguous*.

use parking_lot::{Mutex, MutexGuard};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ftvm_demo::client::resp::{Reply, RespError, read_reply, write_command};
use ftvm_demo::client::stack::Stack;
use ftvm_host::net::Dgram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smoltcp::socket::tcp::State;

use super::history::{Kind, Op};

/// Keys that all clients read and write.
const SHARED_KEYS: u32 = 6;
/// Of so many requests, how many read; how many of the others write a key of their own.
const OF: u32 = 16;
const READS: u32 = 7;
const OWN: u32 = 2;
/// How often a thread that waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(10);
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// First local port; each attempt takes the next one.
const FIRST_PORT: u16 = 49_152;

/// Where one client is, and whom it talks to.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its socket, and the network's for it.
    pub local: PathBuf,
    pub remote: PathBuf,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub prefix: u8,
    pub server: (Ipv4Addr, u16),
    /// From one request to the next.
    pub pace: Duration,
    /// A server that is silent for longer is given up.
    pub silence: Duration,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    begun: Instant,
    /// Write no more, read everything, and end.
    finish: AtomicBool,
    /// End at once.
    abandon: AtomicBool,
    /// Keys in use: those in common, then those of one write.
    keys: AtomicU32,
    /// The next key to be read at the end, and how many have been.
    to_read: AtomicU32,
    read: AtomicU32,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    ops: Vec<Op>,
    /// When answers came, of whatever kind, in order.
    answers: Vec<u64>,
    refused: Vec<String>,
    reconnects: u64,
}

/// What the clients have in the end.
#[derive(Debug)]
pub struct Record {
    pub ops: Vec<Op>,
    /// Answers that are none of a key-value server at work.
    pub refused: Vec<String>,
    /// Connections that broke.
    pub reconnects: u64,
    /// Keys that nobody could read at the end.
    pub unread: u32,
}

impl Clients {
    /// Plugs them in and starts them.
    ///
    /// # Errors
    /// A sentence, if a socket or thread cannot be made.
    pub fn start(places: Vec<Place>, seed: u64) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            finish: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            keys: AtomicU32::new(SHARED_KEYS),
            to_read: AtomicU32::new(0),
            read: AtomicU32::new(0),
            seen: Mutex::default(),
        });
        let mut clients = Clients {
            shared,
            threads: Vec::new(),
        };
        for (number, place) in (1u64..).zip(places) {
            let dgram = open(&place.local, &place.remote)?;
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(number);
            let stack = Stack::new(dgram, place.mac, place.ip, place.prefix, random.random());
            let client = Client {
                shared: Arc::clone(&clients.shared),
                place,
                stack,
                random,
                port: FIRST_PORT,
                // Unique among all clients.
                next_value: number << 40,
                unread: Vec::new(),
                reading: None,
            };
            let thread = std::thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || client.run());
            clients
                .threads
                .push(thread.map_err(|e| format!("cannot start a client: {e}"))?);
        }
        Ok(clients)
    }

    /// Answers so far.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.shared.seen().answers.len()
    }

    /// The longest time between answers, any client's, since `from`; up to now if that is longest.
    #[must_use]
    pub fn longest_gap(&self, from: Instant) -> Duration {
        let from = self.shared.ns(from);
        let seen = self.shared.seen();
        let first = seen.answers.partition_point(|at| *at < from).saturating_sub(1);
        let now = self.shared.ns(Instant::now());
        let times = seen.answers[first.min(seen.answers.len())..]
            .iter()
            .copied()
            .chain([now]);
        let gaps = times
            .clone()
            .zip(times.skip(1))
            .map(|(one, next)| next.saturating_sub(one));
        Duration::from_nanos(gaps.max().unwrap_or(0))
    }

    /// Has every key read, for as long as `limit` at most, and ends.
    #[must_use]
    pub fn finish(mut self, limit: Duration) -> Record {
        self.shared.finish.store(true, Ordering::Release);
        let until = Instant::now() + limit;
        while Instant::now() < until && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(LOOK);
        }
        self.shared.abandon.store(true, Ordering::Release);
        self.join()
    }

    /// Ends at once.
    #[must_use]
    pub fn abandon(mut self) -> Record {
        self.shared.abandon.store(true, Ordering::Release);
        self.join()
    }

    fn join(&mut self) -> Record {
        let mut refused = Vec::new();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                refused.push("a client panicked".to_owned());
            }
        }
        let seen = std::mem::take(&mut *self.shared.seen());
        refused.extend(seen.refused);
        let keys = self.shared.keys.load(Ordering::Acquire);
        Record {
            ops: seen.ops,
            refused,
            reconnects: seen.reconnects,
            unread: keys.saturating_sub(self.shared.read.load(Ordering::Acquire)),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn open(local: &Path, remote: &Path) -> Result<Dgram, String> {
    Dgram::open(local, remote).map_err(|e| e.to_string())
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock()
    }

    fn ns(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.begun).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX).max(1)
    }

    fn is_over(&self) -> bool {
        self.abandon.load(Ordering::Acquire)
    }
}

/// One client.
struct Client {
    shared: Arc<Shared>,
    place: Place,
    stack: Stack,
    random: ChaCha8Rng,
    port: u16,
    next_value: u64,
    unread: Vec<u8>,
    /// The key whose last reading is this client's.
    reading: Option<u32>,
}

/// The connection is to be given up, or this client ends.
struct Broken;

impl Client {
    fn run(mut self) {
        while !self.shared.is_over() {
            if self.connect().is_err() {
                continue;
            }
            // Broken or finished.
            if self.converse().is_ok() {
                break;
            }
            self.shared.seen().reconnects += u64::from(!self.shared.is_over());
        }
        self.stack.socket().abort();
        self.stack.turn();
    }

    fn connect(&mut self) -> Result<(), Broken> {
        self.stack.socket().abort();
        self.stack.turn();
        self.unread.clear();
        let until = Instant::now() + self.place.silence;
        while !self.shared.is_over() && Instant::now() < until {
            self.stack.turn();
            match self.stack.socket().state() {
                State::Established => return Ok(()),
                State::Closed => {
                    std::thread::sleep(RETRY);
                    self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
                    self.stack.connect(self.place.server, self.port).map_err(|_| Broken)?;
                }
                _ => {}
            }
            self.stack.wait(LOOK);
        }
        Err(Broken)
    }

    fn converse(&mut self) -> Result<(), Broken> {
        let mut next = Instant::now();
        loop {
            while Instant::now() < next {
                self.stack.turn();
                self.stack
                    .wait(LOOK.min(next.saturating_duration_since(Instant::now())));
            }
            next = Instant::now() + self.place.pace;
            if self.shared.finish.load(Ordering::Acquire) {
                return self.read_back();
            }
            let (key, kind) = self.choose();
            self.ask(key, kind)?;
        }
    }

    /// Reads keys that no other client reads, until all have been read.
    fn read_back(&mut self) -> Result<(), Broken> {
        loop {
            let shared = &self.shared;
            let key = *self
                .reading
                .get_or_insert_with(|| shared.to_read.fetch_add(1, Ordering::AcqRel));
            if key >= shared.keys.load(Ordering::Acquire) {
                return Ok(());
            }
            self.ask(key, Kind::Read(None))?;
            self.reading = None;
            self.shared.read.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn choose(&mut self) -> (u32, Kind) {
        let what = self.random.random_range(0..OF);
        if what < READS {
            return (self.random.random_range(0..SHARED_KEYS), Kind::Read(None));
        }
        let key = match what < READS + OWN {
            true => self.shared.keys.fetch_add(1, Ordering::AcqRel),
            false => self.random.random_range(0..SHARED_KEYS),
        };
        self.next_value += 1;
        (key, Kind::Write(self.next_value))
    }

    /// One request, and its place in the record.
    fn ask(&mut self, key: u32, kind: Kind) -> Result<(), Broken> {
        let name = format!("chaos:{key}");
        let mut request = Vec::new();
        match kind {
            Kind::Write(value) => write_command(&mut request, &["SET", &name, &value.to_string()]),
            Kind::Read(_) => write_command(&mut request, &["GET", &name]),
        }
        let call = self.shared.ns(Instant::now());
        let answer = self.exchange(&request);
        let ret = self.shared.ns(Instant::now());
        let mut op = Op {
            key,
            kind,
            call,
            ret: Some(ret),
        };
        let mut seen = self.shared.seen();
        match (&answer, kind) {
            (Ok(Reply::SimpleString(text)), Kind::Write(_)) if text == b"OK" => {}
            (Ok(Reply::Null), Kind::Read(_)) => op.kind = Kind::Read(None),
            (Ok(Reply::BulkString(value)), Kind::Read(_)) => op.kind = Kind::Read(Some(number(value))),
            (Ok(other), _) => {
                seen.refused.push(format!("{kind:?} of {name}: {other:?}"));
                op.ret = None;
            }
            (Err(Broken), _) => op.ret = None,
        }
        if op.ret.is_some() {
            seen.answers.push(ret);
        }
        seen.ops.push(op);
        answer.map(|_| ())
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Reply, Broken> {
        let until = Instant::now() + self.place.silence;
        let mut unsent = request;
        while !self.shared.is_over() && Instant::now() < until {
            let socket = self.stack.socket();
            if !unsent.is_empty() {
                let sent = socket.send_slice(unsent).map_err(|_| Broken)?;
                unsent = &unsent[sent..];
            }
            self.stack.turn();
            let mut buffer = [0; 2048];
            let len = self.stack.socket().recv_slice(&mut buffer).map_err(|_| Broken)?;
            self.unread.extend_from_slice(&buffer[..len]);
            if let Some((reply, used)) = read_reply(&self.unread).map_err(|error| self.unreadable(&error))? {
                self.unread.drain(..used);
                return Ok(reply);
            }
            self.stack.wait(LOOK);
        }
        Err(Broken)
    }

    /// What is no answer at all is told like a refusal, and ends the connection: the next answer's beginning is unknown.
    fn unreadable(&self, error: &RespError) -> Broken {
        self.shared.seen().refused.push(error.to_string());
        Broken
    }
}

/// The number that a client has written. What is none, nobody has written.
fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
